"""How a processor takes numbers below 1e-38, which it computes with many times slower than with others: `flushed` lets them count as zero."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed() -> Iterator[None]:
    """Numbers below 1e-38 are zero in here; as a decorator, in a function.

    Attention that has learnt to look at few tokens gives the others such chances, and half of a step's time on a small trained model goes into
    them (measured). It holds for this thread, Python's own floats included, so it is taken back; and for those that torch begins for it in here,
    which keep it: load a model in here, so that there are none before.
    """
    already = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)
