"""Texts -> which are nearly the same: `near` finds candidates by MinHash and counts each one's shingles before it says so.

Source: Broder, On the resemblance and containment of documents (1997); the sketches are rensa's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

ALIKE = 0.8
"""Two texts are near duplicates from this share of common word triples (Jaccard)."""

MIN_WORDS = 8
"""Shorter texts have too few triples to be nearly the same; equal ones are found otherwise."""

_PERMUTATIONS, _BANDS = 128, 32  # finds 99.9 % of pairs at 0.7, the verification drops those under ALIKE
_CANDIDATES = 32
_LIKELY = 0.65  # four standard errors below ALIKE
_PASSAGE = 60  # words: a beginning this long, and half of the text, is taken for a passage


def near(texts: Sequence[str], known: Sequence[str] = ()) -> Iterator[tuple[int, int, bool]]:
    """Yield (i, j, begins) where text i is nearly text j: an earlier one, or with `known`, one of those.

    `begins`: what they share is their beginning, and what follows differs, as with a passage under several questions.
    Of texts that are alike the first is compared with, so that a thousand copies cost a thousand comparisons.
    """
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(ALIKE, _PERMUTATIONS, _BANDS)
    earlier = known or texts
    sketches: dict[int, Any] = {}
    for start, batch in _batches(known):
        made = RMinHash.from_token_sets([list(triples_of(text)) for text in batch], _PERMUTATIONS, 1)
        index.insert_many(made, start)
        sketches.update(enumerate(made, start))
    for start, batch in _batches(texts):
        triples = [triples_of(text) for text in batch]
        for at, sketch in enumerate(RMinHash.from_token_sets([list(one) for one in triples], _PERMUTATIONS, 1)):
            i, mine = start + at, triples[at]
            if not mine:
                continue
            # The sketches tell most candidates apart, in a fraction of the time that counting takes.
            likely = [j for j in sorted(index.query(sketch)) if sketches[j].jaccard(sketch) >= _LIKELY][:_CANDIDATES]
            found = next((j for j in likely if alike(mine, triples_of(earlier[j])) >= ALIKE), None)
            if found is not None:
                yield i, found, _only_begins(texts[i], earlier[found])
            elif not known:
                index.insert(i, sketch)
                sketches[i] = sketch


def alike(one: set[str], other: set[str]) -> float:
    """The share of common members in all members, 0 where there are none."""
    return len(one & other) / max(1, len(one | other))


def _batches(texts: Sequence[str], size: int = 1024) -> Iterator[tuple[int, Sequence[str]]]:
    return ((start, texts[start : start + size]) for start in range(0, len(texts), size))


def triples_of(text: str) -> set[str]:
    """The runs of three words, in lower case; none where the text has fewer than `MIN_WORDS`."""
    words = text.lower().split()
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)} if len(words) >= MIN_WORDS else set()


def _only_begins(one: str, other: str) -> bool:
    first, second = one.lower().split(), other.lower().split()
    shared = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    rest = [triples_of(" ".join(words[shared:])) for words in (first, second)]
    is_passage = shared >= _PASSAGE and 2 * shared >= min(len(first), len(second))
    return is_passage and all(rest) and alike(*rest) < ALIKE
