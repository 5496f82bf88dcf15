"""A record with two answers to one prompt -> Pair. Read are OpenAI's preference format (`input`, `preferred_output`,
`non_preferred_output`) and `prompt`, `chosen`, `rejected`, as texts or as lists of messages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunewright.data.chat import chat
from tunewright.data.example import Chat, Completion, Pair
from tunewright.data.findings import Findings, quoted

_OPENAI = ("input", "preferred_output", "non_preferred_output")
_COMMON = ("prompt", "chosen", "rejected")


def pair(fields: dict[str, Any], row: Findings) -> Pair | None:
    """The pair, or None with the errors in `row`."""
    names = _OPENAI if "preferred_output" in fields or "non_preferred_output" in fields else _COMMON
    for name in names:
        if name not in fields:
            row.error("missing_key", f"The key {quoted(name)} is missing", "Add it, or delete the row")
    row.unknown_keys([name for name in fields if name not in names])
    if row.faults:
        return None
    given, better, worse = (fields[name] for name in names)
    found = _texts(given, better, worse, row) if isinstance(given, str) else _chats(names, given, better, worse, row)
    if found and found.chosen == found.rejected:
        row.error("same_answers", "The two answers are the same", "Change one, or delete the row")
    return None if row.faults else found


def _texts(prompt: str, better: Any, worse: Any, row: Findings) -> Pair | None:
    for name, value in zip(_COMMON[1:], (better, worse), strict=True):
        if not isinstance(value, str):
            row.error(f"{name}_not_text", f"{quoted(name)} is {quoted(value)}, not text as the prompt is", "Write a string")
        elif not value or value.isspace():
            row.error(f"empty_{name}", f"{quoted(name)} is empty", "Write the text, or delete the row")
    if row.faults:
        return None
    return Pair(Completion(prompt, better, row.line), Completion(prompt, worse, row.line), row.line)


def _chats(names: tuple[str, ...], given: Any, better: Any, worse: Any, row: Findings) -> Pair | None:
    """Prompt and answers as messages. What is wrong in the prompt is reported once."""
    start = given if isinstance(given, dict) else {"messages": given}
    messages = start.get("messages")
    if not isinstance(messages, list):
        mend = 'Write {"messages": [...]}' if names == _OPENAI else "Write a text, or a list of messages"
        row.error("messages_not_a_list", f"{quoted(names[0])} holds no list of messages", mend)
        return None
    both = []
    for name, answer in zip(names[1:], (better, worse), strict=True):
        if not isinstance(answer, list):
            row.error("messages_not_a_list", f"{quoted(name)} is {quoted(answer)}, not a list of messages", "Write the answer as a list of messages")
            return None
        # The hosted service allows request settings beside the input's messages; they say nothing about the answer.
        record = {"messages": [*messages, *answer], "tools": start.get("tools")}
        if (one := chat(record, row)) is None:
            return None
        both.append(_answer_only(one, len(messages)))
    return Pair(both[0], both[1], row.line)


def _answer_only(one: Chat, start: int) -> Chat:
    return replace(one, messages=tuple(replace(m, trained=m.trained and i >= start) for i, m in enumerate(one.messages)))
