"""A model and examples -> a Measurement: what each row scored and what was answered, and the metrics over those rows.

Every row's own numbers are kept, for an interval needs them and a paired comparison (verdict.py) needs the same rows twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.config import Task
from tunewright.data.example import Chat, Example, Labelled
from tunewright.data.tokens import NotRenderable, Row, SourceRow, expected, preferred, prompt, tokenize
from tunewright.errors import Problem, RunFailed
from tunewright.evaluate.overlap import overlap
from tunewright.evaluate.verdict import Array, Estimate, Metric, Statistic, estimates

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_LABELS = 50
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a model did with each row. All sequences have one entry a row, in the file's order.

    `nll`: (rows,) negative log-likelihood of the row's trained tokens, in nats. `tokens`: (rows,) how many those are.
    `correct`: (rows,) how many of them were the likeliest. `expected` and `answers`: what should follow the prompt and
    what did, greedily; None where the row was not asked. `finished`: the answer came to an end by itself.
    `dropped`, `not_asked`: lines by the reason why a row is not measured, or only not asked; `cut`: lines cut at the end.
    """

    lines: tuple[int, ...]
    nll: Array
    tokens: Array
    correct: Array
    expected: tuple[str | None, ...]
    answers: tuple[str | None, ...]
    finished: tuple[bool, ...]
    labelled: bool
    max_new_tokens: int
    dropped: dict[str, list[int]] = field(default_factory=dict)
    not_asked: dict[str, list[int]] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    task: Task = "chat"

    def summary(self, seed: int = 0, resamples: int = 2000) -> dict[str, Estimate]:
        """Each metric with its 95 % interval. Raises Problem `too_few_rows` under two rows."""
        return estimates(self.metrics(), len(self.lines), seed, resamples)

    def metrics(self) -> dict[str, Metric]:
        """How each metric comes from the rows.

        loss (nats per trained token), perplexity, token_accuracy; where rows were asked: exact_match (white space around
        it aside); where the expected answers are few and recur, or are labels: accuracy and macro_f1; where all of them
        are JSON objects: json_valid, and field_<name> for each field that all of them have.
        Of a classifier: loss (nats per row), accuracy, macro_f1. Of an encoder-decoder that was asked: BLEU and chrF, from 0 to 100.
        """
        n, loss = len(self.lines), _ratio(self.nll, self.tokens)
        if self.task == "classification":
            known = _answer_metrics([str(label) for label in self.expected], [str(label) for label in self.answers], np.ones(n, bool), True)
            return {"loss": Metric(loss, n, higher_is_better=False), "accuracy": known["accuracy"], "macro_f1": known["macro_f1"]}
        found = {
            "loss": Metric(loss, n, higher_is_better=False),
            # Beyond e^700 a float ends; no model that works comes near.
            "perplexity": Metric(lambda w: np.exp(np.minimum(loss(w), 700.0)), n, higher_is_better=False),
            "token_accuracy": Metric(_ratio(self.correct, self.tokens), n, share=True),
        }
        asked = np.array([answer is not None for answer in self.answers], bool)
        if asked.any() and self.task == "text_to_text":
            found |= overlap([str(text) for text in self.expected], [str(text) for text in self.answers])
        elif asked.any():
            wanted = [text.strip() for text, ask in zip(self.expected, asked, strict=True) if ask and text is not None]
            given = [text.strip() for text in self.answers if text is not None]
            found |= _answer_metrics(wanted, given, asked, self.labelled)
        return found

    def must_match(self, other: Measurement) -> None:
        """Raise Problem `rows_differ` unless both measured the same rows in the same way."""
        mine = (self.task, self.lines, self.expected, self.labelled, self.max_new_tokens, tuple(a is None for a in self.answers))
        others = (other.task, other.lines, other.expected, other.labelled, other.max_new_tokens, tuple(a is None for a in other.answers))
        if mine != others or not np.array_equal(self.tokens, other.tokens):
            raise Problem(
                "The two measurements are not of the same rows, cut into the same tokens and asked alike, so their difference would "
                "say nothing about the models; measure both on one file with the same settings",
                code="rows_differ",
            )


