"""From a request's body to what the engine is asked: the conversation's tokens and the settings of each answer."""

from __future__ import annotations

from typing import Any

from tunewright.data.example import Chat, Message
from tunewright.data.tokens import NotRenderable, next_turn
from tunewright.errors import Problem
from tunewright.serve import grammar, tools
from tunewright.serve.answering import check_work, room
from tunewright.serve.ask import Ask
from tunewright.serve.asked import ChatMessage, ChatRequest
from tunewright.serve.engine import Opened


def asks_of(asked: ChatRequest, opened: Opened) -> list[Ask]:
    """The answers wanted. Raises Problem; takes as long as a template and a tokenizer do."""
    chat = _chat(asked)
    with opened.tokenizing:
        try:
            ids = tuple(next_turn(chat, opened.tokenizer, opened.renderer))
        except NotRenderable as problem:
            raise Problem(problem.message.removeprefix("line 0: "), code=problem.code, param="messages") from None
    if not ids:
        raise Problem("The conversation renders to nothing; write a message", code="empty_prompt", param="messages")
    given = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    most = room(opened, ids, given, "messages")
    form = asked.response_format
    rule = None
    if form and form.type != "text":
        rule = grammar.of_schema(form.json_schema.schema_ if form.json_schema else None)
    rule = tools.demanded(asked.tool_choice, chat.tools, tools.form_of(str(opened.tokenizer.chat_template))) or rule
    if asked.logprobs:
        opened.tokens.built()  # here, for it takes a moment with a large vocabulary
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    found = [ask_of(asked, opened, ids, most, i, top, rule) for i in range(asked.n or 1)]
    check_work(found)
    return found


def ask_of(asked: Any, opened: Opened, ids: tuple[int, ...], most: int, i: int, top: int | None, rule: str | None = None) -> Ask:
    """One of a request's answers; the i-th draws with the i-th seed. Raises Problem for a token id outside the vocabulary."""
    bias = {int(token): value for token, value in (asked.logit_bias or {}).items()}
    size = opened.runner.vocabulary
    if bad := [token for token in bias if token >= size]:
        raise Problem(f"logit_bias: there is no token {bad[0]}; this model has {size:,}", code="invalid_token", param="logit_bias")
    return Ask(
        ids=ids,
        max_tokens=most,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=None if asked.seed is None else (asked.seed + i) % 2**63,
        stop=asked.stops,
        logit_bias=bias,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        top_logprobs=top,
        grammar=rule,
        pieces=bool(asked.stream),
    )


def _chat(asked: ChatRequest) -> Chat:
    """The conversation as what renders it wants it. Raises Problem for content that is not text."""
    given = tuple(tool.model_dump(exclude_none=True) for tool in asked.tools or ()) if asked.tool_choice != "none" else ()
    return Chat(tuple(_message(message, at) for at, message in enumerate(asked.messages)), tools=given)


def _message(message: ChatMessage, at: int) -> Message:
    content = message.content
    if isinstance(content, list):
        if bad := [part.type for part in content if part.type not in ("text", "refusal")]:
            raise Problem(f"messages[{at}]: a part is {bad[0]!r}, and models here read text alone", code="unsupported_content", param="messages")
        content = "".join(part.text or part.refusal or "" for part in content)
    if content is None and not (message.role == "assistant"):
        raise Problem(f"messages[{at}]: the {message.role}'s message has no content", code="missing_content", param="messages")
    extra: dict[str, Any] = {}
    if message.name is not None:
        extra["name"] = message.name
    if message.tool_calls:
        extra["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if message.tool_call_id is not None:
        extra["tool_call_id"] = message.tool_call_id
    return Message(message.role, content or "", extra=extra)
