"""`tunewright evaluate`: a model on held-out rows, beside the one it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from tunewright.cli.display import number, printable
from tunewright.errors import BadConfig

MOST_SHOWN = 12  # labels, and mistakes

if TYPE_CHECKING:
    from tunewright.data.example import Example
    from tunewright.evaluate.metrics import Measurement
    from tunewright.evaluate.verdict import Difference, Estimate


def evaluate(data: Path, model: str, before: str | None, generate: bool, answers: Path | None, as_json: bool, beams: int = 1) -> None:
    """Measure, compare, print. Raises BadData, BadModel, BadConfig."""
    from tunewright.data import formats
    from tunewright.evaluate.verdict import difference

    console = Console(stderr=as_json)
    examples = formats.load(data, minimum=1)
    earlier = comparable(model) if before is None else None if before == "none" else before
    with console.status(f"measuring {model} on {len(examples):,} rows"):
        after = measured(model, examples, generate, beams)
    first = None
    if earlier:
        with console.status(f"measuring {earlier} on the same rows"):
            first = measured(earlier, examples, generate, beams)
    if answers:
        write_answers(answers, first, after)
    if as_json:
        print(json.dumps(_record(data, model, earlier, first, after), allow_nan=False))
        return
    console.print(compared(difference(first, after)) if first else alone(after.summary()))
    if after.task == "classification":
        print_labels(console, after)
    for line in notes(len(examples), after):
        console.print(line, style="yellow", highlight=False, markup=False)
    if earlier and (said := rounded(earlier, model)):
        console.print(said, style="yellow", highlight=False, markup=False)


def rounded(before: str, after: str) -> str | None:
    """What to know of a comparison of two models whose bases are not held in the same bits: the difference holds the rounding too."""
    from tunewright.models.load import find
    from tunewright.models.quantized import recorded

    bits = [recorded(find(name), name) for name in (before, after)]
    held = [f"in {each} bits" if each else "in full" for each in bits]
    return (
        None
        if bits[0] == bits[1]
        else f"Before: the base {held[0]}; after: the base {held[1]}, as it was learnt. The difference holds the rounding too"
    )


def base_of(model: str) -> str | None:
    """The base of an adapter or of a run's full weights, or None where a model stands for itself."""
    from tunewright.models.load import find

    folder = find(model)
    for place, key in ((folder / "adapter_config.json", "base_model_name_or_path"), (folder.parent / "config.json", "model")):
        if place.is_file() and (folder.name == "model" or place.name.startswith("adapter")):
            try:
                record = json.loads(place.read_text(encoding="utf-8"))
            except (ValueError, RecursionError):
                return None  # loading the model says what is wrong with it
            base = record.get(key) if isinstance(record, dict) else None
            return base if isinstance(base, str) else None
    return None


def comparable(model: str) -> str | None:
    """The base of a model where that does the same; one that a classifier's head was put on does not."""
    from tunewright.models.load import find, purpose

    base = base_of(model)
    return base if base is None or purpose(str(find(model))) != "classification" or purpose(base) == "classification" else None


def measured(model: str, examples: list[Example], generate: bool, beams: int = 1) -> Measurement:
    """Load a model and measure it on rows. `beams`: of an encoder-decoder's search."""
    from tunewright.evaluate import classes, texts
    from tunewright.evaluate.metrics import measure
    from tunewright.models.load import load

    loaded = load(model)
    if loaded.task == "classification":
        return classes.measure(loaded, examples, min(loaded.context, 4096))
    if loaded.task == "text_to_text":
        return texts.measure(loaded, examples, min(loaded.context, 4096), generate=generate, beams=beams)
    return measure(loaded.model, loaded.tokenizer, examples, min(loaded.context, 4096), generate=generate)


