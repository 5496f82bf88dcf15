"""Before the first step: every "auto" becomes a number, by rule or by a short measurement on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from tunewright.config import TrainConfig
from tunewright.data.sampler import steps_per_epoch
from tunewright.models.quantized import weights

Precision = Literal["fp32", "bf16"]

# What each optimizer keeps for a weight that trains.
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 1, "sgd": 4}


@dataclass(frozen=True, slots=True)
class Plan:
    """The numbers a run really uses. Kept in the run folder: a resumed run must not choose anew."""

    n_epochs: int
    batch_size: int
    learning_rate: float
    total_steps: int
    evaluate_every: int
    threads: int
    precision: Precision
    micro_batch_tokens: int = 8192

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def make(config: TrainConfig, model: PreTrainedModel, n_rows: int, micro_batch_tokens: int, once: Callable[[Precision], None]) -> Plan:
    """Resolve a config for a model with its trainable weights marked, how many rows it will learn from, and how many tokens are computed at once."""
    batch_size = batch_size_for(config, n_rows)
    n_epochs = epochs_for(config, n_rows)
    each = steps_per_epoch(n_rows, batch_size)
    every = config.evaluation.every_steps
    threads, precision = fastest(config, next(model.parameters()).device, once)
    return Plan(
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate_for(config, model),
        total_steps=each * n_epochs,
        evaluate_every=max(1, each // 10) if every == "auto" else every,
        threads=threads,
        precision=precision,
        micro_batch_tokens=micro_batch_tokens,
    )


def epochs_for(config: TrainConfig, n_rows: int) -> int:
    """Small sets need more passes, huge ones need one."""
    wanted = config.hyperparameters.n_epochs
    if wanted != "auto":
        return wanted
    if n_rows >= 100_000:
        return 1
    return min(10, max(3, -(-1500 // n_rows)))


def batch_size_for(config: TrainConfig, n_rows: int) -> int:
    """About fifty steps an epoch, within 4 to 32 rows, never more than there are."""
    wanted = config.hyperparameters.batch_size
    return min(n_rows, max(4, min(32, n_rows // 50)) if wanted == "auto" else wanted)


def learning_rate_for(config: TrainConfig, model: PreTrainedModel) -> float:
    """The peak rate: the optimizer's, times the multiplier."""
    rate = config.optimizer.learning_rate
    if rate == "auto":
        rate = {"lora": 1e-3, "prompt": 0.1}.get(config.tuning.kind, 2e-4)
        if weights(model) > 100_000_000:
            rate /= 5
        if config.optimizer.kind == "sgd":
            rate *= 10
    multiplier = config.hyperparameters.learning_rate_multiplier
    return rate * (1.0 if multiplier == "auto" else multiplier)


def fastest(config: TrainConfig, device: torch.device, once: Callable[[Precision], None]) -> tuple[int, Precision]:
    """Threads and precision that compute one of this run's own micro-batches (`once`, forward and backward) soonest.

    Only what the config leaves open is tried; with nothing open nothing is measured. Leaves torch set to the threads it chose.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = sorted({1, cores}) if config.threads == "auto" and device.type == "cpu" else [cores if config.threads == "auto" else config.threads]
    precisions = list(has_bf16(device)) if config.precision == "auto" else [config.precision]
    options = [(count, precision) for precision in precisions for count in threads]
    best = options[0]
    if len(options) > 1:
        best = soonest({option: _seconds(once, *option) for option in options})
    torch.set_num_threads(best[0])
    return best


def soonest(times: Mapping[tuple[int, Precision], float]) -> tuple[int, Precision]:
    """The threads and precision of the shortest time; bf16, which is less exact, only where it saves a tenth."""
    return min(times, key=lambda option: times[option] * (1.0 if option[1] == "fp32" else 1.1))


def has_bf16(device: torch.device) -> tuple[Precision, ...]:
    """The precisions worth trying: bf16 only where the hardware multiplies it."""
    if device.type == "cuda":
        return ("bf16",) if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32",)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # type: ignore[no-untyped-call]
    return ("fp32", "bf16") if native else ("fp32",)


def _seconds(once: Callable[[Precision], None], threads: int, precision: Precision) -> float:
    """The shortest of three passes; the first, which warms up, cannot be the shortest by luck."""
    torch.set_num_threads(threads)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        once(precision)
        times.append(time.perf_counter() - start)
    return min(times)
