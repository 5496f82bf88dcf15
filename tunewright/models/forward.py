"""Rows through a model: `batches` cuts and lays them out, `score` says how each trained token was predicted.

Two layouts, one mechanism: as a prefix tree (each distinct token once), or padded side by side for models that a tree
cannot serve. The scores are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tunewright.data import tree
from tunewright.data.sampler import micro_batches
from tunewright.data.tokens import Row, SourceRow, TextRow
from tunewright.models import virtual
from tunewright.models.attention import Layout, attach, follow, serves
from tunewright.models.classify import TextBatch, class_logits, collate_texts, kept_of
from tunewright.models.floats import flushed
from tunewright.models.last import short
from tunewright.models.translate import SourceBatch, collate_sources, target_logits
from tunewright.models.virtual import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewright.data.tokens import Item

# Logits that are held at once for a tree, 32 MB in float32, but those of no fewer tokens than make a good matrix product. Beyond that the head is
# computed in parts, and each part again in the backward pass: no slower (the parts stay in the cache), and the memory is bounded.
MOST_LOGITS = 2**23
LEAST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one length.

    `ids`: (rows, length), padding is token 0. `targets`: (rows, length), the token that follows, or -100
    where that token is not trained. Causal attention never lets a token see what stands to its right, so
    padding needs no mask and changes nothing. `kept`: (rows, length), the rows' `Row.kept`, if they have one; padding is -1.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    kept: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Rows as a prefix tree of T tokens, of which S predict P different (state, token) pairs and N trained tokens.

    `needed`: (S,) the different tokens whose logits are computed; where sizes are rounded, some of them predict nothing.
    `state`: (P,) an index into them, and `target`: (P,) what follows. `pair`: (N,) an index into the pairs, and `row`: (N,) whose token that is. `kept`: (T,) the rows' `Row.kept`, if they have one.
    """

    layout: Layout
    needed: torch.Tensor
    state: torch.Tensor
    target: torch.Tensor
    pair: torch.Tensor
    row: torch.Tensor
    kept: torch.Tensor | None = None

    @property
    def ids(self) -> torch.Tensor:
        """(1, T) the distinct tokens."""
        return self.layout.ids


AnyBatch = Batch | TreeBatch | TextBatch | SourceBatch


@dataclass(frozen=True, slots=True)
class Scores:
    """One entry for each trained token, or label. `nll`: (tokens,) negative log-likelihood in nats, float32, with gradient
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
    return Batch(ids.to(device), targets.to(device), kept_of(rows, length))


def branch(rows: Sequence[Row], device: torch.device | str = "cpu", rounded: bool = False) -> TreeBatch:
    """Lay rows out as a prefix tree, with its sizes `rounded` if so wished (see `tree.rounded`)."""
    planned = tree.plan(rows)
    needed, *rest = _distinct(planned.state, planned.target, planned.row)
    if rounded:
        planned = tree.rounded(planned)
        spare = np.setdiff1d(np.arange(len(planned.ids)), needed)  # others, not one twice: what a layer puts back at two equal places counts double
        needed = np.append(needed, spare[: -len(needed) % 32])
    batch = TreeBatch(Layout.of(planned, device), *(torch.from_numpy(x).to(device) for x in (needed, *rest)))
    if rows[0].kept is None:
        return batch
    kept = np.full(len(planned.ids), places(rows[0])[0])
    for row, path in zip(rows, planned.paths, strict=True):
        kept[path] = places(row)
    return replace(batch, kept=torch.from_numpy(kept))


def alone(rows: Sequence[Row], device: torch.device | str = "cpu") -> TreeBatch:
    """Only the tokens of rows with `Row.kept` whose states predict a trained token, for what computes each state by itself: a norm, a head."""
    at = [row.trained[1:].nonzero()[0] + 1 for row in rows]
    states = np.concatenate([places(row)[mine - 1] for row, mine in zip(rows, at, strict=True)])
    targets = np.concatenate([row.ids[mine] for row, mine in zip(rows, at, strict=True)]).astype(np.int64)
    kept, *rest = _distinct(states, targets, np.repeat(np.arange(len(rows)), [len(mine) for mine in at]))
    tensors = (torch.from_numpy(x).to(device) for x in (np.arange(len(kept)), *rest))
    return replace(TreeBatch(Layout.alone(len(kept), device), *tensors), kept=torch.from_numpy(kept))


def places(row: Row | TextRow) -> np.ndarray:
    """A row's `kept`, which it has."""
    assert row.kept is not None
    return row.kept


def _distinct(state: np.ndarray, target: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, ...]:
    """What TreeBatch wants of N trained tokens: `needed`, `state`, `target`, `pair`, `row`."""
    pairs, pair = np.unique(np.stack([state, target]), axis=1, return_inverse=True)
    needed, index = np.unique(pairs[0], return_inverse=True)
    return needed, index.reshape(-1), pairs[1].copy(), pair.reshape(-1), row


