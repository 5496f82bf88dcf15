"""Examples -> a source text and its target, for encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data.example import Chat, Completion, Example, Labelled
from tunewright.data.tokens import SourceRow, Tokenized
from tunewright.errors import BadConfig, BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def texts(example: Example) -> tuple[str, str]:
    """An example's source and target: prompt and completion, text and label, or what was said before a chat's last answer and that answer.

    Raises BadConfig for a pair of answers.
    """
    match example:
        case Completion():
            return example.prompt, example.completion
        case Labelled():
            return example.text if example.pair is None else f"{example.text}\n\n{example.pair}", example.label
        case Chat():
            return "\n\n".join(message.content for message in example.messages[:-1] if message.content), example.messages[-1].content
        case _:
            raise BadConfig(
                "task: text_to_text needs sources and targets, and the data holds pairs of answers", code="task_needs_targets", param="task"
            )


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Tokenized:
    """Encode sources and targets as the tokenizer does it, what looks like a special token as plain text; what is over `max_tokens` is cut at the end.

    A row is dropped as "no_text" where its source is empty, as "nothing_to_learn" where its target is.
    """
    result = Tokenized()
    for example in examples:
        source, target = texts(example)
        if not source.strip() or not target.strip():
            result.dropped.setdefault("no_text" if not source.strip() else "nothing_to_learn", []).append(example.line)
            continue
        ids, wanted = encode(source, tokenizer), encode(target, tokenizer, target=True)
        if max(len(ids), len(wanted)) > max_tokens:
            result.cut.append(example.line)
        if len(wanted) > max_tokens:
            result.unended.append(example.line)
        # A source that is cut still ends as the tokenizer ends it; of a target, the end is not learnt where it did not end there.
        ids = np.concatenate([ids[: max_tokens - 1], ids[-1:]]) if len(ids) > max_tokens else ids
        result.rows.append(SourceRow(ids, wanted[:max_tokens], example.line))
    return result


def encode(text: str, tokenizer: PreTrainedTokenizerBase, target: bool = False) -> np.ndarray:
    """The ids (tokens,) of a source or target, with the tokenizer's own special tokens around it; both end with the end token."""
    # Marian's targets have a vocabulary of their own.
    named = {"text_target": text} if target else {"text": text}
    ids = list(tokenizer(**named, split_special_tokens=True)["input_ids"])
    if tokenizer.eos_token_id is None:
        raise BadModel("The tokenizer names no end-of-sequence token, so a tuned model would never stop", code="no_end_token", param="model")
    return np.array(ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id], np.int32)
