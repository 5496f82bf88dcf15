"""Rows -> which of them are equal, answer one input differently, or stand in the validation file too: `Keys` and what compares them.

A row is kept as two hashes of 64 bits and its line, on disk where there are many, so that millions take no memory to speak of.
Two different rows among 50 million share a hash with a probability below one in ten thousand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from numpy.typing import NDArray

from tunewright.data.example import Example, input_and_answer
from tunewright.errors import Fault

_KEY = np.dtype([("given", "<u8"), ("whole", "<u8"), ("line", "<u8")])
_CHUNK = 1 << 18
_PART = 2_000_000
"""Rows that are compared at once; more are taken part by part, those of one input in one part."""
_EXAMPLES = 5

Records = NDArray[np.void]


class Keys:
    """What rows are compared by. `given` equals `whole` where nothing is given, so that such rows conflict with none."""

    def __init__(self) -> None:
        self._open: list[tuple[int, int, int]] = []
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this
        self._written = 0

    def add(self, example: Example) -> None:
        """Take a row."""
        key = given, _ = input_and_answer(example)
        whole = hash(key) & 0xFFFF_FFFF_FFFF_FFFF
        self._open.append((hash(given) & 0xFFFF_FFFF_FFFF_FFFF if given else whole, whole, example.line))
        if len(self._open) == _CHUNK:
            self._write()

    def __len__(self) -> int:
        return self._written + len(self._open)

    @property
    def parts(self) -> int:
        """In how many parts they are compared."""
        return 1 + (len(self) - 1) // _PART

    def part(self, number: int, parts: int) -> Records:
        """(rows,) of the `number`th of `parts`, sorted by what is given, the whole, and the line."""
        self._write()
        self._file.seek(0)
        found = []
        for _ in range(0, self._written, _CHUNK):
            chunk = np.frombuffer(self._file.read(_CHUNK * _KEY.itemsize), _KEY)
            found.append(chunk if parts == 1 else chunk[chunk["given"] % np.uint64(parts) == number])
        rows = np.concatenate(found) if found else np.empty(0, _KEY)
        return rows[np.lexsort((rows["line"], rows["whole"], rows["given"]))]

    def _write(self) -> None:
        self._file.seek(0, 2)
        self._file.write(np.array(self._open, _KEY).tobytes())
        self._written += len(self._open)
        self._open = []


@dataclass(slots=True)
class Repeated:
    """Equal rows. `count` of them repeat an earlier one, `first` is the first of those with the line it repeats.

    `most`: what stands there most often, as (times, first line).
    """

    count: int = 0
    first: tuple[int, int] = (0, 0)
    conflicts: int = 0
    conflict: tuple[int, int] = (0, 0)
    most: list[tuple[int, int]] = field(default_factory=list)


def repeated(keys: Keys) -> Repeated:
    """The equal rows, and the inputs that have more than one answer (`conflict`: the first line that differs, and the line it differs from)."""
    found = Repeated()
    for number in range(keys.parts):
        rows = keys.part(number, keys.parts)
        if not len(rows):
            continue
        begins = _begins(rows["given"], rows["whole"])
        counts = np.diff(np.append(begins, len(rows)))
        many = begins[counts > 1]
        found.count += len(rows) - len(begins)
        if len(many):
            at = many[rows["line"][many + 1].argmin()]
            found.first = _earlier(found.first, (int(rows["line"][at + 1]), int(rows["line"][at])))
            top = np.lexsort((rows["line"][begins], -counts))[:_EXAMPLES]
            found.most += [(int(counts[i]), int(rows["line"][begins[i]])) for i in top if counts[i] > 1]
        _conflicts(rows, begins, found)
    found.most = sorted(found.most, key=lambda one: (-one[0], one[1]))[:_EXAMPLES]
    return found


def _conflicts(rows: Records, begins: NDArray[np.int64], found: Repeated) -> None:
    """Inputs among the groups of equal rows that have several of them."""
    given, lines = rows["given"][begins], rows["line"][begins]
    order = np.lexsort((lines, given))  # the groups of one input by their first lines
    given, lines = given[order], lines[order]
    heads = _begins(given)
    several = heads[np.diff(np.append(heads, len(given))) > 1]
    found.conflicts += len(several)
    if len(several):
        at = several[lines[several + 1].argmin()]
        found.conflict = _earlier(found.conflict, (int(lines[at + 1]), int(lines[at])))


def _begins(*columns: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a run of rows begins that are equal in these columns."""
    differs = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return np.append(0, np.flatnonzero(differs) + 1)


def _earlier(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return min(one, other) if one[0] else other


def repeats(found: Repeated) -> Iterator[Fault]:
    """Warn of rows that are there twice, and of inputs with more than one answer."""
    if found.count:
        (line, first), count = found.first, found.count
        message = f"{_rows(count)} repeat{'s' if count == 1 else ''} an earlier one: line {line} is line {first}"
        yield Fault(
            line,
            "duplicate_row",
            message,
            "Delete the copies (tunewright clean --step duplicates), unless they are meant to weigh more",
            warning=True,
        )
    if found.conflicts:
        (line, first), count = found.conflict, found.conflicts
        message = f"{count:,} input{'s have' if count > 1 else ' has'} more than one answer: see lines {first} and {line}"
        yield Fault(
            line, "conflicting_answers", message, "Keep the right answer (tunewright clean --step conflicts), unless several are right", warning=True
        )


def shared(training: Keys, validation: Keys) -> Iterator[Fault]:
    """Warn of training rows whose input the validation file holds too: what they measure is memory."""
    parts, count, same, first = max(training.parts, validation.parts), 0, 0, (0, 0)
    for number in range(parts):
        mine, theirs = training.part(number, parts), validation.part(number, parts)
        if not len(mine) or not len(theirs):
            continue
        theirs = theirs[np.lexsort((theirs["line"], theirs["given"]))]
        place = np.minimum(np.searchsorted(theirs["given"], mine["given"]), len(theirs) - 1)
        hits = np.flatnonzero(theirs["given"][place] == mine["given"])
        if len(hits):
            count += len(hits)
            same += int(np.isin(mine["whole"][hits], theirs["whole"]).sum())
            at = hits[mine["line"][hits].argmin()]
            first = _earlier(first, (int(mine["line"][at]), int(theirs["line"][place[at]])))
    if count:
        line, there = first
        message = f"The input of {_rows(count)} ({same:,} with the same answer) stands in the validation file too: line {line} is its line {there}"
        yield Fault(line, "in_validation_too", message, "Take them out of one of the files; tunewright split keeps like rows together", warning=True)


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"
