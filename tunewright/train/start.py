"""From a config to a Run that can take its next step: data, model, tuning, plan, and where an earlier attempt stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunewright.config import Prompt, Supervised, Task, TrainConfig
from tunewright.data import classes, sources, tree
from tunewright.data.example import Example, Pair
from tunewright.data.sampler import Order, as_given, by_prefix, by_rows
from tunewright.data.tokens import Item, RowPair, TextRow, Tokenized, tokenize
from tunewright.errors import BadConfig, RunFailed
from tunewright.event import Event
from tunewright.models import dropout, flex, further, quantized, tasks, tuning, virtual
from tunewright.models.attention import NotServed, attach, serves
from tunewright.models.floats import flushed
from tunewright.models.forward import AnyBatch, batches, score, size_of
from tunewright.models.load import Loaded, load, purpose
from tunewright.train import checkpoint, memory, plan, schedule, trunk
from tunewright.train.folder import sha256, write_json
from tunewright.train.ledger import ledger, reading
from tunewright.train.losses import Loss, loss_for, row_log_probs


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
    task: Task
    rows: list[Item]
    validation: list[Item]
    shared: bool
    loss: Loss
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    kept: trunk.Kept | None = None

    def batches(self, items: list[Item], learns: bool = True) -> Iterator[tuple[list[int], AnyBatch]]:
        """Micro-batches of items, as `forward.batches`; smaller ones where nothing is learnt from them."""
        device, budget = next(self.model.parameters()).device, self.plan.micro_batch_tokens
        if not learns:
            budget = min(budget, memory.MOST_READ[device.type])
        if self.kept and self.kept.alone:
            return self.kept.batches(items, budget, device)
        # oneDNN compiles its bf16 products for each new size, and keeps them.
        return batches(items, budget, self.shared, device, rounded=device.type == "cpu" and self.plan.precision == "bf16")

    def called(self, batch: AnyBatch) -> PreTrainedModel:
        """What computes a batch: the model, or its upper part from kept states on."""
        return self.kept.enter(batch, self.model) if self.kept else self.model

    @property
    def order(self) -> Order:
        """The rows' order in each epoch."""
        match self.config.shuffle:
            case "rows":
                return by_rows(len(self.rows), self.config.seed)
            case "by_prefix":
                return by_prefix(tree.order([item.rows[0] for item in self.rows]), self.plan.batch_size, self.config.seed)
            case "none":
                return as_given(len(self.rows))

    @property
    def checkpoints(self) -> Path:
        """Where this run's checkpoints lie."""
        return self.config.out / "checkpoints"


def start(config: TrainConfig, trial: bool = False) -> Generator[Event, None, Run]:
    """Say what is found and decided, and return the Run. Raises BadData, BadModel, BadConfig or RunFailed.

    `trial`: leave out what is long and what only training to the end needs: a frozen trunk's states, the reference of preference pairs.
    """
    again = (config.out / "plan.json").is_file()
    found = reading(config.data, config.max_lost)
    there = reading(config.validation, config.max_lost, minimum=1) if config.validation else None
    examples, held_out = found.examples, there.examples if there else []
    task = tasks.choose(config.task, purpose(config.model), config.model, examples + held_out)
    _check_method(config, task, examples + held_out)
    names = classes.label_names(examples) if task == "classification" else ()
    torch.manual_seed(config.seed)  # a classifier's head is drawn as it is loaded
    loaded = load(config.model, bits=getattr(config.tuning, "bits", None), task=task, labels=names)
    limit = min(_room(config, loaded.context + virtual.count(loaded.model)), 4096 if config.max_tokens == "auto" else config.max_tokens)
    training, validation = (_tokenized(loaded, some, limit) for some in (examples, held_out))
    chosen = config.max_tokens != "auto"
    yield from ledger("training", found, training, limit, config.max_lost, chosen)
    if there:
        yield from ledger("validation", there, validation, limit, config.max_lost, chosen)

    loaded = yield from _further(config, loaded)
    yield from _dropout(config, loaded)
    torch.manual_seed(config.seed)
    model = tuning.apply(loaded.model, config.tuning, loaded.base)
    if config.recompute:
        tuning.recompute(model)
    items, validating = (virtual.in_front(each.rows, model) for each in (training, validation))
    loss = loss_for(config.method, _weights(config, loaded, items))
    shared = yield from _layout(model, [row for item in items + validating for row in item.rows])
    resolved = yield from _plan(config, model, items, shared, loss)
    yield _decided(model, resolved, loaded)
    groups = tuning.groups(model, config.optimizer.weight_decay, getattr(config.tuning, "layer_decay", 1.0))
    optimizer = schedule.optimizer(config.optimizer, groups, resolved.learning_rate)
    # Measuring the plan may have drawn dropout masks; the run begins from the seed all the same.
    torch.manual_seed(config.seed)
    run = Run(config, resolved, model, loaded.tokenizer, loaded.base, task, items, validating, shared, loss, optimizer)
    if trial:
        return run
    yield from trunk.keep(run)
    if config.method.kind == "dpo":
        run.rows, run.validation = _with_reference(run, run.rows), _with_reference(run, run.validation)
    if again:
        yield from _go_on(run)
    return run


