"""From a config to a Run that can take its next step: data, model, tuning, plan, and where an earlier attempt stopped."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunewright.config import TrainConfig
from tunewright.data import formats
from tunewright.data.tokens import Row, Tokenized, tokenize
from tunewright.errors import BadData, Fault, RunFailed
from tunewright.event import Event
from tunewright.models import tuning
from tunewright.models.load import Loaded, load
from tunewright.train import checkpoint, plan, schedule
from tunewright.train.folder import sha256, write_json


@dataclass(slots=True)
class Progress:
    """What a checkpoint keeps beside tensors: how far the run is and what it has seen."""

    step: int = 0
    epochs: int = 0
    trained_tokens: int = 0
    best_loss: float | None = None
    best_step: int = 0
    epochs_without_gain: int = 0
    stopped_early: bool = False


@dataclass(slots=True)
class Run:
    """Everything the loop needs, ready to take step `progress.step + 1`."""

    config: TrainConfig
    plan: plan.Plan
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: str
    rows: list[Row]
    validation: list[Row]
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)

    @property
    def checkpoints(self) -> Path:
        """Where this run's checkpoints lie."""
        return self.config.out / "checkpoints"


def start(config: TrainConfig) -> Generator[Event, None, Run]:
    """Say what is found and decided, and return the Run. Raises BadData, BadModel, BadConfig or RunFailed."""
    again = (config.out / "plan.json").is_file()
    examples = formats.load(config.data)
    held_out = formats.load(config.validation, minimum=1) if config.validation else []
    loaded = load(config.model)
    limit = min(loaded.context, 4096) if config.max_tokens == "auto" else min(config.max_tokens, loaded.context)
    training = tokenize(examples, loaded.tokenizer, limit)
    validation = tokenize(held_out, loaded.tokenizer, limit)
    yield from _ledger("training", config.data, len(examples), training, limit)
    if config.validation:
        yield from _ledger("validation", config.validation, len(held_out), validation, limit)

    torch.manual_seed(config.seed)
    model = tuning.apply(loaded.model, config.tuning, loaded.base)
    resolved = _plan(config, model, training.rows)
    yield _decided(model, resolved, loaded)
    optimizer = schedule.optimizer(config.optimizer, tuning.groups(model, config.optimizer.weight_decay), resolved.learning_rate)
    # Measuring the plan may have drawn dropout masks; the run begins from the seed all the same.
    torch.manual_seed(config.seed)
    run = Run(config, resolved, model, loaded.tokenizer, loaded.base, training.rows, validation.rows, optimizer)
    if again:
        yield from _go_on(run)
    return run


def _ledger(kind: str, path: Path, rows: int, result: Tokenized, limit: int) -> Iterator[Event]:
    """Rows in = rows kept + rows dropped by named reasons; raises BadData when none is left."""
    dropped = {reason: len(lines) for reason, lines in result.dropped.items()}
    if not result.rows:
        raise BadData(str(path), [_hopeless(reason, lines, limit) for reason, lines in result.dropped.items()])
    data = {
        "rows": rows,
        "kept": len(result.rows),
        "dropped": dropped,
        "dropped_lines": {reason: lines[:20] for reason, lines in result.dropped.items()},
        "cut": len(result.cut),
        "cut_lines": result.cut[:20],
        "tokens": result.tokens,
        "trained_tokens": result.trained_tokens,
        "max_tokens": limit,
    }
    text = f"{kind.capitalize()} data: {len(result.rows):,} of {rows:,} rows, {result.tokens:,} tokens, {result.trained_tokens:,} of them learnt"
    yield Event(0, text, {"file": str(path), **data})
    for reason, lines in result.dropped.items():
        yield Event(0, f"{len(lines):,} {kind} rows dropped: {reason} (first at line {lines[0]})", {"reason": reason, "lines": lines[:100]}, "warn")
    if result.cut:
        first = f"first at line {result.cut[0]}"
        yield Event(0, f"{len(result.cut):,} {kind} rows cut at the end to {limit:,} tokens ({first})", {"lines": result.cut[:100]}, "warn")
    if result.unended:
        text = f"In {len(result.unended):,} {kind} rows the end of the answer is not learnt, so the model may not stop"
        yield Event(0, f"{text} (first at line {result.unended[0]})", {"lines": result.unended[:100]}, "warn")


def _hopeless(reason: str, lines: Sequence[int], limit: int) -> Fault:
    mend = f"Raise max_tokens above {limit:,} or shorten the rows" if reason.endswith("after_cut") else "Mend these rows or choose another model"
    return Fault(lines[0], reason, f"no row is left to learn from; {len(lines):,} were dropped as {reason}", mend)


def _plan(config: TrainConfig, model: PreTrainedModel, rows: list[Row]) -> plan.Plan:
    """The run's plan: the one it was begun with, or a new one. Raises RunFailed when the data changed in between."""
    place = config.out / "plan.json"
    inputs = {"data": sha256(config.data), "validation": sha256(config.validation) if config.validation else None}
    if place.is_file():
        record: dict[str, Any] = json.loads(place.read_text())
        if changed := [name for name, digest in inputs.items() if record["sha256"][name] != digest]:
            path = getattr(config, changed[0])
            raise RunFailed(f"{path} has changed since this run began; begin a new run in another folder", code="input_changed", param=changed[0])
        old = plan.Plan(**record["plan"])
        torch.set_num_threads(old.threads)
        return old
    made = plan.make(config, model, rows)
    write_json(place, {"plan": made.to_dict(), "sha256": inputs, "torch": torch.__version__})
    return made


def _decided(model: PreTrainedModel, resolved: plan.Plan, loaded: Loaded) -> Event:
    trains = sum(p.numel() for p in tuning.trained(model).values())
    total = sum(p.numel() for p in model.parameters())
    text = (
        f"{loaded.base}: {trains:,} of {total:,} weights train, {resolved.n_epochs} epochs of batch size {resolved.batch_size}, "
        f"{resolved.total_steps} steps, learning rate {resolved.learning_rate:g}, {resolved.precision} on {resolved.threads} threads"
    )
    return Event(0, text, {**resolved.to_dict(), "trainable_parameters": trains, "parameters": total, "model": loaded.base})


def _go_on(run: Run) -> Iterator[Event]:
    """Put the run back to its newest sound checkpoint, if it has one. Damaged ones are moved aside and named."""
    checkpoint.clear_unfinished(run.checkpoints)
    for place, wrong in list(checkpoint.newest(run.checkpoints)):
        if wrong is None:
            checkpoint.restore(place, run.model, run.optimizer)
            run.progress = Progress(**checkpoint.state_of(place)["progress"])
            yield Event(run.progress.step, f"Resumed from checkpoint {place.name}", {"checkpoint": place.name})
            return
        place.rename(place.with_name(f"damaged-{place.name}"))
        yield Event(0, f"Checkpoint {place.name} is damaged and was set aside: {wrong}", {"checkpoint": place.name}, "warn")
    yield Event(0, "No sound checkpoint was found: training begins with the first step")
