"""`tunewright label`: suggestions for unlabelled rows, corrections to them, and how far two labellers agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tunewright.cli.display import printable
from tunewright.errors import BadConfig, BadModel, Problem

if TYPE_CHECKING:
    from tunewright.data.labels import Asked
    from tunewright.evaluate.verdict import Estimate

MOST_LABELS = 1000
_UNSURE = 0.5
_LEVELS = (0.5, 0.7, 0.9, 0.95, 0.99)


def suggest(file: Path, model: str, out: Path, labels: str | None, labels_from: Path | None, as_json: bool) -> None:
    """Write a suggestion for each unlabelled row, the least sure first; measure them on the labelled ones. Raises BadData, BadModel, BadConfig."""
    from tunewright.data.labels import questions, write_suggestions
    from tunewright.evaluate.labelling import agreement, suggest
    from tunewright.models.load import load

    if out.exists():
        raise BadConfig(f"{out} exists already; name a new file", code="file_exists", param="--out")
    asked = questions(file)
    loaded = load(model)
    if loaded.task == "text_to_text":
        raise BadModel(
            f"{model} turns one text into another; labels come from one that classifies or answers", code="task_needs_another_model", param="model"
        )
    if loaded.task == "classification" and (labels or labels_from):
        raise BadConfig(f"{model} classifies by labels of its own; leave --labels and --labels-from out", code="options_clash", param="--labels")
    names = list(loaded.labels) if loaded.task == "classification" else _names(asked, labels, labels_from, model)
    console = Console(stderr=as_json)
    with console.status(f"asking {model} about {len(asked):,} rows and {len(names):,} labels"):
        made = suggest(loaded, asked, names)
    write_suggestions(out, made.rows)
    evidence = agreement([a for a, *_ in made.known], [b for _, b, _ in made.known]) if len(made.known) > 1 else {}
    levels = _by_confidence(made.known)
    mass = float(np.median(made.masses)) if made.masses else None
    if as_json:
        record = {"rows": len(asked), "suggested": len(made.rows), "labelled_already": len(made.known), "left_out": made.left_out, "labels": names}
        record |= {"probability_of_labels": mass, "on_labelled_rows": {name: asdict(value) for name, value in evidence.items()}}
        print(json.dumps({**record, "by_confidence": levels, "out": str(out)}))
        return
    print(f"{out}: {len(made.rows):,} suggestions, the least sure first. Fill in `label` where one is wrong, then:")
    print(f"  tunewright label {file} --corrections {out} --out LABELLED.jsonl")
    if made.left_out:
        print(f"{len(made.left_out):,} rows left out: too long for the model, or not to be rendered (first at line {made.left_out[0]})")
    if mass is not None and mass < _UNSURE:
        print(f"The model gives these labels {mass:.0%} of its probability (median), so it was hardly tuned on them; its confidence means little")
    if evidence:
        _show_agreement(evidence, console, f"On the {len(made.known):,} rows that have a label")
        table = Table("confidence from", "rows", "right", box=SIMPLE_HEAD)
        for level in levels:
            table.add_row(f"{level['from']:.2f}", f"{level['rows']:,}", f"{level['right'] / max(1, level['rows']):.1%}")
        console.print(table)


def fill(file: Path, corrections: Path, out: Path, at_least: float | None, as_json: bool) -> None:
    """Write the labelled rows. Raises BadData, BadConfig."""
    from tunewright.data.labels import fill, write_lines

    made = fill(file, corrections, at_least)
    write_lines(out, made.rows)
    record = {"labelled_before": made.before, "corrected": made.corrected, "accepted": made.accepted, "left_out": made.left_out, "out": str(out)}
    if as_json:
        print(json.dumps(record))
        return
    print(f"{out}: {len(made.rows):,} rows: {made.before:,} labelled before, {made.corrected:,} corrected, {made.accepted:,} suggestions taken")
    if made.left_out:
        print(
            f"{len(made.left_out):,} rows left out, for they have no label yet (first at line {made.left_out[0]}); --at-least 0.9 takes suggestions"
        )


def agree(file: Path, other: Path, as_json: bool) -> None:
    """Print how far two labellers agree. Raises BadData, BadConfig."""
    from tunewright.data.labels import matched
    from tunewright.evaluate.labelling import agreement, disagreements

    one, two, alone = matched(file, other)
    found, differing = agreement(one, two), disagreements(one, two)
    if as_json:
        record = {"rows": len(one), "labelled_by_one": alone, **{name: asdict(value) for name, value in found.items()}, "disagreements": differing}
        print(json.dumps(record))
        return
    console = Console()
    _show_agreement(found, console, f"{len(one):,} rows that both labelled ({alone:,} only one did)")
    for a, b, count in differing[:10]:
        print(f"  {count:,} × {printable(a)!r} here, {printable(b)!r} there")


def _show_agreement(found: dict[str, Estimate], console: Console, title: str) -> None:
    table = Table("", "value", "95 % interval", box=SIMPLE_HEAD, title=title, title_justify="left")
    for name, value in found.items():
        table.add_row(name if name == "agreement" else "Cohen's kappa", f"{value.value:.3f}", f"{value.low:.3f} to {value.high:.3f}")
    console.print(table)
    if "kappa" not in found:
        console.print("Both know one label alone, so kappa says nothing", highlight=False)


def _by_confidence(known: Sequence[tuple[str, str, float]]) -> list[dict[str, float]]:
    """Of the labelled rows, those with at least this confidence and how many are right."""
    return [{"from": level, "rows": sum(c >= level for *_, c in known), "right": sum(a == b for a, b, c in known if c >= level)} for level in _LEVELS]


def _names(asked: Sequence[Asked], labels: str | None, labels_from: Path | None, model: str) -> list[str]:
    """The labels to choose among: named, from a labelled file, from the rows that have one, or from what the model was trained on."""
    from tunewright.data.labels import questions

    if labels is not None and labels_from is not None:
        raise BadConfig("Give --labels or --labels-from, not both", code="options_clash")
    if labels is not None:
        found = [name.strip() for name in labels.split(",") if name.strip()]
    elif labels_from is not None:
        found = [one.label for one in questions(labels_from) if one.label is not None]
    else:
        found = [one.label for one in asked if one.label is not None]
        found += _trained_on(model)
    names = sorted(set(found))
    if not 2 <= len(names) <= MOST_LABELS:
        message = f"There are {len(names):,} labels to choose among; between 2 and {MOST_LABELS:,} are needed"
        raise BadConfig(f"{message}: name them with --labels a,b,c or --labels-from a labelled file", code="no_labels", param="--labels")
    return names


def _trained_on(model: str) -> list[str]:
    """The labels in the training file of a run folder, if it is one and the file is still there."""
    from tunewright.data.labels import questions
    from tunewright.train.folder import read_config

    if not (Path(model) / "events.jsonl").is_file():
        return []
    try:
        return [one.label for one in questions(read_config(Path(model)).data) if one.label is not None]
    except Problem:  # it has moved; the labels can be named
        return []
