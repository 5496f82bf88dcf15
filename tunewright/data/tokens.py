"""Example -> Row: the one function that renders a chat, for training, evaluation and serving alike.

What a model is tuned on and what it is asked later must be the same tokens, so there is one path:
the tokenizer's own chat template renders, `encoding` turns the text into ids, and the mask says which
of them are learnt: the assistant's words and the token that ends its turn, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.content import texts
from tunewright.data.encoding import begin, end, masked, plain, read
from tunewright.data.encoding import end_ids as end_ids
from tunewright.data.example import Chat, Completion, Example, Labelled, Message, Pair
from tunewright.data.turns import NotRenderable as NotRenderable
from tunewright.data.turns import Rendering, apply_template, run_template

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

    from tunewright.data.rendering import Renderer

# For tokenizers without a chat template (GPT-2 and its like). It is stored with the tuned model, so what serves it renders the same.
PLAIN_TEMPLATE = (
    "{% for message in messages %}### {{ message['role'] }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


_BATCH, _BATCH_CHARACTERS = 256, 1 << 20
"""Examples that are rendered at once, at most, and about how many characters of them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One example as a model sees it. `ids`: (tokens,) int32. `trained`: (tokens,) bool, the tokens that are learnt.

    `kept`: (tokens,) where the state of each token is kept, if a frozen trunk has computed it; -1 for one that is not needed.
    """

    ids: np.ndarray
    trained: np.ndarray
    line: int = 0
    kept: np.ndarray | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        """The sequences that are computed for it."""
        return (self,)

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return int(self.trained.sum())

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text to classify, as a model sees it. `ids`: (tokens,) int32. `label`: a place among the model's labels.

    `types`: (tokens,) int8, which of two texts a token is of; None where the model takes no such thing. `kept`: as a Row's.
    """

    ids: np.ndarray
    label: int
    types: np.ndarray | None = None
    line: int = 0
    kept: np.ndarray | None = None

    @property
    def rows(self) -> tuple[Any, ...]:  # not TextRow: what works on tokens one after another takes Rows alone, and refuses or never meets these
        """The sequences that are computed for it."""
        return (self,)

    @property
    def learnt(self) -> int:
        """One label."""
        return 1

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A text and what to make of it, as an encoder-decoder sees them. `ids`: (source tokens,) int32. `target`: (target tokens,) int32, all learnt."""

    ids: np.ndarray
    target: np.ndarray
    line: int = 0

    @property
    def rows(self) -> tuple[Any, ...]:  # as above
        """The sequences that are computed for it."""
        return (self,)

    @property
    def learnt(self) -> int:
        """How many tokens are learnt."""
        return len(self.target)

    def __len__(self) -> int:
        return len(self.ids) + len(self.target)


@dataclass(frozen=True, slots=True)
class RowPair:
    """A pair's two rows. `reference`: the log-probabilities, in nats, that the model gave to the trained tokens of each before tuning."""

    chosen: Row
    rejected: Row
    reference: tuple[float, float] = (0.0, 0.0)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The sequences that are computed for it."""
        return (self.chosen, self.rejected)

    @property
    def line(self) -> int:
        """Its line in the file."""
        return self.chosen.line


Item = Row | RowPair | TextRow | SourceRow


@dataclass(slots=True)
class Tokenized:
    """Rows in = rows trained + rows dropped, by named reasons. The lists hold line numbers of the file."""

    rows: list[Item] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    unended: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return sum(len(row) for item in self.rows for row in item.rows)

    @property
    def trained_tokens(self) -> int:
        """Tokens that are learnt; of rows to classify, their labels."""
        return sum(row.learnt for item in self.rows for row in item.rows)


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Tokenized:
    """Render every example. Rows longer than `max_tokens` are cut at the end, as the hosted service does it.

    A row whose trained tokens were all cut away is dropped as "nothing_to_learn_after_cut"; one that the
    template cannot render, as the `code` of its problem.
    """
    result = Tokenized()
    for example, whole in rendered(examples, tokenizer):
        if isinstance(whole, NotRenderable):
            result.dropped.setdefault(whole.code, []).append(example.line)
            continue
        if not all(ends(row, tokenizer) for row in whole):
            result.unended.append(example.line)
        rows = [Row(row.ids[:max_tokens], row.trained[:max_tokens], example.line) for row in whole]
        was_cut = any(len(row.ids) > max_tokens for row in whole)
        if was_cut:
            result.cut.append(example.line)
        # The first token has nothing before it that could predict it.
        if all(row.trained[1:].any() for row in rows):
            result.rows.append(RowPair(rows[0], rows[1]) if isinstance(example, Pair) else rows[0])
        else:
            reason = "nothing_to_learn_after_cut" if was_cut else "nothing_to_learn"
            result.dropped.setdefault(reason, []).append(example.line)
    return result


def ends(row: Row, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the last token that is learnt ends the answer, so that a model learns to stop. True where none is learnt."""
    learnt = row.trained.nonzero()[0]
    return not len(learnt) or int(row.ids[learnt[-1]]) in end_ids(tokenizer)