def _room(config: TrainConfig, context: int) -> int:
    """The most tokens of a row, beside virtual ones. Raises BadConfig where these leave no room."""
    room = context - (config.tuning.virtual_tokens if isinstance(config.tuning, Prompt) else 0)
    if room < 2:
        raise BadConfig(
            f"tuning.virtual_tokens: the model reads {context:,} tokens, which leaves none for a row",
            code="too_many_virtual_tokens",
            param="tuning.virtual_tokens",
        )
    return room


def _tokenized(loaded: Loaded, examples: Sequence[Example], limit: int) -> Tokenized:
    if loaded.task == "classification":
        return classes.tokenize(examples, loaded.tokenizer, limit, loaded.labels)
    if loaded.task == "text_to_text":
        return sources.tokenize(examples, loaded.tokenizer, limit)
    return tokenize(examples, loaded.tokenizer, limit)


def _weights(config: TrainConfig, loaded: Loaded, rows: Sequence[Item]) -> list[float] | None:
    """How much a row of each label weighs. Raises BadConfig where there are no labels to weigh."""
    if not isinstance(config.method, Supervised) or config.method.class_weights == "none":
        return None
    if loaded.task != "classification":
        text = f"method.class_weights: {loaded.base} does not classify here; say task: classification, or leave the weights out"
        raise BadConfig(text, code="task_has_no_classes", param="method.class_weights")
    return classes.class_weights(config.method.class_weights, loaded.labels, [row for row in rows if isinstance(row, TextRow)])


def _check_method(config: TrainConfig, task: Task, examples: Sequence[Example]) -> None:
    """Raise BadConfig where the data are pairs and the method wants none, or the other way round, or the task knows no pairs."""
    if config.method.kind == "dpo" and task != "chat":
        raise BadConfig(f"method: dpo compares answers of a model that chats, and the task is {task}", code="method_needs_chat", param="method")
    pairs = sum(isinstance(example, Pair) for example in examples)
    if config.method.kind == "dpo" and pairs < len(examples):
        raise BadConfig("method: dpo learns from pairs, and the data holds other rows", code="method_needs_pairs", param="method")
    if config.method.kind != "dpo" and pairs:
        raise BadConfig("method: the data holds pairs of answers; set method=dpo", code="method_for_pairs", param="method")


def _further(config: TrainConfig, loaded: Loaded) -> Generator[Event, None, Loaded]:
    """A tuned model to begin from: its adapter goes on where it has the shape asked for, else it becomes part of the base."""
    if not isinstance(loaded.model, PeftModel):
        return loaded
    if further.goes_on(loaded.model, config.tuning):
        yield Event(0, "The model's adapter is trained further", {"adapter": "goes_on"})
        return loaded
    yield Event(0, "The model's adapter has another shape than the one asked for: it is merged into its base first", {"adapter": "merged"})
    return further.merged(loaded, config.out / "base" if config.tuning.kind in ("lora", "prompt") else None)


def _dropout(config: TrainConfig, loaded: Loaded) -> Iterator[Event]:
    """Set the base's own dropouts where that is asked for. Raises BadConfig where it has none that could be set."""
    if config.dropout == "keep":
        return
    count = dropout.override(loaded.model, config.dropout)
    if not count and config.dropout:
        raise BadConfig(f"dropout: {loaded.base} has no dropout that could be set; leave it at keep", code="no_dropout", param="dropout")
    yield Event(0, f"Dropout of the base is {config.dropout:g} in {count} places", {"dropout": config.dropout, "places": count})


def _layout(model: PreTrainedModel, rows: list[Any]) -> Generator[Event, None, bool]:
    """Whether rows are computed as prefix trees, and the event that says so."""
    why_not = serves(model, max(len(row.ids) for row in rows))
    total, distinct = sum(len(row.ids) for row in rows), tree.distinct(rows)
    if why_not:
        with suppress(NotServed):
            attach(model)  # for the precision of its attention
        text = f"Rows are padded side by side, in batches of like length: {why_not}"
    else:
        text = f"Rows are computed as prefix trees: {distinct:,} of {total:,} tokens are distinct over the whole data"
        text += ", attended to by FlexAttention" if flex.usable(next(model.parameters()).device.type) else ""
        if dropout.active(model):
            text += "; rows of a step drop out alike where they share tokens"
    yield Event(0, text, {"layout": "padded" if why_not else "tree", "reason": why_not, "tokens": total, "distinct_tokens": distinct})
    return why_not is None


