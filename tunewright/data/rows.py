"""A file -> its rows as they stand: `read_rows`, for what writes them again. A row that nothing changed keeps its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.data.container import files, records
from tunewright.data.example import Example
from tunewright.data.findings import Notes
from tunewright.data.formats import Format, parse
from tunewright.data.jsonl import Record, json_records
from tunewright.data.lines import Line, not_readable, open_data, whole
from tunewright.errors import BadData, Fault

Fields = dict[str, Any]


@dataclass(slots=True)
class RawRow:
    """One record. `raw`: its line in a file of JSON lines, without the line's end; None where the file is no such."""

    line: int
    fields: Fields
    raw: bytes | None = None
    faults: list[Fault] = field(default_factory=list)

    def written(self) -> bytes:
        """The record as a line of JSON: the bytes of the file where there are such."""
        return self.raw if self.raw is not None else encoded(self.fields)


def encoded(fields: Any) -> bytes:
    """A record as a line of JSON, in UTF-8; all of it in ASCII where it holds half a character, which UTF-8 cannot say."""
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(fields).encode()


def is_whole(row: RawRow) -> bool:
    """Whether `fields` is all that the row says. What is wrong in its texts alone takes nothing from it."""
    return bool(row.fields) and all(fault.code in ("nul_character", "lone_surrogate") for fault in row.faults)


def read_rows(path: Path, as_format: Format | None = None) -> list[RawRow]:
    """Every record of one file, those with faults too. Raises BadData where it cannot be read at all, or is more than one file."""
    path = Path(path)
    if (named := files(path)) != [path]:
        raise whole(path, "several_files", f"These are {len(named)} files", "Give one file at a time, or join them first: tunewright convert")
    try:
        rows = [RawRow(*record) for record in _with_places(records(path, Notes(), text=as_format == "document"))]
        sound = next((row for row in rows if not row.faults), None)
        # The container decides by the first bytes whether these are JSON lines; its first sound record shows how.
        held = _lines(path)
        if (sound is None or _is(sound.fields, held.get(sound.line))) and rows:
            for row in rows:
                row.raw = held.get(row.line)
    except OSError as error:
        raise not_readable(path, error) from None
    if not rows:
        raise whole(path, "empty_file", "The file holds no rows", "Write one record on each line")
    return rows


def _with_places(found: Iterable[Record]) -> Iterator[tuple[int, Fields, None, list[Fault]]]:
    return ((record.line, record.fields, None, record.faults) for record in found)


def _lines(path: Path) -> dict[int, bytes]:
    file, head = open_data(path)
    with file:
        if head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
            return {}
        return {number: raw.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n") for number, raw in enumerate(file, 1)}


def _is(fields: Fields, raw: bytes | None) -> bool:
    try:
        return raw is not None and json.loads(raw) == fields
    except (ValueError, RecursionError):
        return False


def read_windows(row: RawRow) -> RawRow | None:
    """A line that is not UTF-8, read as Windows-1252 (Latin-1 where that has no character); None where that gives no record."""
    if row.raw is None or not any(fault.code == "not_utf8" for fault in row.faults):
        return None
    text = row.raw.decode("cp1252", "replace")
    if "\ufffd" in text:
        text = row.raw.decode("latin-1")
    for record in json_records([Line(row.line, text, None)], Path(), Notes()):
        return None if record.faults else RawRow(row.line, record.fields)
    return None


def examples(rows: Iterable[RawRow], as_format: Format | None = None) -> list[Example | None]:
    """Each row as an example, None where it has an error; its faults are then in the row."""
    found: list[Example | None] = []
    format: Format | None = None
    for row in rows:
        example, format, row.faults = parse(Record(row.line, row.fields, row.faults), Notes(), format, as_format)
        found.append(example)
    return found


def sound(path: Path, as_format: Format | None = None) -> tuple[list[RawRow], list[Example]]:
    """Rows and their examples. Raises BadData with every error where one has any."""
    rows = read_rows(path, as_format)
    parsed = examples(rows, as_format)
    if faults := [fault for row in rows for fault in row.faults]:
        raise BadData(str(path), faults)
    return rows, [example for example in parsed if example is not None]


_TEXTS = {
    *("text", "label", "prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "question", "answer", "system", "history"),
    *("text_pair", "sentence1", "sentence2", "premise", "hypothesis"),
    *("messages", "conversations", "preferred_output", "non_preferred_output", "content", "value"),
}
_STRUCTURE = {"role", "from", "type", "id", "tool_call_id", "name", "weight"}


def edited(value: Fields, change: Callable[[str, str], str], everywhere: bool = False) -> Fields:
    """A record with `change` (text, key) made to each of its texts; the value itself where nothing changed.

    Texts are what a format reads as such. `everywhere`: also what tool calls and keys of one's own hold, but not roles and names.
    """
    new: Fields = _edited(value, change, everywhere, "")
    return new


def _edited(value: Any, change: Callable[[str, str], str], everywhere: bool, key: str) -> Any:
    if isinstance(value, str):
        return change(value, key)
    if isinstance(value, dict):
        # Without a target, a source is where a row comes from.
        more = {"source", "target"} if "source" in value and "target" in value else set()
        new = {
            name: _edited(item, change, everywhere, name) if (name not in _STRUCTURE if everywhere else name in _TEXTS or name in more) else item
            for name, item in value.items()
        }
        return value if all(new[name] is value[name] for name in value) else new
    if isinstance(value, list):
        items = [_edited(item, change, everywhere, key) for item in value]
        return value if all(one is other for one, other in zip(items, value, strict=True)) else items
    return value
