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

from tunewright.serve import tools
from tunewright.serve.answering import answers, in_thread, opened_for, unless_gone
from tunewright.serve.ask import Ask, Chance, Piece
from tunewright.serve.asked import ChatRequest
from tunewright.serve.engine import Engine, Opened
from tunewright.serve.errors import ApiError
from tunewright.serve.quota import Spend, spending
from tunewright.serve.wanted import asks_of

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
    asks = await in_thread(engine, asks_of, asked, opened)
    head = Head(f"chatcmpl-{uuid4().hex[:24]}", int(time()), resolved.name, spending(request))
    if asked.stream:
        return await streamed(_stream(engine, opened, asks, asked, head), _notes(asked, opened))
    return await unless_gone(request, _whole(engine, opened, asks, asked, head))  # type: ignore[no-any-return]


async def _whole(engine: Engine, opened: Opened, asks: Sequence[Ask], asked: ChatRequest, head: Head) -> Response:
    async with answers(engine, opened, asks, head.spend) as found:
        pieces = await found.whole()
    # Thousands of tokens with twenty likeliest each are more than an event loop should write.
    choices = await in_thread(engine, lambda: [_choice(i, mine, asked, opened) for i, mine in enumerate(pieces)])
    return JSONResponse(head.body("chat.completion", choices, usage=usage(asks, [mine[-1] for mine in pieces])), headers=_notes(asked, opened))


def _notes(asked: ChatRequest, opened: Opened) -> dict[str, str]:
    """What a client should know about its answer: tools that the model's template does not show."""
    unseen = asked.tools and asked.tool_choice != "none" and not tools.shown(str(opened.tokenizer.chat_template))
    return {"x-tunewright-note": "tools-not-shown: the model's chat template shows no tools"} if unseen else {}


def _choice(i: int, pieces: list[Piece], asked: ChatRequest, opened: Opened) -> dict[str, Any]:
    said = _said("".join(piece.text for piece in pieces), asked, opened)
    message = {"role": "assistant", "content": said.content, "refusal": None} | ({"tool_calls": said.calls} if said.calls else {})
    chances = [chance for piece in pieces for chance in piece.chances]
    finish = "tool_calls" if said.calls else pieces[-1].finish
    return {"index": i, "message": message, "logprobs": _logprobs(chances, opened) if asked.logprobs else None, "finish_reason": finish}


def _form(asked: ChatRequest, opened: Opened) -> tools.Form | None:
    """The form of the calls that may be in an answer."""
    return tools.form_of(str(opened.tokenizer.chat_template)) if asked.tools and asked.tool_choice != "none" else None


def _said(text: str, asked: ChatRequest, opened: Opened) -> tools.Said:
    form = _form(asked, opened)
    return tools.read(text, form) if form else tools.Said(text, [])


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
        # What may turn out to be a call is held until its end.
        held: list[str] | None = [""] * len(asks) if _form(asked, opened) else None
        async for i, piece in found.pieces():
            logprobs = _logprobs(piece.chances, opened) if asked.logprobs and piece.chances else None
            if held:
                held[i] += piece.text
                if logprobs:
                    yield chunk(i, {}, None, logprobs)
            elif piece.text or logprobs:
                yield chunk(i, {"content": piece.text}, None, logprobs)
            if piece.last:
                ends.append(piece)
                said = _said(held[i], asked, opened) if held else tools.Said(None, [])
                if said.content:
                    yield chunk(i, {"content": said.content})
                if said.calls:
                    yield chunk(i, {"tool_calls": [{"index": at, **call} for at, call in enumerate(said.calls)]})
                yield chunk(i, {}, "tool_calls" if said.calls else piece.finish)
        if with_usage:
            yield event(head.body("chat.completion.chunk", [], usage=usage(asks, ends)))


async def streamed(chunks: AsyncIterator[str], notes: dict[str, str] | None = None) -> Response:
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

    return StreamingResponse(
        events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(notes or {})}
    )


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
