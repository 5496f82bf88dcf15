"""Rows that must stay together: each function yields pairs (row, earlier row), `Groups` joins them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

from tunewright.data.near import ALIKE, alike, triples_of

PASSAGE = 30
"""Words: rows that begin with the same so many are taken for rows about one passage."""

_TEMPLATE = 0.5  # a beginning that more than this share of the rows has is no passage but an instruction
_PERMUTATIONS, _BANDS = 128, 32
_LIKELY = 0.6  # of two sketches; more than five standard errors below ALIKE
_CANDIDATES = 32


class Groups:
    """Disjoint sets of rows (union-find); a set is known by its first row."""

    def __init__(self, rows: int) -> None:
        self._parent = list(range(rows))
        self.joined: dict[str, int] = {}

    def root(self, i: int) -> int:
        """The first row of the group that row `i` is in."""
        while self._parent[i] != i:
            self._parent[i] = i = self._parent[self._parent[i]]
        return i

    def join(self, how: str, pairs: Iterable[tuple[int, int]]) -> None:
        """Put the rows of each pair into one group."""
        for i, j in pairs:
            one, other = sorted((self.root(i), self.root(j)))
            self._parent[other] = one
            self.joined[how] = self.joined.get(how, 0) + (one != other)


def same(values: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    """Pairs of rows with one value; None is no value."""
    first: dict[Hashable, int] = {}
    for i, value in enumerate(values):
        if value is not None and first.setdefault(value, i) != i:
            yield i, first[value]


def beginnings(texts: Sequence[str], templates: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Pairs of rows that begin with the same `PASSAGE` words.

    A beginning that more than half of the rows have is noted in `templates`, (its words, how many rows), and what follows it is compared.
    """
    words = [text.lower().split() for text in texts]
    waiting = [(list(range(len(texts))), 0)]
    while waiting:
        rows, start = waiting.pop()
        alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i in rows:
            if len(words[i]) >= start + PASSAGE:
                alike[tuple(words[i][start : start + PASSAGE])].append(i)
        for group in alike.values():
            if len(group) > max(1, _TEMPLATE * len(texts)):
                shared = _shared([words[i] for i in group])
                templates.append((shared, len(group)))
                waiting.append((group, shared))
            else:
                yield from ((i, group[0]) for i in group[1:])


def _shared(rows: Sequence[Sequence[str]]) -> int:
    """How many words all rows begin with."""
    shortest = min(map(len, rows))
    return next((at for at in range(shortest) if any(row[at] != rows[0][at] for row in rows)), shortest)


def near_links(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of rows whose texts are nearly the same, every text with up to 32 earlier ones: joined, they are what must not be torn apart."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(ALIKE, _PERMUTATIONS, _BANDS)
    sketches: dict[int, Any] = {}
    known: dict[str, int] = {}
    for start in range(0, len(texts), 1024):
        triples = [triples_of(text) for text in texts[start : start + 1024]]
        for i, sketch in enumerate(RMinHash.from_token_sets([list(one) for one in triples], _PERMUTATIONS, 1), start):
            if not triples[i - start]:
                continue
            if (first := known.setdefault(texts[i], i)) != i:
                yield i, first
                continue
            likely = [j for j in sorted(index.query(sketch)) if sketches[j].jaccard(sketch) >= _LIKELY][-_CANDIDATES:]
            yield from ((i, j) for j in likely if alike(triples[i - start], triples_of(texts[j])) >= ALIKE)
            index.insert(i, sketch)
            sketches[i] = sketch
