"""Labels as a model sees them: how likely each is for a row, and how far two labellers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data import classes
from tunewright.data.classes import encode
from tunewright.data.labels import Asked, suggestion
from tunewright.data.rows import Fields
from tunewright.data.tokens import NotRenderable, Row, TextRow, render
from tunewright.evaluate.verdict import Array, Estimate, Metric, estimates

if TYPE_CHECKING:
    from tunewright.data.example import Example
    from tunewright.models.load import Loaded

_AT_ONCE = 4096  # rows that are laid out together, a text with each of its labels
_SHOWN = 5  # labels whose probability a suggestion gives


@dataclass(frozen=True, slots=True)
class Suggestions:
    """`rows`: one for each row without a label. `known`: for each that has one, the label, what the model says, and how surely.

    `masses`: for each suggestion, the probability that the model gives to all labels together. `left_out`: lines that are too long for the
    model, or that its template cannot render.
    """

    rows: list[Fields]
    known: list[tuple[str, str, float]]
    masses: list[float]
    left_out: list[int]


def suggest(loaded: Loaded, asked: Sequence[Asked], labels: Sequence[str]) -> Suggestions:
    """Have a model label rows; `confidence` is its probability for the suggested label among all of them. For a classifier `labels` are its own."""
    made = Suggestions([], [], [], [])
    judged = by_head(loaded, asked) if loaded.task == "classification" else log_chances(loaded, [one.example for one in asked], labels)
    for one, chances in zip(asked, judged, strict=True):
        if chances is None:
            made.left_out.append(one.row.line)
            continue
        shares, mass = normalised(chances)
        order = np.argsort(-shares, kind="stable")
        best, confidence = labels[order[0]], float(shares[order[0]])
        if one.label is not None:
            made.known.append((one.label, best, confidence))
        else:
            made.masses.append(mass)
            made.rows.append(suggestion(one, best, confidence, {labels[i]: float(shares[i]) for i in order[:_SHOWN]}))
    return made


def log_chances(loaded: Loaded, ask: Sequence[Callable[[str], Example]], labels: Sequence[str], budget: int = 8192) -> Iterator[Array | None]:
    """For each row the log-probability (labels,) that the model answers it with each label and then ends; None where it is too long for the model.

    The text is computed once for all its labels, where the model can share beginnings. The sum of the probabilities is what the model gives
    to the labels together; divided by it they are its belief among them.
    """
    from tunewright.models.forward import score_rows

    most = min(loaded.context, 4096)
    step = max(1, _AT_ONCE // len(labels))
    for start in range(0, len(ask), step):
        rows: list[Row] = []
        whole = [_rendered(one, labels, loaded, most) for one in ask[start : start + step]]
        for one in whole:
            rows += one or []
        scored = {i: float(scores.nll.double().sum()) for i, scores in score_rows(loaded.model, rows, budget)}
        found = -np.array([scored[i] for i in range(len(rows))]).reshape(-1, len(labels))
        at = iter(found)
        yield from (next(at) if one else None for one in whole)


def by_head(loaded: Loaded, asked: Sequence[Asked]) -> Iterator[Array]:
    """For each row the log-probability (labels,) of a classifier's own labels, in its order. A text beyond its context is cut, as in training."""
    from tunewright.models import classify

    rows = []
    for one in asked:
        ids, types, _ = encode(classes.labelled(one.stand_in), loaded.tokenizer, loaded.context)
        rows.append(TextRow(ids, 0, types, one.row.line))
    yield from classify.log_chances(loaded.model, rows)


def _rendered(ask: Callable[[str], Example], labels: Sequence[str], loaded: Loaded, most: int) -> list[Row] | None:
    try:
        rows = [render(ask(label), loaded.tokenizer) for label in labels]
    except NotRenderable:
        return None
    return rows if all(len(row.ids) <= most for row in rows) else None


def normalised(log_chances: Array) -> tuple[Array, float]:
    """(labels,) log-probabilities -> (labels,) shares of their sum, and that sum."""
    highest = log_chances.max()
    shares = np.exp(log_chances - highest)
    return shares / shares.sum(), float(np.exp(highest) * shares.sum())


def agreement(one: Sequence[str], other: Sequence[str], seed: int = 0) -> dict[str, Estimate]:
    """How often two labellers agree, and Cohen's kappa (1960, doi:10.1177/001316446002000104), each with its 95 % interval over rows.

    kappa = (observed - expected) / (1 - expected), expected being the agreement by chance of two who label as often so, and
    not a number where both know one label alone. Raises Problem `too_few_rows` under two rows.
    """
    names = sorted({*one, *other})
    first, second = (np.array([[label == name for name in names] for label in labels], float) for labels in (one, other))
    same = np.array([a == b for a, b in zip(one, other, strict=True)], float)

    def kappa(weights: Array) -> Array:
        total = weights.sum(axis=1, keepdims=True)
        expected = ((weights @ first) * (weights @ second) / total**2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            value: Array = np.where(expected < 1, ((weights @ same) / total[:, 0] - expected) / (1 - expected), np.nan)
        return value

    share = Metric(lambda weights: (weights @ same) / weights.sum(axis=1), len(one), share=True, right=int(same.sum()))
    if len(names) == 1:
        return estimates({"agreement": share}, len(one), seed)
    return estimates({"agreement": share, "kappa": Metric(kappa, len(one))}, len(one), seed)


def disagreements(one: Sequence[str], other: Sequence[str]) -> list[tuple[str, str, int]]:
    """Pairs of labels that stand for one input, and how often, the most frequent first."""
    return [(a, b, count) for (a, b), count in Counter((a, b) for a, b in zip(one, other, strict=True) if a != b).most_common()]
