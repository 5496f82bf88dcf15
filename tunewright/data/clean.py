"""A dirty file and a recipe -> a Cleaning: what each row became, and which step did it. Nothing is written here.

Two phases. The edits run over each text, one after the other, until none changes it any more; then rows are dropped, until
no step drops another. Where an edit goes by what the whole file holds, both run again over what is left, until nothing changes. So cleaning
what is clean changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

from tunewright.data import mend
from tunewright.data.drop import Judged, drops
from tunewright.data.formats import Format
from tunewright.data.jsonl import faults_inside
from tunewright.data.recipe import Drop, Edit, Encoding, Fill, Html, Mask, Recipe, Spelling, Unicode, Whitespace
from tunewright.data.rows import Fields, RawRow, edited, encoded, examples, is_whole, read_rows, read_windows
from tunewright.data.spelling import Speller
from tunewright.errors import BadData, Fault

_ROUNDS = 50
_EXAMPLES = 3
_MIXED = "mixed_formats"


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to the row on `line`: `steps` edited it, or the last of them dropped it for `reason`.

    `before` and `after`: its record, None where there is none (a line that could not be read, a row that was dropped).
    """

    line: int
    steps: tuple[str, ...]
    before: Fields | None
    after: Fields | None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {"line": self.line, "steps": list(self.steps), "reason": self.reason, "before": self.before, "after": self.after}


@dataclass(slots=True)
class Counted:
    """What a step did: the lines that it edited, and those that it dropped by reason."""

    step: str
    edited: list[int] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cleaning:
    """Rows in = rows out + rows dropped. `rows`: what is left, in the file's order. `changes`: by line."""

    path: Path
    recipe: Recipe
    rows_in: int
    rows: list[RawRow]
    counts: list[Counted]
    changes: list[Change]

    @property
    def dropped(self) -> dict[str, int]:
        """Rows by the reason for which they are gone."""
        return dict(Counter(change.reason for change in self.changes if change.reason).most_common())

    def to_dict(self) -> dict[str, Any]:
        """The ledger: JSON values only, with the first few lines of each step as its examples."""
        by_line = {change.line: change for change in self.changes}
        return {
            "rows_in": self.rows_in,
            "rows_out": len(self.rows),
            "rows_dropped": self.rows_in - len(self.rows),
            "rows_edited": sum(change.reason is None for change in self.changes),
            "dropped": self.dropped,
            "steps": [
                {
                    "step": one.step,
                    "edited": len(one.edited),
                    "dropped": {reason: len(lines) for reason, lines in one.dropped.items()},
                    "examples": [by_line[line].to_dict() for line in islice(chain(one.edited, *one.dropped.values()), _EXAMPLES)],
                }
                for one in self.counts
            ],
        }


def clean(path: Path, recipe: Recipe, as_format: Format | None = None) -> Cleaning:
    """Run a recipe over one file. Raises BadData where the file cannot be read, or holds rows that could be neither kept nor dropped."""
    before = read_rows(path, as_format)
    wholes = [is_whole(row) for row in before]
    counts: dict[str, Counted] = {step.step: Counted(step.step) for step in recipe.steps}
    edit, drop = ([step for step in recipe.steps if isinstance(step, get_args(kind))] for kind in (Edit, Drop))
    after, places, reasons = list(before), list(range(len(before))), dict[int, tuple[str, str]]()
    settled = False
    while not settled:
        now = _edited([after[at] for at in places], edit, counts)
        stay, gone = _left(now, drop, counts, as_format)
        changed = bool(gone) or any(after[at] is not new for at, new in zip(places, now, strict=True))
        settled = not (changed and any(isinstance(step, Spelling) for step in edit))
        for at, new in zip(places, now, strict=True):
            after[at] = new
        reasons |= {places[i]: why for i, why in gone.items()}
        places = [places[i] for i in stay]
    for one in counts.values():
        one.edited = sorted(set(one.edited))
    if lost := [fault for at in places for fault in after[at].faults if after[at].raw is None and not after[at].fields]:
        raise BadData(str(path), lost)
    steps_of: dict[int, list[str]] = {}
    for one in counts.values():
        for line in one.edited:
            steps_of.setdefault(line, []).append(one.step)
    changes = []
    for at, (old, new, whole) in enumerate(zip(before, after, wholes, strict=True)):
        if at in reasons or old.line in steps_of:
            step, reason = reasons.get(at, (None, None))
            steps = (*steps_of.get(old.line, ()), *([step] if step else ()))
            changes.append(Change(old.line, steps, old.fields if whole else None, None if reason else new.fields, reason))
    kept = [after[at] for at in places]
    assert len(before) == len(kept) + len(reasons)
    return Cleaning(Path(path), recipe, len(before), kept, list(counts.values()), changes)


