"""Rows -> what to compute: `plan` lays rows out as a prefix tree, `micro` cuts a step's rows into such trees.

With causal attention the state of a token depends only on the tokens before it, so rows that begin alike have
equal states there, and one computation serves them all. A tree holds each distinct prefix once, depth first:
the tokens below a token are those that follow it without a gap. That makes "is before it in its row" one
comparison, `a <= b < end[a]`, and what a row adds to the tree a plain slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tunewright.data.tokens import Row

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that one row adds to a tree; those before it stand in the segments of rows before.

    `own`: how many it adds, which follow each other in the tree. `path`: the flat indices of its row's tokens, those last.
    """

    own: int
    path: Ints


@dataclass(frozen=True, slots=True)
class Tree:
    """What to compute for some rows. T distinct tokens, R rows, N trained tokens in all rows.

    `ids`: (T,) tokens, depth first. `positions`: (T,) place of each in its row. `end`: (T,) where what follows it in
    any row ends, so token `a` stands before `b` in a row (or is `b`) just when `a <= b < end[a]`. `paths`: R arrays,
    the flat indices of each row's tokens, in the order the rows were given. `state`: (N,) the token whose hidden state
    predicts a trained token; one state may predict several (a fork), and equal tokens of equal rows stand here as
    often as they occur. `target`: (N,) the trained tokens. `row`: (N,) whose they are, ascending.
    `segments`: of all T tokens, in order; a row equal to one before it adds none.
    """

    ids: Ints
    positions: Ints
    end: Ints
    paths: list[Ints]
    state: Ints
    target: Ints
    row: Ints
    segments: list[Segment]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.positions.max()) + 1


def plan(rows: Sequence[Row]) -> Tree:
    """The prefix tree of at least one row. Loops run over rows, never over tokens."""
    order, shared = _in_tree_order([row.ids for row in rows])
    lengths = np.array([len(rows[i].ids) for i in order], np.int64)
    starts = np.cumsum(lengths - shared) - (lengths - shared)  # where the tokens that a row adds begin
    total = int((lengths - shared).sum())
    ids, positions, end = (np.empty(total, np.int64) for _ in range(3))
    paths: list[Ints] = [np.empty(0, np.int64)] * len(rows)

    path = np.zeros(lengths.max(initial=0), np.int64)
    for i, begin, fork, length in zip(order, starts, shared, lengths, strict=True):
        own = slice(begin, begin + length - fork)
        path[fork:length] = np.arange(own.start, own.stop)
        paths[i] = path[:length].copy()
        ids[own], positions[own] = rows[i].ids[fork:], np.arange(fork, length)

    # Backwards: `after[p]` is where the next row begins that shares at most p tokens with this one, which ends what token p began.
    after = np.full(lengths.max(initial=0), total, np.int64)
    for begin, fork, length in zip(starts[::-1], shared[::-1], lengths[::-1], strict=True):
        end[begin : begin + length - fork] = after[fork:length]
        after[fork:] = begin

    trained = [row.trained[1:].nonzero()[0] + 1 for row in rows]
    state = np.concatenate([mine[at - 1] for mine, at in zip(paths, trained, strict=True)])
    target = np.concatenate([row.ids[at] for row, at in zip(rows, trained, strict=True)]).astype(np.int64)
    row = np.repeat(np.arange(len(rows)), [len(at) for at in trained])
    segments = [Segment(int(length - fork), paths[i]) for i, fork, length in zip(order, shared, lengths, strict=True) if length > fork]
    return Tree(ids, positions, end, paths, state, target, row, segments)


def rounded(tree: Tree) -> Tree:
    """A tree with a few more tokens, that belong to no row, so that trees of like size have one size: at most 1/16 more.

    What multiplies matrices may have to prepare itself for each new size (oneDNN compiles its bf16 products).
    """
    count = len(tree.ids)
    more = -count % max(1, 2 ** (count.bit_length() - 5))
    ids, positions = (np.append(x, np.full(more, x[0])) for x in (tree.ids, tree.positions))
    return replace(tree, ids=ids, positions=positions, end=np.append(tree.end, np.arange(count, count + more) + 1))


def micro(bundles: Sequence[Sequence[Row]], budget: int) -> list[list[int]]:
    """Cut bundles of rows (an example's one row, a pair's two) into groups whose trees hold at most `budget` distinct tokens,
    neighbours in the tree together.

    What the groups share at their seam is computed in both. A single bundle over the budget still forms a group: it
    cannot be cut further.
    """
    groups: list[list[int]] = []
    used = budget
    order, shared = _in_tree_order([bundle[0].ids for bundle in bundles])
    for i, fork in zip(order, shared.tolist(), strict=True):
        whole = distinct(bundles[i]) if len(bundles[i]) > 1 else len(bundles[i][0].ids)
        if groups and used + whole - fork <= budget:
            groups[-1].append(i)
            used += whole - fork
        else:
            groups.append([i])
            used = whole
    return groups


def order(rows: Sequence[Row]) -> list[int]:
    """Rows in the tree's depth-first order, in which rows that begin alike are neighbours."""
    return _in_tree_order([row.ids for row in rows])[0]


def distinct(rows: Sequence[Row]) -> int:
    """How many distinct tokens the tree of all these rows holds."""
    order, shared = _in_tree_order([row.ids for row in rows])
    return sum(len(rows[i].ids) for i in order) - int(shared.sum())


def _in_tree_order(ids: Sequence[NDArray[Any]]) -> tuple[list[int], Ints]:
    """Rows sorted by their tokens, a prefix before what it begins, and how many tokens each shares with the one before it."""
    # Big-endian bytes sort as the numbers do, and Python sorts bytes faster than numpy sorts rows of unequal length.
    keys = [row.astype(">u4").tobytes() for row in ids]
    order = sorted(range(len(ids)), key=keys.__getitem__)
    shared = np.zeros(len(ids), np.int64)
    for place in range(1, len(order)):
        one, other = ids[order[place - 1]], ids[order[place]]
        length = min(len(one), len(other))
        differs = one[:length] != other[:length]
        first = int(differs.argmax()) if length else 0
        shared[place] = first if length and differs[first] else length
    return order, shared
