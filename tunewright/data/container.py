"""A path -> records: `records` reads one file, a pattern such as `data/*.jsonl`, or a Hugging Face `datasets` folder.

Containers are JSON lines, CSV and TSV, plain text, Parquet and Arrow; gzip and zstd are unpacked on the way. What a
file is follows from its first bytes, else from its name. All of them are read as streams.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tunewright.data.findings import Notes
from tunewright.data.jsonl import Record, faults_inside, json_records
from tunewright.data.lines import MAX_LINE, Line, lines, open_data, position, too_long, whole
from tunewright.data.table import DELIMITERS, csv_records
from tunewright.errors import Fault

_READ = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
_BATCH = 256
_ARROW_STREAM = b"\xff\xff\xff\xff"


@dataclass(slots=True)
class Place:
    """How far reading is: `total` bytes on disk, of which `done` lie in the files before the one that is open."""

    total: int = 0
    done: int = 0
    file: BinaryIO | None = None

    @property
    def bytes(self) -> int:
        """Bytes on disk that have been read."""
        return self.done + (position(self.file) if self.file and not self.file.closed else 0)


def files(path: Path) -> list[Path]:
    """The files that a path names, in the order of their names. Raises BadData where a pattern or a folder holds none."""
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if _is_data(file)]
        if not found:
            kinds = ", ".join(_READ)
            raise whole(path, "is_a_directory", f"This is a directory without a data file ({kinds})", "Name the file, or the split's folder")
        return found
    if not path.exists() and glob.has_magic(str(path)):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise whole(path, "no_such_file", "No file matches this pattern", "Check the path")
        return found
    return [path]


def records(path: Path, notes: Notes, text: bool = False, place: Place | None = None) -> Iterator[Record]:
    """Yield every record. Over several files lines are counted on, as `cat` would, and where each begins is said in `notes`.

    `text`: read a file of unknown kind as plain text. `place` is kept up to date on the way. Raises BadData where a file cannot be read at all.
    """
    named, before, place = files(path), 0, place or Place()
    place.total = sum(file.stat().st_size for file in named if file.is_file())
    for file in named:
        if len(named) > 1:
            notes.add(before + 1, "file_begins", f"{file} begins here", "Nothing to mend: lines are counted on over all files")
        own, last = Notes(), 0
        for record in _file_records(file, own, text, place):
            last = max(last, record.line)
            faults = [Fault(fault.line + before, fault.code, fault.message, fault.mend) for fault in record.faults]
            yield record._replace(line=record.line + before, faults=faults) if before else record
        notes.take(own, before)
        place.done, place.file = place.done + file.stat().st_size, None
        before += last


def _is_data(file: Path) -> bool:
    name = file.name.removesuffix(".gz").removesuffix(".zst").lower()
    return file.is_file() and name.endswith(_READ) and not name.startswith(("cache-", "."))


def _file_records(path: Path, notes: Notes, text: bool, place: Place) -> Iterator[Record]:
    file, head = open_data(path)
    place.file = file
    with file:
        if head.startswith((b"PAR1", b"ARROW1", _ARROW_STREAM)):
            yield from _arrow_records(file, head, path)
            return
        start = head.lstrip()
        first_line = start.split(b"\n", 1)[0].decode("utf-8", "replace")
        delimiter = "\t" if _suffix(path) == ".tsv" else max(DELIMITERS, key=first_line.count)
        columns = {name.strip().strip('"').strip() for name in first_line.split(delimiter)}
        is_csv = _suffix(path) in (".csv", ".tsv") and not start.startswith((b"{", b"["))
        is_table = is_csv or {"text", "label"} <= columns or {"prompt", "completion"} <= columns
        if text or (_suffix(path) == ".txt" and not is_table and not start.startswith((b"{", b"[{"))):
            yield from _documents(lines(file, notes))
        elif is_table:
            yield from csv_records(lines(file, notes), path, notes, delimiter)
        else:
            yield from json_records(lines(file, notes), path, notes)


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    return Path(name).suffix


def _documents(lines: Iterable[Line]) -> Iterator[Record]:
    """Plain text: a blank line ends a document."""
    block: list[str] = []
    start, size = 0, 0
    fault: Fault | None = None
    for number, text, wrong in lines:
        if text.strip():
            start, size = start or number, size + len(text)
            fault = fault or (wrong and Fault(start, wrong.code, wrong.message, wrong.mend)) or _nul(text, start)
            if size <= MAX_LINE:
                block.append(text)
            else:
                block = []
                fault = fault or too_long(start, size)
        elif start:
            yield _document(start, block, fault)
            block, start, size, fault = [], 0, 0, None
    if start:
        yield _document(start, block, fault)


def _document(start: int, block: list[str], fault: Fault | None) -> Record:
    return Record(start, {} if fault else {"text": "".join(block).rstrip()}, [fault] if fault else [])


def _nul(text: str, line: int) -> Fault | None:
    return Fault(line, "nul_character", "A text holds a NUL character", "Remove it; it often stems from a damaged source") if "\0" in text else None


def _arrow_records(file: BinaryIO, head: bytes, path: Path) -> Iterator[Record]:
    """Rows of Parquet or Arrow, counted from 1. A key whose value is null is taken as absent: columns cannot leave one out."""
    import pyarrow as pa  # 0.3 s, and only these files need it

    number = 0
    try:
        for batch in _batches(file, head):
            names = _label_names(batch.schema)
            for fields in batch.to_pylist():
                number += 1
                for column, known in names.items():
                    if isinstance(at := fields.get(column), int) and 0 <= at < len(known):
                        fields[column] = known[at]
                fields = _without_nulls(fields)
                yield Record(number, fields, [Fault(number, *found) for found in faults_inside(fields)])
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise whole(path, "damaged_file", f"The file breaks after {number:,} rows: {reason}", "Write it again, or copy it again") from None


def _batches(file: BinaryIO, head: bytes) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if head.startswith(b"PAR1"):
        yield from pq.ParquetFile(file).iter_batches(batch_size=_BATCH)
        return
    if head.startswith(b"ARROW1"):
        reader = pa.ipc.open_file(file)
        whole_batches: Iterable[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        whole_batches = pa.ipc.open_stream(file)
    for batch in whole_batches:
        for start in range(0, batch.num_rows, _BATCH):
            yield batch.slice(start, _BATCH)


def _label_names(schema: Any) -> dict[str, list[str]]:
    """Columns of numbers whose names the `datasets` library keeps beside them."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
