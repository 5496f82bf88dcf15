"""A running job's own estimate: one event after its first steps, and beside it at the end what became of it.

Nothing is computed for it that training would not compute, but for two validation batches; weights and random numbers stay as they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.data.sampler import steps
from tunewright.data.tokens import Item
from tunewright.event import Event, duration
from tunewright.train import peak as peaks
from tunewright.train.estimate import (
    VALIDATED,
    Pace,
    checkpoint_bytes,
    device_of,
    estimate,
    largest_micro_batch,
    left,
    limit_of,
    pace_of,
    sizes,
    state_bytes,
    weight_bytes,
)
from tunewright.train.folder import write_json
from tunewright.train.start import Run

STEPS = 3  # measured before the estimate is said; the first of them warms up
SECONDS = 10.0  # after which fewer do
_PIECES = 1.15  # memory in pieces: by how much what the heap holds for activations still grows after the first steps, on a CPU
_FORWARD = 0.4  # share of a training step that its forward pass takes, where no validation batch is measured
_VALIDATED = 0.3, 0.01  # seconds, or share of the run's steps, that the largest validation batch may take to be measured
_SAVE, _SAVED_BYTES = 0.05, 3e8  # seconds of a checkpoint beside its bytes, and bytes a second


class Forecast:
    """Watches one attempt at a run, from before its first step to its end."""

    def __init__(self, run: Run, begun: float, validate: Callable[[Run, list[Item], str], dict[str, float]]) -> None:
        """`begun`: when the attempt began, in unix seconds. `validate`: the loop's own."""
        self.run, self.begun, self.validate = run, begun, validate
        self.done, self.epochs_done = run.progress.step, run.progress.epochs
        self.start = time.time() - begun
        self.measured: list[tuple[int, float]] = []
        self.prediction: dict[str, Any] | None = None
        device = device_of(run)
        self.peak_before, self.held = peaks.highest(device), peaks.in_use(device)
        peaks.forget(device)

    def over(self, events: Iterator[Event]) -> Iterator[Event]:
        """Pass the steps' events on, with the estimate behind the first of them."""
        following = steps(len(self.run.rows), self.run.plan.batch_size, self.run.plan.n_epochs, self.run.order, self.done)
        chosen = [rows for _, _, rows in islice(following, STEPS)]
        for event in events:
            yield event
            if self.prediction is None and "train_loss" in event.data:
                items = [self.run.rows[i] for i in chosen[len(self.measured)]]
                read = sum(len(row.ids) for item in items for row in item.rows)
                self.measured.append((sum(sizes(self.run, items)), read / event.data["tokens_per_second"]))
                if len(self.measured) == len(chosen) or sum(seconds for _, seconds in self.measured) > SECONDS:
                    yield self._predict(event.step, items)

    def _predict(self, step: int, items: list[Item]) -> Event:
        run, counted = self.run, self.measured[1:] if len(self.measured) == STEPS else self.measured
        work = left(run, self.done, self.epochs_done)
        _, token = pace_of(counted)
        seen, fixed = max(sizes(run, items)), weight_bytes(run) + state_bytes(run)
        activations = max(0, peaks.highest(device_of(run)) - self.held - fixed)
        pieces = _PIECES if device_of(run).type == "cpu" else 1.0
        peak = max(self.peak_before, self.held + fixed + round(activations * pieces * max(1.0, work.largest / seen)))
        pace = Pace(0.0, token, *self._validation(token, work.computed * token), _SAVE + checkpoint_bytes(run) / _SAVED_BYTES)
        peak = max(peak, peaks.highest(device_of(run)))
        size, cache = checkpoint_bytes(run), run.kept.states.nbytes if run.kept else 0
        self.prediction = estimate(run, work, pace, self.start, self.begun, peak, limit_of(run), size, cache, len(counted))
        self._keep({})
        return Event(step, sentence(self.prediction), self.prediction, "info" if self.prediction["fits"] else "warn")

    def _validation(self, token: float, steps: float) -> tuple[float, float]:
        """Seconds of a computed token in full validation, and of one batch at an interval. `steps`: seconds of all steps."""
        if not (rows := self.run.validation[:VALIDATED]):
            return 0.0, 0.0
        batch, largest = rows[: self.run.plan.batch_size], largest_micro_batch(self.run, rows, False)
        forward, check = (_FORWARD * token * sum(sizes(self.run, items, False)) for items in (largest, batch))
        if sum(seconds for _, seconds in self.measured) <= SECONDS:
            check = self._timed(batch)
        if forward <= max(_VALIDATED[0], _VALIDATED[1] * steps):
            forward = self._timed(largest)
        return forward / sum(sizes(self.run, largest, False)), check

    def _timed(self, items: list[Item]) -> float:
        begun = time.perf_counter()
        self.validate(self.run, items, "valid")
        return time.perf_counter() - begun

    def outcome(self) -> Event:
        """What the attempt took, beside what was predicted."""
        out = self.run.config.out
        data: dict[str, Any] = {
            "seconds": round(time.time() - self.begun, 2),
            "peak_memory_bytes": max(self.peak_before, peaks.highest(device_of(self.run))),
            "disk_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
            "stopped_early": self.run.progress.stopped_early,
        }
        text = (
            f"It took {duration(data['seconds'])}, {data['peak_memory_bytes'] / 1e9:.2f} GB of memory and {data['disk_bytes'] / 1e6:,.1f} MB on disk"
        )
        if self.prediction:
            for name in ("seconds", "peak_memory_bytes", "disk_bytes"):
                data[f"estimated_{name}"] = self.prediction[f"estimated_{name}"]
                data[f"{name}_error"] = round(data[f"estimated_{name}"] / data[name] - 1, 4)
            text += f"; the estimate was {data['seconds_error']:+.0%} in time, {data['peak_memory_bytes_error']:+.0%} in memory"
        self._keep(data)
        return Event(self.run.progress.step, text, data)

    def _keep(self, outcome: dict[str, Any]) -> None:
        """Write both to the run folder's estimate.json."""
        write_json(self.run.config.out / "estimate.json", {"prediction": self.prediction, "outcome": outcome or None})


def kept(folder: Path) -> dict[str, Any] | None:
    """What a run folder's estimate.json holds: `prediction` and `outcome`, each of the newest attempt, or None."""
    place = folder / "estimate.json"
    record: dict[str, Any] | None = json.loads(place.read_text()) if place.is_file() else None
    return record


def sentence(found: dict[str, Any]) -> str:
    """An estimate in one line."""
    finish = time.strftime("%H:%M:%S", time.localtime(found["estimated_finish"]))
    text = f"Estimate: {duration(found['estimated_seconds'])} in all, done at {finish}; {found['estimated_peak_memory_bytes'] / 1e9:.2f} GB of memory"
    text += f", {found['estimated_disk_bytes'] / 1e6:,.1f} MB on disk"
    if found["estimated_cost"]:
        text += f", {found['estimated_cost']:.2f} {found['currency']}"
    if not found["fits"]:
        text += f". It may not fit into {found['memory_limit_bytes'] / 1e9:.2f} GB; `tunewright plan` finds what would"
    return text
