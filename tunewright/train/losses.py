"""A loss is (model, batch) -> Sums. The loop adds them up and divides once per optimizer step,
so how a step is cut into micro-batches cannot change its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from tunewright.models.forward import Batch, score


@dataclass(slots=True)
class Sums:
    """`loss`: scalar, the sum over trained tokens, with gradient. `count`: trained tokens. `correct`: of them predicted right."""

    loss: torch.Tensor
    count: int
    correct: int


def supervised(model: PreTrainedModel, batch: Batch) -> Sums:
    """Cross-entropy of the trained tokens."""
    scores = score(model, batch)
    return Sums(scores.nll.sum(), len(scores.nll), int(scores.correct.sum()))