def measure(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_tokens: int,
    *,
    generate: bool = True,
    max_new_tokens: int | None = None,
    budget: int = 8192,
) -> Measurement:
    """Score every example's trained tokens, and have its last answer written greedily.

    Rows are cut at `max_tokens` as in training. A row is not asked when its prompt alone reaches `max_tokens`, or when what
    should follow is not text (a tool call). `max_new_tokens`: unless given, half as long again as the longest expected
    answer and 8 more. `budget`: padded tokens computed at once.
    Raises Problem `no_rows` when no example is left to measure, RunFailed `non_finite_loss`.
    """
    from tunewright.models.generate import answers as answer  # brings torch, which what reads a Measurement need not

    rows, kept, dropped, cut = _rows(examples, tokenizer, max_tokens)
    if not rows:
        reasons = ", ".join(f"{reason} {len(lines)}" for reason, lines in dropped.items())
        raise Problem(f"There is no row to measure ({reasons or 'the data is empty'})", code="no_rows", param="data")
    prompts, not_asked = _prompts(kept, tokenizer, max_tokens) if generate else ([None] * len(rows), {})
    wanted = tuple(expected(example) for example in kept)
    if max_new_tokens is None:
        max_new_tokens = _room([text for text, ids in zip(wanted, prompts, strict=True) if ids and text], tokenizer)
    nll, tokens, correct = scores_of(model, rows, budget)
    asked = [i for i, ids in enumerate(prompts) if ids is not None]
    said = dict(zip(asked, answer(model, tokenizer, [p for p in prompts if p is not None], max_new_tokens, budget), strict=True))
    return Measurement(
        lines=tuple(row.line for row in rows),
        nll=nll,
        tokens=tokens,
        correct=correct,
        expected=wanted,
        answers=tuple(said[i].text if i in said else None for i in range(len(rows))),
        finished=tuple(i in said and said[i].finished for i in range(len(rows))),
        labelled=all(isinstance(example, Labelled) for example in kept),
        max_new_tokens=max_new_tokens,
        dropped=dropped,
        not_asked=not_asked,
        cut=cut,
    )


def _rows(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[Row], list[Example], dict[str, list[int]], list[int]]:
    """Rows and the examples they come from, the lines dropped by reason, the lines cut."""
    rows: list[Row] = []
    kept: list[Example] = []
    dropped: dict[str, list[int]] = {}
    cut: list[int] = []
    for example in examples:
        one = tokenize([preferred(example)], tokenizer, max_tokens)
        rows += [row for item in one.rows for row in item.rows]
        kept += [example] * len(one.rows)
        cut += one.cut if one.rows else []
        for reason, lines in one.dropped.items():
            dropped.setdefault(reason, []).extend(lines)
    return rows, kept, dropped, cut


def _prompts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> tuple[list[list[int] | None], dict[str, list[int]]]:
    """Each example's prompt, None where it cannot be asked, and the lines of those by reason."""
    prompts: list[list[int] | None] = []
    reasons: dict[str, list[int]] = {}
    for example in examples:
        ids, reason = None, _unanswerable(example)
        if reason is None:
            try:
                ids = prompt(example, tokenizer)
                reason = "no_prompt" if not ids else "prompt_too_long" if len(ids) >= max_tokens else None
            except NotRenderable as problem:
                reason = problem.code
        prompts.append(None if reason else ids)
        if reason:
            reasons.setdefault(reason, []).append(example.line)
    return prompts, reasons


def _unanswerable(example: Example) -> str | None:
    """Why no text can be compared with what the example expects."""
    if expected(example) is None:
        return "no_expected_answer"
    if isinstance(example, Chat):
        last = next(message for message in reversed(example.messages) if message.role == "assistant")
        return "tool_call" if last.extra.get("tool_calls") else None
    return None


