"""`tunewright advise`: a recipe for a file and this machine, as a table and as a run.yaml."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tunewright.cli.display import printable
from tunewright.errors import BadConfig

if TYPE_CHECKING:
    from tunewright.train.advice import Choice


def advise(data: Path, validation: Path | None, models: list[str], out: Path | None, as_json: bool) -> None:
    """Look, choose, show; write the config where asked. Raises BadData, BadModel, or BadConfig where the file to write is there already."""
    from tunewright.data import formats
    from tunewright.train import advice

    if out and out.exists():
        raise BadConfig(f"{out} is there already; choose another --out", code="file_exists", param="--out")
    found = advice.look(formats.load(data))
    choices = advice.choose(found, advice.available(models), _free(), validation is not None)
    record = advice.config_of(choices, data, validation, Path("runs/advised"))
    text = "\n".join([f"# {choice.part}: {choice.reason} ({choice.source})" for choice in choices]) + "\n" + yaml.safe_dump(record, sort_keys=False)
    if out:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise BadConfig(f"{out} cannot be written: {error.strerror}", code="file_unwritable", param="--out") from None
    if as_json:
        print(json.dumps({"data": asdict(found), "choices": [asdict(choice) for choice in choices], "config": record, "out": out and str(out)}))
        return
    console = Console(highlight=False)
    labels = f", {found.labels:,} labels" if found.labels else ""
    console.print(f"{printable(str(data))}: {found.kind}, {found.rows:,} rows of about {found.characters:,} characters{labels}\n", markup=False)
    console.print(table(choices))
    if out:
        console.print(f"\nWritten to {out}. What it takes:  tunewright plan {out}   Train:  tunewright train {out}", markup=False)
    else:
        print(f"\n{printable(text)}")  # whole lines: it is there to be copied


def table(choices: list[Choice]) -> Table:
    """Each choice with its reason and where that is from."""
    made = Table(Column("", no_wrap=True), *(Column(heading, overflow="fold") for heading in ("advice", "why", "source")), show_lines=True)
    for choice in choices:
        made.add_row(choice.part, *(escape(printable(text)) for text in (_short(choice.settings), choice.reason, choice.source)))
    return made


def _short(settings: dict[str, object]) -> str:
    parts = []
    for key, value in settings.items():
        parts += [f"{name} {each}" for name, each in value.items()] if isinstance(value, dict) else [f"{key} {value}"]
    return ", ".join(parts)


def _free() -> int:
    """Bytes of memory: of the GPU where there is one."""
    import torch

    from tunewright.train.memory import free

    return free(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
