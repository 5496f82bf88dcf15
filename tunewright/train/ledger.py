"""Rows in = rows trained + rows lost, by named reasons: `reading` and `ledger` say it before a run's first step, and refuse where too many are lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tunewright.data.formats import MIN_EXAMPLES, Reading, read
from tunewright.data.tokens import TextRow, Tokenized
from tunewright.errors import BadData, Fault
from tunewright.event import Event

_CUT = "nothing_to_learn_after_cut"


def reading(path: Path, allowed: float, minimum: int = MIN_EXAMPLES) -> Reading:
    """What a file holds. Raises BadData with every error where the file as a whole, or more than the `allowed` share of its rows, cannot be used."""
    found = read(path, minimum)
    lost = found.rows - len(found.examples)
    if any(fault.line == 0 for fault in found.errors) or lost > allowed * found.rows or (found.errors and not found.examples):
        raise BadData(str(path), found.errors)
    return found


def ledger(kind: str, found: Reading, result: Tokenized, limit: int, allowed: float, limit_chosen: bool) -> Iterator[Event]:
    """The events that say what of a file is trained. `limit_chosen`: the cut is the user's, so rows that it empties are no loss.

    Raises BadData when no row is left, or more than the `allowed` share is lost to reasons that nobody chose.
    """
    lines = {**_lost(found), **result.dropped}
    if not result.rows:
        raise BadData(str(found.path), [_hopeless(reason, places, limit) for reason, places in lines.items()])
    unwanted = {reason: places for reason, places in lines.items() if not (limit_chosen and reason == _CUT)}
    if (count := sum(map(len, unwanted.values()))) > allowed * found.rows:
        raise BadData(str(found.path), [_too_many(reason, places, count, found.rows, allowed, limit) for reason, places in unwanted.items()])
    data = {
        "rows": found.rows,
        "kept": len(result.rows),
        "dropped": {reason: len(places) for reason, places in lines.items()},
        "dropped_lines": {reason: places[:20] for reason, places in lines.items()},
        "cut": len(result.cut),
        "cut_lines": result.cut[:20],
        "tokens": result.tokens,
        "trained_tokens": result.trained_tokens,
        "max_tokens": limit,
    }
    labels = {row.label for row in result.rows if isinstance(row, TextRow)}
    learnt = f"{len(labels):,} labels" if labels else f"{result.trained_tokens:,} of them learnt"
    text = f"{kind.capitalize()} data: {len(result.rows):,} of {found.rows:,} rows, {result.tokens:,} tokens, {learnt}"
    yield Event(0, text, {"file": str(found.path), **data})
    for reason, places in lines.items():
        yield Event(
            0, f"{len(places):,} {kind} rows dropped: {reason} (first at line {places[0]})", {"reason": reason, "lines": places[:100]}, "warn"
        )
    if result.cut:
        first = f"first at line {result.cut[0]}"
        yield Event(0, f"{len(result.cut):,} {kind} rows cut at the end to {limit:,} tokens ({first})", {"lines": result.cut[:100]}, "warn")
    if result.unended:
        text = f"In {len(result.unended):,} {kind} rows the end of the answer is not learnt, so the model may not stop"
        yield Event(0, f"{text} (first at line {result.unended[0]})", {"lines": result.unended[:100]}, "warn")


def _lost(found: Reading) -> dict[str, list[int]]:
    """The lines of rows that could not be read, each once, by its first error."""
    lost: dict[str, list[int]] = {}
    seen: set[int] = set()
    for fault in found.errors:
        if fault.line not in seen:
            seen.add(fault.line)
            lost.setdefault(fault.code, []).append(fault.line)
    return lost


def _hopeless(reason: str, lines: Sequence[int], limit: int) -> Fault:
    return Fault(lines[0], reason, f"no row is left to learn from; {len(lines):,} were dropped as {reason}", _mend(reason, limit))


def _too_many(reason: str, lines: Sequence[int], count: int, rows: int, allowed: float, limit: int) -> Fault:
    message = f"{len(lines):,} row{'s' * (len(lines) > 1)} would be lost as {reason}; {count:,} of {rows:,} are lost in all, and max_lost allows {allowed:.2%}"
    return Fault(lines[0], reason, message, f"{_mend(reason, limit)}, or set max_lost above {count / rows:.4f}")


def _mend(reason: str, limit: int) -> str:
    return f"Raise max_tokens above {limit:,} or shorten the rows" if reason.endswith("after_cut") else "Mend these rows or choose another model"