def _edited(rows: Sequence[RawRow], edits: Sequence[Edit], counts: dict[str, Counted]) -> list[RawRow]:
    """The rows after all edits. One that nothing changed is the same object, with its bytes, and so is one that was not read whole."""
    masks = mend.Masks(rows) if any(isinstance(step, Mask) for step in edits) else None
    speller = next((Speller(rows, step) for step in edits if isinstance(step, Spelling)), None)
    found = []
    for row in rows:
        now, by = row, dict.fromkeys((step.step for step in edits), False)
        if "encoding" in by and (read := read_windows(row)):
            now, by["encoding"] = read, True
        fields = now.fields
        for _ in range(_ROUNDS if is_whole(now) else 0):
            before = fields
            for step in edits:
                new = _apply(fields, step, masks, speller)
                by[step.step] |= new != fields
                fields = new
            if fields == before:
                break
        if now is not row or fields != row.fields:
            for name in (name for name, did in by.items() if did):
                counts[name].edited.append(row.line)
            now = RawRow(row.line, fields, encoded(fields), [Fault(row.line, *fault) for fault in faults_inside(fields)])
        found.append(now)
    return found


def _apply(fields: Fields, step: Edit, masks: mend.Masks | None, speller: Speller | None) -> Fields:
    match step:
        case Encoding():
            return edited(fields, partial(mend.encoding, step=step))
        case Unicode():
            return edited(fields, partial(mend.unicode, step=step))
        case Html():
            return edited(fields, partial(mend.strip_html, step=step))
        case Whitespace():
            return edited(fields, partial(mend.whitespace, step=step))
        case Spelling():
            assert speller is not None
            return edited(fields, speller.correct)
        case Mask():
            assert masks is not None
            return edited(fields, partial(masks.mask, step=step), everywhere=True)
        case Fill():
            return mend.fill(fields, step)


def _left(
    rows: Sequence[RawRow], steps: Sequence[Drop], counts: dict[str, Counted], as_format: Format | None
) -> tuple[list[int], dict[int, tuple[str, str]]]:
    """The places of the rows that stay, and step and reason of those that go."""
    places, reasons = list(range(len(rows))), dict[int, tuple[str, str]]()
    judged = {at: Judged(row, example) for at, (row, example) in enumerate(zip(rows, examples(rows, as_format), strict=True))}
    quiet, turn = 0, 0
    while quiet < len(steps):
        step = steps[turn % len(steps)]
        gone = drops([judged[at] for at in places], step)
        for i, reason in gone.items():
            reasons[places[i]] = step.step, reason
            counts[step.step].dropped.setdefault(reason, []).append(rows[places[i]].line)
        places = [at for i, at in enumerate(places) if i not in gone]
        if gone and any(fault.code == _MIXED for at in places for fault in rows[at].faults):
            # The first row decides what a file's rows are, and it may be gone.
            for at in places:
                rows[at].faults = [fault for fault in rows[at].faults if fault.code != _MIXED]
            sound = [at for at in places if not rows[at].faults]
            judged |= {at: Judged(rows[at], example) for at, example in zip(sound, examples([rows[at] for at in sound], as_format), strict=True)}
        quiet, turn = 0 if gone else quiet + 1, turn + 1
    return places, reasons
