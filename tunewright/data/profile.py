"""Examples -> what they come to in a model's tokens: `Profile` takes them one by one, `Tokens` is what they come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunewright.data.example import Chat, Example, Message
from tunewright.data.tokens import NotRenderable, Row, ends, rendered, rendered_text
from tunewright.data.traits import Lengths, Spread
from tunewright.data.tree import distinct
from tunewright.errors import Fault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TREE_TOKENS = 8_000_000
"""Tokens whose prefix tree is counted; those of later rows are not, and the report says so."""
_LINES = 20
_ASKED = "\ue000asked\ue001"


@dataclass(frozen=True, slots=True)
class Reader:
    """The model that the tokens are counted for: its name, its tokenizer, and the most tokens of a row.

    `errors`: the reasons by which a lost row is an error, as training with this model would refuse it; by others it is a warning.
    """

    model: str
    tokenizer: PreTrainedTokenizerBase
    limit: int
    errors: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Tokens:
    """A file's rows in the tokens of `model`, cut to `limit`, as training would take them.

    `rows` = `kept` + `dropped`. `read`: tokens after the cut, of which `trained` are learnt. `cut_rows` are longer than the limit: `cut` tokens of
    theirs are lost, and `cut_trained_rows` of them lose `cut_trained` that would be learnt. `distinct`: tokens of the prefix tree of the first
    `tree_rows` kept rows, which have `tree_tokens`. `lengths`: of whole rows. `lines`: the first lines, by what they are about.
    """

    model: str
    limit: int
    rows: int
    kept: int
    dropped: dict[str, int]
    read: int
    trained: int
    cut_rows: int
    cut: int
    cut_trained_rows: int
    cut_trained: int
    unended: int
    distinct: int
    tree_rows: int
    tree_tokens: int
    lengths: Spread | None
    lines: dict[str, list[int]]
    added_system: str | None


class Profile:
    """Counts rows as `tokenize` would keep, cut and drop them, in bounded memory."""

    def __init__(self, reader: Reader) -> None:
        self._tokenizer, self._model, self._limit = reader.tokenizer, reader.model, reader.limit
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._lines: dict[str, list[int]] = {}
        self._lengths = Lengths()
        self._tree: list[Row] | None = []
        self._distinct = 0
        self._tree_tokens = 0
        self._tree_rows = 0
        self._without_system = 0

    def watch(self, examples: Iterable[Example]) -> Iterator[Example]:
        """The same examples, each counted when it comes by."""
        for example, rows in rendered(examples, self._tokenizer):
            self._add(example, rows)
            yield example

    def _add(self, example: Example, whole: list[Row] | NotRenderable) -> None:
        self._counts["rows"] += 1
        if isinstance(whole, NotRenderable):
            self._drop(whole.code, example.line)
            return
        self._without_system += isinstance(example, Chat) and example.messages[0].role not in ("system", "developer")
        self._lengths.add(sum(len(row.ids) for row in whole), example.line)
        rows = [replace(row, ids=row.ids[: self._limit], trained=row.trained[: self._limit]) for row in whole]
        lost = sum(len(row.ids) for row in whole) - sum(len(row.ids) for row in rows)
        if any(not ends(row, self._tokenizer) for row in whole):
            self._note("unended", example.line)
        if not all(row.trained[1:].any() for row in rows):
            self._drop("nothing_to_learn_after_cut" if lost else "nothing_to_learn", example.line)
            return
        trained = sum(int(row.trained.sum()) for row in rows)
        if lost:
            self._note("cut_rows", example.line)
            self._counts["cut"] += lost
            if cut := sum(int(row.trained.sum()) for row in whole) - trained:
                self._note("cut_trained_rows", example.line)
                self._counts["cut_trained"] += cut
        self._counts["kept"] += 1
        self._counts["read"] += (size := sum(len(row.ids) for row in rows))
        self._counts["trained"] += trained
        if self._tree is not None and self._tree_tokens + size <= _TREE_TOKENS:
            self._tree += rows
            self._tree_tokens += size
            self._tree_rows += 1
        else:
            self._count_tree()

    def _count_tree(self) -> None:
        """Once, as soon as the tree is full: its rows take much of the memory that a check takes."""
        if self._tree is not None:
            self._distinct, self._tree = distinct(self._tree) if self._tree else 0, None

    def _drop(self, reason: str, line: int) -> None:
        self._dropped[reason] += 1
        if self._dropped[reason] <= _LINES:
            self._lines.setdefault(reason, []).append(line)

    def _note(self, what: str, line: int) -> None:
        self._counts[what] += 1
        if self._counts[what] <= _LINES:
            self._lines.setdefault(what, []).append(line)

    def tokens(self) -> Tokens:
        """What all of them come to."""
        self._count_tree()
        named = ("rows", "kept", "read", "trained", "cut_rows", "cut", "cut_trained_rows", "cut_trained", "unended")
        return Tokens(
            model=self._model,
            limit=self._limit,
            dropped=dict(self._dropped.most_common()),
            distinct=self._distinct,
            tree_rows=self._tree_rows,
            tree_tokens=self._tree_tokens,
            lengths=self._lengths.spread(),
            lines=self._lines,
            added_system=added_system(self._tokenizer) if self._without_system else None,
            **{name: self._counts[name] for name in named},
        )


def added_system(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The system prompt that the chat template puts before a chat that has none; None where it adds none."""
    asked = (Message("user", _ASKED), Message("assistant", "answered", trained=True))
    try:
        plain = rendered_text(Chat(asked), tokenizer).partition(_ASKED)[0]
        marked = rendered_text(Chat((Message("system", "\ue000system\ue001"), *asked)), tokenizer).partition(_ASKED)[0]
    except NotRenderable:
        return None
    before, _, after = marked.partition("\ue000system\ue001")
    if after and len(plain) > len(before) + len(after) and plain.startswith(before) and plain.endswith(after):
        return plain[len(before) : len(plain) - len(after)].strip() or None
    return None


