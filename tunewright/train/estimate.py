"""What a run will take: the work that is left (`left`), and tokens, time, memory, disk and cost made of it (`estimate`)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunewright.config import Prices
from tunewright.data.sampler import steps, steps_per_epoch
from tunewright.data.tokens import Item, Row
from tunewright.models.forward import size_of
from tunewright.models.tuning import trained
from tunewright.train import memory
from tunewright.train import peak as peaks
from tunewright.train.measure import MARGIN

if TYPE_CHECKING:
    from tunewright.train.start import Run


_COUNTED_STEPS = 2000  # of longer runs the rest is taken to be like these
_SAMPLED_STEPS = 8
VALIDATED = 256  # rows of validation that may be measured
_AUTOSAVE_SECONDS = 60.0
_EVENT_BYTES = 900  # of one step in events.jsonl and TensorBoard


@dataclass(frozen=True, slots=True)
class Work:
    """What is left of a run.

    `steps`: how many. `read`: tokens in their rows. `computed`: what is computed for them: each step's distinct tokens, or its rows with padding.
    `largest`: computed tokens of the largest micro-batch. `checks`: validations of one batch, at intervals. `validation`: computed tokens of the full
    ones. `saves`: epochs that end.
    `sample`: some steps' rows, from the fewest tokens to the most.
    """

    steps: int
    read: int
    trained: int
    computed: int
    largest: int
    checks: int
    validation: int
    saves: int
    sample: list[list[Item]]


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: of each step beside its tokens, of a computed token in training and in full validation, of one batch's validation, and of a checkpoint."""

    step: float
    token: float
    forward: float
    check: float
    save: float


def sizes(run: Run, items: list[Item], learns: bool = True) -> list[int]:
    """Computed tokens of each micro-batch that items are cut into."""
    return [size_of(batch) for _, batch in run.batches(items, learns)]


def largest_micro_batch(run: Run, items: list[Item], learns: bool = True) -> list[Item]:
    """The largest of the micro-batches that items are cut into."""
    group, _ = max(((group, size_of(batch)) for group, batch in run.batches(items, learns)), key=lambda each: each[1])
    return [items[i] for i in group]


