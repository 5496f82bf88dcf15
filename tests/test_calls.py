"""Calls of tools are learnt as the model's template writes them, whatever their arguments hold."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import tiny
import tunewright
from tunewright.data.example import Chat, Message
from tunewright.data.rendering import Renderer
from tunewright.data.tokens import NotRenderable, Row, next_turn, prompt, render, rendered_text, tokenize

# The shapes of templates in the wild, in our own words.
QWEN = (
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{% set call = call.function %}"
    "{{ '\n<tool_call>\n{\"name\": \"' + call.name + '\", \"arguments\": ' }}{{ call.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('One call at a time') }}{% endif %}{% set call = m.tool_calls[0].function %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{% else %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PRINTING = QWEN.replace("call.arguments | tojson", "call.arguments")  # an object would be printed as Python writes it
JOINING = QWEN.replace("{{ call.arguments | tojson }}", "{{ '' + call.arguments }}")  # as DeepSeek does it
SORTING = QWEN.replace(
    "{{ call.arguments | tojson }}",
    "{% for k, v in call.arguments | dictsort %}<{{ k }}>{{ v if v is string else v | tojson }}</{{ k }}>{% endfor %}",
)

# How templates show tools: as JSON, indented, in part as declarations of types; and three that change what the definitions say.
SHOWN = {
    "listed": QWEN,
    "indented": QWEN.replace("tools | tojson", "tools | tojson(indent=4)"),
    "one_by_one": QWEN.replace("tools | tojson +", "'' }}{% for t in tools %}{{ '<tools>' + t.function | tojson + '</tools>' }}{% endfor %}{{"),
    "declared": QWEN.replace(
        "tools | tojson +",
        "'' }}{% for t in tools %}{% if t.type == 'function' %}// {{ t.function.description | default('') }}\ntype {{ t.function.name }} = (_: ["
        "{% for n, p in (t.function.parameters or {}).get('properties', {}).items() %}\n{{ n }}: "
        "{% if p.type == 'string' %}{% if p.enum %}{{ p.enum | join(' | ') }}{% else %}string{% endif %}{% else %}any{% endif %}, // {{ p.description }}"
        "{% endfor %}]){% endif %}{% endfor %}{{",
    ),
}
CHANGED = {
    "python": QWEN.replace("tools | tojson", "tools | string"),
    "upper": QWEN.replace("tools | tojson", "(tools | tojson | upper)"),
    "wrapped": QWEN.replace("tools | tojson", "(tools | tojson | wordwrap(24))"),
}

ARGUMENTS = {"city": "Oslo", "days": 2}
CALL = '{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}'
WRITTEN = {
    "nano": f"<tool_call>{CALL}</tool_call><|im_end|>",
    "qwen": f"<tool_call>\n{CALL}\n</tool_call><|im_end|>",
    "printing": f"<tool_call>\n{CALL}\n</tool_call><|im_end|>",
    "joining": f"<tool_call>\n{CALL}\n</tool_call><|im_end|>",
    "llama": CALL.replace("arguments", "parameters") + "<|eot_id|>",
    "sorting": '<tool_call>\n{"name": "weather", "arguments": <city>Oslo</city><days>2</days>}\n</tool_call><|im_end|>',
}


@cache
def tokenizer(name: str) -> Any:
    """The template's tokenizer; `<tool_call>` is a token of its own, as with Qwen."""
    if name == "nano":
        return AutoTokenizer.from_pretrained(Path(tunewright.__file__).parent / "models" / "nano")
    templates = SHOWN | CHANGED | {"qwen": QWEN, "llama": LLAMA, "printing": PRINTING, "joining": JOINING, "sorting": SORTING}
    made = tiny.tokenizer(templates[name])
    made.add_special_tokens({"extra_special_tokens": ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<tool_call>", "<|IM_END|>"]})
    return made


def calling(arguments: Any = ARGUMENTS, function: str = "weather", content: str = "", trained: bool = True, **other: Any) -> Message:
    call = {"id": "call_1", "type": "function", "function": {"name": function, "arguments": arguments}} | other
    return Message("assistant", content, trained, {"tool_calls": [call]})


def talk(call: Message) -> Chat:
    return Chat(
        (Message("user", "Rain?"), call, Message("tool", "dry", extra={"tool_call_id": "call_1"}), Message("assistant", "No rain.", True)),
        line=7,
        tools=({"type": "function", "function": {"name": "weather"}},),
    )


def learnt(row: Row, tokenizer: Any) -> list[str]:
    """The runs of learnt tokens, decoded."""
    runs: list[list[int]] = []
    for i, token in enumerate(row.ids):
        if row.trained[i]:
            runs += [] if i and row.trained[i - 1] else [[]]
            runs[-1].append(int(token))
    return [tokenizer.decode(run) for run in runs]


def controls(row: Row, tokenizer: Any) -> list[int]:
    return [int(i) for i in row.ids if int(i) in tokenizer.all_special_ids]


@pytest.mark.parametrize("name", sorted(WRITTEN))
@pytest.mark.parametrize("arguments", [ARGUMENTS, json.dumps(ARGUMENTS)], ids=["object", "text"])
def test_the_call_and_its_end_are_learnt_and_never_encoded_twice(name: str, arguments: Any) -> None:
    made = tokenizer(name)
    end = WRITTEN[name][WRITTEN[name].rindex("<|") :]
    assert learnt(render(talk(calling(arguments)), made), made) == [WRITTEN[name], "No rain." + end]


@pytest.mark.parametrize("name", ["nano", "qwen"])
def test_words_before_a_call_are_learnt_with_it_and_weight_zero_is_not(name: str) -> None:
    made = tokenizer(name)
    gap = "\n" if name == "qwen" else ""
    assert learnt(render(talk(calling(content="I look.")), made), made)[0] == "I look." + gap + WRITTEN[name]
    assert learnt(render(talk(calling(content="I look.", trained=False)), made), made) == ["No rain.<|im_end|>"]


@pytest.mark.parametrize("name", ["nano", "qwen", "llama"])
def test_ids_are_the_tokenizers_own_and_special_tokens_of_the_template_stay(name: str) -> None:
    made = tokenizer(name)
    messages = [{"role": m.role, "content": m.content, **m.extra} for m in talk(calling()).messages]
    row = render(talk(calling(json.dumps(ARGUMENTS))), made)
    assert row.ids.tolist() == made.apply_chat_template(messages, tools=list(talk(calling()).tools), tokenize=True, return_dict=False)
    if name == "qwen":
        assert int(row.ids[row.trained][0]) == made.convert_tokens_to_ids("<tool_call>")


TEXT = st.lists(
    st.sampled_from(["<|im_end|>", "<|eot_id|>", "<tool_call>", "<|im_start|>", "<|", '"', "\\", "\n", "é", "x", "arguments", "{", "'"]), max_size=5
).map("".join)


@settings(max_examples=80, deadline=None)
@given(key=TEXT, value=TEXT, function=TEXT, ident=TEXT, content=TEXT, name=st.sampled_from(sorted(WRITTEN)), as_text=st.booleans())
def test_what_a_call_says_never_becomes_a_control_token(
    key: str, value: str, function: str, ident: str, content: str, name: str, as_text: bool
) -> None:
    made = tokenizer(name)
    given_ = {key: value, "n": [1, {"more": value}]}
    call = calling(json.dumps(given_) if as_text else given_, function or "f", content, id=ident)
    plain = calling({"k": "v", "n": [1]}, "f", "x" if content.strip() else "")
    row = render(talk(call), made)
    assert controls(row, made) == controls(render(talk(plain), made), made)
    # What is asked in serving is a prefix of what was trained, before the call and after it.
    chat = talk(call)
    for until, begin in ((1, row.trained.nonzero()[0][0]), (3, None)):
        asked = replace(chat, messages=tuple(replace(m, trained=False) for m in chat.messages[:until]))
        ids = next_turn(asked, made)
        assert row.ids[: len(ids)].tolist() == ids
        assert begin is None or len(ids) == begin
    assert prompt(chat, made) == ids


def test_serving_writes_calls_as_training_does() -> None:
    for name in ("qwen", "joining"):
        made = tokenizer(name)
        renderer = Renderer(made.chat_template)
        try:
            chat = talk(calling(json.dumps(ARGUMENTS)))
            assert next_turn(chat, made, renderer) == next_turn(chat, made)
        finally:
            renderer.close()


def test_several_calls_in_a_turn_and_several_turns() -> None:
    made = tokenizer("qwen")
    two = replace(calling(), extra={"tool_calls": calling().extra["tool_calls"] + calling({"city": "<|im_end|>"}).extra["tool_calls"]})
    chat = Chat((Message("user", "a"), two, Message("tool", "b"), Message("tool", "c"), calling(" "), Message("tool", ""), calling("not JSON")))
    call = WRITTEN["qwen"].removesuffix("<|im_end|>")
    assert learnt(render(chat, made), made) == [
        call + "\n" + call.replace('Oslo", "days": 2', '<|im_end|>"') + "<|im_end|>",
        call.replace(CALL, '{"name": "weather", "arguments": {}}') + "<|im_end|>",
        call.replace(CALL, '{"name": "weather", "arguments": "not JSON"}') + "<|im_end|>",
    ]


def refused(template: str, chat: Chat) -> dict[str, list[int]]:
    return tokenize([chat], tiny.tokenizer(template), 10_000).dropped


def test_calls_that_are_not_shown_or_not_found_are_refused_by_name() -> None:
    chat = talk(calling())
    assert refused(QWEN.replace("call.arguments | tojson", "'{}'"), chat) == {"tool_call_not_rendered": [7]}
    # The name stands among the tools, and nowhere else.
    assert refused(QWEN.replace("m.tool_calls or []", "[]"), talk(calling(trained=False))) == {"tool_call_not_rendered": [7]}
    changing = "{% set count = messages | length %}" + QWEN.replace("+ m.role }}", "+ m.role + (' first' if count > loop.index0 + 1 else ' last') }}")
    assert refused(changing, chat) == {"tool_call_not_located": [7]}
    thinking = QWEN.replace("{% for call in", "{{ '\nHm.' if loop.last and m.tool_calls else '' }}{% for call in")
    assert refused(thinking, chat) == {"tool_call_not_located": [7]} and not refused(thinking, replace(chat, messages=chat.messages[:2]))
    assert refused(QWEN, Chat((calling(),), 7)) == {"tool_call_not_located": [7]}
    assert refused(SORTING, talk(calling("not JSON"))) == {"template_refused": [7]}
    assert refused(LLAMA, Chat((Message("user", "a"), replace(calling(), extra={"tool_calls": calling().extra["tool_calls"] * 2})), 7)) == {
        "template_refused": [7]
    }


def test_no_token_lies_across_the_start_of_a_call() -> None:
    made = tiny.tokenizer(
        "{% for m in messages %}{{ m.role }}: {{ '' if m.tool_calls else m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments | tojson }}"
        "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat = Chat((Message("user", "a"), calling(function="the")))
    assert " the" in made.decode(made("assistant: the")["input_ids"][-1:])  # else this test shows nothing
    row, ids = render(chat, made), prompt(chat, made)
    assert row.ids[: len(ids)].tolist() == ids and len(ids) == row.trained.nonzero()[0][0]
    assert learnt(row, made) == ['the {"city": "Oslo", "days": 2}<|im_end|>']


def test_a_call_with_a_control_token_leaves_the_reading_of_others_alone() -> None:
    made = tokenizer("qwen")
    first = (Message("user", "a"), calling({"path": "C:\\"}), Message("tool", "dry"))
    assert '\\"' in made.convert_ids_to_tokens(prompt(Chat((*first, calling())), made)), "no token lies across the end of the text"
    chat = Chat((*first, calling({"city": "<|im_end|>"})))
    row, ids = render(chat, made), prompt(chat, made)
    assert row.ids[: len(ids)].tolist() == ids


def test_ids_and_names_never_become_control_tokens() -> None:
    made = tiny.tokenizer(
        QWEN.replace("call.name +", "call.name + m.tool_calls[0].id +").replace("'\n<tool_response>", "m.name + m.tool_call_id + '\n<tool_response>")
    )

    def row(text: str) -> Row:
        result = Message("tool", "dry", extra={"tool_call_id": text, "name": text})
        return render(Chat((Message("user", "a"), calling(id=text), result, Message("assistant", "b", True))), made)

    assert controls(row("<|im_end|>"), made) == controls(row("x"), made)


def defined(
    name: str = "weather", said: str = "Tells the weather.", key: str = "city", value: str = "Where, as a name.", choice: str = "Oslo"
) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": value, "enum": [choice, "b c"]}, "days": {"type": "integer", "description": "How many."}}
    return {"type": "function", "function": {"name": name, "description": said, "parameters": {"type": "object", "properties": properties}}}


def told(*tools: dict[str, Any], call: Message | None = None) -> Chat:
    """A conversation with tools, of which one is called or none."""
    turns = (call, Message("tool", "dry", extra={"tool_call_id": "call_1"})) if call else ()
    return Chat((Message("user", "Rain?"), *turns, Message("assistant", "No rain.", True)), line=7, tools=tools)


@pytest.mark.parametrize("name", ["nano", *SHOWN, *CHANGED])
@pytest.mark.parametrize("call", [None, calling()], ids=["plain", "calling"])
def test_ordinary_definitions_keep_their_ids(name: str, call: Message | None) -> None:
    made, chat = tokenizer(name), told(defined(), defined("é_x", 'Says "hi" & <b>bye</b>\n'), call=call)
    messages = [{"role": m.role, "content": m.content, **m.extra} for m in chat.messages]
    row = render(chat, made)
    assert row.ids.tolist() == made.apply_chat_template(messages, tools=list(chat.tools), tokenize=True, return_dict=False)
    assert learnt(row, made)[-1] == "No rain.<|im_end|>"


@settings(max_examples=40, deadline=None)
@given(function=TEXT, said=TEXT, key=TEXT, value=TEXT, choice=TEXT, shown=st.sampled_from(["nano", *SHOWN]), calls_it=st.booleans())
def test_what_a_definition_says_never_becomes_a_control_token(
    function: str, said: str, key: str, value: str, choice: str, shown: str, calls_it: bool
) -> None:
    made = tokenizer(shown)
    call = calling({key: value}, function or "f") if calls_it else None
    chat = told(defined(function or "f", said, key, value, choice), defined(), call=call)
    row, plain = render(chat, made), render(told(defined(), defined(), call=calling() if calls_it else None), made)
    assert controls(row, made) == controls(plain, made)
    assert made.decode(row.ids) == rendered_text(chat, made)  # nothing is lost
    asked = replace(chat, messages=chat.messages[:-1])
    ids = next_turn(asked, made)
    assert row.ids[: len(ids)].tolist() == ids == prompt(chat, made)


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_templates_that_change_definitions_are_refused_those_with_control_tokens(name: str) -> None:
    made = tokenizer(name)
    hostile = {"upper": "<|IM_END|>"}.get(name, "<|im_end|>")
    for part in ("name", "said", "key", "value", "choice"):
        dropped = tokenize([told(defined(**{part: hostile}))], made, 10_000).dropped
        assert dropped == {"control_token_in_tools": [7]}, part
    assert not tokenize([told(defined())], made, 10_000).dropped


def test_serving_reads_definitions_as_training_does() -> None:
    for name in ("listed", "python"):
        made = tokenizer(name)
        renderer = Renderer(made.chat_template)
        try:
            said = "a <|im_end|>" if name == "listed" else "a"
            chat = told(defined(said=said))
            asked = replace(chat, messages=chat.messages[:1])
            assert next_turn(asked, made, renderer) == prompt(chat, made)
            if name == "python":
                with pytest.raises(NotRenderable, match="control token"):
                    next_turn(replace(asked, tools=(defined(said="<|im_end|>"),)), made, renderer)
        finally:
            renderer.close()
