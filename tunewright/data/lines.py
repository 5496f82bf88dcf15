"""A data file's bytes -> its lines as text, and what is wrong with the file as a whole.

Memory stays bounded by `MAX_LINE`, whatever the file holds.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import zstandard

from tunewright.data.findings import Notes, note_bom, quoted
from tunewright.errors import BadData, Fault

MAX_LINE = 10_000_000
"""Bytes of the longest line (in CSV, of the longest record) that is read; a longer one is reported and skipped."""

MAX_EXPANSION = 200
"""How many times its size a packed file may hold, once that is over `FREE_EXPANSION` bytes; text packs 3 to 20 times."""

FREE_EXPANSION = 100_000_000

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_FROM_UTF16 = "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (
        b"PK\x03\x04",
        "a zip archive or a spreadsheet",
        "Unpack it (unzip FILE), or save the spreadsheet as CSV in UTF-8",
    ),
    (b"\xfd7zXZ\x00", "xz-compressed", "Unpack it first: unxz FILE"),
    (b"BZh91AY&SY", "bzip2-compressed", "Unpack it first: bunzip2 FILE"),
)


class Line(NamedTuple):
    """A line with its end. With a fault, `text` is what could be made of it, to find the next record by."""

    number: int
    text: str
    fault: Fault | None


def open_data(path: Path) -> tuple[BinaryIO, bytes]:
    """A data file, and its first bytes without a byte order mark. Raises BadData where it cannot be read as text."""
    try:
        if not path.exists():
            raise whole(path, "no_such_file", "There is no such file", "Check the path")
        if not path.is_file():
            raise whole(
                path,
                "not_a_file",
                "This is a device or a pipe",
                "Save the data into a file, for it is read more than once",
            )
        file: BinaryIO = path.open("rb", buffering=_CHUNK)
        head = file.read(1 << 16)
        file.seek(0)
        if expand := _expander(head):
            file = cast(BinaryIO, io.BufferedReader(_Expanded(file, expand, path), _CHUNK))
            head = cast(io.BufferedReader, file).peek(1 << 16)
    except OSError as error:
        raise not_readable(path, error) from None
    except ValueError as error:  # a NUL character in the path
        raise whole(path, "no_such_file", f"This is no path: {error}", "Check the path") from None
    if fault := _whole_file_fault(head, expand is not None):
        file.close()
        raise BadData(str(path), [fault])
    return file, head.removeprefix(_BOM)


def position(file: BinaryIO) -> int:
    """How many bytes of the file on disk have been read, packed ones where it is packed."""
    raw = getattr(file, "raw", None)
    return raw.position if isinstance(raw, _Expanded) else file.tell()


class _Expanded(io.RawIOBase):
    """What a packed file holds, as a stream that ends in BadData where the file is damaged or swells beyond all measure."""

    def __init__(self, packed: BinaryIO, expand: Callable[[BinaryIO], IO[bytes]], path: Path) -> None:
        self._packed, self._path = packed, path
        self._inner = expand(packed)
        self._limit = max(FREE_EXPANSION, MAX_EXPANSION * path.stat().st_size)
        self._size = 0

    @property
    def position(self) -> int:
        """How many packed bytes have been read."""
        return self._packed.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._inner.read(len(buffer))
        except (EOFError, OSError, ValueError, zlib.error, zstandard.ZstdError) as error:
            raise whole(self._path, "damaged_file", f"The packed file cannot be unpacked: {error}", "Pack it or copy it again") from None
        self._size += len(data)
        if self._size > self._limit:
            message = f"The file unpacks to more than {self._limit / 1e6:,.0f} MB, {MAX_EXPANSION} times its size"
            raise whole(self._path, "expands_too_much", message, "Unpack it yourself if that is right")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._packed.close()
        super().close()


def _expander(head: bytes) -> Callable[[BinaryIO], IO[bytes]] | None:
    if head.startswith(b"\x1f\x8b"):
        return lambda packed: cast(IO[bytes], gzip.GzipFile(fileobj=packed))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        # The window bounds the memory that a frame may ask for: 128 MB, as the zstd program does.
        return lambda packed: cast(IO[bytes], _Zstd(packed))
    return None


class _Zstd:
    """Frames of zstd, one after the other. zstandard's own reader takes a file that was cut off for one that ends."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._ready = io.BytesIO()
        self._rest = b""
        self._new()

    def _new(self) -> None:
        # The window bounds the memory that a frame may ask for: 128 MB, as the zstd program does.
        self._frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        self._begun = False

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none at the end. Raises EOFError where a frame is cut off, ZstdError where it is damaged."""
        while not (data := self._ready.read(size)):
            # A kilobyte can hold 32 MB of one byte repeated, and all of it comes at once.
            packed = self._rest or self._packed.read(1024)
            if not packed:
                if self._begun:
                    raise EOFError("it ends within a frame")
                return b""
            self._begun = True
            self._ready = io.BytesIO(self._frame.decompress(packed))
            self._rest = b""
            if self._frame.eof:
                self._rest = self._frame.unused_data
                self._new()
        return data


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


def _whole_file_fault(head: bytes, depth: bool) -> Fault | None:
    if not head:
        return Fault(0, "empty_file", "The file is empty", "Write one record on each line")
    if depth and (head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")) or _expander(head)):
        return Fault(0, "not_text", "The file is packed twice", "Unpack it once: gunzip FILE, or unzstd FILE")
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