def compared(differences: dict[str, Difference]) -> Table:
    """Before, after, difference with its paired 95 % interval, and what it says."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("before", "after", "difference [95 % interval]", ""):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("before", "after") else "left")
    style = {"better": "green", "worse": "red"}
    for name, row in differences.items():
        interval = f"{number(name, row.difference, sign=True)} [{number(name, row.low, sign=True)}, {number(name, row.high, sign=True)}]"
        cells = [
            escape(printable(name.replace("_", " "))),
            number(name, row.before.value),
            number(name, row.after.value),
            interval.replace("[", "\\["),
        ]
        verdict = row.verdict if row.verdict in style else "unclear"
        table.add_row(*cells, f"[{style.get(row.verdict, 'dim')}]{verdict}[/]")
    if differences:
        table.caption = f"{max(row.n for row in differences.values()):,} rows, the same for both; the difference with its paired 95 % interval"
    return table


def alone(summary: dict[str, Estimate]) -> Table:
    """Each metric with its 95 % interval."""
    table = Table(Column("", overflow="fold"), *(Column(heading, no_wrap=True) for heading in ("value", "95 % interval", "rows")), box=SIMPLE_HEAD)
    for name, row in summary.items():
        table.add_row(
            escape(printable(name.replace("_", " "))), number(name, row.value), f"{number(name, row.low)} to {number(name, row.high)}", f"{row.n:,}"
        )
    return table


def print_labels(console: Console, after: Measurement) -> None:
    """The labels that fare worst, and what is most often mistaken for what. --json has all of them."""
    from tunewright.evaluate.classes import always, by_label, confusion

    def cell(row: Estimate | None) -> str:
        return f"{number('f1', row.value)} \\[{row.low * 100:.0f}, {row.high * 100:.0f}]" if row else "never answered"

    labels, mistaken = by_label(after), confusion(after)
    numbers = (Column(heading, no_wrap=True) for heading in ("rows", "precision", "recall", "F1 [95 % interval]"))
    table = Table(Column("label", overflow="fold"), *numbers, box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for row in labels[:MOST_SHOWN]:
        table.add_row(escape(printable(row.label)), f"{row.recall.n:,}", cell(row.precision), cell(row.recall), cell(row.f1))
    if len(labels) > MOST_SHOWN:
        table.caption = f"the {MOST_SHOWN} labels of lowest F1 of {len(labels):,}; --json has all"
    console.print(table)
    for one in mistaken[:MOST_SHOWN]:
        console.print(
            f"{one.label} taken for {one.answer}: {one.count:,} rows, {cell(one.share).replace(chr(92), '')}", highlight=False, markup=False
        )
    label, share = always(after)
    console.print(f"Always saying {printable(label)!r} would be right in {number('f1', share)} of these rows", highlight=False, markup=False)


def notes(n_rows: int, after: Measurement) -> list[str]:
    """What was not measured: rows in = rows measured + rows left out by named reasons."""
    lines = [f"{len(lost):,} of {n_rows:,} rows left out: {reason} (first at line {lost[0]})" for reason, lost in after.dropped.items()]
    lines += [f"{len(lost):,} rows were not asked for an answer: {reason}" for reason, lost in after.not_asked.items()]
    if after.cut:
        lines.append(f"{len(after.cut):,} rows were cut to the model's context (first at line {after.cut[0]})")
    if unfinished := sum(not finished for finished, answer in zip(after.finished, after.answers, strict=True) if answer is not None):
        lines.append(f"{unfinished:,} answers ran into the limit of {after.max_new_tokens:,} tokens")
    return lines


def write_answers(path: Path, before: Measurement | None, after: Measurement) -> None:
    """One JSON line a row: its line in the file, what was expected, what each model said. Raises BadConfig."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for i, line in enumerate(after.lines):
                record = {"line": line, "expected": after.expected[i], "answer": after.answers[i]}
                if before:
                    record["before"] = before.answers[i]
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise BadConfig(f"{path} cannot be written: {error.strerror}", code="unwritable", param="--answers") from None


def _record(data: Path, model: str, earlier: str | None, first: Measurement | None, after: Measurement) -> dict[str, object]:
    from dataclasses import asdict

    from tunewright.evaluate.verdict import difference

    record: dict[str, object] = {"data": str(data), "model": model, "rows": len(after.lines), "dropped": after.dropped, "cut": after.cut}
    record["metrics"] = {name: asdict(value) for name, value in after.summary().items()}
    if after.task == "classification":
        from tunewright.evaluate.classes import by_label, confusion

        record |= {"labels": [asdict(row) for row in by_label(after)], "confusion": [asdict(row) for row in confusion(after)]}
    if first:
        record |= {"before": earlier, "difference": {name: asdict(value) for name, value in difference(first, after).items()}}
    return record
