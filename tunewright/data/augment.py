"""Training rows -> more training rows with the same answers: variants by named methods, and copies of rare labels.

Only what is asked changes, never what is to be answered. The same file, methods and seed give the same rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from tunewright.data import variants
from tunewright.data.content import own_text
from tunewright.data.example import Chat, Completion, Example, Labelled, Pair, input_and_answer
from tunewright.data.near import near
from tunewright.data.recipe import explained, named
from tunewright.data.rows import Fields, RawRow, encoded, sound
from tunewright.data.variants import Characters, Drop, Entities, Kept, Method, Paraphrase, Swap, Synonyms
from tunewright.errors import BadConfig, BadData, Fault

MOST_COPIES = 20

_METHODS: TypeAdapter[tuple[Method, ...]] = TypeAdapter(Annotated[tuple[Method, ...], Field(max_length=20)])


@dataclass(frozen=True, slots=True)
class Source:
    """A row of training data, the text of it that may change, and what is to be answered."""

    row: RawRow
    example: Example
    asked: str
    answer: str


@dataclass(frozen=True, slots=True)
class Made:
    """A new row: from the row on `line`, by a method, or as a copy of a rare label."""

    line: int
    method: str
    fields: Fields


@dataclass(frozen=True, slots=True)
class Augmented:
    """`rows`: the source's. `made`: the new ones. `dropped`: variants that were not taken, by reason."""

    rows: list[RawRow]
    made: list[Made]
    dropped: dict[str, int]

    def lines(self) -> Iterator[bytes]:
        """The rows as lines of JSON: each of the source's, in its own bytes, before those that were made of it."""
        of_line: dict[int, list[Made]] = {}
        for one in self.made:
            of_line.setdefault(one.line, []).append(one)
        for row in self.rows:
            yield row.written()
            yield from (encoded(one.fields) for one in of_line.get(row.line, ()))


def methods(given: Sequence[str]) -> tuple[Method, ...]:
    """Methods from names, each with settings after a colon where wanted: `drop:rate=0.2`. Raises BadConfig."""
    try:
        return _METHODS.validate_python(named(given, "method", "drop:rate=0.2"))
    except ValidationError as error:
        raise BadConfig("The methods: " + explained(error, variants.METHODS), code="invalid_method", param="--method") from None


def read(path: Path, held_out: Sequence[Path] = ()) -> tuple[list[Source], list[str]]:
    """The rows to augment, and what the rows held out ask. Raises BadData where rows have errors, cannot be augmented, or are among those held out."""
    rows, examples = sound(path)
    found, faults = [], []
    for row, example in zip(rows, examples, strict=True):
        if isinstance(example, Pair) or (asked := _asked(row.fields)) is None:
            faults.append(
                Fault(row.line, "not_augmentable", "The row has no text, prompt, question or user's turn to vary", "Convert it, or leave it out")
            )
        else:
            found.append(Source(row, example, asked, _answer(example)))
    there: list[str] = []
    for other in held_out:
        others, other_examples = sound(other)
        faults += _shared(examples, other_examples, other)
        there += [asked for row in others if (asked := _asked(row.fields)) is not None]
    if faults:
        raise BadData(str(path), sorted(faults, key=lambda fault: fault.line))
    return found, there


def augment(
    sources: Sequence[Source],
    chosen: Sequence[Method],
    copies: int = 1,
    balance: float = 0.0,
    seed: int = 0,
    protected: Sequence[str] = (),
    neighbours: Mapping[str, Sequence[str]] | None = None,
    said: Mapping[str, str] | None = None,
    held_out: Sequence[str] = (),
) -> Augmented:
    """`copies` variants of each row by each method; then copies, varied by the methods in turn, until every label has `balance` x the rows of the
    most frequent one. `neighbours`: for synonyms, by word; `said`: for paraphrases, by text.

    A variant that a row asks already, or that is nearly what a row held out asks (`held_out`), is not taken.
    """
    texts = {source.asked for source in sources} | set(held_out)
    made: list[Made] = []
    dropped: Counter[str] = Counter()

    def vary(source: Source, method: Method, number: int) -> bool:
        # Its own draws for each variant: what is asked of one row changes none of the others.
        draws = random.Random(f"{seed} {source.row.line} {method.method} {number}")
        text = varied(source.asked, draws, variants.kept_words(source.answer, protected), method, neighbours or {}, said or {})
        if text == source.asked or not text.strip() or text in texts:
            dropped["nothing_changed" if text == source.asked else "empty" if not text.strip() else "a_row_already"] += 1
            return False
        texts.add(text)
        made.append(Made(source.row.line, method.method, _put(source.row.fields, text)))
        return True

    for source in sources:
        for method in chosen:
            for number in range(copies if not isinstance(method, Paraphrase) else min(1, copies)):
                vary(source, method, number)
    if balance:
        for source, number in _lacking(sources, made, balance, random.Random(f"{seed} balance")):
            if not chosen or not vary(source, chosen[number % len(chosen)], copies + number):
                made.append(Made(source.row.line, "copy", source.row.fields))
    if held_out and made:
        close = {i for i, _, begins in near([str(_asked(one.fields)) for one in made], held_out) if not begins}
        dropped["near_held_out"] += len(close)
        made = [one for i, one in enumerate(made) if i not in close]
    return Augmented([source.row for source in sources], made, {reason: count for reason, count in dropped.items() if count})


