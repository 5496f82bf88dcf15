"""Tokens of many requests in one forward pass: `advance`, over a memory of keys and values with one slot a request.

The tokens lie flat, one behind the other: the next one of each request that is answering, and a piece of the prompt of
each that has just come. All but attention computes them as one row; attention, exchanged through transformers' attention
interface, lets each token see its own slot alone. So requests join and leave between passes, and nothing is padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "tunewright_slots"
_GRAIN = 64


class NotServed(ValueError):
    """A model's attention does something that slots do not know."""


@dataclass(frozen=True, slots=True)
class Span:
    """What one request adds in a pass: `ids` at the positions from `start`, in its slot. `virtual`: (count, hidden) embeddings that
    stand in place of the first ids (a tuned prompt), whose ids do not count."""

    slot: int
    start: int
    ids: Sequence[int]
    virtual: torch.Tensor | None = None


@dataclass(slots=True)
class Memory:
    """Keys and values: for each layer (slots, heads, length, size), grown as needed."""

    slots: int = 0
    length: int = 0
    layers: dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def reserve(self, slots: int, length: int, most: int | None = None) -> None:
        """Make room for the first `slots` slots, `length` tokens each, and keep what is in them. Where more than `most` tokens would be
        held, room that others once needed is given up."""
        if slots <= self.slots and length <= self.length:
            return
        exact = -(-length // _GRAIN) * _GRAIN
        wide, long = max(self.slots, slots), self.length
        if length > self.length:  # by half at least, or growing would copy as much as it makes
            long = max(exact, -(-self.length * 3 // 2 // _GRAIN) * _GRAIN)
        self.slots, self.length = (slots, exact) if most is not None and wide * long > most else (wide, long)
        for layer, both in self.layers.items():
            self.layers[layer] = (self._resized(both[0]), self._resized(both[1]))

    def _resized(self, old: torch.Tensor) -> torch.Tensor:
        new = old.new_zeros((self.slots, old.shape[1], self.length, old.shape[3]))
        slots, length = min(self.slots, old.shape[0]), min(self.length, old.shape[2])
        new[:slots, :, :length] = old[:slots, :, :length]
        return new

    def move(self, source: int, to: int, length: int) -> None:
        """Copy a slot's first `length` tokens into another slot."""
        for keys, values in self.layers.values():
            keys[to, :, :length] = keys[source, :, :length]
            values[to, :, :length] = values[source, :, :length]

    def of(self, module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's memory, made at its first use in the layer's own sizes."""
        if module not in self.layers:
            # Zeros, not whatever lies there: a masked NaN is still one.
            made = [x.new_zeros((self.slots, x.shape[1], self.length, x.shape[3])) for x in (key, value)]
            self.layers[module] = (made[0], made[1])
        return self.layers[module]


@dataclass(slots=True)
class _Pass:
    """The flat layout of one pass: `slot` and `at`: (tokens,). The first `single` tokens are spans of one token."""

    memory: Memory
    spans: Sequence[Span]
    single: int
    slot: torch.Tensor
    at: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The most tokens that one of the single ones sees."""
        return max(span.start + 1 for span in self.spans[: self.single])

    def mask(self, window: int | None, kind: torch.dtype) -> torch.Tensor:
        """(single, 1, 1, longest), added to the scores."""
        if window not in self.masks:
            last = self.at[: self.single, None]
            places = torch.arange(self.longest, device=last.device)
            hidden = places > last
            if window is not None:
                hidden |= places <= last - window
            self.masks[window] = torch.zeros(hidden.shape, dtype=kind, device=last.device).masked_fill_(hidden, -torch.inf)[:, None, None]
        return self.masks[window]


_pass: ContextVar[_Pass | None] = ContextVar("a pass over slots", default=None)


def attach(model: PreTrainedModel) -> int:
    """Let a model attend over slots, and return the bytes that a token's keys and values take.

    Raises NotServed when it cannot; calls outside `advance` attend as before.
    """
    taken = inspect.signature(model.forward).parameters
    if missing := [name for name in ("position_ids", "logits_to_keep", "inputs_embeds") if name not in taken]:
        raise NotServed(f"its forward takes no {missing[0]}")
    if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        raise NotServed("it is no decoder of attention alone")
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        return _try(model)
    except (NotServed, TypeError, RuntimeError, KeyError) as error:
        model.set_attn_implementation(before)
        raise NotServed(str(error)) from None


@torch.inference_mode()
def _try(model: PreTrainedModel) -> int:
    """A few tokens over slots, in pieces, against the same tokens as rows: the same logits, or NotServed. Returns bytes a token."""
    size = model.config.get_text_config().vocab_size
    rows = [[i % size for i in row] for row in ([6, 7], [1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13, 14])]
    device = next(model.parameters()).device
    alone = torch.stack([model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0, -1].float() for row in rows])
    memory = Memory()
    advance(model, memory, [Span(i, 0, row[: len(row) // 2]) for i, row in enumerate(rows)])
    advance(model, memory, [Span(i, len(row) // 2, row[len(row) // 2 : -1]) for i, row in enumerate(rows) if len(row) > 2])
    found = advance(model, memory, [Span(i, len(row) - 1, row[-1:]) for i, row in enumerate(rows)]).float()
    near = 1e-3 if next(model.parameters()).dtype == torch.float32 else 5e-2
    if not float((found - alone).abs().max()) <= near * float(alone.abs().max()):
        raise NotServed("its logits over slots are not those of rows")
    return sum(x.nbytes for both in memory.layers.values() for x in both) // (memory.slots * memory.length)


def advance(model: PreTrainedModel, memory: Memory, spans: Sequence[Span], every: bool = False) -> torch.Tensor:
    """Compute the spans' tokens and remember them. Returns the logits at each span's last token: (spans, vocabulary).

    With `every`, those at all tokens, flat in the order of the spans: (tokens, vocabulary).
    Spans of one token must come first. A slot occurs once.
    """
    device = next(model.parameters()).device
    counts = [len(span.ids) for span in spans]
    single = next((i for i, count in enumerate(counts) if count > 1), len(spans))
    assert all(count > 1 for count in counts[single:])
    memory.reserve(max(span.slot for span in spans) + 1, max(span.start + len(span.ids) for span in spans))
    ids = torch.tensor([[i for span in spans for i in span.ids]], dtype=torch.long, device=device)
    at = torch.tensor([span.start + i for span in spans for i in range(len(span.ids))], dtype=torch.long, device=device)
    slot = torch.tensor([span.slot for span in spans for _ in span.ids], dtype=torch.long, device=device)
    ends = torch.tensor(counts, device=device).cumsum(0) - 1
    token = _pass.set(_Pass(memory, spans, single, slot, at))
    try:
        out = model(
            **_inputs(model, ids, spans),
            position_ids=at[None],
            use_cache=False,
            logits_to_keep=0 if every else ends,
        )
    finally:
        _pass.reset(token)
    logits: torch.Tensor = out.logits[0]
    return logits


@dataclass(slots=True)
class RowMemory:
    """What `advance_rows` remembers: for each slot the model's own cache."""

    caches: dict[int, Any] = field(default_factory=dict)

    def move(self, source: int, to: int, length: int) -> None:
        """Hand a slot's cache to another slot."""
        self.caches[to] = self.caches.pop(source)


def advance_rows(model: PreTrainedModel, memory: RowMemory, span: Span) -> torch.Tensor:
    """`advance` for any model that keeps a cache, one span at a time; a prompt must come in one piece. Returns (1, vocabulary)."""
    ids = torch.tensor([span.ids], dtype=torch.long, device=next(model.parameters()).device)
    cache = memory.caches.get(span.slot) if span.start else None
    out = model(**_inputs(model, ids, [span]), past_key_values=cache, use_cache=True)
    memory.caches[span.slot] = out.past_key_values
    return out.logits[0, -1:]


def _inputs(model: PreTrainedModel, ids: torch.Tensor, spans: Sequence[Span]) -> dict[str, torch.Tensor]:
    if all(span.virtual is None for span in spans):
        return {"input_ids": ids}
    embeddings = model.get_input_embeddings()(ids).clone()
    done = 0
    for span in spans:
        if span.virtual is not None:
            embeddings[0, done : done + len(span.virtual)] = span.virtual
        done += len(span.ids)
    return {"inputs_embeds": embeddings}


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as transformers' interface has it: (1, heads, T, size) -> (1, T, heads, size); key and value may have fewer heads."""
    step = _pass.get()
    if step is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others)
    if unknown := [name for name in ("s_aux", "position_bias", "cache", "softcap") if others.get(name) is not None]:
        raise NotServed(f"its attention takes {unknown[0]}")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise NotServed("its attention is not causal")
    window = others.get("sliding_window")
    keys, values = step.memory.of(module, key, value)
    keys[step.slot, :, step.at] = key[0].transpose(0, 1)
    values[step.slot, :, step.at] = value[0].transpose(0, 1)
    out = []
    if n := step.single:
        out.append(_singles(step, query[0, :, :n], keys, values, window, scaling))
    for span, first in _chunks(step):
        out.append(_chunk(span, query[:, :, first : first + len(span.ids)], keys, values, window, scaling))
    return (out[0] if len(out) == 1 else torch.cat(out))[None], None


def _singles(step: _Pass, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, scaling: float | None) -> torch.Tensor:
    """One token of each of n slots: (heads, n, size) -> (n, heads, size). The queries that share a head's keys go as one query of several rows."""
    n, length, heads = step.single, step.longest, keys.shape[1]
    if [span.slot for span in step.spans[:n]] == list(range(n)):
        k, v = keys[:n, :, :length], values[:n, :, :length]
    else:
        k, v = (x[:, :, :length].index_select(0, step.slot[:n]) for x in (keys, values))
    q = query.transpose(0, 1).reshape(n, heads, -1, query.shape[-1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=step.mask(window, q.dtype), scale=scaling).reshape(n, query.shape[0], -1)


def _chunks(step: _Pass) -> list[tuple[Span, int]]:
    found, done = [], step.single
    for span in step.spans[step.single :]:
        found.append((span, done))
        done += len(span.ids)
    return found


def _chunk(span: Span, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, scaling: float | None) -> torch.Tensor:
    """A piece of one slot's prompt: (1, heads, count, size) -> (count, heads, size)."""
    length = span.start + query.shape[2]
    k, v = (x[span.slot : span.slot + 1, :, :length] for x in (keys, values))
    mask = None
    if span.start or window is not None:
        here = torch.arange(span.start, length, device=query.device)[:, None]
        there = torch.arange(length, device=query.device)
        mask = there <= here
        if window is not None:
            mask &= there > here - window
    out = F.scaled_dot_product_attention(query, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=k.shape[1] != query.shape[1])
    return out[0].transpose(0, 1)


def _mask(*positional: Any, **named: Any) -> Any:
    return None if _pass.get() is not None else ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*positional, **named)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _mask)
