"""A data file's bytes -> its lines as text, and what is wrong with the file as a whole.

Memory stays bounded by `MAX_LINE`, whatever the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tunewright.data.findings import Notes, note_bom, quoted
from tunewright.errors import BadData, Fault

MAX_LINE = 10_000_000
"""Bytes of the longest line (in CSV, of the longest record) that is read; a longer one is reported and skipped."""

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_TO_JSONL = "Write it as JSON lines, e.g. with pandas: read_parquet(...).to_json('data.jsonl', orient='records', lines=True)"
_FROM_UTF16 = "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip-compressed", "Unpack it first: gunzip FILE"),
    (
        b"PK\x03\x04",
        "a zip archive or a spreadsheet",
        "Unpack it (unzip FILE), or save the spreadsheet as CSV in UTF-8",
    ),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "Unpack it first: unzstd FILE"),
    (b"\xfd7zXZ\x00", "xz-compressed", "Unpack it first: unxz FILE"),
    (b"BZh91AY&SY", "bzip2-compressed", "Unpack it first: bunzip2 FILE"),
    (b"PAR1", "in Parquet format", _TO_JSONL),
    (b"ARROW1", "in Arrow format", _TO_JSONL.replace("read_parquet", "read_feather")),
)


class Line(NamedTuple):
    """A line with its end. With a fault, `text` is what could be made of it, to find the next record by."""

    number: int
    text: str
    fault: Fault | None


def open_data(path: Path) -> tuple[BinaryIO, bytes]:
    """A data file, and its first bytes without a byte order mark. Raises BadData where it cannot be read as text."""
    try:
        if path.is_dir():
            raise whole(path, "is_a_directory", "This is a directory", "Name the file inside it")
        if not path.exists():
            raise whole(path, "no_such_file", "There is no such file", "Check the path")
        if not path.is_file():
            raise whole(
                path,
                "not_a_file",
                "This is a device or a pipe",
                "Save the data into a file, for it is read more than once",
            )
        file = path.open("rb", buffering=_CHUNK)
        head = file.read(1 << 16)
        file.seek(0)
    except OSError as error:
        raise not_readable(path, error) from None
    except ValueError as error:  # a NUL character in the path
        raise whole(path, "no_such_file", f"This is no path: {error}", "Check the path") from None
    if fault := _whole_file_fault(head):
        file.close()
        raise BadData(str(path), [fault])
    return file, head.removeprefix(_BOM)


def whole(path: Path, code: str, message: str, mend: str) -> BadData:
    """The problem of a file of which no record can be read."""
    return BadData(str(path), [Fault(0, code, message, mend)])


def not_readable(path: Path, error: OSError) -> BadData:
    """The problem of a file that the system does not hand out."""
    return whole(
        path,
        "not_readable",
        f"The file cannot be read: {error.strerror or error}",
        "Check its owner, its rights and the disk",
    )


def lines(file: BinaryIO, notes: Notes) -> Iterator[Line]:
    """Yield every line, counted from 1. What ends a line is a line feed."""
    number = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE and not raw.endswith(b"\n"):
            yield Line(number, raw[:80].decode("utf-8", "replace"), too_long(number, _skip_line(file, len(raw))))
            continue
        if number == 1 and raw.startswith(_BOM):
            raw = raw.removeprefix(_BOM)
            note_bom(notes, number)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            yield Line(number, raw.decode("utf-8", "replace"), _not_utf8(number, raw, error.start))
        else:
            yield Line(number, text, None)


def too_long(line: int, size: int) -> Fault:
    """The fault of a record over the limit."""
    return Fault(
        line,
        "line_too_long",
        f"The record has {size / 1e6:,.1f} MB; at most {MAX_LINE / 1e6:,.0f} MB are read",
        "Cut it into several records, or put a line feed after each",
    )


def _skip_line(file: BinaryIO, size: int) -> int:
    """Read to the end of a line of which `size` bytes were read, and return its length, without keeping it."""
    while raw := file.readline(_CHUNK):
        size += len(raw)
        if raw.endswith(b"\n"):
            break
    return size


def _not_utf8(line: int, raw: bytes, at: int) -> Fault:
    guess = raw[max(0, at - 15) : at + 15].decode("cp1252", "replace")
    return Fault(
        line,
        "not_utf8",
        f"Byte {at + 1} of line {line} (0x{raw[at]:02x}) is not UTF-8; in Windows-1252, near Latin-1, it would read {quoted(guess)}",
        "Convert the file, if that reads right: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
    )


def _whole_file_fault(head: bytes) -> Fault | None:
    if not head:
        return Fault(0, "empty_file", "The file is empty", "Write one record on each line")
    for magic, kind, mend in _MAGIC:
        if head.startswith(magic):
            return Fault(0, "not_text", f"The file is {kind}, which is not read", mend)
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff"))
    if marked or re.match(rb"(?:\x00[\t\r\n -~]){2}|(?:[\t\r\n -~]\x00){2}", head):
        return Fault(
            0,
            "utf16_file",
            "The file is UTF-16 or UTF-32, not UTF-8",
            "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW",
        )
    return None