def rendered_text(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> str:
    """A chat as the chat template writes it. Raises NotRenderable."""
    return run_template(chat, [message.content for message in chat.messages], tokenizer, False, None)


def rendered(examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Example, list[Row] | NotRenderable]]:
    """Every example with its rows before any cut, two of a pair, one of all others; or with what keeps it from being rendered.

    Texts are encoded many at once, which fast tokenizers do on all cores, and one batch ahead of the one whose rows are made and taken.
    """
    with ThreadPoolExecutor(1, "encode") as thread:

        def start(batch: list[Example]) -> tuple[list[Example], list[_Side], list[_Written], Future[_Read]]:
            sides = [side for example in batch for side in ([example.chosen, example.rejected] if isinstance(example, Pair) else [example])]
            written = [_write(side, tokenizer) for side in sides]
            return batch, sides, written, thread.submit(_read, sides, written, tokenizer)

        for begun, _ in pairwise(chain(map(start, _batches(examples)), [None])):
            assert begun is not None
            batch, sides, written, reading = begun
            rows = iter(_rows(sides, written, reading.result(), tokenizer))
            for example in batch:
                made = [next(rows) for _ in range(2 if isinstance(example, Pair) else 1)]
                wrong = next((one for one in made if isinstance(one, NotRenderable)), None)
                yield example, wrong or [one for one in made if isinstance(one, Row)]


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """At most `_BATCH` at once; fewer of long ones, so that memory is bounded."""
    batch: list[Example] = []
    characters = 0
    for example in examples:
        batch.append(example)
        characters += sum(map(len, texts(example)))
        if len(batch) == _BATCH or characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def render(example: Example, tokenizer: PreTrainedTokenizerBase) -> Row:
    """An example's tokens and which of them are trained; of a pair, the preferred answer's. Raises NotRenderable."""
    row = _render(preferred(example), tokenizer)
    if isinstance(row, NotRenderable):
        raise row
    return row


_Side = Chat | Completion | Labelled
_Written = Rendering | NotRenderable | None
_Read = tuple[list["Encoding"], list[list[int]]]


def _render(side: _Side, tokenizer: PreTrainedTokenizerBase) -> Row | NotRenderable:
    """A row, or why there is none."""
    written = [_write(side, tokenizer)]
    return _rows([side], written, _read([side], written, tokenizer), tokenizer)[0]


def _write(side: _Side, tokenizer: PreTrainedTokenizerBase) -> _Written:
    """As the chat template writes it, or why it cannot; None of a completion, which knows no template."""
    if isinstance(side, Completion):
        return None
    try:
        return apply_template(as_chat(side), tokenizer, generation=False)
    except NotRenderable as problem:
        return problem


def _read(sides: Sequence[_Side], written: Sequence[_Written], tokenizer: PreTrainedTokenizerBase) -> _Read:
    """How the tokenizer reads the chats; and the ids of each completion's prompt and text."""
    completions = [text for side in sides if isinstance(side, Completion) for text in (side.prompt, side.completion)]
    return read([chat.text for chat in written if isinstance(chat, Rendering)], tokenizer), plain(completions, tokenizer)


def _rows(sides: Sequence[_Side], written: Sequence[_Written], reading: _Read, tokenizer: PreTrainedTokenizerBase) -> list[Row | NotRenderable]:
    """A row of each, or why there is none."""
    rows: list[Row | NotRenderable] = []
    chats, completions, start = iter(reading[0]), iter(reading[1]), begin(tokenizer)
    for side, chat in zip(sides, written, strict=True):
        if isinstance(chat, NotRenderable):
            rows.append(chat)
        elif chat is not None:
            ids, trained = masked(chat, next(chats), tokenizer)
            rows.append(Row(ids, trained, side.line))
        else:
            before, after = next(completions), next(completions)
            given, learnt = len(start) + len(before), len(after) + 1
            ids = np.array([*start, *before, *after, end(tokenizer)], np.int32)
            rows.append(Row(ids, np.arange(given + learnt) >= given, side.line))
    return rows


def prompt(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids after which the model speaks: everything before the last assistant turn, or the prompt.

    A prefix of what `render` gives, so greedy answers continue just what was trained.
    """
    example = preferred(example)
    if isinstance(example, Completion):
        return begin(tokenizer) + plain([example.prompt], tokenizer)[0]
    chat = as_chat(example)
    last = _last_answer(chat)
    return next_turn(replace(chat, messages=chat.messages[:last]) if last is not None else chat, tokenizer)


def next_turn(chat: Chat, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None = None) -> list[int]:
    """The ids after which the assistant speaks next: the whole conversation, what it has said so far included.

    `renderer` runs the template in a process of its own. Raises NotRenderable, and with a renderer Problem `invalid_chat_template`.
    """
    written = apply_template(chat, tokenizer, generation=True, renderer=renderer)
    ids, _ = masked(written, read([written.text], tokenizer)[0], tokenizer)
    return list(ids.tolist())


def expected(example: Example) -> str | None:
    """The text that should follow `prompt`: the last assistant turn, the completion, or the label."""
    example = preferred(example)
    if isinstance(example, Completion):
        return example.completion
    if isinstance(example, Labelled):
        return example.label
    last = _last_answer(example)
    return None if last is None else example.messages[last].content


def preferred(example: Example) -> Chat | Completion | Labelled:
    """A pair's preferred side; any other example as it is."""
    return example.chosen if isinstance(example, Pair) else example


def as_chat(example: Chat | Labelled) -> Chat:
    """A labelled text is a chat whose answer is the label, for models that write."""
    if isinstance(example, Chat):
        return example
    text = example.text if example.pair is None else f"{example.text}\n\n{example.pair}"
    return Chat((Message("user", text), Message("assistant", example.label, trained=True)), example.line)


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, with the plain template where it has none of its own."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def _last_answer(chat: Chat) -> int | None:
    answers = [i for i, message in enumerate(chat.messages) if message.role == "assistant"]
    return answers[-1] if answers else None
