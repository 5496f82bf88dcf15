"""What the rows of a file are like, gathered row by row in bounded memory: lengths, labels, answers, openings, languages, families."""

from __future__ import annotations

import heapq
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunewright.data.content import own_text
from tunewright.data.example import Chat, Completion, Example, Labelled, Message, Pair
from tunewright.data.near import Near, Pairs

_DISTINCT = 50_000
"""Different labels, answers or openings that are counted one by one; rows with any other are counted together."""
_SAMPLE = 1000
_SHOWN = 5
_EXCERPT = 160
_BINS = 24
HALF_ALIKE = 0.5


@dataclass(frozen=True, slots=True)
class Spread:
    """How long rows are, in characters or tokens. `bars`: (from, to, rows) with `to` not included.

    `outliers` rows are longer than Q3 + 3 (Q3 - Q1) on a logarithmic scale (Tukey's far fence), and twice the median; `longest` names the first lines.
    """

    count: int
    total: int
    least: int
    median: int
    p95: int
    most: int
    bars: list[tuple[int, int, int]]
    outliers: int
    longest: list[tuple[int, int]]


class Lengths:
    """Lengths, one by one. Different lengths are far fewer than rows."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._longest: list[tuple[int, int]] = []

    def add(self, length: int, line: int) -> None:
        """Take a row's length."""
        self._counts[length] += 1
        if len(self._longest) < _SHOWN:
            heapq.heappush(self._longest, (length, -line))
        elif length > self._longest[0][0]:
            heapq.heapreplace(self._longest, (length, -line))

    def spread(self) -> Spread | None:
        """What they come to; None where there were none."""
        if not self._counts:
            return None
        values = np.array(sorted(self._counts))
        counts = np.array([self._counts[value] for value in values.tolist()])
        below = np.cumsum(counts)
        quarter, median, three, p95 = (int(values[np.searchsorted(below, share * below[-1])]) for share in (0.25, 0.5, 0.75, 0.95))
        logs = [math.log(max(1, value)) for value in (quarter, three)]
        fence = max(math.exp(min(700.0, logs[1] + 3 * (logs[1] - logs[0]))), 2.0 * median)
        outliers = int(counts[values > fence].sum())
        longest = [(length, -line) for length, line in sorted(self._longest, reverse=True) if length > fence]
        total = int((values * counts).sum())
        return Spread(int(below[-1]), total, int(values[0]), median, p95, int(values[-1]), _bars(values, counts), outliers, longest)


