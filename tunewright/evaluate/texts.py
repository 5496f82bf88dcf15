"""An encoder-decoder and examples -> a Measurement: the loss of each target, and what the model makes of each source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunewright.data.sources import encode, texts, tokenize
from tunewright.data.tokens import SourceRow
from tunewright.errors import Problem
from tunewright.evaluate.metrics import Measurement, scores_of

if TYPE_CHECKING:
    from tunewright.data.example import Example
    from tunewright.models.load import Loaded


def measure(
    loaded: Loaded, examples: Sequence[Example], max_tokens: int, *, generate: bool = True, beams: int = 1, budget: int = 8192
) -> Measurement:
    """Score every target and have the model write its own, greedily or by a search with so many `beams`.

    An answer ends after half as many tokens again as the longest target has, and 8 more. Raises Problem `no_rows`, RunFailed `non_finite_loss`.
    """
    from tunewright.models.translate import translate  # brings torch, which what reads a Measurement need not

    found = tokenize(examples, loaded.tokenizer, max_tokens)
    rows = [row for row in found.rows if isinstance(row, SourceRow)]
    if not rows:
        reasons = ", ".join(f"{reason} {len(lines)}" for reason, lines in found.dropped.items())
        raise Problem(f"There is no row to measure ({reasons or 'the data is empty'})", code="no_rows", param="data")
    dropped = {line for lines in found.dropped.values() for line in lines}
    wanted = [texts(example)[1] for example in examples if example.line not in dropped]
    room = min(max(len(encode(text, loaded.tokenizer, target=True)) for text in wanted) * 3 // 2 + 8, max_tokens)
    nll, tokens, correct = scores_of(loaded.model, rows, budget)
    said = translate(loaded.model, loaded.tokenizer, [row.ids for row in rows], room, beams, budget) if generate else [(None, False)] * len(rows)
    return Measurement(
        lines=tuple(row.line for row in rows),
        nll=nll,
        tokens=tokens,
        correct=correct,
        expected=tuple(wanted),
        answers=tuple(text for text, _ in said),
        finished=tuple(finished for _, finished in said),
        labelled=False,
        max_new_tokens=room,
        dropped=found.dropped,
        cut=found.cut,
        task="text_to_text",
    )