def _room(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    longest = max((len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts), default=0)
    return longest * 3 // 2 + 8


def scores_of(model: PreTrainedModel | PeftModel, rows: Sequence[Row | SourceRow], budget: int) -> tuple[Array, Array, Array]:
    """Negative log-likelihood, trained tokens and correct ones of each row. Raises RunFailed."""
    from tunewright.models.forward import score_rows

    nll, tokens, correct = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))
    training = model.training
    model.eval()
    try:
        for i, scores in score_rows(model, rows, budget):
            nll[i], tokens[i], correct[i] = scores.nll.double().sum().item(), len(scores.nll), scores.correct.sum().item()
    finally:
        model.train(training)
    if len(bad := np.flatnonzero(~np.isfinite(nll))):
        raise RunFailed(
            f"The loss of {len(bad)} of {len(rows)} rows is not a finite number (first: line {rows[bad[0]].line}), so the model is damaged "
            "or its number format too narrow; try fp32",
            code="non_finite_loss",
        )
    return nll, tokens, correct


def _answer_metrics(wanted: list[str], given: list[str], asked: Array, labelled: bool) -> dict[str, Metric]:
    """The metrics over answers. `wanted` and `given` have one entry for each row that was asked."""
    found = {"exact_match": _share(np.array([a == b for a, b in zip(wanted, given, strict=True)]), asked)}
    labels = sorted(set(wanted))
    if labelled or (len(labels) <= MOST_LABELS and len(wanted) >= 2 * len(labels)):
        # An answer that is no label equals no expected one, so it counts as wrong.
        found["accuracy"] = found["exact_match"]
        found["macro_f1"] = Metric(_macro_f1(labels, wanted, given, asked), len(wanted), share=True)
    objects = [_parse(text) for text in wanted]
    if all(isinstance(item, dict) for item in objects):
        replies = [reply if isinstance(reply := _parse(text), dict) else None for text in given]
        found["json_valid"] = _share(np.array([reply is not None for reply in replies]), asked)
        for name in [name for name in objects[0] if all(name in item for item in objects)]:
            right = [reply is not None and _same(reply.get(name, _NOTHING), item[name]) for reply, item in zip(replies, objects, strict=True)]
            found[f"field_{name}"] = _share(np.array(right), asked)
    return found


def _share(right: Array, asked: Array) -> Metric:
    """The share of the asked rows that are right."""
    return Metric(_ratio(_spread(right, asked), asked.astype(float)), int(asked.sum()), share=True, right=int(right.sum()))


def _ratio(over: Array, under: Array) -> Statistic:
    """A ratio of sums over rows. Not a number in a resample that drew none of the rows counted."""

    def statistic(weights: Array) -> Array:
        with np.errstate(invalid="ignore"):
            ratio: Array = (weights @ over) / (weights @ under)
        return ratio

    return statistic


def _macro_f1(labels: list[str], wanted: list[str], given: list[str], asked: Array) -> Statistic:
    """The mean over labels of F1 = 2 x right / (expected + answered), as scikit-learn's f1_score.

    The labels are those among the expected answers of the resample: one that it did not draw is no failure of the model.
    """
    names = np.array(labels, dtype=object)
    is_wanted = np.array(wanted, dtype=object)[:, None] == names
    is_given = np.array(given, dtype=object)[:, None] == names
    right = _spread(is_wanted & is_given, asked)
    both = _spread(is_wanted, asked) + _spread(is_given, asked)
    present = _spread(is_wanted, asked)

    def statistic(weights: Array) -> Array:
        there = weights @ present > 0
        with np.errstate(invalid="ignore"):
            f1 = np.where(there, 2 * (weights @ right) / (weights @ both), 0.0)
            mean: Array = f1.sum(axis=1) / there.sum(axis=1)
        return mean

    return statistic


def _spread(values: Array, asked: Array) -> Array:
    """One entry for each asked row -> one for each row, 0 where not asked."""
    out = np.zeros((len(asked), *values.shape[1:]))
    out[asked] = values
    return out


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a model may well answer with a thousand brackets
        return None


def _same(given: Any, wanted: Any) -> bool:
    """The same JSON value; in Python alone True would equal 1."""
    return given is not _NOTHING and json.dumps(given, sort_keys=True) == json.dumps(wanted, sort_keys=True)
