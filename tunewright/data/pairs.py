"""A record with two answers to one prompt -> Pair. Read are OpenAI's preference format (`input`, `preferred_output`,
`non_preferred_output`); `prompt`, `chosen`, `rejected`, as texts or as lists of messages; and `chosen` and `rejected`
that both begin with the prompt. Turns may be ShareGPT's, the prompt Alpaca's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunewright.data.chat import chat
from tunewright.data.example import Chat, Completion, Pair
from tunewright.data.findings import Findings, quoted
from tunewright.data.foreign import alpaca_prompt, sharegpt_turns

_OPENAI = ("input", "preferred_output", "non_preferred_output")
_SPEAKS = "\n\nAssistant:"
_COMMON = ("prompt", "chosen", "rejected")


def pair(fields: dict[str, Any], row: Findings) -> Pair | None:
    """The pair, or None with the errors in `row`."""
    if not {"preferred_output", "non_preferred_output"} & fields.keys():
        fields = _usual(fields, row)
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


def _usual(fields: dict[str, Any], row: Findings) -> dict[str, Any]:
    """`prompt`, `chosen`, `rejected` from the spellings that other tools write; a record that is none of them as it is."""
    fields = {**fields}
    for name in ("chosen", "rejected"):
        value = fields.get(name)
        turns = value if isinstance(value, list) else [value]
        if any(isinstance(turn, dict) and "from" in turn for turn in turns):
            fields[name] = sharegpt_turns(turns, name, row)
    if "prompt" not in fields and "conversations" in fields:
        start = [{"role": "system", "content": fields.pop("system")}] if fields.get("system") else []
        fields["prompt"] = start + sharegpt_turns(fields.pop("conversations"), "conversations", row)
    elif "prompt" not in fields and "instruction" in fields:
        fields["prompt"] = alpaca_prompt(fields, row)
        for name in ("instruction", "input", "system", "history"):
            fields.pop(name, None)
    given, better, worse = (fields.get(name) for name in _COMMON)
    if isinstance(given, list):
        for name in ("chosen", "rejected"):
            if isinstance(fields.get(name), str):
                fields[name] = [{"role": "assistant", "content": fields[name]}]
    elif isinstance(better, list) and isinstance(worse, list) and (given is None or isinstance(given, str)):
        start = [{"role": "user", "content": given}] if given is not None else []
        # Both conversations are whole: what they share is the prompt, up to the last turn that is not the assistant's.
        shared = next((i for i, (one, other) in enumerate(zip(better, worse, strict=False)) if one != other), min(len(better), len(worse)))
        while shared and isinstance(better[shared - 1], dict) and better[shared - 1].get("role") == "assistant":
            shared -= 1
        if shared or start:
            fields |= {"prompt": better[:shared] or start, "chosen": better[shared:], "rejected": worse[shared:]}
    elif given is None and isinstance(better, str) and isinstance(worse, str):
        # As in Anthropic's HH-RLHF: a dialogue as text, of which the last answer differs.
        start_at = better.rfind(_SPEAKS) + len(_SPEAKS)
        if _SPEAKS in better and better[:start_at] == worse[:start_at]:
            fields |= {"prompt": better[:start_at], "chosen": better[start_at:], "rejected": worse[start_at:]}
    return fields


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
