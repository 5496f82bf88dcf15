"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tunewright.data.example import Chat, Message
from tunewright.data.tokens import NotRenderable, next_turn
from tunewright.errors import Problem
from tunewright.serve import grammar
from tunewright.serve.answering import answers, check_work, in_thread, opened_for, room, unless_gone
from tunewright.serve.ask import Ask, Chance, Piece
from tunewright.serve.asked import ChatMessage, ChatRequest
from tunewright.serve.engine import Engine, Opened
from tunewright.serve.errors import ApiError
from tunewright.serve.quota import Spend, spending

router = APIRouter()


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of an answer share, and who is told of its tokens."""

    id: str
    created: int
    model: str
    spend: Spend

    def body(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices, **more}


@router.post("/v1/chat/completions")
async def create(request: Request, asked: ChatRequest) -> Response:
    """Answer a conversation."""
    engine, resolved, opened = await opened_for(request, asked.model)
    asks = await in_thread(engine, _asks, asked, opened)
    head = Head(f"chatcmpl-{uuid4().hex[:24]}", int(time()), resolved.name, spending(request))
    if asked.stream:
        return await streamed(_stream(engine, opened, asks, asked, head))
    return await unless_gone(request, _whole(engine, opened, asks, asked, head))  # type: ignore[no-any-return]


def _asks(asked: ChatRequest, opened: Opened) -> list[Ask]:
    """The answers wanted. Raises Problem; takes as long as a template and a tokenizer do."""
    chat = _chat(asked)
    with opened.tokenizing:
        _check_control_tokens(chat, opened)
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
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    found = [ask_of(asked, opened, ids, most, i, top, rule) for i in range(asked.n or 1)]
    check_work(found)
    return found


def _check_control_tokens(chat: Chat, opened: Opened) -> None:
    """Contents are read as plain text whatever they hold. Names, calls and tools are woven into the template, so what looks like a
    control token is refused there. Raises Problem."""
    beside = json.dumps([list(chat.tools), [message.extra for message in chat.messages]], ensure_ascii=False)
    for token in opened.tokenizer.added_tokens_decoder.values():
        if token.special and json.dumps(str(token), ensure_ascii=False)[1:-1] in beside:
            text = f"A tool, a tool call or a name holds {str(token)!r}, which is one of this model's control tokens; remove it"
            raise Problem(text, code="control_token", param="messages")


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
    tools = tuple(tool.model_dump(exclude_none=True) for tool in asked.tools or ()) if asked.tool_choice != "none" else ()
    return Chat(tuple(_message(message, at) for at, message in enumerate(asked.messages)), tools=tools)


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


async def _whole(engine: Engine, opened: Opened, asks: Sequence[Ask], asked: ChatRequest, head: Head) -> Response:
    async with answers(engine, opened, asks, head.spend) as found:
        pieces = await found.whole()
    choices = [_choice(i, mine, asked, opened) for i, mine in enumerate(pieces)]
    return JSONResponse(head.body("chat.completion", choices, usage=usage(asks, [mine[-1] for mine in pieces])))


def _choice(i: int, pieces: list[Piece], asked: ChatRequest, opened: Opened) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
    chances = [chance for piece in pieces for chance in piece.chances]
    return {"index": i, "message": message, "logprobs": _logprobs(chances, opened) if asked.logprobs else None, "finish_reason": pieces[-1].finish}


def usage(asks: Sequence[Ask], ends: Sequence[Piece]) -> dict[str, int]:
    """Tokens read and written; a prompt that is answered n times counts once."""
    read, written = sum(len(ids) for ids in {ask.ids: ask.ids for ask in asks}), sum(piece.tokens for piece in ends)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _logprobs(chances: Sequence[Chance], opened: Opened) -> dict[str, Any]:
    return {
        "content": [_token(c.id, c.logprob, opened) | {"top_logprobs": [_token(i, p, opened) for i, p in c.top]} for c in chances],
        "refusal": None,
    }


def _token(token: int, logprob: float, opened: Opened) -> dict[str, Any]:
    raw = opened.tokens.bytes_of(token)
    return {"token": raw.decode(errors="replace"), "logprob": max(logprob, -9999.0), "bytes": list(raw)}


async def _stream(engine: Engine, opened: Opened, asks: Sequence[Ask], asked: ChatRequest, head: Head) -> AsyncIterator[str]:
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    null = {"usage": None} if with_usage else {}

    def chunk(i: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> str:
        choice = {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event(head.body("chat.completion.chunk", [choice], **null))

    async with answers(engine, opened, asks, head.spend) as found:
        yield "".join(chunk(i, {"role": "assistant", "content": "", "refusal": None}) for i in range(len(asks)))
        ends: list[Piece] = []
        async for i, piece in found.pieces():
            logprobs = _logprobs(piece.chances, opened) if asked.logprobs and piece.chances else None
            if piece.text or logprobs:
                yield chunk(i, {"content": piece.text}, None, logprobs)
            if piece.last:
                ends.append(piece)
                yield chunk(i, {}, piece.finish)
        if with_usage:
            yield event(head.body("chat.completion.chunk", [], usage=usage(asks, ends)))


async def streamed(chunks: AsyncIterator[str]) -> Response:
    """Server-sent events. What goes wrong before the first is an ordinary refusal; afterwards, an event with `error`."""
    first = await anext(chunks)

    async def events() -> AsyncIterator[str]:
        try:
            yield first
            async for chunk in chunks:
                yield chunk
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield event(error.to_dict())
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
