"""POST /v1/completions: text goes on, without a chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from time import time
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tunewright.data.example import Completion
from tunewright.data.tokens import end_ids, prompt
from tunewright.errors import Problem
from tunewright.serve.answering import answers, check_work, in_thread, opened_for, room, unless_gone
from tunewright.serve.ask import Ask, Chance, Piece
from tunewright.serve.asked import CompletionRequest
from tunewright.serve.chat import Head, event, streamed, usage
from tunewright.serve.engine import Engine, Opened
from tunewright.serve.errors import ApiError
from tunewright.serve.quota import spending
from tunewright.serve.wanted import ask_of

router = APIRouter()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """`asks`: as many for each prompt as are generated. `keep`: how many of those are answered. `echoes`: each prompt's text, or ""."""

    asks: list[Ask]
    of_each: int
    keep: int
    echoes: list[str]


@router.post("/v1/completions")
async def create(request: Request, asked: CompletionRequest) -> Response:
    """Go on from a text."""
    if asked.suffix:
        raise ApiError(400, "suffix is not supported: the models here write on, they do not fill in", "suffix", "unsupported_parameter")
    if asked.echo and asked.logprobs is not None:
        raise ApiError(400, "echo with logprobs is not supported: log-probabilities are those of written tokens", "echo", "unsupported_parameter")
    best = asked.best_of or asked.n or 1
    if best < (asked.n or 1):
        raise ApiError(400, "best_of must not be under n", "best_of")
    if asked.stream and best > (asked.n or 1):
        raise ApiError(400, "best_of cannot be streamed: the best is known at the end", "best_of")
    engine, resolved, opened = await opened_for(request, asked.model)
    wanted = await in_thread(engine, _wanted, asked, opened, best)
    head = Head(f"cmpl-{uuid4().hex[:24]}", int(time()), resolved.name, spending(request))
    if asked.stream:
        return await streamed(_stream(engine, opened, wanted, asked, head))
    return await unless_gone(request, _whole(engine, opened, wanted, asked, head))  # type: ignore[no-any-return]


def _wanted(asked: CompletionRequest, opened: Opened, best: int) -> _Wanted:
    """The answers wanted. Raises Problem."""
    given = asked.prompt
    prompts: list[Any] = [given] if given is None or isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    asks: list[Ask] = []
    echoes: list[str] = []
    with opened.tokenizing:
        for one in prompts:
            ids = _ids(one, opened)
            most = room(opened, ids, 16 if asked.max_tokens is None else max(asked.max_tokens, 1), "prompt")
            if asked.logprobs is not None:
                opened.tokens.built()  # here, for it takes a moment with a large vocabulary
            top = asked.logprobs if asked.logprobs is not None else 0 if best > (asked.n or 1) else None
            asks += [ask_of(asked, opened, ids, most, i, top) for i in range(best)]
            text = one if isinstance(one, str) else str(opened.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
            echoes.append(text if asked.echo else "")
    if asked.max_tokens == 0:
        raise Problem("max_tokens must be at least 1: nothing is written otherwise", code="invalid_value", param="max_tokens")
    check_work(asks)
    return _Wanted([replace(ask, pieces=bool(asked.stream)) for ask in asks], best, asked.n or 1, echoes)


def _ids(given: str | list[int] | None, opened: Opened) -> tuple[int, ...]:
    """A prompt's tokens. One that is empty begins where a document begins. Raises Problem for a token id outside the vocabulary."""
    tokenizer = opened.tokenizer
    if isinstance(given, list):
        size = opened.runner.vocabulary
        if bad := [token for token in given if token >= size]:
            raise Problem(f"prompt: there is no token {bad[0]}; this model has {size:,}", code="invalid_token", param="prompt")
        return tuple(given)
    ids = prompt(Completion(given or "", ""), tokenizer)
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else min(end_ids(tokenizer))
    return tuple(ids) or (int(start),)


def _choice(i: int, text: str, chances: Sequence[Chance], finish: str | None, asked: CompletionRequest, opened: Opened, at: int) -> dict[str, Any]:
    return {"text": text, "index": i, "logprobs": _logprobs(chances, opened, at) if asked.logprobs is not None else None, "finish_reason": finish}


def _logprobs(chances: Sequence[Chance], opened: Opened, at: int) -> dict[str, Any]:
    """`at`: characters of the answer before these tokens."""
    names = [_name(chance.id, opened) for chance in chances]
    offsets = [at + sum(map(len, names[:i])) for i in range(len(names))]
    tops = [{_name(token, opened): logprob for token, logprob in chance.top} for chance in chances]
    return {"tokens": names, "token_logprobs": [chance.logprob for chance in chances], "top_logprobs": tops, "text_offset": offsets}


def _name(token: int, opened: Opened) -> str:
    return opened.tokens.bytes_of(token).decode(errors="replace")


async def _whole(engine: Engine, opened: Opened, wanted: _Wanted, asked: CompletionRequest, head: Head) -> Response:
    async with answers(engine, opened, wanted.asks, head.spend) as found:
        pieces = [piece for (piece,) in await found.whole()]
    choices: list[dict[str, Any]] = []
    for p, echo in enumerate(wanted.echoes):
        mine = pieces[p * wanted.of_each : (p + 1) * wanted.of_each]
        if wanted.of_each > wanted.keep:
            mine = sorted(mine, key=_likelihood, reverse=True)[: wanted.keep]
        for piece in mine:
            choices.append(_choice(len(choices), echo + piece.text, piece.chances, piece.finish, asked, opened, len(echo)))
    return JSONResponse(head.body("text_completion", choices, usage=usage(wanted.asks, pieces)))


def _likelihood(piece: Piece) -> float:
    """The mean log-probability of an answer's tokens."""
    return sum(chance.logprob for chance in piece.chances) / max(len(piece.chances), 1)


async def _stream(engine: Engine, opened: Opened, wanted: _Wanted, asked: CompletionRequest, head: Head) -> AsyncIterator[str]:
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    null = {"usage": None} if with_usage else {}
    async with answers(engine, opened, wanted.asks, head.spend) as found:
        said = [len(wanted.echoes[i // wanted.of_each]) for i in range(len(wanted.asks))]
        yield "".join(
            event(head.body("text_completion", [_choice(i, wanted.echoes[i // wanted.of_each], (), None, asked, opened, 0)], **null))
            for i in range(len(wanted.asks))
        )
        ends: list[Piece] = []
        async for i, piece in found.pieces():
            yield event(head.body("text_completion", [_choice(i, piece.text, piece.chances, piece.finish, asked, opened, said[i])], **null))
            said[i] += len(piece.text)
            if piece.last:
                ends.append(piece)
        if with_usage:
            yield event(head.body("text_completion", [], usage=usage(wanted.asks, ends)))
