"""A loss is (model, batch, the items in it) -> Sums. The loop adds them up and divides once per optimizer step,
so how a step is cut into micro-batches cannot change its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from tunewright.config import Dpo, Method, Supervised
from tunewright.data.tokens import Item, RowPair
from tunewright.models.classify import TextBatch
from tunewright.models.forward import AnyBatch, Scores, score


@dataclass(slots=True)
class Sums:
    """What a micro-batch adds to its step.

    `loss`: scalar, with gradient, in nats. `count`: what it is divided by: trained tokens, or pairs. `correct`: of them predicted or ranked right.
    `margin`: of pairs, the summed reward margin.
    """

    loss: torch.Tensor
    count: int
    correct: int
    margin: float = 0.0


Loss = Callable[[PreTrainedModel, AnyBatch, Sequence[Item]], Sums]


def loss_for(method: Method, weights: Sequence[float] | None = None) -> Loss:
    """The loss of a method. `weights`: in classification, how much a row of each label weighs."""
    match method:
        case Supervised():
            return partial(supervised, smoothing=method.label_smoothing, weights=weights)
        case Dpo():
            return partial(dpo, beta=0.1 if method.beta == "auto" else method.beta)
        case _:
            assert_never(method)


def supervised(
    model: PreTrainedModel, batch: AnyBatch, items: Sequence[Item] = (), smoothing: float = 0.0, weights: Sequence[float] | None = None
) -> Sums:
    """Cross-entropy of the trained tokens, or of the labels; with `smoothing`, that share of the target is spread over the whole vocabulary,
    or all labels (Szegedy et al. 2016). With `weights` a row counts as often as its label's weight says, and the sum is divided by the rows."""
    scores = score(model, batch, smoothing)
    nll = scores.nll
    if weights is not None:
        assert isinstance(batch, TextBatch)
        nll = nll * torch.tensor(weights, device=nll.device)[batch.labels]
    return Sums(nll.sum(), len(nll), int(scores.correct.sum()))


def dpo(model: PreTrainedModel, batch: AnyBatch, items: Sequence[Item], beta: float) -> Sums:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7): -log sigmoid of the reward margin, summed over pairs.

    An answer's reward is beta times how much more likely it has become than it was before tuning (`RowPair.reference`).
    """
    log_probs = row_log_probs(score(model, batch), 2 * len(items)).view(-1, 2)
    reference = torch.tensor([item.reference for item in items if isinstance(item, RowPair)], dtype=torch.float32, device=log_probs.device)
    rewards = beta * (log_probs - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    return Sums(-F.logsigmoid(margin).sum(), len(items), int((margin > 0).sum()), float(margin.detach().sum()))


def row_log_probs(scores: Scores, n_rows: int) -> torch.Tensor:
    """(rows,) summed log-probability, in nats, of each row's trained tokens."""
    return torch.zeros(n_rows, device=scores.nll.device).index_add(0, scores.row, -scores.nll)