def _with_reference(run: Run, items: list[Item]) -> list[Item]:
    """Pairs with the log-probabilities that the untuned model gives to their answers, by the run's own arithmetic.

    Computed from the base each time a run starts or goes on; its bits are the same each time.
    """
    device = next(run.model.parameters()).device
    found: list[Item] = list(items)
    run.model.eval()
    for group, batch in run.batches(items):
        with flushed(), torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=run.plan.precision == "bf16"):
            log_probs = row_log_probs(score(run.called(batch), batch), 2 * len(group)).view(-1, 2).tolist()
        for i, (chosen, rejected) in zip(group, log_probs, strict=True):
            item = items[i]
            assert isinstance(item, RowPair)
            found[i] = replace(item, reference=(chosen, rejected))
    return found


def _plan(config: TrainConfig, model: PreTrainedModel, items: list[Item], shared: bool, loss: Loss) -> Generator[Event, None, plan.Plan]:
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

    device, training = next(model.parameters()).device, model.training

    def first(some: Sequence[Item], budget: int) -> tuple[int, Callable[[plan.Precision], None]]:
        """The tokens of the first micro-batch of items, and what computes it forth and back."""
        group, batch = next(batches(some, budget, shared, device))

        @flushed()
        def compute(precision: plan.Precision) -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                sums = loss(model, batch, [some[i] for i in group])
            sums.loss.backward()
            model.zero_grad(set_to_none=True)

        return size_of(batch), compute

    model.train()
    tokens = yield from _at_once(config, model, items, lambda some: first(some, 2**40), device)
    made = plan.make(config, model, len(items), tokens, first(items[: plan.batch_size_for(config, len(items))], tokens)[1])
    model.train(training)
    write_json(place, {"plan": made.to_dict(), "sha256": inputs, "torch": torch.__version__})
    return made


def _at_once(
    config: TrainConfig,
    model: PreTrainedModel,
    items: list[Item],
    lay_out: Callable[[Sequence[Item]], tuple[int, Callable[[plan.Precision], None]]],
    device: torch.device,
) -> Generator[Event, None, int]:
    """How many tokens are computed at once: as set, or as the free memory allows, and the events that say so."""
    if config.micro_batch_tokens != "auto":
        return config.micro_batch_tokens
    precision: plan.Precision = "bf16" if config.precision == "bf16" else "fp32"  # where it is open, the one that takes more
    later = plan.OPTIMIZER_BYTES[config.optimizer.kind] * sum(p.numel() for p in tuning.trained(model).values())
    fit = memory.measure(lay_out, precision, items, device, later)
    data = {"bytes_per_token": fit.each, "bytes_per_step": fit.fixed, "free_bytes": fit.free, "micro_batch_tokens": fit.tokens}
    yield Event(
        0, f"A token takes {fit.each / 1e3:,.0f} kB in a step and {fit.free / 1e9:,.1f} GB are free: up to {fit.tokens:,} are computed at once", data
    )
    longest = max(sum(len(row) for row in item.rows) for item in items)
    if fit.needs(longest) > fit.safe:
        need, safe = (f"{each / 1e9:,.1f} GB" for each in (fit.needs(longest), fit.safe))
        text = f"The longest row has {longest:,} tokens, which take about {need}; {safe} can be counted on: set recompute=true, or lower max_tokens"
        yield Event(0, text, {"tokens": longest, "bytes": fit.needs(longest)}, "warn")
    return fit.tokens


def _decided(model: PreTrainedModel, resolved: plan.Plan, loaded: Loaded) -> Event:
    trains = sum(p.numel() for p in tuning.trained(model).values())
    total, bits = quantized.weights(model), quantized.bits_of(model)
    text = (
        f"{loaded.base}: {trains:,} of {total:,} weights train, {resolved.n_epochs} epochs of batch size {resolved.batch_size}, "
        f"{resolved.total_steps} steps, learning rate {resolved.learning_rate:g}, {resolved.precision} on {resolved.threads} threads"
    )
    if bits:
        text += f"; the base is held in {bits} bits, with the adapters {quantized.weight_bytes(model) / 1e6:,.1f} MB"
    return Event(
        0,
        text,
        {
            **resolved.to_dict(),
            "trainable_parameters": trains,
            "parameters": total,
            "bits": bits,
            "weight_bytes": quantized.weight_bytes(model),
            "model": loaded.base,
        },
    )


def _go_on(run: Run) -> Iterator[Event]:
    """Put the run back to its newest sound checkpoint, if it has one. Damaged ones are moved aside and named."""
    checkpoint.clear_unfinished(run.checkpoints)
    for place, wrong in list(checkpoint.newest(run.checkpoints)):
        if wrong is None:
            checkpoint.restore(place, run.model, run.optimizer)
            state = checkpoint.state_of(place)
            run.progress = Progress(**state["progress"])
            yield Event(run.progress.step, f"Resumed from checkpoint {place.name}", {"checkpoint": place.name, "epoch": state["epoch"]})
            return
        place.rename(place.with_name(f"damaged-{place.name}"))
        yield Event(0, f"Checkpoint {place.name} is damaged and was set aside: {wrong}", {"checkpoint": place.name}, "warn")
    yield Event(0, "No sound checkpoint was found: training begins with the first step")
