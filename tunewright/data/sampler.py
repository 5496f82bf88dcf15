"""Which rows form a step: a pure function of the seed, so that a resumed run meets the same rows in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

Order = Callable[[int], np.ndarray]
"""An epoch, counted from 0 -> the rows' order in it: a permutation of 0..n_rows-1, shape (n_rows,). A function of the epoch alone, so any
epoch's order is had without drawing those before it."""


def by_rows(n_rows: int, seed: int) -> Order:
    """Every row anywhere. Counter-based (Philox, Salmon et al. 2011)."""
    return lambda epoch: _generator(seed, epoch).permutation(n_rows)


def by_prefix(tree_order: Sequence[int], batch_size: int, seed: int) -> Order:
    """Rows that begin alike in one step, steps anywhere: the tree's order, cut into steps at a place that changes with the epoch, and the
    steps shuffled. A step computes what its rows share once; its rows are more alike than those of a free shuffle."""
    rows = np.array(tree_order)

    def order(epoch: int) -> np.ndarray:
        generator = _generator(seed, epoch)
        turned = np.roll(rows, generator.integers(len(rows)))
        blocks = [turned[at : at + batch_size] for at in range(0, len(turned), batch_size)]
        # A short step stays last, or every step after it would straddle two blocks.
        places = [*generator.permutation(len(blocks) - 1).tolist(), len(blocks) - 1]
        return np.concatenate([blocks[i] for i in places])

    return order


def as_given(n_rows: int) -> Order:
    """The file's own order, every epoch."""
    return lambda epoch: np.arange(n_rows)


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps in an epoch; the last one may hold fewer rows, none is left out."""
    return -(-n_rows // batch_size)


def steps(n_rows: int, batch_size: int, n_epochs: int, order: Order, start: int = 0) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (step, epoch, rows) from after `start` finished steps to the end; steps and epochs count from 1."""
    each = steps_per_epoch(n_rows, batch_size)
    for epoch in range(start // each, n_epochs):
        rows = order(epoch)
        for i in range(start - epoch * each if start > epoch * each else 0, each):
            yield epoch * each + i + 1, epoch + 1, rows[i * batch_size : (i + 1) * batch_size]


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut a step's rows into groups whose padded size (rows x longest) stays within `budget` tokens.

    Rows of like length meet, longest first, so that a step that does not fit fails at once and not
    in the middle. A single row over the budget still forms a group: it cannot be cut further.
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
