"""(optimizer config, parameter groups) -> optimizer, and (schedule, step) -> share of the peak rate."""

from __future__ import annotations

import math
from typing import Any, assert_never

import torch

from tunewright.config import Optimizer, Schedule
from tunewright.errors import BadConfig


def optimizer(config: Optimizer, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer over the groups. Raises BadConfig where its library is not installed."""
    match config.kind:
        case "adamw8bit":
            try:
                from bitsandbytes.optim import AdamW8bit
            except ImportError:
                text = "optimizer.kind: adamw8bit needs bitsandbytes; install the extra tunewright[quantized]"
                raise BadConfig(text, code="not_installed", param="optimizer.kind") from None
            return AdamW8bit(groups, lr=learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=learning_rate)
        case "adamw":
            return torch.optim.AdamW(groups, lr=learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=learning_rate, momentum=config.beta1)
        case _:
            assert_never(config.kind)


def factor(config: Schedule, step: int, total_steps: int) -> float:
    """What the peak rate is multiplied with at a step (counted from 1). A function of the step alone: nothing to save."""
    warm = math.ceil(config.warmup * total_steps)
    if step <= warm:
        return step / warm
    share = (step - warm) / max(1, total_steps - warm)
    match config.kind:
        case "constant":
            return 1.0
        case "linear":
            return 1 - (1 - config.final) * share
        case "cosine":
            return config.final + (1 - config.final) * (1 + math.cos(math.pi * share)) / 2
        case _:
            assert_never(config.kind)