def _bars(values: np.ndarray, counts: np.ndarray) -> list[tuple[int, int, int]]:
    """A histogram of at most `_BINS` bars of one width, a round number."""
    width = _round_up((int(values[-1]) - int(values[0]) + 1) / _BINS)
    start = int(values[0]) // width * width
    heights = np.bincount((values - start) // width, counts).astype(int)
    return [(start + i * width, start + (i + 1) * width, int(height)) for i, height in enumerate(heights)]


def _round_up(width: float) -> int:
    power = 10 ** max(0, math.floor(math.log10(max(1.0, width))))
    return next(int(step * power) for step in (1, 2, 5, 10) if step * power >= width)


@dataclass(frozen=True, slots=True)
class Often:
    """What rows have in common: how many different ones there are (`at_least` that many), and the most frequent with their rows and first lines."""

    different: int
    at_least: bool
    rows: int
    most: list[tuple[str, int, int]]


class Counts:
    """Texts that may be common to many rows, counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, int] = {}
        self._rows = 0
        self.full = False

    def add(self, text: str, line: int) -> None:
        """Take a row's text."""
        self._rows += 1
        if text not in self.counts:
            if len(self.counts) >= _DISTINCT:
                self.full = True
                return
            self._first[text] = line
        self.counts[text] += 1

    def often(self) -> Often:
        """The most frequent ones."""
        most = [(text, count, self._first[text]) for text, count in self.counts.most_common(_SHOWN) if count > 1]
        return Often(len(self.counts), self.full, self._rows, most)


@dataclass(frozen=True, slots=True)
class Families:
    """Rows that are alike in half of their word triples or more, directly or by way of others, form a family.

    `families` counts the rows that are alone too; `largest`: (rows, first line, how that row begins). `compared` rows of `rows` were looked at.
    """

    rows: int
    compared: int
    families: int
    largest: list[tuple[int, int, str]]


def families(held: Near, pairs: Pairs) -> Families:
    """What `pairs`, candidates from half alike on, make of the texts."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(held.lines)
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    count, member = connected_components(links, directed=False) if size else (0, np.empty(0, int))
    sizes = np.bincount(member, minlength=1)
    top = [i for i in np.argsort(sizes, kind="stable")[::-1][:_SHOWN] if sizes[i] > 1]
    first = [int(np.flatnonzero(member == i)[0]) for i in top]
    largest = [(int(sizes[i]), held.lines[at], held.text(at)[:_EXCERPT]) for i, at in zip(top, first, strict=True)]
    return Families(held.count, size, int(count), largest)


@dataclass(frozen=True, slots=True)
class Surprise:
    """Perplexity of `rows` rows' answers under a base: median, 95 % quantile, and `outliers` rows far above, the highest with their lines."""

    rows: int
    median: float
    p95: float
    outliers: int
    highest: list[tuple[float, int]]


class Traits:
    """The rows of a file, looked at one by one."""

    def __init__(self) -> None:
        self.turns: Counter[str] = Counter()
        self.labels = Counts()
        self.answers = Counts()
        self.openings = Counts()
        self.lengths = Lengths()
        self.trained_characters = 0
        self._sample: list[str] = []
        self._seen = 0
        self._draw = random.Random(0)

    def add(self, example: Example) -> None:
        """Take a row."""
        text = own_text(example)
        self.lengths.add(len(text), example.line)
        self.openings.add(" ".join(text[:200].lower().split()[:4]), example.line)
        for one in (example.chosen, example.rejected) if isinstance(example, Pair) else (example,):
            match one:
                case Chat():
                    self.turns.update(message.role for message in one.messages)
                    self.trained_characters += sum(_trained_length(message) for message in one.messages if message.trained)
                case Completion():
                    self.trained_characters += len(one.completion)
                case Labelled():
                    self.labels.add(one.label, one.line)
                    self.trained_characters += len(one.label)
        self.answers.add(_answer(example)[:200], example.line)
        self._seen += 1
        if len(self._sample) < _SAMPLE:
            self._sample.append(text[:400])
        elif (at := self._draw.randrange(self._seen)) < _SAMPLE:
            self._sample[at] = text[:400]

    def languages(self) -> dict[str, int]:
        """Rows by language (ISO 639-1) in a sample of 1,000, the most frequent first; texts under 20 letters are left out as "unknown"."""
        from py3langid import classify  # type: ignore[import-untyped]

        found = Counter(classify(text)[0] if sum(map(str.isalpha, text)) >= 20 else "unknown" for text in self._sample)
        return dict(found.most_common())


def evenness(labels: Sequence[int]) -> float:
    """How evenly labels are spread: their entropy over that of as many equal ones. 1: all alike; 0: one has all rows."""
    shares = np.array(labels) / max(1, sum(labels))
    return float(-(shares * np.log(shares)).sum() / math.log(len(labels))) if len(labels) > 1 else 1.0


def _answer(example: Example) -> str:
    match example:
        case Chat():
            return example.messages[-1].content
        case Completion():
            return example.completion
        case Labelled():
            return example.label
        case Pair():
            return _answer(example.chosen)


def _trained_length(message: Message) -> int:
    calls = message.extra.get("tool_calls")
    return len(message.content) + (len(json.dumps(calls, ensure_ascii=False)) if calls else 0)
