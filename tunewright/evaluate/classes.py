"""A classifier and examples -> a Measurement, and what it says of each label: precision, recall and F1, and which labels are mistaken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data.classes import labelled, tokenize
from tunewright.data.tokens import TextRow
from tunewright.errors import Problem
from tunewright.evaluate.metrics import Measurement
from tunewright.evaluate.verdict import Array, Estimate, Metric, Statistic, estimates, wilson

if TYPE_CHECKING:
    from tunewright.data.example import Example
    from tunewright.models.load import Loaded


def measure(loaded: Loaded, examples: Sequence[Example], max_tokens: int, *, budget: int = 8192) -> Measurement:
    """The label that a classifier gives each example, and how sure it was of the right one.

    A row whose label the model does not know is left out as "unknown_label". Raises Problem `no_rows` when no example is left to measure.
    """
    from tunewright.models.classify import log_chances  # brings torch, which what reads a Measurement need not

    found = tokenize(examples, loaded.tokenizer, max_tokens, loaded.labels)
    rows = [row for row in found.rows if isinstance(row, TextRow)]
    if not rows:
        reasons = ", ".join(f"{reason} {len(lines)}" for reason, lines in found.dropped.items())
        raise Problem(f"There is no row to measure ({reasons or 'the data is empty'})", code="no_rows", param="data")
    chances = log_chances(loaded.model, rows, budget)
    wanted, given = np.array([row.label for row in rows]), chances.argmax(axis=1)
    return Measurement(
        lines=tuple(row.line for row in rows),
        nll=-chances[np.arange(len(rows)), wanted],
        tokens=np.ones(len(rows)),
        correct=(wanted == given).astype(float),
        expected=tuple(loaded.labels[i] for i in wanted),
        answers=tuple(loaded.labels[i] for i in given),
        finished=(True,) * len(rows),
        labelled=True,
        max_new_tokens=0,
        dropped=found.dropped,
        cut=found.cut,
        task="classification",
    )


@dataclass(frozen=True, slots=True)
class OfLabel:
    """How one label fares. `precision`: of the rows that got it, how many have it; None where no row got it. `recall`: of the rows that have it,
    how many got it. `f1`: their harmonic mean. Precision and recall with Wilson's interval, F1 with a bootstrap's."""

    label: str
    precision: Estimate | None
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True, slots=True)
class Mistaken:
    """`count` rows of `label` were taken for `answer`: a `share` of the rows of that label, with Wilson's interval."""

    label: str
    answer: str
    count: int
    share: Estimate


def by_label(found: Measurement, seed: int = 0, resamples: int = 2000) -> list[OfLabel]:
    """Each label that the rows have, the worst F1 first. Raises Problem `too_few_rows` under two rows."""
    wanted, given = np.array(found.expected, dtype=object), np.array(found.answers, dtype=object)
    names = sorted(set(found.expected) - {None}, key=str)
    counts = {name: int((wanted == name).sum()) for name in names}
    f1 = estimates({str(name): Metric(_f1(wanted == name, given == name), counts[name], share=True) for name in names}, len(wanted), seed, resamples)
    rows = []
    for name in names:
        right, answered = int(((wanted == name) & (given == name)).sum()), int((given == name).sum())
        rows.append(OfLabel(str(name), _share(right, answered) if answered else None, _share(right, counts[name]), f1[str(name)]))
    return sorted(rows, key=lambda row: row.f1.value)


def confusion(found: Measurement) -> list[Mistaken]:
    """Which labels are mistaken for which, the most frequent first. What is not listed never happened."""
    rows = Counter(found.expected)
    pairs = Counter((a, b) for a, b in zip(found.expected, found.answers, strict=True) if a != b)
    return [Mistaken(str(a), str(b), count, _share(count, rows[a])) for (a, b), count in pairs.most_common()]


def always(found: Measurement, training: Sequence[Example] = ()) -> tuple[str, float]:
    """The most frequent label (of the training rows, if given) and the share of rows that it alone would get right."""
    counted = Counter(labelled(example).label for example in training) or Counter(str(label) for label in found.expected)
    label = counted.most_common(1)[0][0]
    return label, found.expected.count(label) / len(found.expected)


def _share(right: int, n: int) -> Estimate:
    return Estimate(right / n, *wilson(right, n), n)


def _f1(wanted: Array, given: Array) -> Statistic:
    """2 x right / (expected + answered), as scikit-learn's f1_score; not a number in a resample that drew neither."""
    right, both = 2.0 * (wanted & given), wanted.astype(float) + given

    def statistic(weights: Array) -> Array:
        with np.errstate(invalid="ignore"):
            ratio: Array = (weights @ right) / (weights @ both)
        return ratio

    return statistic
