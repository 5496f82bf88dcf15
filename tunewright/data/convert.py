"""An Example -> the record that OpenAI's fine-tuning API takes: `record` makes one, `convert` writes a file of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tunewright.data.example import Chat, Completion, Example, Labelled, Message, Pair
from tunewright.data.formats import Format, Reading, read
from tunewright.errors import BadConfig


def convert(path: Path, out: Path, as_format: Format | None = None) -> Reading:
    """Write every sound row of `path` to `out` as JSON lines. Errors and lines of the rest are in the result.

    The file appears whole or not at all. Raises BadConfig where it cannot be written, or is one of those read.
    """
    if out.exists():
        raise BadConfig(f"{out} exists already; name a new file", code="file_exists", param="OUT")
    reading = read(path, 1, as_format)
    write(out, [record(example) for example in reading.examples])
    return reading


def write(out: Path, records: list[dict[str, Any]]) -> None:
    """JSON lines, by way of a neighbour that takes the name when it is whole. Raises BadConfig."""
    part = out.with_name(out.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for one in records:
                file.write(json.dumps(one, ensure_ascii=False) + "\n")
        os.replace(part, out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BadConfig(f"{out} cannot be written: {error.strerror}", code="unwritable", param="OUT") from None


def record(example: Example) -> dict[str, Any]:
    """The record. A labelled text becomes a chat whose answer is the label; what has no chat form keeps prompt + completion."""
    match example:
        case Chat():
            return {"messages": [_message(m) for m in example.messages], **({"tools": list(example.tools)} if example.tools else {})}
        case Completion():
            return {"prompt": example.prompt, "completion": example.completion}
        case Labelled():
            text = example.text if example.pair is None else f"{example.text}\n\n{example.pair}"
            return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": example.label}]}
        case Pair():
            return _pair(example)


def _message(message: Message) -> dict[str, Any]:
    content = None if not message.content and message.extra.get("tool_calls") else message.content
    weight = {"weight": 0} if message.role == "assistant" and not message.trained else {}
    return {"role": message.role, "content": content, **message.extra, **weight}


def _pair(example: Pair) -> dict[str, Any]:
    better, worse = example.chosen, example.rejected
    if isinstance(better, Completion) or isinstance(worse, Completion):
        assert isinstance(better, Completion) and isinstance(worse, Completion)
        return {"prompt": better.prompt, "chosen": better.completion, "rejected": worse.completion}
    # The answers begin at the first trained turn; what stands before is the prompt of both.
    start = next(i for i, message in enumerate(better.messages) if message.trained)
    given = [{k: v for k, v in _message(m).items() if k != "weight"} for m in better.messages[:start]]
    asked: dict[str, Any] = {"messages": given, **({"tools": list(better.tools)} if better.tools else {})}
    answers = ([_message(m) for m in one.messages[start:]] for one in (better, worse))
    return dict(zip(("input", "preferred_output", "non_preferred_output"), (asked, *answers), strict=True))
