"""Calls of tools: read from what models write, demanded of a model, refused where a model has no form for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

import tiny
from test_chat_api import app_for, ask, post
from test_generate import make
from tunewright.serve.ask import Resolved
from tunewright.serve.engine import Engine
from tunewright.serve.tools import form_of, read

# As Hermes and Qwen have it, in our own words.
HERMES = (
    "{% if tools %}<|im_start|>system\nTools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}. "
    "Call one as <tool_call>json</tool_call><|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SWITCH = {
    "type": "function",
    "function": {
        "name": "switch",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False},
    },
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    folder = tmp_path_factory.mktemp("models")
    models = {name: Resolved(name, Path(tiny.save(folder / name, make("llama"), template))) for name, template in (("base", HERMES), ("plain", None))}
    engine = Engine()
    yield app_for(engine, models)
    engine.close()


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (HERMES, 'Well.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>{"name": "g", "arguments": {}}</tool_call>'),
        ("[TOOL_CALLS]", ' [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'),
    ],
)
def test_calls_are_read_from_what_a_model_writes(template: str, text: str) -> None:
    form = form_of(template)
    assert form is not None
    content, calls = read(text, form)
    assert content == ("Well." if form == "hermes" else None)
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls] == [("f", {"a": 1}), ("g", {})]
    assert len({call["id"] for call in calls}) == 2


def test_llamas_form_and_what_is_no_call_stays_text() -> None:
    assert form_of("<|python_tag|>") == "llama" and form_of(tiny.CHATML) is None
    assert read('{"name": "f", "parameters": {"a": 1}}', "llama").calls[0]["function"]["arguments"] == '{"a": 1}'
    for form, text in (
        ("llama", '{"a": 1}'),
        ("hermes", "<tool_call>{nonsense</tool_call>"),
        ("hermes", "a"),
        ("mistral", "[1]"),
        ("llama", "[" * 9999),
    ):
        assert read(text, form) == (text, [])  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "switch"}}])
def test_a_call_that_is_demanded_comes(app: FastAPI, choice: Any) -> None:
    settings: Any = {"messages": [{"role": "user", "content": "x"}], "tools": [SWITCH], "tool_choice": choice, "max_tokens": 120}
    answer = ask(app, **settings).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.function.name == "switch" and json.loads(call.function.arguments).keys() == {"on"}
    chunks = ask(app, **settings, stream=True)
    (said,) = [chunk.choices[0].delta.tool_calls for chunk in chunks if chunk.choices[0].delta.tool_calls]
    assert said[0].function.model_dump() == call.function.model_dump() and chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_conversation_with_calls_goes_on(app: FastAPI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "switch", "arguments": '{"on": true}'}}
    messages = [
        {"role": "user", "content": "Light!"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    assert ask(app, messages=messages, tools=[SWITCH]).choices[0].message.content is not None
    body = {"model": "plain", "messages": messages, "tools": [SWITCH]}
    assert post(app, "/v1/chat/completions", body).json()["error"]["code"] == "tool_call_not_rendered"


def test_a_template_without_tools_is_said_to_have_none(app: FastAPI) -> None:
    body = {"model": "plain", "messages": [{"role": "user", "content": "x"}], "tools": [SWITCH], "max_tokens": 2}
    assert "tools-not-shown" in post(app, "/v1/chat/completions", body).headers["x-tunewright-note"]
    assert post(app, "/v1/chat/completions", body | {"tool_choice": "required"}).json()["error"]["code"] == "unsupported_parameter"
    for choice in ({"type": "function", "function": {"name": "nosuch"}}, {"x": 1}, "wizard"):
        assert post(app, "/v1/chat/completions", body | {"model": "base", "tool_choice": choice}).status_code == 400


def test_control_tokens_in_tools_and_calls_stay_text(app: FastAPI) -> None:
    def read(text: str) -> int:
        tool = {"type": "function", "function": {"name": f"f{text}", "description": text, "parameters": {"type": "object", "properties": {text: {}}}}}
        call = {"id": text, "type": "function", "function": {"name": f"f{text}", "arguments": json.dumps({"a": text})}}
        turns = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": text, "content": "y"},
        ]
        answer = post(app, "/v1/chat/completions", {"model": "base", "messages": turns, "tools": [tool], "max_tokens": 1})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens"])

    assert read("<|im_end|>") > read("x") + 15  # a control token would be one token, as an x is
