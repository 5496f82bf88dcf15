"""`tunewright augment`: more rows from those at hand, and whether they help."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tunewright.errors import BadConfig

if TYPE_CHECKING:
    from tunewright.data.augment import Augmented, Source
    from tunewright.data.variants import Method


def augment(
    file: Path,
    out: Path,
    given: Sequence[str],
    copies: int,
    balance: float,
    seed: int,
    held_out: Sequence[Path],
    protected: Sequence[str],
    model: str,
    as_json: bool,
) -> dict[str, Any]:
    """Write the rows with those that were made of them, and the record beside them. Raises BadData, BadModel, BadConfig."""
    from tunewright.data.augment import augment, methods, read
    from tunewright.data.labels import write_lines

    chosen = methods(given)
    if not chosen and not balance:
        from tunewright.data.variants import METHODS

        raise BadConfig(f"Name what to do: --method with one of {', '.join(METHODS)}, or --balance", code="nothing_to_do", param="--method")
    beside = out.with_name(out.name + ".augment.json")
    if out.exists() or beside.exists():
        raise BadConfig(f"{out if out.exists() else beside} exists already; name a new file", code="file_exists", param="--out")
    sources, there = read(file, held_out)
    near_words, said, refused = _from_models(sources, chosen, model, protected, Console(stderr=as_json))
    made = augment(sources, chosen, copies, balance, seed, protected, near_words, said, there)
    if refused:
        made.dropped["paraphrase_refused"] = refused
    write_lines(out, list(made.lines()))
    record = _record(made, file, out, seed, [method.model_dump(mode="json") for method in chosen], sources)
    write_lines(beside, [json.dumps(record, indent=1).encode()])
    return record


def show(record: dict[str, Any], held_out: Sequence[Path]) -> None:
    """The ledger as text."""
    print(
        f"{record['out']}: {record['rows_out']:,} rows: {record['rows_in']:,} as they were and {record['rows_out'] - record['rows_in']:,} made of them"
    )
    for method, count in record["made"].items():
        print(f"  {method}: {count:,}")
    for reason, count in record["not_taken"].items():
        print(f"  not taken, {reason.replace('_', ' ')}: {count:,}")
    if not held_out:
        print("Not compared with validation or test rows: name those files with --held-out, and rows that stand there are refused")


def measure(file: Path, out: Path, validation: Path, settings: Sequence[str], model: str, as_json: bool) -> None:
    """Train on the file as it was and as it is now, for as many steps, and compare both on rows held out. Raises Problem."""
    from tunewright.cli.evaluate import compared, measured
    from tunewright.cli.run import run_to_end
    from tunewright.config import TrainConfig
    from tunewright.data import formats
    from tunewright.evaluate.verdict import difference
    from tunewright.train.plan import batch_size_for, epochs_for

    rows = {name: len(formats.load(path)) for name, path in (("plain", file), ("augmented", out))}
    folder = out.with_name(out.name + ".measure")
    asked = TrainConfig.parse({"data": str(out), "model": model, "out": str(folder / "augmented")}, list(settings))
    batch, epochs = batch_size_for(asked, rows["plain"]), epochs_for(asked, rows["augmented"])
    # As many rows are learnt from in both, so that what differs is which.
    each = {"augmented": epochs, "plain": max(1, round(epochs * rows["augmented"] / rows["plain"]))}
    console = Console(stderr=as_json)
    examples, found = formats.load(validation, minimum=1), {}
    for name, data in (("plain", file), ("augmented", out)):
        chosen = asked.hyperparameters.model_copy(update={"n_epochs": each[name], "batch_size": batch})
        config = asked.model_copy(update={"data": data, "out": folder / name, "hyperparameters": chosen})
        console.print(f"\nTraining on {data}: {each[name]} epochs of {rows[name]:,} rows", highlight=False, soft_wrap=True)
        if code := run_to_end(config, as_json, console):
            raise SystemExit(code)
        with console.status("measuring"):
            found[name] = measured(str(folder / name), examples, generate=True)
    differences = difference(found["plain"], found["augmented"])
    if as_json:
        from dataclasses import asdict

        print(json.dumps({"rows": rows, "epochs": each, "difference": {name: asdict(row) for name, row in differences.items()}}))
        return
    console.print("\nWithout (before) and with the new rows (after):", style="bold")
    console.print(compared(differences))
    console.print(
        "One run of each: the interval is over rows, not over seeds. Another --set seed=1 shows how much a run differs by itself.", highlight=False
    )


def _from_models(
    sources: Sequence[Source], chosen: Sequence[Method], model: str, protected: Sequence[str], console: Console
) -> tuple[dict[str, list[str]], dict[str, str], int]:
    """What needs a model: neighbours of the words, paraphrases of the texts, and how many of those were refused."""
    from tunewright.data.augment import loses
    from tunewright.data.variants import Paraphrase, Synonyms, kept_words, words_of

    near_words: dict[str, list[str]] = {}
    said: dict[str, str] = {}
    refused = 0
    for method in chosen:
        if isinstance(method, Synonyms):
            from tunewright.models.load import load
            from tunewright.models.neighbours import neighbours

            near_words = neighbours(load(model), (word for source in sources for word in words_of(source.asked)), method.least)
        elif isinstance(method, Paraphrase):
            from tunewright.models.load import load
            from tunewright.models.paraphrase import paraphrases

            with console.status(f"{method.model} says {len(sources):,} texts in {method.via} and back"):
                back = paraphrases(load(method.model), [source.asked for source in sources], method.language, method.via)
            for source in sources:
                text = back.get(source.asked)
                if text is None or loses(source.asked, text, kept_words(source.answer, protected)):
                    refused += 1
                else:
                    said[source.asked] = text
    return near_words, said, refused


def _record(made: Augmented, file: Path, out: Path, seed: int, chosen: list[dict[str, Any]], sources: Sequence[Source]) -> dict[str, Any]:
    answer = {source.row.line: source.answer for source in sources}
    before, after = Counter(answer.values()), Counter(answer[one.line] for one in made.made)
    few = len(before) <= len(sources) / 2
    return {
        "source": file.name,
        "out": str(out),
        "seed": seed,
        "methods": chosen,
        "rows_in": len(made.rows),
        "rows_out": len(made.rows) + len(made.made),
        "made": dict(Counter(one.method for one in made.made).most_common()),
        "not_taken": made.dropped,
        "labels": {label: {"before": before[label], "after": before[label] + after[label]} for label in sorted(before)} if few else None,
    }
