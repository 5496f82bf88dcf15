"""Files that come in by multipart: `receive` writes one to the disk as it arrives, whatever its size."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from tunewright.jobs.home import Home
from tunewright.jobs.store import new_id
from tunewright.serve.errors import ApiError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

PARTS = 10
FIELD_BYTES = 4096
# Hashing and writing are handed to a thread in pieces of this size.
_PIECE = 1 << 20


@dataclass(slots=True)
class Form:
    """A form's fields, and the file among them."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None
    """What the client calls the file; None: there was none."""
    bytes: int = 0
    sha256: str = ""


@contextmanager
def temporary(home: Home) -> Iterator[Path]:
    """A path in the home's tmp; whatever is still there at the end goes."""
    path = home.path / "tmp" / new_id("in-")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def create(path: Path) -> IO[bytes]:
    """A new file for this user alone; never through a link."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb")


def settle(path: Path, target: Path) -> None:
    """Give a file that is on the disk its name, on the disk when this returns."""
    os.rename(path, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def receive(request: Request, path: Path, name: str, limit: int) -> Form:
    """Read a form whose one file is the field `name`, of at most `limit` bytes, and write that to `path`, on the disk when this returns.

    Raises ApiError: 400 not a proper form, 413 the file is larger, 507 the disk is full.
    """
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if not boundary or len(boundary) > 200:
        raise ApiError(400, "The form's Content-Type names no boundary, or one that is too long", code="bad_form")
    reader = _Reader(name, limit)
    parser = MultipartParser(boundary, reader.callbacks())
    digest = hashlib.sha256()
    try:
        with create(path) as file:
            async for chunk in request.stream():
                parser.write(chunk)
                if len(reader.piece) >= _PIECE:
                    await asyncio.to_thread(_keep, file, digest, reader)
            parser.finalize()
            await asyncio.to_thread(_keep, file, digest, reader, last=True)
    except FormParserError:
        raise ApiError(400, "The form cannot be read: it is not multipart as RFC 7578 has it", code="bad_form") from None
    except ClientDisconnect:
        raise ApiError(400, "The body ended early", code="bad_request") from None
    except OSError as error:
        raise disk_full(error) from None
    if not reader.ended:
        raise ApiError(400, "The form ends before its closing boundary", code="bad_form")
    reader.form.sha256 = digest.hexdigest()
    return reader.form


def disk_full(error: OSError) -> Exception:
    """The refusal that a write error stands for; where it is not a lack of room, it is a defect and stays one."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ApiError(507, "The server's disk is full; nothing was kept", code="disk_full", headers={"x-should-retry": "false"})
    return error


def _keep(file: IO[bytes], digest: Any, reader: _Reader, last: bool = False) -> None:
    digest.update(reader.piece)
    file.write(reader.piece)
    reader.piece.clear()
    if last:
        file.flush()
        os.fsync(file.fileno())


class _Reader:
    """What python-multipart calls back, put together: small fields whole, the file in pieces."""

    def __init__(self, name: str, limit: int) -> None:
        self.form = Form()
        self.piece = bytearray()
        self.ended = False
        self._name, self._limit = name, limit
        self._parts = 0
        self._header = self._value = self._disposition = b""
        self._field: str | None = None
        self._data = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS:
            raise ApiError(400, f"The form has more than {PARTS} parts", code="bad_form")
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = _text(options.get(b"name", b""), "A part's name")
        if not name or name in self.form.fields or (name == self._name and self.form.filename is not None):
            raise ApiError(400, f"A part of the form has no name, or {name!r} is given twice", code="bad_form")
        if b"filename" not in options and name != self._name:
            self._field = name
            return
        if name != self._name:
            raise ApiError(400, f"The form's file must be its part {self._name!r}", param=name[:64], code="bad_form")
        self._field = None
        self.form.filename = _text(options.get(b"filename", b"upload"), "The file's name")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is not None:
            self._data += data[start:end]
            if len(self._data) > FIELD_BYTES:
                raise ApiError(400, f"The field {self._field[:64]!r} is over {FIELD_BYTES:,} bytes", param=self._field[:64], code="bad_form")
            return
        self.form.bytes += end - start
        if self.form.bytes > self._limit:
            raise ApiError(413, f"The file is over {self._limit:,} bytes", param=self._name, code="file_too_large")
        self.piece += data[start:end]

    def _part_end(self) -> None:
        if self._field is not None:
            self.form.fields[self._field] = _text(bytes(self._data), self._field[:64])
        self._data.clear()

    def _end(self) -> None:
        self.ended = True


def _text(data: bytes, what: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, f"{what} is not UTF-8", code="bad_form") from None
    if "\0" in text:
        raise ApiError(400, f"{what} holds NUL", code="bad_form")
    return text
