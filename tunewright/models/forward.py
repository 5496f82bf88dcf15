"""Rows through a model: `collate` lays them side by side, `score` says how each trained token was predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewright.data.tokens import Row


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one length.

    `ids`: (rows, length), padding is token 0. `targets`: (rows, length), the token that follows, or -100
    where that token is not trained. Causal attention never lets a token see what stands to its right, so
    padding needs no mask and changes nothing.
    """

    ids: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry for each trained token. `nll`: (tokens,) negative log-likelihood in nats, float32, with gradient
    where one is wanted. `correct`: (tokens,) the most likely token was the right one. `row`: (tokens,) its row."""

    nll: torch.Tensor
    correct: torch.Tensor
    row: torch.Tensor


def collate(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Pad rows on the right and shift their labels by one."""
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    targets = torch.full((len(rows), length), -100, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens = torch.from_numpy(row.ids).long()
        trained = torch.from_numpy(row.trained)
        ids[i, : len(tokens)] = tokens
        targets[i, : len(tokens) - 1] = torch.where(trained[1:], tokens[1:], -100)
    return Batch(ids.to(device), targets.to(device))


def score(model: PreTrainedModel, batch: Batch) -> Scores:
    """Predict each trained token of the batch from the tokens before it.

    The language model head is the widest product of a small model and most tokens are not trained, so it is
    computed for positions that some row needs (`logits_to_keep`), and the loss in float32 for those alone.
    """
    needed = (batch.targets != -100).any(dim=0).nonzero().squeeze(1)
    logits = model(input_ids=batch.ids, use_cache=False, logits_to_keep=needed).logits
    targets = batch.targets[:, needed]
    rows, columns = (targets != -100).nonzero(as_tuple=True)
    logits, targets = logits[rows, columns].float(), targets[rows, columns]
    nll = F.cross_entropy(logits, targets, reduction="none")
    return Scores(nll, logits.detach().argmax(dim=-1) == targets, rows)


def score_rows(model: PreTrainedModel, rows: Sequence[Row], budget: int) -> Iterator[tuple[int, Scores]]:
    """Score many rows without gradients, in micro-batches of `budget` padded tokens.

    Yields (row, its scores) in no particular order.
    """
    from tunewright.data.sampler import micro_batches

    device = next(model.parameters()).device
    for group in micro_batches([len(row.ids) for row in rows], budget):
        with torch.inference_mode():
            scores = score(model, collate([rows[i] for i in group], device))
        for place, i in enumerate(group):
            mine = scores.row == place
            yield i, Scores(scores.nll[mine], scores.correct[mine], scores.row[mine])
