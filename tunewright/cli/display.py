"""How numbers and other people's texts look wherever the command line shows them."""

from __future__ import annotations

import math
import textwrap
import unicodedata

SHARES = ("exact_match", "accuracy", "macro_f1", "f1", "token_accuracy", "json_valid")
KEPT = "\n\t\u200c\u200d"  # the last two join letters and emoji


def number(metric: str, value: float, sign: bool = False) -> str:
    """A metric's value: shares in percent, losses with three digits, perplexities with two; what is large, with as many as say something."""
    if not math.isfinite(value):
        return "-"
    if metric in SHARES or metric.startswith("field_"):
        return f"{value * 100:+.1f}" if sign else f"{value * 100:.1f} %"
    if abs(value) >= 999_999.5:
        return f"{value:+.2e}" if sign else f"{value:.2e}"
    digits = 0 if abs(value) >= 999.995 else 3 if metric == "loss" else 2
    return f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"


def printable(text: str) -> str:
    """Without the control and direction characters by which a text could command or deceive the terminal."""
    return "".join(c for c in text if c in KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def hanging(text: str, indent: int, width: int) -> str:
    """Text whose lines each begin with a word in a column of its own: what is too long for `width` goes on beside that column, under itself."""
    fold = textwrap.TextWrapper(width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(fold.fill(line) for line in text.split("\n"))
