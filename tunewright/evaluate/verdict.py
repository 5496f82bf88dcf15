"""Is it better? A metric over rows -> its value and interval; two measurements of the same rows -> their differences.

The intervals are bootstrap percentile intervals over rows (Efron & Tibshirani 1993, ch. 13), a row being what is drawn:
the tokens of a row are not independent of each other. Percentile, because it follows a metric through a transformation
(perplexity's interval is exp of the loss's), stays within a metric's range, and changes its sign exactly when before
and after change places. BCa (ibid., ch. 14) corrects for skew, but needs the share of resamples below the estimate, and
with a few hundred right-or-wrong rows many resamples equal it.

Percentile intervals of few rows are too narrow, by about the ratio of the n - 1 and n standard deviations and that of
the t and normal quantiles. The quantiles are widened for both (Hesterberg 2015, doi:10.1080/00031305.2015.1089789, "expanded percentile").
That mends the mean; under `FEW` rows read any interval as rough, and each says so in its `note`.

Shares have Wilson's score interval (Wilson 1927), which does not collapse when every row is right.
Several metrics are several chances to be fooled: at 95 % one in twenty excludes 0 by luck. No correction is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from tunewright.errors import Problem

if TYPE_CHECKING:
    from tunewright.evaluate.metrics import Measurement

Array = np.ndarray
Statistic = Callable[[Array], Array]
"""Weights (resamples, rows), how often each row was drawn -> a value for each resample, (resamples,)."""
Verdict = Literal["better", "worse", "no measurable difference"]

FEW = 30
_BLOCK = 4_000_000  # weights held at once: 32 MB


@dataclass(frozen=True, slots=True)
class Metric:
    """How a number is had from rows. `rows`: how many it counts. `share`: it lies between 0 and 1.

    `right`: where it is a plain share of rows, how many of them are right.
    """

    statistic: Statistic
    rows: int
    higher_is_better: bool = True
    share: bool = False
    right: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval, from `n` rows."""

    value: float
    low: float
    high: float
    n: int

    @property
    def note(self) -> str:
        """A warning about the interval, or nothing."""
        return _note(self.n)


@dataclass(frozen=True, slots=True)
class Difference:
    """After minus before, on the same `n` rows: the difference, its 95 % interval, and what it says."""

    before: Estimate
    after: Estimate
    difference: float
    low: float
    high: float
    n: int
    verdict: Verdict

    @property
    def note(self) -> str:
        """A warning about the interval, or nothing."""
        return _note(self.n)


def bootstrap(statistic: Statistic, n: int, seed: int = 0, resamples: int = 2000) -> Estimate:
    """A statistic of `n` rows and its 95 % bootstrap interval. Raises Problem `too_few_rows` under two rows."""
    values, draws = _values({"": statistic}, n, seed, resamples)
    return Estimate(values[""], *_percentiles(draws[""], n), n)


def estimates(metrics: Mapping[str, Metric], n: int, seed: int = 0, resamples: int = 2000) -> dict[str, Estimate]:
    """Each metric's value and interval, all from the same resamples. Raises Problem `too_few_rows` under two rows."""
    values, draws = _values({name: metric.statistic for name, metric in metrics.items()}, n, seed, resamples)
    return {name: _estimate(metric, values[name], draws[name]) for name, metric in metrics.items()}


def difference(before: Measurement, after: Measurement, seed: int = 0, resamples: int = 2000) -> dict[str, Difference]:
    """What changed from `before` to `after`, metric by metric, each resample drawing the same rows of both.

    Pairing removes what makes a row hard for both models. Where no row differs the interval is [0, 0].
    Raises Problem: `rows_differ` when the two did not measure the same rows, `too_few_rows` under two of them.
    """
    before.must_match(after)
    n = len(before.lines)
    first, second = before.metrics(), after.metrics()
    old_values, old = _values({name: metric.statistic for name, metric in first.items()}, n, seed, resamples)
    new_values, new = _values({name: metric.statistic for name, metric in second.items()}, n, seed, resamples)
    found = {}
    for name, metric in second.items():
        change = new_values[name] - old_values[name]
        low, high = _percentiles(new[name] - old[name], metric.rows)
        if metric.share and low == high and abs(low) == 1:
            # Every row went from wrong to right, or back: as in `_estimate`.
            edges = wilson(metric.rows, metric.rows)
            low, high = edges if change > 0 else (-edges[1], -edges[0])
        found[name] = Difference(
            before=_estimate(first[name], old_values[name], old[name]),
            after=_estimate(metric, new_values[name], new[name]),
            difference=change,
            low=low,
            high=high,
            n=metric.rows,
            verdict=_verdict(low, high, metric.higher_is_better),
        )
    return found


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share, `right` of `n` (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212)."""
    z = 1.959963984540054
    middle = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * (right * (n - right) / n + z * z / 4) ** 0.5
    # The ends are exact where every row is right, or none; rounding must not put the value outside.
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def _estimate(metric: Metric, value: float, draws: Array) -> Estimate:
    low, high = _percentiles(draws, metric.rows)
    if metric.right is not None:
        low, high = wilson(metric.right, metric.rows)
    elif metric.share and low == high and low in (0, 1):
        # Every row is right, or none: resampling them shows nothing. A row is the least that is surely independent.
        low, high = wilson(int(low) * metric.rows, metric.rows)
    return Estimate(value, low, high, metric.rows)


def _values(statistics: Mapping[str, Statistic], n: int, seed: int, resamples: int) -> tuple[dict[str, float], dict[str, Array]]:
    """Each statistic of the rows as they are, and of each resample, shape (resamples,)."""
    if n < 2:
        raise Problem(f"{n} row{'' if n == 1 else 's'} cannot show how sure a number is; give at least two", code="too_few_rows")
    values = {name: float(statistic(np.ones((1, n)))[0]) for name, statistic in statistics.items()}
    parts: dict[str, list[Array]] = {name: [] for name in statistics}
    for weights in _weights(n, seed, resamples):
        for name, statistic in statistics.items():
            parts[name].append(statistic(weights))
    return values, {name: np.concatenate(part) for name, part in parts.items()}


def _weights(n: int, seed: int, resamples: int) -> Iterator[Array]:
    """How often each row is drawn in each resample, (some resamples, n), block after block."""
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = generator.integers(n, size=(count, n)) + np.arange(count)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _percentiles(draws: Array, n: int) -> tuple[float, float]:
    """The 95 % interval of a statistic's resamples: the k-th smallest and the k-th largest, so that it turns with its sign.

    k = (resamples + 1) x the expanded quantile, rounded down (Efron & Tibshirani 1993, ch. 12; Hesterberg 2015).
    """
    from scipy.special import ndtr, stdtrit

    # A resample that drew no row which the metric counts says nothing.
    ordered = np.sort(draws[~np.isnan(draws)])
    rows = max(n, 2)
    tail = float(ndtr(np.sqrt(rows / (rows - 1)) * stdtrit(rows - 1, 0.025)))
    k = max(1, int((len(ordered) + 1) * tail))
    return float(ordered[k - 1]), float(ordered[-k])


def _verdict(low: float, high: float, higher_is_better: bool) -> Verdict:
    if low <= 0 <= high:
        return "no measurable difference"
    return "better" if (low > 0) == higher_is_better else "worse"


def _note(n: int) -> str:
    return f"only {n} rows: the interval is rough" if n < FEW else ""
