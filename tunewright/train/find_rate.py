"""The learning-rate range test (Smith 2017, arXiv:1506.01186): what rates this model, data and tuning can bear."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Generator
from pathlib import Path

from tunewright.config import TrainConfig
from tunewright.data.sampler import steps
from tunewright.event import Event
from tunewright.train.loop import take_step
from tunewright.train.start import start

LOWEST, HIGHEST = 1e-6, 1.0
SMOOTH = 0.8  # share of the past in the smoothed loss
TOO_BAD = 2.0  # the test ends when the smoothed loss is so many times its lowest


def find_rate(config: TrainConfig, n_steps: int = 80) -> Generator[Event, None, None]:
    """Train from the base with a rate that grows from 1e-6 to 1 and yield each step's loss; the last event holds the suggestion.

    Nothing is kept. The suggestion is the rate at which the smoothed loss fell fastest per decade, which lies below the rate of the
    lowest loss: there the run would already be at the edge. It is a start, from one order of the rows, with no interval.
    Raises what `train` raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = yield from start(config.model_copy(update={"out": Path(folder)}))
        rates: list[float] = []
        losses: list[float] = []
        smoothed = weight = 0.0
        every = steps(len(run.rows), run.plan.batch_size, n_steps, run.order)
        for step, (_, _, chosen) in zip(range(n_steps), every, strict=False):
            rate = LOWEST * (HIGHEST / LOWEST) ** (step / max(1, n_steps - 1))
            result = take_step(run, [run.rows[i] for i in chosen], rate)
            smoothed, weight = SMOOTH * smoothed + (1 - SMOOTH) * result.loss, SMOOTH * weight + (1 - SMOOTH)
            if not result.applied or (losses and smoothed / weight > TOO_BAD * min(losses)):
                break
            rates.append(rate)
            losses.append(smoothed / weight)
            data = {"learning_rate": rate, "train_loss": result.loss, "smoothed_loss": losses[-1], "total_steps": n_steps}
            yield Event(step + 1, f"Learning rate {rate:.1e}: loss={result.loss:.3f}", data, kind="metrics")
        best = suggestion(rates, losses)
        yield Event(len(rates), f"Suggested learning rate: {best:.1e}", {"suggestion": best, "rates": rates, "losses": losses})


def suggestion(rates: list[float], losses: list[float]) -> float:
    """The rate of the steepest fall of the loss over the logarithm of the rate; the lowest one where it never falls."""
    slopes = [
        (losses[i + 1] - losses[i - 1]) / math.log(rates[i + 1] / rates[i - 1]) for i in range(1, min(len(rates), losses.index(min(losses)) + 1) - 1)
    ]
    return rates[1 + slopes.index(min(slopes))] if slopes and min(slopes) < 0 else rates[0]