def left(run: Run, done: int, epochs_done: int, samples: int = _SAMPLED_STEPS) -> Work:
    """Count what follows after so many steps and whole epochs. Draws none of torch's random numbers; a step's rows are those that training takes."""
    plan = run.plan
    to_do = plan.total_steps - done
    lengths = _lengths(run.rows)
    chosen = [rows for _, _, rows in islice(steps(len(run.rows), plan.batch_size, plan.n_epochs, run.order, done), _COUNTED_STEPS)]
    read = np.array([int(lengths[rows].sum()) for rows in chosen])
    places: Any = np.linspace(0, len(read) - 1, min(samples, len(read))).round().astype(int) if len(read) else []
    sample = [[run.rows[i] for i in chosen[at]] for at in read.argsort(kind="stable")[places]]
    cuts = [sizes(run, items) for items in sample]
    share = sum(map(sum, cuts)) / max(1, sum(_lengths(items).sum() for items in sample))
    all_read = int(read.mean() * to_do) if len(read) else 0
    learnt = sum(int(row.trained[1:].sum()) if isinstance(row, Row) else row.learnt for item in run.rows for row in item.rows)
    epochs = to_do / steps_per_epoch(len(run.rows), plan.batch_size)
    return Work(
        steps=to_do,
        read=all_read,
        trained=round(learnt * epochs),
        computed=round(all_read * share),
        largest=max((size for one in cuts for size in one), default=0),
        checks=(plan.total_steps // plan.evaluate_every - done // plan.evaluate_every) if run.validation else 0,
        validation=_validation(run) * (plan.n_epochs - epochs_done),
        saves=plan.n_epochs - epochs_done,
        sample=sample,
    )


def _lengths(items: Sequence[Item]) -> np.ndarray:
    return np.array([sum(len(row) for row in item.rows) for item in items])


def _validation(run: Run) -> int:
    """Computed tokens of the full validation set."""
    some = run.validation[:VALIDATED]
    return round(sum(sizes(run, some, False)) / _lengths(some).sum() * _lengths(run.validation).sum()) if some else 0


def weight_bytes(run: Run) -> int:
    """The weights that train; their gradients take as much."""
    return sum(p.numel() * p.element_size() for p in trained(run.model).values())


def state_bytes(run: Run) -> int:
    """The optimizer's state, which it makes in its first step."""
    state = (value for p in trained(run.model).values() for value in run.optimizer.state[p].values() if isinstance(value, torch.Tensor))
    return sum(value.numel() * value.element_size() for value in state)


def checkpoint_bytes(run: Run) -> int:
    """About what a checkpoint takes on disk: the weights that a load needs, the optimizer's state, the tokenizer."""
    whole = run.config.tuning.kind in ("full", "top_layers")
    weights = sum(p.numel() * p.element_size() for p in run.model.parameters()) if whole else weight_bytes(run)
    return weights + state_bytes(run) + 60 * len(run.tokenizer)


def estimate(
    run: Run, work: Work, pace: Pace, start: float, begun: float, peak: int, limit: int, checkpoint: int, cache: int, measured: int
) -> dict[str, Any]:
    """The estimate as JSON values, times in seconds, sizes in bytes.

    `start`: what comes before the first step. `begun`: when the run began or would begin, in unix seconds. `peak`: predicted. `limit`: the memory
    that the process may take in all. `checkpoint`: bytes of one. `cache`: bytes of a frozen trunk's states, while it runs. `measured`: how many steps the pace is taken from.
    """
    training = work.steps * pace.step + work.computed * pace.token
    every = run.config.checkpoints.every_steps
    saves = work.saves + (int(training / _AUTOSAVE_SECONDS) if every == "auto" else work.steps // every)
    # One more for the result.
    parts = {
        "start": start,
        "steps": training,
        "validation": work.validation * pace.forward + work.checks * pace.check,
        "checkpoints": (saves + 1) * pace.save,
    }
    seconds = sum(parts.values())
    # The two newest, the best and the last epochs' ones; the result is one without the optimizer's state.
    kept = min(saves, run.config.checkpoints.keep + 2)
    return {
        "rows": len(run.rows),
        "epochs": run.plan.n_epochs,
        "batch_size": run.plan.batch_size,
        "steps": work.steps,
        "total_steps": run.plan.total_steps,
        "tokens": work.read,
        "trained_tokens": work.trained,
        "computed_tokens": work.computed,
        "largest_micro_batch_tokens": work.largest,
        "estimated_seconds": round(seconds, 2),
        "estimated_seconds_by_part": {name: round(value, 2) for name, value in parts.items()},
        "estimated_finish": round(begun + seconds),
        "estimated_peak_memory_bytes": peak,
        "memory_limit_bytes": limit,
        "fits": peak * MARGIN <= limit,
        "estimated_disk_bytes": (kept + 1) * checkpoint - state_bytes(run) + work.steps * _EVENT_BYTES,
        "estimated_cache_bytes": cache,
        "disk_free_bytes": shutil.disk_usage(run.config.out).free,
        "estimated_cost": cost(run.config.prices, seconds, work.read),
        "currency": run.config.prices.currency,
        "measured_steps": measured,
    }


def cost(prices: Prices, seconds: float, tokens: int) -> float:
    """What a run of so many seconds over so many tokens costs by a price table."""
    return round(prices.per_hour * seconds / 3600 + prices.per_million_tokens * tokens / 1e6, 4)


def pace_of(measured: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """(computed tokens, seconds) of steps -> seconds a step and seconds a token, neither below 0, by least squares of the relative error."""
    from scipy.optimize import nnls

    tokens, seconds = np.array([m[0] for m in measured], float), np.array([m[1] for m in measured], float)
    if len(measured) < 3 or tokens.max() < 1.2 * tokens.min():
        return 0.0, float(seconds.sum() / tokens.sum())
    (step, token), _ = nnls(np.stack([1 / seconds, tokens / seconds], axis=1), np.ones(len(measured)))
    return float(step), float(token)


def device_of(run: Run) -> torch.device:
    """Where the run computes."""
    return next(run.model.parameters()).device


def limit_of(run: Run) -> int:
    """The memory that this process may take in all: what it holds and what is free."""
    return peaks.in_use(device_of(run)) + memory.free(device_of(run))
