"""Attention along a prefix tree, for any causal model that attends through transformers' attention interface.

`attach` gives a model an attention function that follows a `Layout` handed to the model's call as the keyword `tree`;
calls without one attend as before, so the same model still generates and takes padded batches. `serves` says why a
model cannot be computed this way. No class is patched.
"""

from __future__ import annotations

import inspect
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tunewright.data.tokens import Row
from tunewright.data.tree import plan
from tunewright.models import flex, quantized, virtual
from tunewright.models.tasks import of_model
from tunewright.models.virtual import base_of

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from tunewright.data.tree import Segment, Tree

# Our name for each implementation that calls without a tree go on to use. ("sdpa" in a name would mean more to transformers.)
_NAMES = {"sdpa": "tunewright_tree", "eager": "tunewright_tree_eager"}
_ATTENTIVE = {"attention", "full_attention", "sliding_attention", "chunked_attention"}

# True while a model is called with a tree: no mask is built then. Left behind by the call, so that a layer that is computed
# again in the backward pass does not need it: the tree itself travels as a keyword.
_following: ContextVar[bool] = ContextVar("following a tree", default=False)


class NotServed(ValueError):
    """A model's attention does something that the tree does not know; its padded batches are right."""


# A bucket takes another segment while the padded products are at most this many times the needed ones: one call for many
# segments saves more than that (measured).
PADDING = 1.25


@dataclass(frozen=True, slots=True)
class Bucket:
    """R segments that one attention call serves, padded on the right to L queries and K keys.

    `queries`: (R * L,) and `keys`: (R * K,), indices of tokens. `mask`: (R, 1, L, K), added to the scores, float32; None where
    segments are (most of) their rows: the rows are attended causally as a whole and what is not needed dropped, which
    needs no mask and half the products.
    """

    rows: int
    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A tree of T tokens on a device. `ids`, `positions`: (1, T). `place`: (T,) where each token's output stands among all buckets' outputs;
    tokens that stand there for the size alone (`tree.rounded`) take the first one's.
    `blocks`: the whole tree's mask, where one FlexAttention call does the work of the buckets."""

    ids: torch.Tensor
    positions: torch.Tensor
    buckets: list[Bucket]
    place: torch.Tensor
    longest: int
    blocks: BlockMask | None = None

    @classmethod
    def of(cls, tree: Tree, device: torch.device | str = "cpu") -> Layout:
        """Lay a tree out. Its tokens' states do not depend on how segments are put into buckets."""
        place, buckets, done = np.zeros(len(tree.ids), np.int64), [], 0
        for causal in (False, True):
            for group in _alike([each for each in tree.segments if _mostly_own(each) == causal], causal):
                width = max(len(each.path) if causal else each.own for each in group)
                for r, each in enumerate(group):
                    first = done + r * width + (len(each.path) - each.own if causal else 0)
                    place[each.path[-each.own :]] = np.arange(first, first + each.own)
                buckets.append(_bucket(group, causal, device))
                done += len(group) * width
        ids, positions = (torch.from_numpy(x)[None].to(device) for x in (tree.ids, tree.positions))
        blocks = flex.blocks(tree.end, device) if flex.usable(torch.device(device).type) else None
        return cls(ids, positions, buckets, torch.from_numpy(place).to(device), tree.longest, blocks)

    @classmethod
    def alone(cls, tokens: int, device: torch.device | str = "cpu") -> Layout:
        """Tokens that attend to nothing: for what stands above the last attention."""
        zeros = torch.zeros((1, tokens), dtype=torch.long, device=device)
        return cls(zeros, zeros, [], zeros[0], 1)


def _mostly_own(segment: Segment) -> bool:
    return 4 * segment.own >= 3 * len(segment.path)


def _alike(segments: list[Segment], causal: bool) -> list[list[Segment]]:
    """Segments in groups of like shape."""
    groups: list[list[Segment]] = []
    width = height = needed = 0
    for each in sorted(segments, key=lambda each: (0 if causal else each.own, len(each.path))):
        own, length = len(each.path) if causal else each.own, len(each.path)
        padded = max(width, own) * max(height, length)
        if groups and padded * (len(groups[-1]) + 1) <= PADDING * (needed + own * length):
            groups[-1].append(each)
            width, height, needed = max(width, own), max(height, length), needed + own * length
        else:
            groups.append([each])
            width, height, needed = own, length, own * length
    return groups


