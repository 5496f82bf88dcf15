"""`tunewright split`: one file -> training, validation and test files in a folder, and a record of how."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tunewright.errors import BadConfig

if TYPE_CHECKING:
    from tunewright.data.formats import Format
    from tunewright.data.rows import RawRow
    from tunewright.data.split import Split

_LABELS_SHOWN = 12


def split(file: Path, out: Path, validation: float, test: float, seed: int, group_by: str | None, as_format: Format | None, as_json: bool) -> None:
    """Split, write, say. Raises BadData, BadConfig."""
    from tunewright.data.rows import sound
    from tunewright.data.split import split

    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    shares = {name: share for name, share in shares.items() if share > 0 or name == "train"}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadConfig(f"{out} is not empty; name a new folder", code="file_exists", param="--out")
    rows, examples = sound(file, as_format)
    keys = None
    if group_by is not None:
        keys = [json.dumps(row.fields[group_by], sort_keys=True) if row.fields.get(group_by) is not None else None for row in rows]
        if not any(key is not None for key in keys):
            raise BadConfig(f"--group-by {group_by}: no row has this key", code="unknown_key", param="--group-by")
    dealt = split(examples, shares, seed, keys)
    record = _record(dealt, file, seed, shares)
    _write(out, rows, dealt, record)
    print(json.dumps(record)) if as_json else _show(dealt, record, out, Console())


def _record(dealt: Split, file: Path, seed: int, shares: dict[str, float]) -> dict[str, Any]:
    """What was done, as JSON values: sizes and their deviation from what was asked, groups and labels."""
    labels = None
    if dealt.labels:
        counts = {name: Counter(dealt.labels[i] for i in rows) for name, rows in dealt.parts.items()}
        labels = {label: {name: count[label] for name, count in counts.items()} for label in sorted(set(dealt.labels))}
    return {
        "source": file.name,
        "seed": seed,
        "shares": shares,
        "rows": {name: len(rows) for name, rows in dealt.parts.items()},
        "deviation": {name: len(rows) - round(dealt.asked[name], 1) for name, rows in dealt.parts.items()},
        "groups": {"count": len(set(dealt.groups)), "largest": dealt.largest, "rows_joined": dealt.joined, "templates": dealt.templates},
        "labels": labels,
    }


def _write(out: Path, rows: list[RawRow], dealt: Split, record: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, places in dealt.parts.items():
            (out / f"{name}.jsonl").write_bytes(b"".join(rows[at].written() + b"\n" for at in places))
        (out / "split.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        raise BadConfig(f"{out} cannot be written: {error.strerror}", code="unwritable", param="--out") from None


def _show(dealt: Split, record: dict[str, Any], out: Path, console: Console) -> None:
    table = Table("file", "rows", "share", "asked for", "deviation", box=SIMPLE_HEAD)
    total = sum(record["rows"].values())
    for name, count in record["rows"].items():
        table.add_row(
            f"{name}.jsonl", f"{count:,}", f"{count / total:.1%}", f"{record['shares'][name]:.1%}", f"{record['deviation'][name]:+,.1f} rows"
        )
    console.print(table)
    groups = record["groups"]
    joined = ", ".join(f"{count:,} by {how}" for how, count in groups["rows_joined"].items() if count)
    console.print(
        f"{groups['count']:,} groups stay together, the largest of {groups['largest']:,} rows; joined to an earlier row: {joined or 'none'}",
        highlight=False,
        soft_wrap=True,
    )
    for words, count in groups["templates"]:
        console.print(
            f"{count:,} rows begin with the same {words:,} words, which were taken for an instruction, not for a passage",
            highlight=False,
            soft_wrap=True,
        )
    if record["labels"] is None:
        console.print("Nothing to hold in proportion: the rows have no labels, and their answers are many", highlight=False, soft_wrap=True)
        return
    furthest = max(
        abs(by[name] / sum(by.values()) - record["shares"][name]) * sum(by.values()) for by in record["labels"].values() for name in record["shares"]
    )
    console.print(
        f"{len(record['labels']):,} labels held in proportion; the furthest is {furthest:.1f} rows from its share", highlight=False, soft_wrap=True
    )
    console.print(f"How it was done: {out / 'split.json'}", highlight=False, soft_wrap=True)
