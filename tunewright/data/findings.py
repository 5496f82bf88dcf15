"""What reading finds: `Findings` of one row, `Notes` that a file gets once each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tunewright.errors import Fault

_DISTINCT = 200
"""How many different messages of one code are noted; what differs beyond that is noted together."""


_MORE = f"More of the like, beyond the first {_DISTINCT}"


class Faults:
    """The faults of a file: of each code the first `limit` one by one, the rest as a number in `unlisted`."""

    def __init__(self, limit: int | None = None) -> None:
        self.listed: list[Fault] = []
        self.unlisted: Counter[str] = Counter()
        self._limit = limit
        self._counts: Counter[str] = Counter()

    def add(self, faults: Iterable[Fault]) -> None:
        """Keep them, or count them."""
        for fault in faults:
            self._counts[fault.code] += 1
            if self._limit is None or self._counts[fault.code] <= self._limit:
                self.listed.append(fault)
            else:
                self.unlisted[fault.code] += 1


class Notes:
    """Warnings that a file gets once each, with the first line and the number of lines they are about."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[int]] = {}
        self._mend: dict[tuple[str, str], str] = {}
        self._distinct: Counter[str] = Counter()

    def add(self, line: int, code: str, message: str, mend: str) -> None:
        """Note that a line shows this; a line counts once."""
        if (seen := self._seen.get((code, message))) is None:
            self._distinct[code] += 1
            if self._distinct[code] > _DISTINCT and message != _MORE:
                self.add(line, code, _MORE, mend)
                return
            self._seen[code, message] = [line, line, 1]
            self._mend[code, message] = mend
        elif seen[1] != line:
            seen[1] = line
            seen[2] += 1

    def take(self, other: Notes, offset: int) -> None:
        """Add what was noted of a file whose first line is line `offset` + 1."""
        for key, (first, last, count) in other._seen.items():
            mine = self._seen.setdefault(key, [first + offset, last + offset, 0])
            mine[1], mine[2] = last + offset, mine[2] + count
            self._mend[key] = other._mend[key]

    def faults(self) -> list[Fault]:
        """One warning for each thing noted."""
        return [
            Fault(
                first,
                code,
                f"{message} ({count:,} line{'s' if count > 1 else ''})",
                self._mend[code, message],
                warning=True,
            )
            for (code, message), (first, _, count) in self._seen.items()
        ]


@dataclass(slots=True)
class Findings:
    """The errors of the row on `line`, and a way to note what is no error."""

    line: int
    notes: Notes
    faults: list[Fault] = field(default_factory=list)

    def error(self, code: str, message: str, mend: str) -> None:
        """The row is not an example."""
        self.faults.append(Fault(self.line, code, message, mend))

    def note(self, code: str, message: str, mend: str) -> None:
        """The row is one, but something about it is to be known; said once a file."""
        self.notes.add(self.line, code, message, mend)

    def unknown_keys(self, names: list[str], where: str = "") -> None:
        """Note keys that nothing reads."""
        for name in names:
            self.note("unknown_key", f"The key {quoted(where + name)} is not read", "Remove it, or check its spelling")


def note_bom(notes: Notes, line: int) -> None:
    """A byte order mark is skipped, and said."""
    notes.add(line, "byte_order_mark", "The line starts with a byte order mark, which is skipped", "Save as UTF-8 without BOM")


def note_blank(notes: Notes, line: int) -> None:
    """A blank line is no row, and said."""
    notes.add(line, "blank_line", "Blank lines are skipped", "Delete them if a record should stand there")


def quoted(value: object) -> str:
    """A value of the file as a short, printable quotation: control and bidirectional characters are escaped."""
    text = repr(value[:60]) if isinstance(value, str) else repr(value) if isinstance(value, int | float) else type(value).__name__
    return text if len(text) <= 42 else text[:40] + "…'"
