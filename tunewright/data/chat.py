"""A record with `messages` -> Chat, by the rules of OpenAI's chat format.

Stricter or wider than the hosted service in these points:
- A chat must end with an assistant turn, as there: what stands after the last answer is learnt by nobody.
- `developer` is a role; a content may be a list of text parts; `name` is handed to the chat template.
- Text of white space alone counts as empty, except what a tool returned.
"""

from __future__ import annotations

from typing import Any

from tunewright.data.example import Chat, Message
from tunewright.data.findings import Findings, quoted

ROLES = ("system", "developer", "user", "assistant", "tool")

_RECORD_KEYS = {"messages", "tools"}
_WRITE_OR_DELETE = "Write the text, or delete the message or the row"
_COMMON = {"role", "content", "name"}
_KEYS = dict.fromkeys(ROLES, _COMMON) | {
    "assistant": _COMMON | {"weight", "tool_calls"},
    "tool": _COMMON | {"tool_call_id"},
}
_SAME_ROLE = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function": "tool",
}


def chat(fields: dict[str, Any], row: Findings) -> Chat | None:
    """The chat, or None with the errors in `row`."""
    if not fields.keys() <= _RECORD_KEYS:
        _note_record_keys(fields, row)
    tools = _tools(fields.get("tools"), row)
    given = fields["messages"]
    if not isinstance(given, list):
        row.error("messages_not_a_list", f"'messages' is {quoted(given)}, not a list", "Write a list of messages in brackets")
        return None
    if not given:
        row.error("no_messages", "'messages' is empty", "Add the turns, or delete the row")
        return None
    messages = [message for at, value in enumerate(given) if (message := _message(value, at, row))]
    # Whether there is an answer can be told only where every role is known.
    if len(messages) == len(given):
        _answer(messages, row)
    return None if row.faults else Chat(tuple(messages), row.line, tools)


def _answer(messages: list[Message], row: Findings) -> None:
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        row.error(
            "no_assistant_turn",
            "No message is the assistant's, so there is nothing to learn",
            "Add the answer, or delete the row",
        )
        return
    if messages[-1].role != "assistant":
        message = f"The last message is the {messages[-1].role}'s; nothing can be learnt from what follows the last answer"
        row.error("last_turn_not_assistant", message, "Delete the messages after the last assistant turn, or add the answer")
    if not any(message.trained for message in answers):
        row.error("nothing_to_learn", "Every assistant message has weight 0", "Give one the weight 1, or delete the row")


def _message(value: Any, at: int, row: Findings) -> Message | None:
    """The message; None only where its role cannot be told. Other errors are in `row` and the message is a stand-in."""
    where = f"messages[{at}]"
    if not isinstance(value, dict):
        row.error("message_not_an_object", f"{where} is {quoted(value)}, not an object", 'Write {"role": ..., "content": ...}')
        return None
    role = value.get("role")
    if not isinstance(role, str) or role not in _KEYS:
        _bad_role(role, "role" in value, where, row)
        return None
    if not value.keys() <= _KEYS[role]:
        _note_message_keys(value, role, where, row)
    extra = _extra(value, role, where, row) if len(value) > 2 or "content" not in value else {}
    if role == "tool" and not isinstance(value.get("tool_call_id"), str):
        row.error("no_tool_call_id", f"{where} has no tool_call_id", "Name the id of the tool call that it answers")
    trained = role == "assistant"
    if "weight" in value:
        weight = value["weight"]
        if role != "assistant":
            row.error(
                "weight_on_wrong_role",
                f"{where} is the {role}'s and has a weight",
                "Remove it: only assistant messages have one",
            )
        elif type(weight) is not int or weight not in (0, 1):
            row.error(
                "bad_weight",
                f"The weight of {where} is {quoted(weight)}, not 0 or 1",
                "Write 0 to leave the message out, else 1",
            )
        trained = trained and weight != 0
    return Message(role, _content(value, role, "tool_calls" in extra, where, row), trained, extra)