def _bucket(group: list[Segment], causal: bool, device: torch.device | str) -> Bucket:
    """Padding stands for the tree's first token: as a key it is masked or stands behind, as a query nobody reads it."""
    rows, longest, most = len(group), max(len(each.path) for each in group), max(each.own for each in group)
    keys = np.zeros((rows, longest), np.int64)
    queries = np.zeros((rows, most), np.int64)
    for r, each in enumerate(group):
        keys[r, : len(each.path)] = each.path
        queries[r, : each.own] = each.path[-each.own :]
    at = torch.from_numpy(keys.reshape(-1)).to(device)
    if causal:
        return Bucket(rows, at, at, None)
    last = torch.tensor([len(each.path) - each.own for each in group], device=device)[:, None] + torch.arange(most, device=device)
    seen = torch.arange(longest, device=device) <= last[:, :, None]
    mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, -torch.inf)[:, None]
    return Bucket(rows, torch.from_numpy(queries.reshape(-1)).to(device), at, mask)


def attach(model: PreTrainedModel) -> None:
    """Let a model attend by `attend`, and so follow trees. Raises NotServed when its attention is not exchangeable."""
    base = base_of(model)
    now = base.config._attn_implementation
    if now in _NAMES.values():
        return
    if now not in _NAMES:
        raise NotServed(f"its attention is {now}, which has no rule for trees")
    base.set_attn_implementation(_NAMES[now])
    if base.config._attn_implementation != _NAMES[now]:
        raise NotServed("its attention does not go through transformers' attention interface")


def detach(model: PreTrainedModel) -> None:
    """Give a model its own attention back."""
    base = base_of(model)
    for own, ours in _NAMES.items():
        if base.config._attn_implementation == ours:
            base.set_attn_implementation(own)


