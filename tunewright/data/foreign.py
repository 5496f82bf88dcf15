"""Records as other tools write them -> examples: Alpaca, ShareGPT, question + answer, and plain documents."""

from __future__ import annotations

import json
from typing import Any

from tunewright.data.chat import chat
from tunewright.data.example import Chat, Completion
from tunewright.data.findings import Findings, quoted

_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


def alpaca(fields: dict[str, Any], row: Findings) -> Chat | None:
    """`instruction`, `input` below it where there is one, `output`; also `system` and `history`, a list of earlier pairs.

    Source: the data set of Stanford Alpaca, and LLaMA-Factory's description of it for system and history.
    """
    row.unknown_keys([name for name in fields if name not in ("instruction", "input", "output", "system", "history")])
    messages = alpaca_prompt(fields, row)
    return _checked([*messages, _turn("assistant", _required(fields, "output", row))], row)


def alpaca_prompt(fields: dict[str, Any], row: Findings) -> list[dict[str, Any]]:
    """The messages before the answer."""
    history = fields.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        row.error("bad_history", f"'history' is {quoted(history)}, not a list of pairs", 'Write [["question", "answer"], ...]')
        history = []
    asked = _required(fields, "instruction", row)
    if fields.get("input") and isinstance(asked, str):
        if isinstance(fields["input"], str):
            asked = f"{asked}\n\n{fields['input']}"
        else:
            row.error("input_not_text", f"The input is {quoted(fields['input'])}, not text", "Write a string")
    start = [_turn("system", fields["system"])] if fields.get("system") else []
    earlier = [_turn(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [*start, *earlier, _turn("user", asked)]


def sharegpt(fields: dict[str, Any], row: Findings) -> Chat | None:
    """`conversations` of `from` and `value`; also `system` and `tools`, a list or the JSON text of one."""
    row.unknown_keys([name for name in fields if name not in ("conversations", "system", "tools", "id")])
    turns = sharegpt_turns(fields["conversations"], "conversations", row)
    start = [_turn("system", fields["system"])] if fields.get("system") else []
    tools = fields.get("tools") or None
    if isinstance(tools, str):
        tools = _json(tools, "tools", row)
    if isinstance(tools, list):
        tools = [{"type": "function", "function": tool} if isinstance(tool, dict) and "name" in tool else tool for tool in tools]
    return _checked([*start, *turns], row, tools)


def sharegpt_turns(turns: Any, name: str, row: Findings) -> list[Any]:
    """The messages of a list of `from` and `value`. A function call and what it returned get an id each, in order."""
    if not isinstance(turns, list):
        row.error("messages_not_a_list", f"{quoted(name)} is {quoted(turns)}, not a list", "Write a list of turns in brackets")
        return []
    messages: list[Any] = []
    calls = 0
    for at, turn in enumerate(turns):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(turn, dict) or "from" not in turn:
            # With `role` and `content` in it, it is a message under another name; anything else the chat reader names.
            messages.append(turn)
            continue
        row.unknown_keys([key for key in turn if key not in ("from", "value", "weight")], f"{name}[].")
        value, role = turn.get("value"), _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            row.error("unknown_role", f"{name}[{at}] is from {quoted(speaker)}", f"Write one of {', '.join(_SPEAKERS)}")
        elif speaker == "function_call":
            calls += 1
            messages.append({"role": role, "content": None, "tool_calls": _calls(value, calls, f"{name}[{at}]", row)})
        elif role == "tool":
            messages.append({**_turn(role, value), "tool_call_id": f"call_{calls}"})
        else:
            messages.append({**_turn(role, value), **({"weight": turn["weight"]} if "weight" in turn else {})})
    return messages


def question_answer(fields: dict[str, Any], row: Findings) -> Chat | None:
    """`question` and `answer`, as a user's turn and the assistant's."""
    row.unknown_keys([name for name in fields if name not in ("question", "answer")])
    turns = [_turn("user", _required(fields, "question", row)), _turn("assistant", _required(fields, "answer", row))]
    return _checked(turns, row)


def document(fields: dict[str, Any], row: Findings) -> Completion | None:
    """`text` alone: all of it is learnt."""
    row.unknown_keys([name for name in fields if name != "text"])
    text = _required(fields, "text", row)
    if isinstance(text, str) and not text.strip() and not row.faults:
        row.error("empty_text", "The text is empty", "Write the text, or delete the row")
    elif not isinstance(text, str):
        row.error("text_not_text", f"The text is {quoted(text)}, not text", "Write a string")
    return None if row.faults else Completion("", text, row.line)


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _required(fields: dict[str, Any], name: str, row: Findings) -> Any:
    if name not in fields:
        row.error("missing_key", f"The key {quoted(name)} is missing", "Add it, or delete the row")
    return fields.get(name, "missing")


def _checked(messages: list[Any], row: Findings, tools: Any = None) -> Chat | None:
    return None if row.faults else chat({"messages": messages, "tools": tools}, row)


def _calls(value: Any, number: int, where: str, row: Findings) -> list[dict[str, Any]] | None:
    call = _json(value, where, row) if isinstance(value, str) else value
    if isinstance(call, dict) and "name" in call:
        arguments = call.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return [{"id": f"call_{number}", "type": "function", "function": {"name": call["name"], "arguments": text}}]
    if not row.faults:
        row.error("bad_tool_calls", f"{where} is no function call", 'Write {"name": ..., "arguments": {...}}')
    return None


def _json(text: str, where: str, row: Findings) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        row.error("not_json", f"{where} holds text that is not JSON", "Write it as json.dumps does")
        return None
