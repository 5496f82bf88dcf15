"""Texts -> which are nearly the same: MinHash finds candidates, and each one's shingles are counted before it is said.

`Near` takes texts one by one and keeps 100 bytes of each in memory; the texts themselves and most of their sketches wait on disk.
Source: Broder, On the resemblance and containment of documents (1997); the sketches are rensa's.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import IO
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

ALIKE = 0.8
"""Two texts are near duplicates from this share of common word triples (Jaccard)."""

MIN_WORDS = 8
"""Shorter texts have too few triples to be nearly the same; equal ones are found otherwise."""

MAX_TEXTS = 1_000_000
"""Texts that are compared; those that come after are not, and the report says so."""

LIKELY = 0.6
"""Share of a sketch from which the words are counted: four standard errors below `ALIKE`."""

_PERMUTATIONS, _BANDS = 128, 32  # finds 99.9 % of pairs at 0.7, the verification drops those under ALIKE
_KEPT = 64  # values of a sketch that are kept, by their last byte: enough to tell candidates apart
_LINKED = 4  # of texts that share a band, each is compared with so many before it, and with the first
_PASSAGE = 60  # words: a beginning this long, and half of the text, is taken for a passage
_BATCH, _BATCH_CHARACTERS = 1024, 1 << 22  # texts that are sketched at once
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)

Pairs = NDArray[np.int64]


class Near:
    """Texts to be compared. The `i`th that is added is text `i`."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=1 << 24)  # noqa: SIM115 - it lives as long as this
        self._ends = array("q", [0])
        self._waiting: list[str] = []
        self._characters = 0
        self._bands: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=1 << 24)  # noqa: SIM115
        self._sketches = bytearray()  # grows where it lies
        self._rows: list[NDArray[np.int64]] = []
        self.lines = array("q")
        self.count = 0

    def add(self, text: str, line: int = 0) -> None:
        """Take a text and its line. Beyond `MAX_TEXTS` it is counted alone."""
        if self.count < MAX_TEXTS:
            self._waiting.append(text)
            self.lines.append(line)
            self._characters += len(text)
            if len(self._waiting) == _BATCH or self._characters > _BATCH_CHARACTERS:
                self._sketch()
        self.count += 1

    def text(self, i: int) -> str:
        """Text `i`."""
        start, end = self._ends[i : i + 2]
        self._file.seek(start)
        return self._file.read(end - start).decode("utf-8", "surrogatepass")

    def _sketch(self) -> None:
        from rensa import RMinHash

        first = len(self._ends) - 1
        raw = [text.encode("utf-8", "surrogatepass") for text in self._waiting]
        self._file.seek(0, 2)
        self._file.write(b"".join(raw))
        self._ends.extend(accumulate(map(len, raw), initial=self._ends.pop()))
        triples = [_hashes(text) for text in self._waiting]
        has = np.array([len(one) > 0 for one in triples])
        self._waiting, self._characters = [], 0
        if has.any():
            flat = np.concatenate(triples)
            offsets = np.append(0, np.cumsum([len(one) for one in triples if len(one)]))
            digests = RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets.astype(np.uint64), _PERMUTATIONS, 1)
            made = np.array(digests.to_rows(), np.uint32)
            self._rows.append(first + np.flatnonzero(has))
            self._sketches += made[:, :: _PERMUTATIONS // _KEPT].astype(np.uint8).tobytes()
            self._bands.seek(0, 2)
            self._bands.write(_fold(made.reshape(len(made), _BANDS, -1)).T.tobytes())

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """(n,) the texts that have triples, (n, kept) their sketches."""
        if self._waiting:
            self._sketch()
        return np.concatenate([np.empty(0, np.int64), *self._rows]), np.frombuffer(self._sketches, np.uint8).reshape(-1, _KEPT)

    def band(self, number: int) -> NDArray[np.uint32]:
        """(n,) this band of the texts that have triples."""
        found, start = [np.empty(0, np.uint32)], 0
        for rows in self._rows:
            self._bands.seek(4 * (start * _BANDS + number * len(rows)))
            found.append(np.frombuffer(self._bands.read(4 * len(rows)), np.uint32))
            start += len(rows)
        return np.concatenate(found)


def candidates(held: Near, known: Near | None = None, likely: float = LIKELY) -> tuple[Pairs, NDArray[np.float64]]:
    """(pairs, 2) texts i of `held` and j before it, or of `known`, whose sketches agree in this share or more, sorted; (pairs,) those shares.

    In a large group of texts that agree in a band not all are paired.
    """
    rows, sketches = held.arrays()
    before = np.empty(0, np.int64)
    if known:
        before, others = known.arrays()
        sketches = np.concatenate([others, sketches])
    found, agree = np.empty(0, np.int64), np.empty(0)
    for band in range(_BANDS if len(rows) else 0):
        own = held.band(band)
        pairs = _together(np.concatenate([known.band(band), own]), len(before)) if known else _together(own, None)
        pairs = np.setdiff1d(pairs, found)
        share = _agree(sketches, pairs)
        found = np.concatenate([found, pairs[share >= likely]])
        agree = np.concatenate([agree, share[share >= likely]])
    order = np.argsort(found)
    found, agree = found[order], agree[order]
    return np.stack([rows[(found >> 32) - len(before)], (before if known else rows)[found & 0xFFFF_FFFF]], axis=1), agree


def _fold(bands: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(texts, bands, values) -> (texts, bands): a hash of each band's values."""
    folded = np.zeros(bands.shape[:2], np.uint64)
    for value in range(bands.shape[2]):
        folded = (folded ^ bands[:, :, value]) * _MIX
    return (folded >> np.uint64(32)).astype(np.uint32)


def _together(hashes: NDArray[np.uint32], known: int | None) -> Pairs:
    """Pairs (i << 32 | j, i > j) of rows with equal hashes: each with the few before it and the first, or with those of the first `known` rows."""
    order = np.argsort(hashes, kind="stable")
    places = np.arange(len(order))
    begins = np.append(True, hashes[order[1:]] != hashes[order[:-1]])
    head = np.maximum.accumulate(np.where(begins, places, 0))
    last = places - 1
    if known is not None:
        last = np.maximum.accumulate(np.where(order < known, places, -1))
        places = places[order >= known]
        last, head = last[places], head[places]
    pairs = [np.empty(0, np.int64)]
    for back in range(_LINKED):
        near = np.flatnonzero(last - back >= head)
        pairs.append((order[places[near]] << 32) | order[last[near] - back])
    near = np.flatnonzero(last >= head)
    pairs.append((order[places[near]] << 32) | order[head[near]])
    return np.unique(np.concatenate(pairs))


def _agree(sketches: NDArray[np.uint8], pairs: Pairs) -> NDArray[np.float64]:
    """The share of equal values in each pair's sketches, without those that are equal by chance."""
    shares = [np.empty(0)]
    for start in range(0, len(pairs), 1 << 16):
        some = pairs[start : start + (1 << 16)]
        shares.append((sketches[some >> 32] == sketches[some & 0xFFFF_FFFF]).mean(axis=1))
    return (np.concatenate(shares) * 256 - 1) / 255


def near(texts: Sequence[str], known: Sequence[str] = ()) -> Iterator[tuple[int, int, bool]]:
    """Yield (i, j, begins) where text i is nearly text j: an earlier one, or with `known`, one of those.

    `begins`: what they share is their beginning, and what follows differs, as with a passage under several questions.
    Of texts that are alike the first is compared with, so that a thousand copies cost a thousand comparisons.
    """
    return verified(_added(texts), _added(known) if known else None)


def _added(texts: Sequence[str]) -> Near:
    held = Near()
    for text in texts:
        held.add(text)
    return held


def verified(held: Near, known: Near | None = None, pairs: Pairs | None = None) -> Iterator[tuple[int, int, bool]]:
    """Yield (i, j, begins) as `near` does, for texts that were added. `pairs`: candidates that are at hand already."""
    first: dict[int, int] = {}
    pairs = candidates(held, known)[0] if pairs is None else pairs
    starts = np.flatnonzero(np.append(True, np.diff(pairs[:, 0]) > 0)).tolist() if len(pairs) else []
    for start, end in zip(starts, [*starts[1:], len(pairs)], strict=False):
        i, others = int(pairs[start, 0]), pairs[start:end, 1].tolist()
        text, passage = held.text(i), None
        mine = np.unique(_hashes(text))
        for j in dict.fromkeys(others if known else (first.get(j, j) for j in others)):
            if _alike(mine, np.unique(_hashes(other := (known or held).text(j)))) >= ALIKE:
                if not _only_begins(text, other):
                    first[i] = j
                    yield i, j, False
                    break
                passage = j if passage is None else passage
        else:
            if passage is not None:
                yield i, passage, True


def alike(one: set[str], other: set[str]) -> float:
    """The share of common members in all members, 0 where there are none."""
    return len(one & other) / max(1, len(one | other))


def triples_of(text: str) -> set[str]:
    """The runs of three words, in lower case; none where the text has fewer than `MIN_WORDS`."""
    words = text.lower().split()
    return {" ".join(words[i : i + 3]) for i in range(len(words) - 2)} if len(words) >= MIN_WORDS else set()


def _hashes(text: str) -> NDArray[np.uint64]:
    """(triples,) a hash of each of the word triples, in order; the same in every run, unlike Python's own."""
    words = (
        text.lower().encode("utf-8", "surrogatepass").split()
        if text.isascii()
        else [w.encode("utf-8", "surrogatepass") for w in text.lower().split()]
    )
    if len(words) < MIN_WORDS:
        return np.empty(0, np.uint64)
    one = np.fromiter(map(crc32, words), np.uint64, len(words))
    folded = one[:-2]
    for following in (one[1:-1], one[2:]):
        folded = folded * _MIX + following
        folded = (folded ^ (folded >> np.uint64(31))) * _MIX
    return folded


def _alike(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """`alike`, of sorted hashes."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(1, len(one) + len(other) - common)


def _only_begins(one: str, other: str) -> bool:
    first, second = one.lower().split(), other.lower().split()
    shared = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    if shared < _PASSAGE or 2 * shared < min(len(first), len(second)):
        return False
    rest = [triples_of(" ".join(words[shared:])) for words in (first, second)]
    return all(rest) and alike(*rest) < ALIKE
