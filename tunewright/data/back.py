"""OpenAI's records -> the formats and containers of other tools, where nothing is lost: `convert_to` writes a file and reads it back to be sure."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunewright.data.convert import record
from tunewright.data.example import Chat, Completion, Example, Labelled, Message, Pair
from tunewright.data.findings import Notes
from tunewright.data.formats import FORMATS, Format, Reading, parse, read
from tunewright.data.jsonl import Record
from tunewright.data.tokens import as_chat
from tunewright.errors import BadConfig, BadData, Fault

_SPEAKER = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def convert_to(path: Path, out: Path, to: Format, as_format: Format | None = None) -> Reading:
    """Write every row of `path` as `to`, in the container that the name of `out` says: .csv, .tsv, .parquet, else JSON lines.

    The file appears whole or not at all. Raises BadData where rows have errors or say more than `to` can hold, naming each; BadConfig where it
    cannot be written.
    """
    if out.exists():
        raise BadConfig(f"{out} exists already; name a new file", code="file_exists", param="OUT")
    reading = read(path, 1, as_format)
    if reading.errors:
        raise BadData(str(path), reading.errors)
    made = [(example, _RECORDS[to](example)) for example in reading.examples]
    if lost := [_lost(example, to) for example, fields in made if fields is None or not _same(example, _read(fields, to))]:
        raise BadData(str(path), lost)
    part = out.with_name(f".part-{out.name}")
    try:
        _write(part, [fields for _, fields in made if fields])
        # Row by row nothing is lost; what a container does to texts is seen in the whole.
        back = read(part, 1, None if to == "document" else to).examples
        if lost := [_lost(one, to) for one, other in zip(reading.examples, _padded(back, len(made)), strict=True) if not _same(one, other)]:
            raise BadData(str(path), lost)
        os.replace(part, out)
    except OSError as error:
        raise BadConfig(f"{out} cannot be written: {error.strerror}", code="unwritable", param="OUT") from None
    finally:
        part.unlink(missing_ok=True)
    return reading


def _read(fields: dict[str, Any], to: Format) -> Example | None:
    return parse(Record(0, fields, []), Notes(), None, to)[0]


def _padded(examples: Sequence[Example], count: int) -> list[Example | None]:
    return [*examples, *[None] * (count - len(examples))][:count]


def _lost(example: Example, to: Format) -> Fault:
    return Fault(
        example.line, "would_be_lost", f"The row says more than {FORMATS[to]} can hold", "Choose another format with --to, or take the row out"
    )


def _same(one: Example, other: Example | None) -> bool:
    """Whether two rows are the same example, wherever they stand. A labelled text is the chat whose answer is the label."""
    return other is not None and _plain(one) == _plain(other)


def _plain(example: Example) -> Example:
    match example:
        case Pair():
            chosen, rejected = _plain(example.chosen), _plain(example.rejected)
            assert not isinstance(chosen, Labelled | Pair) and not isinstance(rejected, Labelled | Pair)
            return Pair(chosen, rejected)
        case Completion():
            return replace(example, line=0)
        case _:
            return replace(as_chat(example), line=0)


def _two_turns(example: Example) -> tuple[str, str] | None:
    """A question and its answer, where the row is nothing else."""
    chat = as_chat(example) if isinstance(example, Chat | Labelled) else None
    return (chat.messages[0].content, chat.messages[1].content) if chat and [m.role for m in chat.messages] == ["user", "assistant"] else None


def _alpaca(example: Example) -> dict[str, Any] | None:
    if not isinstance(example, Chat | Labelled):
        return None
    messages = as_chat(example).messages
    system = messages[0].content if messages[0].role == "system" else ""
    turns = [message.content for message in messages[bool(system) :]]
    history = [list(pair) for pair in zip(turns[:-2:2], turns[1:-2:2], strict=False)]
    fields = {"instruction": turns[-2], "input": "", "output": turns[-1]} if len(turns) > 1 else None
    return fields and fields | ({"system": system} if system else {}) | ({"history": history} if history else {})


def _sharegpt(example: Example) -> dict[str, Any] | None:
    if not isinstance(example, Chat | Labelled):
        return None
    chat = as_chat(example)
    turns = [_turn(message) for message in chat.messages]
    tools = {"tools": json.dumps([tool["function"] for tool in chat.tools], ensure_ascii=False)} if chat.tools else {}
    return {"conversations": turns, **tools} if all(turns) else None


def _turn(message: Message) -> dict[str, Any] | None:
    calls = message.extra.get("tool_calls")
    if calls and len(calls) == 1:
        return {"from": "function_call", "value": json.dumps(calls[0]["function"], ensure_ascii=False)}
    speaker = _SPEAKER.get(message.role)
    weight = {"weight": 0} if message.role == "assistant" and not message.trained else {}
    return {"from": speaker, "value": message.content, **weight} if speaker else None


def _named(first: str, second: str) -> Callable[[Example], dict[str, Any] | None]:
    return lambda example: dict(zip((first, second), turns, strict=True)) if (turns := _two_turns(example)) else None


_RECORDS: dict[Format, Callable[[Example], dict[str, Any] | None]] = {
    "chat": lambda example: record(example) if isinstance(example, Chat | Labelled) else None,
    "completion": lambda example: record(example) if isinstance(example, Completion) else None,
    "labelled": _named("text", "label"),
    "pair": lambda example: record(example) if isinstance(example, Pair) else None,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "question_answer": _named("question", "answer"),
    "document": lambda example: {"text": example.completion} if isinstance(example, Completion) and not example.prompt else None,
}


def _write(out: Path, records: list[dict[str, Any]]) -> None:
    suffix = out.suffix.lower()
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), out)
        return
    with out.open("w", encoding="utf-8", newline="") as file:
        if suffix in (".csv", ".tsv"):
            if any(not isinstance(value, str) for fields in records for value in fields.values()):
                raise BadConfig("CSV holds texts alone, and these rows hold lists; name a file that ends in .jsonl", code="not_for_csv", param="OUT")
            writer = csv.DictWriter(file, list(records[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
        else:
            file.writelines(json.dumps(fields, ensure_ascii=False) + "\n" for fields in records)
