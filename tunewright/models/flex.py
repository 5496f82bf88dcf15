"""Attention along a prefix tree on a CUDA device: one FlexAttention call over all tokens, with the ancestor mask, whatever the tree's shape.

A token sees those before it in its row: `a <= b < end[a]` for token b and each a, by `Tree.end`. Blocks of the mask in which nothing is seen
are skipped. FlexAttention has no backward pass on a CPU, where `attention` gathers paths instead; the two give the same (tests/test_flex.py).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

BLOCK = 128


def blocks(end: np.ndarray, device: torch.device | str) -> BlockMask:
    """The mask of a tree of T tokens from its `end`, (T,). Padded to whole blocks, so that few lengths occur; padding sees itself alone."""
    length = -(-len(end) // BLOCK) * BLOCK
    padded = np.arange(1, length + 1)
    padded[: len(end)] = end
    until = torch.from_numpy(padded).to(device)

    def before(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (query < until[key])

    return create_block_mask(before, None, None, length, length, device=device, BLOCK_SIZE=BLOCK)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scaling: float | None, softcap: float | None
) -> torch.Tensor:
    """(1, heads, T, size) -> (1, T, heads, size); key and value may have fewer heads. `softcap`: scores are squeezed into ±softcap (Gemma 2)."""

    def capped(score: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.tanh(score / softcap) * softcap if softcap else score

    tokens = query.shape[2]
    padding = (0, 0, 0, mask.shape[-1] - tokens)
    query, key, value = (F.pad(x, padding) for x in (query, key, value))
    run = _compiled() if query.is_cuda else flex_attention
    gqa = key.shape[1] != query.shape[1]
    out = run(query, key, value, score_mod=capped if softcap else None, block_mask=mask, scale=scaling, enable_gqa=gqa)
    return out[:, :, :tokens].transpose(1, 2)


@cache
def _compiled() -> Any:
    """Once for all lengths."""
    return torch.compile(flex_attention, dynamic=True)


@cache
def usable(device_type: str) -> bool:
    """Whether this device computes it, forward and backward, tried once: it needs Triton and a GPU that Triton knows."""
    if device_type != "cuda":
        return False
    try:
        query = torch.randn(1, 2, 2 * BLOCK, 16, device=device_type, requires_grad=True)
        attend(query, query, query, blocks(np.full(2 * BLOCK, 2 * BLOCK), device_type), None, None).sum().backward()
    except Exception:  # whatever the compiler or the driver raises, gathered paths do without both
        return False
    return True
