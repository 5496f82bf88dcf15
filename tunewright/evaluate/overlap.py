"""How much answers have in common with the expected texts: BLEU and chrF, by sacrebleu, over a whole file and each of its resamples.

Papineni et al. 2002; Popović 2015; Post 2018. BLEU's signature is sacrebleu's default: mixed case, tokeniser 13a, exponential smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunewright.evaluate.verdict import Array, Metric, Statistic


def overlap(wanted: Sequence[str], given: Sequence[str]) -> dict[str, Metric]:
    """`bleu` and `chrf`, from 0 to 100. One entry a row."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {name: Metric(_statistic(metric, wanted, given), len(wanted)) for name, metric in (("bleu", BLEU()), ("chrf", CHRF()))}


def _statistic(metric: Any, wanted: Sequence[str], given: Sequence[str]) -> Statistic:
    """The score of the rows' added counts, which is what sacrebleu computes of a file, and of each resample in its own tests."""
    counts = np.array(metric._extract_corpus_statistics(list(given), [list(wanted)]))

    def statistic(weights: Array) -> Array:
        return np.array([metric._compute_score_from_stats(row.tolist()).score for row in np.rint(weights @ counts).astype(int)])

    return statistic
