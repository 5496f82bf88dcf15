"""What is written beside a cleaned file, in the folder `<name>.clean`: the recipe, the ledger, every change, and the way back.

The way back is the source, compressed by zstd against the cleaned file, so that it takes about the room of what changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from tunewright.data.clean import Change, Cleaning
from tunewright.data.rows import encoded
from tunewright.errors import BadConfig

_LARGEST = 1 << 30  # bytes that can be compressed against each other; a larger file is compressed by itself


def folder_of(out: Path) -> Path:
    """The folder beside a cleaned file."""
    return out.with_name(out.name + ".clean")


def write(cleaning: Cleaning, out: Path) -> Path:
    """Write the cleaned file as JSON lines, and the folder beside it, which only its owner may read. Raises BadConfig.

    The folder is whole before the file takes its name.
    """
    folder = folder_of(out)
    for place in (out, folder):
        if place.exists():
            raise BadConfig(f"{place} exists already; name a new file", code="file_exists", param="--out")
    part = out.with_name(out.name + ".part")
    try:
        with part.open("wb") as file:
            for row in cleaning.rows:
                file.write(row.written() + b"\n")
        folder.mkdir(mode=0o700)
        source, cleaned = cleaning.path.read_bytes(), part.read_bytes()
        (folder / "undo.zst").write_bytes(_packed(source, cleaned))
        (folder / "recipe.yaml").write_text(cleaning.recipe.to_yaml(), encoding="utf-8")
        with (folder / "changes.jsonl").open("wb") as file:
            file.writelines(encoded(change.to_dict()) + b"\n" for change in cleaning.changes)
        ledger = {"source": cleaning.path.name, "source_sha256": _sha256(source), "cleaned_sha256": _sha256(cleaned), **cleaning.to_dict()}
        (folder / "ledger.json").write_bytes(encoded(ledger))
        os.replace(part, out)
    except OSError as error:
        part.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise BadConfig(f"{out} cannot be written: {error.strerror}", code="unwritable", param="--out") from None
    return folder


def undo(cleaned: Path, out: Path) -> int:
    """Write the bytes of the file that `cleaned` was made from. Returns how many. Raises BadConfig."""
    ledger = read_ledger(cleaned)
    if out.exists():
        raise BadConfig(f"{out} exists already; name a new file", code="file_exists", param="--out")
    try:
        held, packed = cleaned.read_bytes(), (folder_of(cleaned) / "undo.zst").read_bytes()
    except OSError as error:
        raise BadConfig(f"{error.filename} cannot be read: {error.strerror}", code="no_way_back", param="FILE") from None
    if _sha256(held) != ledger.get("cleaned_sha256"):
        message = f"{cleaned} was changed after it was cleaned, and the way back needs it as it was written"
        raise BadConfig(f"{message}; undo that change first", code="changed_since", param="FILE")
    try:
        source = _unpacked(packed, held)
    except zstandard.ZstdError:
        source = b""
    if _sha256(source) != ledger.get("source_sha256"):
        raise BadConfig(f"{folder_of(cleaned) / 'undo.zst'} is damaged, so there is no way back", code="no_way_back", param="FILE")
    try:
        out.write_bytes(source)
    except OSError as error:
        raise BadConfig(f"{out} cannot be written: {error.strerror}", code="unwritable", param="--out") from None
    return len(source)


def read_ledger(cleaned: Path) -> dict[str, Any]:
    """The ledger beside a cleaned file. Raises BadConfig where there is none."""
    place = folder_of(cleaned) / "ledger.json"
    try:
        ledger = json.loads(place.read_text(encoding="utf-8"))
    except OSError:
        message = f"{cleaned} was not written by `tunewright clean`, or what stood beside it is gone: there is no {place}"
        raise BadConfig(message, code="not_cleaned", param="FILE") from None
    except (ValueError, RecursionError):
        ledger = None
    if not isinstance(ledger, dict):
        raise BadConfig(f"{place} is damaged", code="not_cleaned", param="FILE")
    return ledger


def read_changes(cleaned: Path) -> Iterator[Change]:
    """The changes beside a cleaned file, by line. Raises BadConfig."""
    read_ledger(cleaned)
    place = folder_of(cleaned) / "changes.jsonl"
    try:
        with place.open(encoding="utf-8") as file:
            for line in file:
                one = json.loads(line)
                yield Change(one["line"], tuple(one["steps"]), one["before"], one["after"], one["reason"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise BadConfig(f"{place} cannot be read or is damaged", code="not_cleaned", param="FILE") from None


def _packed(source: bytes, cleaned: bytes) -> bytes:
    window = min(31, max(20, (len(source) + len(cleaned)).bit_length()))
    settings = zstandard.ZstdCompressionParameters.from_level(9, window_log=window, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=settings, dict_data=_dictionary(cleaned)).compress(source)


def _unpacked(packed: bytes, cleaned: bytes) -> bytes:
    return zstandard.ZstdDecompressor(dict_data=_dictionary(cleaned), max_window_size=1 << 31).decompress(packed)


def _dictionary(cleaned: bytes) -> zstandard.ZstdCompressionDict | None:
    # zstd refuses a dictionary of fewer than 8 bytes.
    return zstandard.ZstdCompressionDict(cleaned, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if 8 <= len(cleaned) <= _LARGEST else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