def _content(value: dict[str, Any], role: str, has_calls: bool, where: str, row: Findings) -> str:
    content = value.get("content")
    if isinstance(content, list) and content and (content := _parts(content, where, row)) is None:
        return ""
    if content is None:
        if not has_calls:
            missing = "is null" if "content" in value else "is missing"
            row.error("no_content", f"The content of {where} ({role}) {missing}", _WRITE_OR_DELETE)
        return ""
    if not isinstance(content, str):
        message = f"The content of {where} ({role}) is {quoted(content)}, not text"
        row.error("content_not_text", message, "Write a string, or a list of text parts")
        return ""
    if role != "tool" and not has_calls and (not content or content.isspace()):
        row.error("empty_content", f"The content of {where} ({role}) is empty", _WRITE_OR_DELETE)
    return content


def _parts(parts: list[Any], where: str, row: Findings) -> str | None:
    """The text of a list of parts, joined without a separator. None, with an error, where a part is no text."""
    texts: list[str] = []
    for at, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else part
        if kind == "text" and isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
            row.unknown_keys([name for name in part if name not in ("type", "text")], "messages[].content[].")
        else:
            message = f"{where}.content[{at}] is {quoted(kind)}; only text parts are read"
            row.error("unsupported_part", message, 'Write {"type": "text", "text": ...}, or delete the row')
    return "".join(texts) if len(texts) == len(parts) else None


def _extra(value: dict[str, Any], role: str, where: str, row: Findings) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if (name := value.get("name")) is not None:
        if not isinstance(name, str):
            row.error("bad_name", f"The name of {where} is {quoted(name)}, not text", "Write a string, or remove it")
        elif role != "tool":
            row.note(
                "name_may_not_show",
                "A message has a 'name', which few chat templates show",
                "Put it into the content if it matters",
            )
        extra["name"] = name
    if role == "assistant" and (calls := value.get("tool_calls")) is not None:
        if not (isinstance(calls, list) and calls and all(map(_is_call, calls))):
            message = f"The tool_calls of {where} are not a list of function calls"
            mend = 'Write [{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}]'
            row.error("bad_tool_calls", message, mend)
        extra["tool_calls"] = calls
    if role == "tool" and "tool_call_id" in value:
        extra["tool_call_id"] = value["tool_call_id"]
    return extra


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    return (
        isinstance(function, dict)
        and bool(function.get("name"))
        and isinstance(function["name"], str)
        and isinstance(function.get("arguments"), str | dict)
    )


def _tools(tools: Any, row: Findings) -> tuple[dict[str, Any], ...]:
    if tools is None:
        return ()
    if isinstance(tools, list) and all(isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in tools):
        return tuple(tools)
    mend = 'Write [{"type": "function", "function": {"name": ..., "parameters": {...}}}], or remove it'
    row.error("bad_tools", "'tools' is not a list of functions", mend)
    return ()


def _bad_role(role: Any, given: bool, where: str, row: Findings) -> None:
    if not given:
        row.error("no_role", f"{where} has no role", f"Add one of {', '.join(ROLES)}")
        return
    same = _SAME_ROLE.get(role.lower()) if isinstance(role, str) else None
    if isinstance(role, str) and role.strip().lower() in ROLES:
        same = role.strip().lower()
    mend = f"Write {same}" if same else f"Write one of {', '.join(ROLES)}"
    row.error("unknown_role", f"{where} has the role {quoted(role)}", mend)


def _note_record_keys(fields: dict[str, Any], row: Findings) -> None:
    unknown = [name for name in fields if name not in _RECORD_KEYS]
    if "functions" in unknown:
        row.error(
            "functions_unsupported",
            "'functions' is the older form of 'tools' and is not read",
            "Write tools and tool_calls",
        )
    if "parallel_tool_calls" in unknown:
        row.note("ignored_key", "The key 'parallel_tool_calls' changes nothing here", "Keep or remove it")
    row.unknown_keys([name for name in unknown if name not in ("functions", "parallel_tool_calls")])


def _note_message_keys(value: dict[str, Any], role: str, where: str, row: Findings) -> None:
    unknown = [name for name in value if name not in _KEYS[role] and name != "weight"]
    if value.get("function_call") is not None:
        message = f"{where} has a 'function_call', the older form of 'tool_calls', which is not read"
        row.error("function_call_unsupported", message, "Write tool_calls")
    if value.get("tool_calls") is not None and role != "assistant":
        row.error(
            "tool_calls_on_wrong_role",
            f"{where} is the {role}'s and has tool_calls",
            "Move them to an assistant message",
        )
    row.unknown_keys([n for n in unknown if value[n] is None or n not in ("function_call", "tool_calls")], "messages[].")
