"""How well a base expects the answers of a file: `surprise`, and which rows stand out. Wrong answers, other languages and damaged texts do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from tunewright.data.formats import Format, Tally, stream
from tunewright.data.traits import Surprise
from tunewright.errors import Problem
from tunewright.evaluate.metrics import measure

MOST_ROWS = 20_000
"""Rows that are scored: a pass of the model over each takes a while."""
_BATCH = 512
_SHOWN = 5


def surprise(path: Path, model: str, max_tokens: int | None = None, as_format: Format | None = None) -> Surprise | None:
    """Perplexity of each row's trained tokens under `model`, of the first `MOST_ROWS` sound rows; None where no row can be scored. Raises BadModel."""
    from tunewright.models.load import load

    loaded = load(model)
    limit = min(loaded.context, max_tokens or 4096)
    examples = islice(stream(path, Tally(), 1, as_format), MOST_ROWS)
    losses: list[float] = []
    lines: list[int] = []
    while batch := list(islice(examples, _BATCH)):
        try:
            found = measure(loaded.model, loaded.tokenizer, batch, limit, generate=False)
        except Problem as problem:
            if problem.code != "no_rows":
                raise
            continue
        losses += (found.nll / found.tokens).tolist()
        lines += found.lines
    return outliers(losses, lines) if losses else None


def outliers(losses: Sequence[float], lines: Sequence[int]) -> Surprise:
    """Rows whose loss, in nats per token, lies above Q3 + 3 (Q3 - Q1): Tukey's far fence, on the logarithm of the perplexity."""
    values = np.array(losses)
    quarter, median, three, p95 = np.quantile(values, (0.25, 0.5, 0.75, 0.95)).tolist()
    fence = three + 3 * (three - quarter)
    far = [i for i in np.argsort(-values, kind="stable").tolist() if values[i] > fence]
    perplexity = lambda loss: float(np.exp(min(loss, 700.0)))  # noqa: E731
    return Surprise(len(values), perplexity(median), perplexity(p95), len(far), [(perplexity(losses[i]), lines[i]) for i in far[:_SHOWN]])
