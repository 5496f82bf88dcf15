"""A data file -> Report: `check` reads it once, row by row, and keeps no row, so that its size does not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tunewright.data.content import look, near_duplicates, near_validation, own_text
from tunewright.data.findings import Faults, Notes
from tunewright.data.formats import MIN_EXAMPLES, Format, Reading, Tally, stream
from tunewright.data.near import LIKELY, Near, candidates
from tunewright.data.profile import Profile, Reader, faults
from tunewright.data.repeats import Keys, repeated, repeats, shared
from tunewright.data.report import Report, render
from tunewright.data.traits import HALF_ALIKE, Traits, families
from tunewright.errors import Fault

__all__ = ["Report", "check", "render", "summary"]

_LISTED = 2000
"""Faults of one code that are listed one by one; the rest are counted."""
_EVERY = 2000

Told = Callable[[int, int, int], None]
"""Is told, now and then, how many rows and bytes have been read, and of how many bytes."""


@dataclass(slots=True)
class _Gathered:
    """What one file's rows left behind."""

    path: Path
    tally: Tally
    notes: Notes = field(default_factory=Notes)
    keys: Keys = field(default_factory=Keys)
    near: Near = field(default_factory=Near)
    traits: Traits = field(default_factory=Traits)
    profile: Profile | None = None
    errors: frozenset[str] = frozenset()


def check(
    path: Path,
    validation: Path | None = None,
    minimum: int = MIN_EXAMPLES,
    as_format: Format | None = None,
    reader: Reader | None = None,
    told: Told | None = None,
) -> Report:
    """Check a training file and, if given, the validation file beside it. Whatever they hold, this raises nothing.

    `reader`: count tokens too, as this model reads them.
    """
    mine = _gather(Path(path), minimum, as_format, reader, told)
    if validation is None:
        return _report(mine, ())
    other = _gather(Path(validation), 1, as_format, reader, told)
    between = [*shared(mine.keys, other.keys), *near_validation(mine.near, other.near)]
    report = _report(mine, between)
    return replace(report, validation=_report(other, _differing_formats(mine.tally, other.tally)))


def summary(reading: Reading) -> Report:
    """The report on what was read, without what compares rows."""
    traits = Traits()
    for example in reading.examples:
        traits.add(example)
    return _plain(reading.path, reading.format, reading.rows, len(reading.examples), traits, reading.faults)


def _gather(path: Path, minimum: int, as_format: Format | None, reader: Reader | None, told: Told | None) -> _Gathered:
    found = _Gathered(path, Tally(Faults(_LISTED)))
    examples = stream(path, found.tally, minimum, as_format)
    if reader:
        found.profile, found.errors = Profile(reader), reader.errors
        examples = found.profile.watch(examples)
    for count, example in enumerate(examples, 1):
        found.traits.add(example)
        found.keys.add(example)
        look(example, found.notes)
        found.near.add(own_text(example), example.line)
        if told and count % _EVERY == 0:
            told(found.tally.rows, found.tally.place.bytes, found.tally.place.total)
    return found


def _report(found: _Gathered, more: Iterable[Fault]) -> Report:
    tally, equal = found.tally, repeated(found.keys)
    pairs, agree = candidates(found.near, None, HALF_ALIKE)
    tokens = found.profile.tokens() if found.profile else None
    tally.faults.add(repeats(equal))
    tally.faults.add(near_duplicates(found.near, pairs[agree >= LIKELY]))
    tally.faults.add(found.notes.faults())
    tally.faults.add(faults(tokens, found.errors) if tokens else ())
    tally.faults.add(more)
    report = _plain(found.path, tally.format, tally.rows, tally.sound, found.traits, tally.faults.listed)
    return replace(
        report,
        unlisted=dict(tally.faults.unlisted),
        lost=dict(tally.lost),
        lengths=found.traits.lengths.spread(),
        answers=found.traits.answers.often(),
        openings=found.traits.openings.often(),
        languages=found.traits.languages(),
        families=families(found.near, pairs),
        copies=equal.most,
        tokens=tokens,
        first=tuple(found.near.lines[:2]),
    )


def _plain(path: Path, format: Format | None, rows: int, sound: int, traits: Traits, faults: list[Fault]) -> Report:
    return Report(
        path=path,
        format=format,
        rows=rows,
        sound=sound,
        faults=tuple(sorted(faults, key=lambda fault: fault.line)),
        turns=dict(traits.turns),
        labels=dict(traits.labels.counts.most_common()),
        trained_characters=traits.trained_characters,
    )


def _differing_formats(training: Tally, validation: Tally) -> Iterator[Fault]:
    if training.format and validation.format and training.format != validation.format:
        message = f"The validation file holds {validation.format} rows, the training file {training.format} rows"
        yield Fault(0, "formats_differ", message, "Write both files in one format")
