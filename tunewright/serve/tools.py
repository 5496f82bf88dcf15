"""Calls of tools: how a model that knows them writes one, read back from its answer, or demanded of it.

Which form a model writes is told by its chat template; where none of the known ones is in it, tools are shown to the model as its
template shows them (or not), and what it answers stays text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from uuid import uuid4

from tunewright.errors import Problem
from tunewright.serve.grammar import SPACE

Form = Literal["hermes", "mistral", "llama"]


class Said(NamedTuple):
    """An answer: its text, and the calls in it as the API has them."""

    content: str | None
    calls: list[dict[str, Any]]


def form_of(template: str) -> Form | None:
    """How a model with this chat template writes a call.

    hermes: `<tool_call>{"name", "arguments"}</tool_call>` (Qwen, Hermes); mistral: `[TOOL_CALLS][{"name", "arguments"}]`;
    llama: `{"name", "parameters"}` alone (Llama 3).
    """
    if "<tool_call>" in template:
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    return "llama" if "<|python_tag|>" in template or '"parameters": dictionary of argument name' in template else None


def shown(template: str) -> bool:
    """Whether a chat template says anything about tools."""
    return "tools" in template


def read(text: str, form: Form) -> Said:
    """The calls in an answer; where it holds none, or one that cannot be read, all of it is text."""
    before, found = "", []
    if form == "hermes":
        before, *rest = text.split("<tool_call>")
        found = [part.partition("</tool_call>")[0] for part in rest]
    else:
        start = text.strip().removeprefix("[TOOL_CALLS]").strip()
        if start.startswith("[" if form == "mistral" else "{"):
            found = [start]
    calls: list[dict[str, Any]] = []
    for part in found:
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            return Said(text, [])
        for one in value if isinstance(value, list) and form == "mistral" else [value]:
            given = one.get("parameters" if form == "llama" else "arguments", {}) if isinstance(one, dict) else None
            if not isinstance(given, dict) or not isinstance(one.get("name"), str):
                return Said(text, [])
            function = {"name": one["name"], "arguments": json.dumps(given, ensure_ascii=False)}
            calls.append({"id": f"call_{uuid4().hex[:24]}", "type": "function", "function": function})
    return Said(before.strip() or None, calls) if calls else Said(text, [])


def demanded(choice: str | dict[str, Any] | None, tools: Sequence[dict[str, Any]], form: Form | None) -> str | None:
    """The grammar of a call where one is demanded: `required`, or a function by its name; else None. Raises Problem."""
    if choice in (None, "auto", "none"):
        return None
    name = None
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
    if choice != "required" and not isinstance(name, str):
        raise Problem("tool_choice is none, auto, required, or a function by its name", code="invalid_value", param="tool_choice")
    mine = [tool["function"] for tool in tools if name is None or tool["function"]["name"] == name]
    if not mine:
        raise Problem(f"tool_choice: there is no tool {name!r}" if name else "tool_choice needs tools", code="invalid_value", param="tool_choice")
    if form is None:
        text = "tool_choice cannot demand a call: this model's chat template has no form for one that is known here; leave it at auto"
        raise Problem(text, code="unsupported_parameter", param="tool_choice")
    return _grammar(mine, form)


def _grammar(functions: Sequence[dict[str, Any]], form: Form) -> str:
    from llguidance import LLMatcher

    inner = "parameters" if form == "llama" else "arguments"
    one = [
        {
            "type": "object",
            "properties": {"name": {"const": each["name"]}, inner: {"type": "object", **(each.get("parameters") or {})}},
            "required": ["name", inner],
            "additionalProperties": False,
        }
        for each in functions
    ]
    call: dict[str, Any] = {"anyOf": one, "x-guidance": {"whitespace_pattern": SPACE}}
    try:
        if form == "hermes":
            return str(LLMatcher.grammar_from_lark(f'start: "<tool_call>\\n" call "\\n</tool_call>"\ncall: %json {json.dumps(call)}\n'))
        schema = {"type": "array", "items": call, "minItems": 1, "maxItems": 1} if form == "mistral" else call
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": SPACE}))
    except (ValueError, RecursionError) as error:
        raise Problem(f"A tool's parameters cannot be read: {error}"[:300], code="invalid_json_schema", param="tools") from None