def batches(
    items: Sequence[Item], budget: int, shared: bool, device: torch.device | str = "cpu", rounded: bool = False
) -> Iterator[tuple[list[int], AnyBatch]]:
    """Cut items into micro-batches of `budget` computed tokens and lay their rows out; yields (which items, batch of their rows in that order).

    `shared`: as trees, along the tree of all rows, for a model that `attention.serves`. Otherwise padded, rows of like length together.
    The rows of one item (a pair) stay together. `rounded`: trees of like size get one size, for what is slow at each new one.
    """
    bundles = [item.rows for item in items]
    groups = tree.micro(bundles, budget) if shared else micro_batches([max(len(r) for r in b) for b in bundles], budget // len(bundles[0]))
    for group in groups:
        some = [row for i in group for row in bundles[i]]
        yield group, branch(some, device, rounded) if shared else _padded(some, device)


def _padded(rows: Sequence[Row | TextRow | SourceRow], device: torch.device | str) -> AnyBatch:
    """The rows, all of one kind, side by side."""
    if sources := [row for row in rows if isinstance(row, SourceRow)]:
        return collate_sources(sources, device)
    if texts := [row for row in rows if isinstance(row, TextRow)]:
        return collate_texts(texts, device)
    return collate([row for row in rows if isinstance(row, Row)], device)


def size_of(batch: AnyBatch) -> int:
    """The tokens that are computed for a batch, padding included."""
    return batch.ids.numel() + (batch.targets.numel() if isinstance(batch, SourceBatch) else 0)


def score(model: PreTrainedModel, batch: AnyBatch, smoothing: float = 0.0) -> Scores:
    """Predict each trained token of the batch from the tokens before it, or each text's label.

    The language model head is the widest product of a small model and most tokens are not trained, so it is
    computed for positions that some row needs (`logits_to_keep`), and the loss in float32 for those alone.
    `smoothing`: the share of each target that `nll` spreads over the whole vocabulary.
    """
    match batch:
        case Batch():
            return _score_padded(model, batch, smoothing)
        case TreeBatch():
            return _score_tree(model, batch, smoothing)
        case TextBatch():
            nll, correct = _nll(class_logits(model, batch), batch.labels, smoothing)
            return Scores(nll, correct, torch.arange(len(nll), device=nll.device))
        case SourceBatch():
            rows, columns = (batch.targets != -100).nonzero(as_tuple=True)
            nll, correct = _nll(target_logits(model, batch)[rows, columns], batch.targets[rows, columns], smoothing)
            return Scores(nll, correct, rows)


def _score_padded(model: PreTrainedModel, batch: Batch, smoothing: float) -> Scores:
    needed = (batch.targets != -100).any(dim=0).nonzero().squeeze(1)
    logits = base_of(model)(**virtual.inputs(model, batch.ids), use_cache=False, logits_to_keep=needed).logits
    targets = batch.targets[:, needed]
    rows, columns = (targets != -100).nonzero(as_tuple=True)
    nll, correct = _nll(logits[rows, columns], targets[rows, columns], smoothing)
    return Scores(nll, correct, rows)


def _score_tree(model: PreTrainedModel, batch: TreeBatch, smoothing: float) -> Scores:
    """A state at a fork predicts several tokens, and a trained token that rows share counts for each of them."""
    attach(model)
    inputs = virtual.inputs(model, batch.ids)
    base = short(base_of(model), batch.needed, batch.ids.shape[1])
    at_once = max(LEAST_TOKENS, MOST_LOGITS // model.config.get_text_config().vocab_size)
    if len(batch.state) > at_once and (head := plain_head(model)):
        hidden = follow(base.base_model, batch.layout, **inputs).last_hidden_state[0, batch.needed[batch.state]]
        parts = [
            checkpoint(lambda some, target: _nll(head(some), target, smoothing), some, target, use_reentrant=False, preserve_rng_state=False)
            for some, target in zip(hidden.split(at_once), batch.target.split(at_once), strict=True)
        ]
        nll, correct = (torch.cat(each) for each in zip(*parts, strict=True))
    else:
        logits = follow(base, batch.layout, **inputs, logits_to_keep=batch.needed).logits[0]
        nll, correct = _nll(logits if len(batch.state) == len(batch.needed) else logits.index_select(0, batch.state), batch.target, smoothing)
    return Scores(nll[batch.pair], correct[batch.pair], batch.row)


def _nll(logits: torch.Tensor, target: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    nll = F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)
    return nll, logits.detach().argmax(dim=-1) == target


def plain_head(model: PreTrainedModel) -> torch.nn.Module | None:
    """The head, where a model's logits are what it makes of the last hidden states and nothing else (no scale, no cap)."""
    base = base_of(model)
    if base not in _heads:
        _heads[base] = _find_head(model, base)
    return _heads[base]


@torch.no_grad()
def _find_head(model: PreTrainedModel, base: PreTrainedModel) -> torch.nn.Module | None:
    head, training = base.get_output_embeddings(), model.training
    if head is None or base.base_model is base:
        return None
    ids = torch.arange(2, device=next(model.parameters()).device)[None]
    model.eval()
    out = base.base_model(input_ids=ids, use_cache=False)
    plain = hasattr(out, "last_hidden_state") and torch.equal(head(out.last_hidden_state), base(input_ids=ids, use_cache=False).logits)
    model.train(training)
    return head if plain else None


_heads: WeakKeyDictionary[torch.nn.Module, torch.nn.Module | None] = WeakKeyDictionary()


def score_rows(model: PreTrainedModel, rows: Sequence[Row | SourceRow], budget: int) -> Iterator[tuple[int, Scores]]:
    """Score many rows without gradients, in micro-batches of `budget` computed tokens.

    Yields (row, its scores) in no particular order.
    """
    device = next(model.parameters()).device
    rows = virtual.in_front(rows, model)
    shared = serves(model, max((len(row.ids) for row in rows), default=0)) is None
    for group, batch in batches(rows, budget, shared, device):
        with flushed(), torch.inference_mode():
            scores = score(model, batch)
        for place, i in enumerate(group):
            mine = scores.row == place
            yield i, Scores(scores.nll[mine], scores.correct[mine], scores.row[mine])
