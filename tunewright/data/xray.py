"""One example -> its tokens, each with what becomes of it: context, trained, the end of the turn, or cut. `rays` makes them, `draw` prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.text import Text

from tunewright.data.example import Example, Pair
from tunewright.data.findings import Faults
from tunewright.data.formats import Format, Tally, stream
from tunewright.data.profile import Reader, added_system
from tunewright.data.tokens import NotRenderable, Row, end_ids, ends, rendered
from tunewright.errors import Fault

Kind = Literal["context", "trained", "end", "cut"]
KINDS: dict[Kind, str] = {"context": "read, not learnt", "trained": "learnt", "end": "learnt: ends the turn", "cut": "cut off"}
_STYLES: dict[Kind, str] = {"context": "dim", "trained": "bold green", "end": "black on green", "cut": "red strike"}
_SHOWN = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Text and what becomes of it. One token; more where it takes several to make a character."""

    text: str
    kind: Kind
    tokens: int = 1


@dataclass(frozen=True, slots=True)
class Ray:
    """One row as a model reads it. `name` tells the two of a pair apart; `warnings` are sentences."""

    line: int
    name: str
    pieces: list[Piece]
    counts: dict[str, int]
    warnings: list[str]


def at_line(path: Path, line: int, as_format: Format | None = None) -> tuple[Example | None, list[Fault]]:
    """The example that stands on a line of a file, or None; and what is wrong there."""
    tally = Tally(Faults(2000))
    found = next((example for example in stream(path, tally, 1, as_format) if example.line >= line), None)
    return (found if found and found.line == line else None), [
        fault for fault in tally.faults.listed if fault.line in (0, line) and not fault.warning
    ]


def rays(example: Example, reader: Reader) -> list[Ray]:
    """The example's row, or a pair's two. Raises NotRenderable where the chat template cannot say it."""
    (_, rows), *_ = rendered([example], reader.tokenizer)
    if isinstance(rows, NotRenderable):
        raise rows
    names = ("preferred", "not preferred") if isinstance(example, Pair) else ("",)
    return [_ray(row, name, reader) for row, name in zip(rows, names, strict=True)]


def _ray(row: Row, name: str, reader: Reader) -> Ray:
    pieces = list(_pieces(row, reader))
    counts: Counter[str] = Counter()
    for piece in pieces:
        counts[piece.kind] += piece.tokens
    return Ray(row.line, name, pieces, dict(counts), list(_warnings(row, reader)))


def _pieces(row: Row, reader: Reader) -> Iterator[Piece]:
    final = end_ids(reader.tokenizer)
    waiting: list[int] = []
    before: Kind = "context"
    for at, (token, trained) in enumerate(zip(row.ids.tolist(), row.trained.tolist(), strict=True)):
        kind: Kind = "cut" if at >= reader.limit else "end" if trained and token in final else "trained" if trained else "context"
        if waiting and kind != before:
            yield Piece(reader.tokenizer.decode(waiting), before, len(waiting))
            waiting = []
        waiting.append(token)
        before = kind
        text = reader.tokenizer.decode(waiting)
        # A part of a character decodes to the replacement character until the rest of it has come; four bytes at most.
        if not text.endswith("\ufffd") or len(waiting) > 4:
            yield Piece(text, kind, len(waiting))
            waiting = []
    if waiting:
        yield Piece(reader.tokenizer.decode(waiting), before, len(waiting))


def _warnings(row: Row, reader: Reader) -> Iterator[str]:
    kept = row.trained[: reader.limit]
    if not kept[1:].any():
        yield "Nothing in this row is learnt: training drops it"
    elif len(row.ids) > reader.limit:
        lost = int(row.trained.sum()) - int(kept.sum())
        yield f"{len(row.ids) - reader.limit:,} tokens are cut off, {lost:,} of which would be learnt"
    if not ends(row, reader.tokenizer):
        yield "The end of the answer is not learnt: the model may not stop"
    elif kept.any() and not ends(Row(row.ids[: reader.limit], kept), reader.tokenizer):
        yield "The end of the answer is cut off: this row does not teach the model to stop"
    if (system := added_system(reader.tokenizer)) and np.any(row.ids) and system[:40] in reader.tokenizer.decode(row.ids[:256].tolist()):
        yield f"The chat template puts a system prompt before chats that have none ({system[:60]!r}); another server may not"


def draw(ray: Ray) -> Text:
    """For a terminal: tokens in the colours of their kinds, every second one underlined."""
    counts = ", ".join(f"{ray.counts[kind]:,} {kind}" for kind in KINDS if kind in ray.counts)
    text = Text(f"line {ray.line}{f' ({ray.name})' if ray.name else ''}: {sum(ray.counts.values()):,} tokens: {counts}\n\n")
    for at, piece in enumerate(ray.pieces):
        text.append(visible(piece.text), _STYLES[piece.kind] + (" underline" if at % 2 else ""))
    text.append("\n\n")
    for kind, meaning in KINDS.items():
        text.append(kind, _STYLES[kind]).append(f" {meaning}   ")
    for warning in ray.warnings:
        text.append(f"\n! {warning}", "yellow")
    return text


def visible(text: str) -> str:
    """A text whose line ends and control characters can be seen, and cannot command a terminal."""
    return "".join(_SHOWN.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
