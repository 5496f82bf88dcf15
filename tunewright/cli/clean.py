"""`tunewright clean`: what a recipe does to a file, the difference row by row, and the way back."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunewright.cli.display import printable
from tunewright.errors import BadConfig

if TYPE_CHECKING:
    from tunewright.data.clean import Change, Cleaning
    from tunewright.data.formats import Format

_SHOWN = 50
_WIDTH = 160


def clean(
    file: Path, out: Path | None, recipe: Path | None, steps: Sequence[str], diff: bool, undo: bool, as_format: Format | None, as_json: bool
) -> None:
    """Clean, show, or go back. Raises BadConfig, BadData."""
    from tunewright.data import clean_folder
    from tunewright.data.clean import clean
    from tunewright.data.recipe import Recipe

    console = Console(stderr=as_json)
    if undo:
        _must_go_together(
            recipe is None and not steps and not diff and out is not None, "--undo goes with --out alone: clean CLEANED --undo --out FILE"
        )
        assert out is not None
        size = clean_folder.undo(file, out)
        print(json.dumps({"out": str(out), "bytes": size}) if as_json else f"{out}: {size:,} bytes, as they were before the cleaning")
        return
    if recipe is None and not steps:
        _must_go_together(diff and out is None, "Name what to do, with --step NAME or --recipe FILE; `clean CLEANED --diff` shows what was done")
        _show(clean_folder.read_changes(file), console, as_json)
        return
    _must_go_together(recipe is None or not steps, "Give --recipe or --step, not both")
    _must_go_together(out is not None or diff, "Name the file to write with --out; with --diff alone nothing is written, only shown")
    with console.status(f"cleaning {file}"):
        cleaning = clean(file, Recipe.read(recipe) if recipe else Recipe.named(steps), as_format)
        folder = clean_folder.write(cleaning, out) if out else None
    if diff:
        _show(cleaning.changes, console, as_json)
    if as_json:
        print(json.dumps({"out": out and str(out), "record": folder and str(folder), **cleaning.to_dict()}))
        return
    console.print(_ledger(cleaning))
    edited = sum(change.reason is None for change in cleaning.changes)
    console.print(
        f"{cleaning.rows_in:,} rows in = {len(cleaning.rows):,} out + {cleaning.rows_in - len(cleaning.rows):,} dropped; {edited:,} of those out {'was' if edited == 1 else 'were'} edited",
        highlight=False,
    )
    if out:
        console.print(f"{out} is written. Back again:  tunewright clean {out} --undo --out FILE", highlight=False, markup=False, soft_wrap=True)


def _must_go_together(right: bool, sentence: str) -> None:
    if not right:
        raise BadConfig(sentence, code="options_clash")


def _ledger(cleaning: Cleaning) -> Table:
    table = Table("step", "edited", "dropped", "first lines", box=SIMPLE_HEAD)
    for one in cleaning.counts:
        reasons = ", ".join(f"{reason} {len(lines):,}" for reason, lines in one.dropped.items())
        lines = sorted({*one.edited[:3], *(line for group in one.dropped.values() for line in group[:3])})
        table.add_row(one.step, f"{len(one.edited):,}" if one.edited else "", reasons, ", ".join(map(str, lines[:5])))
    return table


def _show(changes: Iterable[Change], console: Console, as_json: bool) -> None:
    """Every change as JSON, or the first ones for the eye."""
    rest = iter(changes)
    if as_json:
        for change in rest:
            print(json.dumps(change.to_dict()))
        return
    for change in islice(rest, _SHOWN):
        dropped = f"  dropped: {change.reason}" if change.reason else ""
        console.print(f"line {change.line}  {', '.join(change.steps)}{dropped}", style="bold", highlight=False, markup=False)
        if change.after is None:
            console.print(Text("- " + _short(json.dumps(change.before, ensure_ascii=False) if change.before else "(not readable)"), style="red"))
        else:
            if change.before is None:
                console.print(Text("- (not readable)", style="red"))
            for place, before, after in _differing(change.before or {}, change.after):
                console.print(*_both(place, before, after), sep="\n")
    if more := sum(1 for _ in rest):
        console.print(f"… and {more:,} more changes; all of them: --diff --json, or changes.jsonl in the folder beside the cleaned file", style="dim")


def _differing(before: Any, after: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    """The texts that differ, each with its place in the clean_folder."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _differing(before.get(key), after.get(key), f"{place}.{key}" if place else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for at, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _differing(one, other, f"{place}[{at}]")
    elif before != after:
        one, other = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in (before, after))
        yield place, one, other


def _both(place: str, before: str, after: str) -> tuple[Text, Text]:
    """Both texts, what differs marked, and only what is near a difference."""
    old, new = re.findall(r"\s+|\w+|[^\w\s]", before), re.findall(r"\s+|\w+|[^\w\s]", after)
    minus, plus = Text(f"- {place}: ", style="red"), Text(f"+ {place}: ", style="green")
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            same = "".join(old[i:j])
            kept = same if len(same) <= 60 else f"{same[:25]} … {same[-25:]}"
            minus.append(_visible(kept, False))
            plus.append(_visible(kept, False))
        else:
            minus.append(_visible("".join(old[i:j]), True), style="reverse")
            plus.append(_visible("".join(new[k:m]), True), style="reverse")
    minus.truncate(_WIDTH * 4, overflow="ellipsis")
    plus.truncate(_WIDTH * 4, overflow="ellipsis")
    return minus, plus


def _visible(text: str, differs: bool) -> str:
    """Line ends as a sign; where texts differ also the characters that cannot be seen."""
    text = text.replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")
    return "".join(c if printable(c) and (c == " " or not c.isspace()) else f"\\u{ord(c):04x}" for c in text) if differs else printable(text)


def _short(text: str) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