def follow(model: torch.nn.Module, tree: Layout, **named: Any) -> Any:
    """What a model (attached, without peft's wrapping), or the part of it without the head, makes of a tree.

    `inputs_embeds` among what is named stands in for the tree's ids.
    """
    if "inputs_embeds" not in named:
        named["input_ids"] = tree.ids
    token = _following.set(True)
    try:
        return model(position_ids=tree.positions, use_cache=False, tree=tree, **named)
    finally:
        _following.reset(token)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    instead: str,
    tree: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention as transformers' interface has it: (1, heads, T, size) -> (1, T, heads, size); key and value may have fewer heads.

    Each segment's queries see the keys of the tokens before them in their row. Without a tree, `instead` attends.
    """
    if tree is None:
        if _following.get():
            raise NotServed("it does not hand the tree on to its attention")
        plain = ALL_ATTENTION_FUNCTIONS.get(instead) or vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        if instead != "sdpa" or value.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return plain(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others)
        kind = _kind(value)

        # All of one kind, what is added to the scores included, such as T5's positions.
        def wide(x: Any) -> Any:
            return x.to(kind) if isinstance(x, torch.Tensor) and x.is_floating_point() else x

        named = {name: wide(x) for name, x in others.items()}
        with torch.autocast("cpu", enabled=False):
            return plain(module, wide(query), wide(key), wide(value), wide(attention_mask), scaling=scaling, dropout=dropout, **named)
    _check(module, tree, others)
    kind = _kind(value)
    with torch.autocast(query.device.type, enabled=False):
        out = _along(tree, query.to(kind), key.to(kind), value.to(kind), scaling, dropout, others.get("softcap"))
    return out, None


def _kind(value: torch.Tensor) -> torch.dtype:
    """What attention multiplies in: what autocast would take for one product, for all of them (rotary positions may have made queries and keys
    wider than values). On a CPU that is float32: its backward pass takes 2 to 8 times as long in bf16 (measured on torch 2.13, with bf16 instructions).
    """
    device = value.device.type
    if not torch.is_autocast_enabled(device):
        return value.dtype
    return torch.float32 if device == "cpu" else torch.get_autocast_dtype(device)


def _check(module: torch.nn.Module, tree: Layout, others: dict[str, Any]) -> None:
    window = others.get("sliding_window")
    if window is not None and window < tree.longest:
        raise NotServed(f"its attention sees {window:,} tokens back and a row has {tree.longest:,}")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise NotServed("its attention is not causal")
    if unknown := [name for name in ("s_aux", "position_bias", "cache") if others.get(name) is not None]:
        raise NotServed(f"its attention takes {unknown[0]}")


def _along(
    tree: Layout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float, softcap: float | None
) -> torch.Tensor:
    """One attention call a bucket over gathered keys, or one for all where the layout says so. Returns (1, T, heads, size)."""
    if tree.blocks is not None and not dropout:
        return flex.attend(query, key, value, tree.blocks, scaling, softcap)
    # Tokens first: a gather of whole tokens, and adding up their gradients, then move contiguous memory.
    flat = [x.transpose(1, 2).reshape(x.shape[2], -1) for x in (query, key, value)]
    sizes = [(x.shape[1], x.shape[3]) for x in (query, key, value)]
    out = []
    for bucket in tree.buckets:
        places = (bucket.queries, bucket.keys, bucket.keys)
        q, k, v = (x.index_select(0, at).view(bucket.rows, -1, *size).transpose(1, 2) for x, at, size in zip(flat, places, sizes, strict=True))
        if softcap is None:
            mask = None if bucket.mask is None else bucket.mask.to(q.dtype)
            seen = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=k.shape[1] != q.shape[1]
            )
        else:
            seen = _capped(q, k, v, bucket.mask, scaling, dropout, softcap)
        out.append(seen.transpose(1, 2).flatten(0, 1))
    # One gather puts all buckets' outputs into the tree's order and leaves padding behind.
    return torch.cat(out).index_select(0, tree.place)[None]


def _capped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None, dropout: float, softcap: float
) -> torch.Tensor:
    """Attention whose scores are squeezed into ±softcap (Gemma 2)."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if mask is None:
        mask = torch.full((query.shape[2],) * 2, -torch.inf, device=query.device).triu_(1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = (torch.tanh(scores / softcap) * softcap + mask).softmax(dim=-1).to(value.dtype)
    return F.dropout(weights, dropout) @ value


def _mask(*positional: Any, instead: str, **named: Any) -> Any:
    return None if _following.get() else ALL_MASK_ATTENTION_FUNCTIONS[instead](*positional, **named)


for _instead, _name in _NAMES.items():
    AttentionInterface.register(_name, partial(attend, instead=_instead))
    AttentionMaskInterface.register(_name, partial(_mask, instead=_instead))


def serves(model: PreTrainedModel, longest: int) -> str | None:
    """None when a model computes trees whose rows have up to `longest` tokens; else why not, after "it cannot: ...".

    Beyond what the config says, it is tried once: a few tokens as a tree must give the logits that they give as rows.
    Draws no random numbers.
    """
    base = base_of(model)
    config = base.config.get_text_config()
    if reason := _by_config(base, model):
        return reason
    for name, layers in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        window = getattr(config, name, None)
        used = getattr(config, "use_sliding_window", True) and layers in (getattr(config, "layer_types", None) or [layers])
        if window is not None and used and window < longest:
            return f"its attention sees {window:,} tokens back and the longest row has {longest:,}"
    if base not in _tried:
        _tried[base] = _try(model)
    return _tried[base]


_tried: WeakKeyDictionary[torch.nn.Module, str | None] = WeakKeyDictionary()


def _by_config(base: PreTrainedModel, model: PreTrainedModel) -> str | None:
    config = base.config.get_text_config()
    if base.config.is_encoder_decoder:
        return "it is an encoder-decoder"
    if of_model(base) == "classification":
        return "it classifies whole texts"
    if getattr(base, "_is_stateful", False) or set(getattr(config, "layer_types", None) or ()) - _ATTENTIVE:
        return "some of its layers are recurrent"
    taken = inspect.signature(base.forward).parameters
    if missing := [name for name in ("position_ids", "logits_to_keep") if name not in taken]:
        return f"its forward takes no {missing[0]}"
    if any(each.is_prompt_learning for each in getattr(model, "peft_config", {}).values()) and not virtual.count(model):
        return "its adapter puts keys and values of its own into each layer"
    return None


@torch.no_grad()
def _try(model: PreTrainedModel) -> str | None:
    """A few tokens, forked at two depths, as a tree and as rows: the same logits, or why not."""
    a, b, c, d, e = (i % model.config.get_text_config().vocab_size for i in range(1, 6))
    ids = [[a, b, c, d, e], [a, b], [a, b, e, d, c, b, a], [a, b, c, a, a], [e, d, c]]
    tree = plan(virtual.in_front([Row(np.array(each, np.int32), np.ones(len(each), bool)) for each in ids], model))
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        alone = [model(input_ids=torch.tensor([each], device=device), use_cache=False).logits[0].float() for each in ids]
        attach(model)
        layout = Layout.of(tree, device)
        shared = follow(base_of(model), layout, **virtual.inputs(model, layout.ids)).logits[0].float()
    except (NotServed, TypeError) as error:
        detach(model)
        return str(error)
    finally:
        model.train(training)
    scale = max(float(logits.abs().max()) for logits in alone)
    exact = next(model.parameters()).dtype == torch.float32 and quantized.bits_of(model) is None and not torch.is_autocast_enabled(device.type)
    near = 1e-3 if exact else 5e-2
    far = max(float((shared[path] - logits).abs().max()) for path, logits in zip(tree.paths, alone, strict=True))
    if not far <= near * scale:
        detach(model)
        return (
            f"its logits change by {far:.2g} of {scale:.2g} when rows share their beginnings, so a token's state depends on more than those before it"
        )
    return None
