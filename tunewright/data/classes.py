"""Examples -> texts with a label, for models that classify: which text, which label, which tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data.example import Chat, Completion, Example, Labelled
from tunewright.data.tokens import TextRow, Tokenized
from tunewright.errors import BadConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunewright.config import ClassWeights

MOST_LABELS = 10_000


def labelled(example: Example) -> Labelled:
    """An example as a text and its label: a chat's last answer is the label of what was said before, a completion that of its prompt.

    Raises BadConfig for a pair of answers.
    """
    match example:
        case Labelled():
            return example
        case Chat():
            before, answer = example.messages[:-1], example.messages[-1]
            return Labelled("\n\n".join(message.content for message in before if message.content), answer.content.strip(), example.line)
        case Completion():
            return Labelled(example.prompt, example.completion.strip(), example.line)
        case _:
            raise BadConfig(
                "task: classification needs texts and labels, and the data holds pairs of answers", code="task_needs_labels", param="task"
            )


def label_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """The different labels, sorted. Raises BadConfig where there are no two, or nearly every row has its own."""
    names = sorted({labelled(example).label for example in examples})
    if len(names) < 2:
        text = f"task: classification needs two labels or more, and every row of the data has {names[0]!r}"
        raise BadConfig(text, code="one_label", param="task")
    if len(names) > MOST_LABELS or 2 * len(names) > len(examples):
        text = f"task: {len(examples):,} rows have {len(names):,} different answers, so these are texts to write rather than labels; say task: chat"
        raise BadConfig(text, code="answers_are_no_labels", param="task")
    return tuple(names)


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_tokens: int, names: Sequence[str]) -> Tokenized:
    """Encode every text as the tokenizer does it, what looks like a special token as plain text; over `max_tokens` it is cut at the end.

    Of two texts the longer one is cut. A row is dropped as "no_text" where no token is left of it, as "unknown_label" where `names` lacks its label.
    """
    result, place = Tokenized(), {name: i for i, name in enumerate(names)}
    for example in examples:
        one = labelled(example)
        if one.label not in place:
            result.dropped.setdefault("unknown_label", []).append(one.line)
            continue
        ids, types, cut = encode(one, tokenizer, max_tokens)
        if not one.text.strip() or not len(ids):
            result.dropped.setdefault("no_text", []).append(one.line)
            continue
        if cut:
            result.cut.append(one.line)
        result.rows.append(TextRow(ids, place[one.label], types, one.line))
    return result


def encode(one: Labelled, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """A text's ids (tokens,), which of two texts each is of (or None), and whether it was cut."""
    found = tokenizer(one.text, one.pair, split_special_tokens=True)
    if cut := len(found["input_ids"]) > max_tokens:
        found = tokenizer(one.text, one.pair, split_special_tokens=True, truncation="longest_first", max_length=max_tokens)
    types = found.get("token_type_ids")
    return np.array(found["input_ids"], np.int32), None if types is None else np.array(types, np.int8), cut


def class_weights(setting: str | ClassWeights, names: Sequence[str], rows: Sequence[TextRow]) -> list[float] | None:
    """How much a row of each label weighs, in the labels' order; None where all weigh 1. Raises BadConfig for a label that is not there.

    "balanced": rows / (labels x rows of the label), as in scikit-learn, so that the rows' mean weight is 1.
    """
    if setting == "none":
        return None
    if isinstance(setting, dict):
        if unknown := sorted(setting.keys() - set(names)):
            text = f"method.class_weights: no row has the label {unknown[0]!r}; there are {', '.join(map(repr, names[:10]))}"
            raise BadConfig(text, code="no_such_label", param="method.class_weights")
        return [setting.get(name, 1.0) for name in names]
    counts = Counter(row.label for row in rows)
    return [len(rows) / (len(counts) * counts[i]) if counts[i] else 1.0 for i in range(len(names))]