def varied(text: str, draws: random.Random, kept: Kept, method: Method, neighbours: Mapping[str, Sequence[str]], said: Mapping[str, str]) -> str:
    """The text by one method."""
    match method:
        case Characters():
            return variants.characters(text, draws, kept, method)
        case Drop():
            return variants.drop(text, draws, kept, method)
        case Swap():
            return variants.swap(text, draws, kept, method)
        case Synonyms():
            return variants.synonyms(text, draws, kept, method, neighbours)
        case Entities():
            return variants.entities(text, draws, kept, method)
        case Paraphrase():
            return said.get(text, text)


def loses(text: str, paraphrase: str, kept: Kept) -> bool:
    """Whether a paraphrase lacks a word that must stay: a number, a negation, a word of the answer."""
    there = {word.lower() for word in paraphrase.split()} | {word.lower() for word in variants.words_of(paraphrase)}
    words = [*variants.words_of(text), *(word for word in text.split() if any(c.isdigit() for c in word))]
    return any(kept(word) and word.lower().strip(".,;:!?\"'()") not in {one.strip(".,;:!?\"'()") for one in there} for word in words)


def _lacking(sources: Sequence[Source], made: Sequence[Made], balance: float, order: random.Random) -> Iterator[tuple[Source, int]]:
    """Rows of labels that have too few, each label's rows in turn, with how often it was its turn."""
    by_answer: dict[str, list[Source]] = {}
    for source in sources:
        by_answer.setdefault(source.answer, []).append(source)
    counts = Counter(source.answer for source in sources)
    answer_of = {source.row.line: source.answer for source in sources}
    counts.update(answer_of[one.line] for one in made)
    if len(counts) > max(2, len(sources) / 2):
        raise BadConfig("--balance needs labels: these rows have as many answers as rows", code="no_labels", param="--balance")
    wanted = balance * max(counts.values())
    for answer, count in sorted(counts.items()):
        mine = order.sample(by_answer[answer], len(by_answer[answer]))
        for number in range(max(0, round(wanted) - count)):
            yield mine[number % len(mine)], number


def _shared(training: Sequence[Example], there: Sequence[Example], held_out: Path) -> Iterator[Fault]:
    """The rows of the training data that are, or are nearly, among those held out."""
    mend = "Augment the training rows alone; tunewright split keeps like rows on one side"
    inputs = {given or (given, answer): example.line for example in there for given, answer in [input_and_answer(example)]}
    same = set()
    for example in training:
        given, answer = input_and_answer(example)
        if (line := inputs.get(given or (given, answer))) is not None:
            same.add(example.line)
            yield Fault(example.line, "in_held_out_too", f"The row's input stands in {held_out} too, on line {line}", mend)
    for i, j, begins in near([own_text(example) for example in training], [own_text(example) for example in there]):
        if not begins and training[i].line not in same:
            yield Fault(training[i].line, "near_held_out", f"The row is nearly that on line {there[j].line} of {held_out}", mend)


def _place(fields: Fields) -> str | None:
    """The key of what is asked: a text, a prompt, a question, an instruction's input or the instruction, or messages."""
    if fields.get("instruction") and fields.get("input"):
        return "input"
    return next((key for key in ("text", "prompt", "question", "instruction", "messages") if fields.get(key)), None)


def _turn(messages: Any) -> int | None:
    """The last user's turn, if it is text."""
    places = [i for i, turn in enumerate(messages) if turn["role"] == "user" and isinstance(turn.get("content"), str)]
    return places[-1] if places else None


def _asked(fields: Fields) -> str | None:
    key = _place(fields)
    if key == "messages":
        at = _turn(fields[key])
        return None if at is None else fields[key][at]["content"]
    # A text without a label is learnt as a whole.
    return None if key is None or (key == "text" and "label" not in fields) else str(fields[key])


def _put(fields: Fields, text: str) -> Fields:
    key = _place(fields)
    assert key is not None
    if key == "messages":
        at = _turn(fields[key])
        return {**fields, key: [{**turn, "content": text} if i == at else turn for i, turn in enumerate(fields[key])]}
    return {**fields, key: text}


def _answer(example: Example) -> str:
    match example:
        case Labelled():
            return example.label
        case Completion():
            return example.completion
        case Chat():
            return example.messages[-1].content
        case Pair():
            return ""
