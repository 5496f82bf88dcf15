"""An Example is one record of a training file, whatever the format it came in."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `trained` is False where the file says `"weight": 0`, and for every role but assistant.

    `extra` holds the other fields a chat template may use (`name`, `tool_calls`, `tool_call_id`).
    """

    role: str
    content: str
    trained: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. `line` is the line of the file it came from, counted from 1."""

    messages: tuple[Message, ...]
    line: int = 0
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and the text that should follow it, without a chat template."""

    prompt: str
    completion: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or two that are judged together, and the label."""

    text: str
    label: str
    line: int = 0
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A preferred and a non-preferred answer to one prompt. Only the answers are learnt from, not what the assistant said before."""

    chosen: Chat | Completion
    rejected: Chat | Completion
    line: int = 0


Example = Chat | Completion | Labelled | Pair


def input_and_answer(example: Example) -> tuple[Hashable, Hashable]:
    """What is given and what is to follow, comparable between rows. The input is falsy where nothing is given."""
    match example:
        case Completion():
            return example.prompt, example.completion
        case Labelled():
            return (example.text, example.pair), example.label
        case Chat():
            turns = tuple(map(_turn, example.messages))
            # Tools alone ask nothing, so without messages before the answer there is no input.
            given = (turns[:-1], _canonical(list(example.tools))) if turns[:-1] else ()
            return given, turns[-1]
        case Pair():
            # Several pairs for one prompt are no conflict, so only the whole is compared.
            return (), (input_and_answer(example.chosen), input_and_answer(example.rejected))


def _turn(message: Message) -> Hashable:
    return message.role, message.content, message.trained, _canonical(message.extra) if message.extra else ""


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
