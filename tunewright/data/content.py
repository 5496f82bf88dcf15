"""Examples -> warnings about what their texts hold: near duplicates, personal data and secrets, broken characters, left-over mark-up."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunewright.data.example import Chat, Completion, Example, Labelled, Pair
from tunewright.data.findings import Notes
from tunewright.data.near import Near, Pairs, verified
from tunewright.data.personal import KINDS, find
from tunewright.errors import Fault

# UTF-8 read as Windows-1252 or Latin-1, and the character that stands for one that could not be read.
_MOJIBAKE = re.compile("[\u00c3\u00c2][\u0080-\u00bf]|\u00e2\u20ac[\u2122\u0153\u009d\u201c\u201d\u00a6\u02dc]|\u00ef\u00bf\u00bd|\ufffd")
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|ul|ol|li|table|t[dhr]|strong|em|script|style|img|h[1-6])(?:\s[^<>]{0,500})?/?>|&(?:amp|nbsp|quot|lt|gt|apos|#\d{2,5});"
)
# Characters that are not seen: they split words for a tokenizer, or make a text read otherwise than it is stored.
_ODD = {
    "control characters": re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "characters that turn the direction of reading": re.compile("[\u202a-\u202e\u2066-\u2069]"),
    "invisible characters": re.compile("[\u200b\u2060\ufeff\u00ad]"),
    "private-use characters": re.compile("[\ue000-\uf8ff]"),
}
_PLAIN = bytes({9, 10, 13, *range(32, 127)})


def texts(example: Example) -> list[str]:
    """Every text of a row that may be learnt or read, system prompts included."""
    match example:
        case Chat():
            return [message.content for message in example.messages if message.content]
        case Completion():
            return [example.prompt, example.completion]
        case Labelled():
            return [example.text] if example.pair is None else [example.text, example.pair]
        case Pair():
            return list(dict.fromkeys([*texts(example.chosen), *texts(example.rejected)]))


def own_text(example: Example) -> str:
    """The text by which rows are compared: all of it but the system prompt, which is the same in every row."""
    if isinstance(example, Chat):
        return "\n".join(message.content for message in example.messages if message.role not in ("system", "developer"))
    return own_text(example.chosen) if isinstance(example, Pair) else "\n".join(texts(example))


def look(example: Example, notes: Notes) -> None:
    """Note each kind of thing that the texts of a row hold and that is perhaps not to be learnt."""
    text, line = "\n".join(texts(example)), example.line
    for hit in find(text):
        notes.add(
            line,
            f"holds_{hit.kind}",
            f"A text holds {KINDS[hit.kind]}",
            "Mask it (tunewright clean --step mask), unless it is public and meant to be learnt",
        )
    if not text.isascii() and _MOJIBAKE.search(text):
        notes.add(
            line,
            "mojibake",
            "A text holds characters that were read in a wrong encoding",
            "Export it again as UTF-8, or repair it: tunewright clean --step encoding",
        )
    if text.encode("utf-8", "surrogatepass").translate(None, _PLAIN):
        for kind, odd in _ODD.items():
            if odd.search(text):
                notes.add(line, "odd_character", f"A text holds {kind}", "Remove them, unless they are meant: `clean` normalises Unicode")
    if ("<" in text or "&" in text) and _HTML.search(text):
        notes.add(
            line, "html_left", "A text holds HTML mark-up or entities", "Strip it (tunewright clean --step html), unless the model is to write it"
        )


def near_duplicates(held: Near, pairs: Pairs) -> Iterator[Fault]:
    """Warn of rows that nearly repeat an earlier one. Equal rows are another warning; a shared passage is none."""
    found = [(i, j) for i, j, begins in verified(held, None, pairs) if not begins and held.text(i) != held.text(j)]
    if found:
        (i, j), count = found[0], len(found)
        message = (
            f"{count:,} row{'s nearly repeat' if count > 1 else ' nearly repeats'} an earlier one: line {held.lines[i]} is like line {held.lines[j]}"
        )
        yield Fault(
            held.lines[i],
            "near_duplicate",
            message,
            "Keep one of them (tunewright clean --step near_duplicates), unless they are meant to weigh more",
            warning=True,
        )


def near_validation(held: Near, there: Near) -> Iterator[Fault]:
    """Warn of training rows that are nearly one of the validation file's, or share a long beginning with one."""
    found = [(i, j, begins) for i, j, begins in verified(held, there) if held.text(i) != there.text(j)]
    for code, wanted, how in (
        ("near_in_validation", False, "are nearly in"),
        ("passage_in_validation_too", True, "share a long beginning with a row of"),
    ):
        if hits := [(i, j) for i, j, begins in found if begins is wanted]:
            (i, j), count = hits[0], len(hits)
            message = (
                f"{count:,} training row{'s' if count > 1 else ''} {how} the validation file: line {held.lines[i]} and its line {there.lines[j]}"
            )
            yield Fault(held.lines[i], code, message, "Keep such rows on one side, as tunewright split does", warning=True)
