"""Lines of CSV (RFC 4180) -> records. A quoted field may hold line breaks; a record's line is the one it starts on."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from tunewright.data.findings import Notes, note_blank, quoted
from tunewright.data.jsonl import Record
from tunewright.data.lines import MAX_LINE, Line, whole
from tunewright.errors import Fault

DELIMITERS = ",;\t"

_NEEDED = (
    ("text", "label"),
    ("sentence1", "sentence2", "label"),
    ("premise", "hypothesis", "label"),
    ("prompt", "completion"),
    ("prompt", "chosen", "rejected"),
    ("instruction", "output"),
    ("question", "answer"),
    ("source", "target"),
)


class _RecordTooLong(Exception):
    pass


class _Feed:
    """The lines of one record after the other, as `csv.reader` asks for them, and what is wrong with them."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self.begin()

    def begin(self) -> None:
        """Start a record."""
        self.start = self.last = self.size = 0
        self.fault: Fault | None = None

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.start, self.last = self.start or line.number, line.number
        self.size += len(line.text)
        self.fault = self.fault or line.fault
        if self.size > MAX_LINE + 1:  # never by a single line
            raise _RecordTooLong
        # What was cut off is unknown, and a quote in the rest would swallow the lines that follow.
        return "" if line.fault and line.fault.code == "line_too_long" else line.text


def csv_records(lines: Iterator[Line], path: Path, notes: Notes, delimiter: str) -> Iterator[Record]:
    """Yield a record for every row below the header. Raises BadData where there is no usable header."""
    # The limit is the process's and 128 KiB; raising it is safe, as `_Feed` bounds a whole record.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_LINE))
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        feed.begin()
        row: list[str] = []
        fault = None
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = _not_csv(feed, str(error))
        except _RecordTooLong:
            fault = _never_closed(feed, f" by line {feed.last}, {MAX_LINE / 1e6:,.0f} MB on: the lines up to there are one record")
        fault = _moved(feed.fault, feed.start) or fault
        if not fault and not "".join(row).strip() and len(row) < 2:
            note_blank(notes, feed.start)
        elif not columns:
            columns = _header(row, fault, path)
        else:
            fault = fault or _row_fault(row, columns, feed.start)
            yield Record(feed.start, {} if fault else dict(zip(columns, row, strict=True)), [fault] if fault else [])


def _header(row: list[str], fault: Fault | None, path: Path) -> list[str]:
    if fault:
        raise whole(path, fault.code, f"The header: {fault.message}", fault.mend)
    columns = [name.strip() for name in row]
    if twice := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
        message = f"The header names {', '.join(map(quoted, twice))} more than once"
        raise whole(path, "duplicate_column", message, "Keep one of the columns")
    if any(set(needed) <= set(columns) for needed in _NEEDED):
        return columns
    names = ", ".join(map(quoted, columns[:8])) + (" …" if len(columns) > 8 else "")
    known = set(columns) & {"text", "label", "prompt", "completion"}
    code, message = ("missing_column", "The header lacks a column") if known else ("missing_header", "The first line is no header")
    mend = "Let the first line name the columns text,label (or prompt,completion)"
    raise whole(path, code, f"{message}: it reads {names}", mend)


def _row_fault(row: list[str], columns: list[str], line: int) -> Fault | None:
    if len(row) != len(columns):
        message = f"The row has {len(row)} field{'s' if len(row) != 1 else ''} where the header names {len(columns)}"
        return Fault(line, "ragged_row", message, 'Put fields that hold a separator in double quotes: "a, b"')
    if any("\0" in field for field in row):
        return Fault(line, "nul_character", "A field holds a NUL character", "Remove it; it often stems from a damaged source")
    return None


def _moved(fault: Fault | None, line: int) -> Fault | None:
    """A line's fault as the fault of the record that starts on `line`."""
    return fault and Fault(line, fault.code, fault.message, fault.mend)


def _not_csv(feed: _Feed, error: str) -> Fault:
    if "unexpected end" in error:
        return _never_closed(feed, f": all to the end, line {feed.last}, is one record" if feed.last > feed.start else "")
    if "expected after" in error:
        message = f"Text follows a closing quote on line {feed.last}"
        return Fault(feed.start, "stray_quote", message, 'Write a quote inside a quoted field twice: ""')
    if "new-line" in error:
        message = "A carriage return stands alone in an unquoted field"
        return Fault(feed.start, "bare_carriage_return", message, "End lines in LF or CRLF: tr '\\r' '\\n' < FILE > NEW")
    return Fault(feed.start, "not_csv", f"This is not CSV: {error}", "Write the file with a CSV library")


def _never_closed(feed: _Feed, until: str) -> Fault:
    message = f"The record that starts here opens a quote and does not close it{until}"
    return Fault(feed.start, "quote_never_closed", message, 'Close it; write a quote inside a field twice: ""')
