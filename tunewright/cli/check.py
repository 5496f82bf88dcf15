"""`tunewright check`: the report in the terminal, as JSON, as a page; or one row token by token."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, TransferSpeedColumn

from tunewright.cli.display import printable
from tunewright.data.check import Told, check, render
from tunewright.data.formats import Format
from tunewright.data.profile import Reader
from tunewright.errors import BadConfig, BadData

NO_MODEL = "none"


def report(
    data: Path,
    validation: Path | None,
    as_format: Format | None,
    model: str | None,
    max_tokens: int | None,
    html: Path | None,
    perplexity: bool,
    as_json: bool,
) -> bool:
    """Check, show, and say whether the data is without errors. Raises BadModel, BadConfig."""
    reader = _reader(model, max_tokens)
    with _progress(as_json) as told:
        found = check(data, validation, as_format=as_format, reader=reader, told=told)
    if perplexity and reader:
        from tunewright.evaluate.surprise import surprise

        found = replace(found, surprise=surprise(data, model or "nano", max_tokens, as_format))
    print(json.dumps(found.to_dict(), ensure_ascii=False) if as_json else printable(render(found)))
    if html:
        from tunewright.data.page import page

        try:
            html.write_text(page(found, reader, as_format), encoding="utf-8")
        except OSError as error:
            raise BadConfig(f"{html} cannot be written: {error.strerror}", code="unwritable", param="--html") from None
        if not as_json:
            print(f"\n{html}: the same with pictures")
    return found.ok


def row(data: Path, line: int, as_format: Format | None, model: str | None, max_tokens: int | None, as_json: bool) -> None:
    """Show the row on a line, token by token. Raises BadData where none stands there, NotRenderable, BadModel."""
    from tunewright.data.xray import at_line, draw, rays
    from tunewright.errors import Fault

    reader = _reader(model, max_tokens)
    if not reader:
        raise BadConfig("--row shows tokens, so it needs a model: give --model", code="no_model", param="--model")
    example, faults = at_line(data, line, as_format)
    if not example:
        none = Fault(line, "no_row_there", "No row begins on this line", "Give the line of a row, as `check` names it")
        raise BadData(str(data), [fault for fault in faults if fault.line == line] or faults or [none])
    for ray in rays(example, reader):
        if as_json:
            print(json.dumps(asdict(ray), ensure_ascii=False))
        else:
            Console().print(draw(ray), soft_wrap=True)


def _reader(model: str | None, max_tokens: int | None) -> Reader | None:
    if model == NO_MODEL:
        return None
    from tunewright.models.reader import reader

    return reader(model or "nano", max_tokens, strict=model is not None)


@contextmanager
def _progress(as_json: bool) -> Iterator[Told | None]:
    """A bar over the file's bytes where someone watches, on standard error."""
    console = Console(file=sys.stderr)
    if as_json or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.fields[rows]:,} rows"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, rows=0)
        yield lambda rows, done, total: bar.update(task, completed=done, total=total, rows=rows)
