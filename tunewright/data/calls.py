"""Tools and calls of them, as chat templates want them: arguments parsed or as text, and marks in the place of what a user wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

# Sorting marks sorts what they stand for, since some templates sort arguments by name.
_MARK = re.compile("\ue000([0-9]+)\ue001")
# What no tokenizer takes for a control token; templates may test it (the length of an id, say), so it is shown as it is.
_WORD = re.compile(r"[A-Za-z0-9_-]*")


def mark(number: int) -> str:
    """A text that no message holds: a number between two private-use characters."""
    return f"\ue000{number:06}\ue001"


def as_objects(extra: dict[str, Any]) -> dict[str, Any]:
    """The extra fields with each call's arguments as an object, which is what Hugging Face documents for templates.

    OpenAI's format has them as a text of JSON, which `arguments | tojson` would encode twice. A text that holds no object stays.
    """
    return _each(extra, _parsed)


def as_texts(extra: dict[str, Any]) -> dict[str, Any]:
    """The extra fields with each call's arguments as a text of JSON, for templates that print them as they are."""
    return _each(extra, lambda given: json.dumps(given, ensure_ascii=False) if isinstance(given, dict) else given if given.strip() else "{}")


def _each(extra: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    if not extra.get("tool_calls"):
        return extra
    calls = [{**call, "function": {**call["function"], "arguments": change(call["function"]["arguments"])}} for call in extra["tool_calls"]]
    return {**extra, "tool_calls": calls}


def _parsed(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        value = json.loads(given) if given.strip() else {}
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        return given
    return value if isinstance(value, dict) else given


def called(extra: dict[str, Any]) -> list[str]:
    """What a message's calls say: the functions' names, and the names and texts among the arguments."""
    functions = [call["function"] for call in extra.get("tool_calls") or ()]
    return [text for function in functions for text in _texts([function["name"], function["arguments"]]) if text]


def numbered(extras: Iterable[dict[str, Any]], start: int) -> dict[str, int]:
    """Every text in the extra fields that needs a mark, with a number from `start` on."""
    extras = list(extras)
    said = {text for extra in extras for text in called(extra)} | {text for extra in extras for text in _texts(extra) if not _WORD.fullmatch(text)}
    return {text: number for number, text in enumerate(sorted(said, key=lambda text: (text.lower(), text)), start)}


def marked(extra: dict[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    """The extra fields with marks for texts. Fields keep their names, and plain words outside names and arguments (ids, types) stay."""
    every = {text: mark(number) for text, number in numbers.items()}
    some = {text: shown for text, shown in every.items() if not _WORD.fullmatch(text)}
    out = {name: _swap(value, some) for name, value in extra.items() if name != "tool_calls"}
    if extra.get("tool_calls"):
        out["tool_calls"] = [
            {name: _swap(value, some) for name, value in call.items() if name != "function"}
            | {"function": {name: _swap(value, every if name in ("name", "arguments") else some) for name, value in call["function"].items()}}
            for call in extra["tool_calls"]
        ]
    return out


def numbered_tools(tools: Iterable[dict[str, Any]], start: int) -> dict[str, int]:
    """Every text in the definitions of tools that needs a mark, with a number from `start` on. Plain words need none, and templates test them (types, say)."""
    return numbered(({"": tool} for tool in tools), start)


def marked_tools(tools: Iterable[dict[str, Any]], numbers: Mapping[str, int]) -> tuple[dict[str, Any], ...]:
    """The definitions with marks for texts, the names of properties among them."""
    marks = {text: mark(number) for text, number in numbers.items()}
    return tuple(_swap(tool, marks) for tool in tools)


def spellings(text: str) -> tuple[str, ...]:
    """How a template may write a text: as it is, or as JSON has it."""
    return tuple(dict.fromkeys((text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])))


def place(text: str, with_marks: str, spelt: Mapping[int, Sequence[str]]) -> list[tuple[int, int, int]] | None:
    """Where each mark's text stands in `text`: (number, start, end), in order. None where the two do not agree.

    `spelt`: how the text of each mark may be written.
    """
    gaps = _MARK.split(with_marks)
    if not text.startswith(gaps[0]):
        return None
    places, at = [], len(gaps[0])
    for number, gap in zip(map(int, gaps[1::2]), gaps[2::2], strict=True):
        found = next((one for one in spelt.get(number, ()) if text.startswith(one + gap, at)), None)
        if found is None:
            return None
        places.append((number, at, at + len(found)))
        at += len(found) + len(gap)
    return places if at == len(text) else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _swap(value: Any, marks: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return marks.get(value, value)
    if isinstance(value, dict):
        return {marks.get(name, name): _swap(inner, marks) for name, inner in value.items()}
    return [_swap(inner, marks) for inner in value] if isinstance(value, list) else value