def faults(tokens: Tokens, errors: frozenset[str]) -> Iterator[Fault]:
    """What training with this model would lose or not learn; `errors`: the reasons that are no mere warning."""
    first = {what: lines[0] for what, lines in tokens.lines.items()}
    for reason, count in tokens.dropped.items():
        cut = reason.endswith("after_cut")
        mend = f"Raise max_tokens above {tokens.limit:,}, or shorten the rows" if cut else "Mend these rows, or choose another model"
        yield Fault(first[reason], reason, f"{_rows(count)} would be dropped in training", mend, warning=reason not in errors)
    if tokens.cut_trained_rows:
        message = f"{_rows(tokens.cut_trained_rows)} lose{'s' * (tokens.cut_trained_rows == 1)} {tokens.cut_trained:,} tokens that would be learnt to the cut at {tokens.limit:,}, their end among them"
        yield Fault(first["cut_trained_rows"], "answer_cut", message, "Raise max_tokens, or shorten the rows", warning=True)
    elif tokens.cut_rows:
        message = f"{_rows(tokens.cut_rows)} lose{'s' * (tokens.cut_rows == 1)} {tokens.cut:,} tokens of context to the cut at {tokens.limit:,}"
        yield Fault(first["cut_rows"], "context_cut", message, "Raise max_tokens, or shorten the rows", warning=True)
    if tokens.unended:
        message = f"In {_rows(tokens.unended)} the end of the answer is not learnt, so the model may not stop"
        yield Fault(
            first["unended"], "end_not_trained", message, "Choose a model whose chat template ends every turn with an end token", warning=True
        )
    if tokens.added_system:
        message = f"The chat template puts a system prompt before chats that have none: {tokens.added_system[:80]!r}"
        yield Fault(
            0, "system_prompt_added", message, "Write the system prompt that will be used into every row; other servers may add none", warning=True
        )


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"
