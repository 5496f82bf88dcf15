"""Which rows form a step: a pure function of the seed, so that a resumed run meets the same rows in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def order(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The rows' order in an epoch (counted from 0): a permutation of 0..n_rows-1, shape (n_rows,).

    Counter-based (Philox, Salmon et al. 2011): any epoch's order is had without drawing those before it.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(n_rows)


def steps_per_epoch(n_rows: int, batch_size: int) -> int:
    """Optimizer steps in an epoch; the last one may hold fewer rows, none is left out."""
    return -(-n_rows // batch_size)


def steps(n_rows: int, batch_size: int, n_epochs: int, seed: int, start: int = 0) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (step, epoch, rows) from after `start` finished steps to the end; steps and epochs count from 1."""
    each = steps_per_epoch(n_rows, batch_size)
    for epoch in range(start // each, n_epochs):
        rows = order(n_rows, seed, epoch)
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
