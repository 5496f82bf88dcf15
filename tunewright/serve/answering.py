"""From a request's asks to their pieces, on the event loop: opening models, limits, and stopping when the client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from fastapi import Request

from tunewright.errors import Problem
from tunewright.serve.ask import Ask, Piece, Resolved
from tunewright.serve.engine import Engine, Opened
from tunewright.serve.errors import ApiError
from tunewright.serve.quota import Spend, check_tokens

T = TypeVar("T")

# The most tokens, prompts and answers together, that one request may ask to be computed.
MOST_TOKENS = 1 << 20

_STATUS = {
    "model_not_found": 404,
    "queue_full": 429,
    "server_stopping": 503,
    "engine_failed": 500,
    "timeout": 503,
    "out_of_memory": 503,
    "backend_unavailable": 503,
}


def refusal(problem: Problem) -> ApiError:
    """A problem as the API tells it."""
    status = _STATUS.get(problem.code, 400)
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return ApiError(status, problem.message, problem.param, problem.code, headers)


async def in_thread(engine: Engine, work: Callable[..., T], *given: Any) -> T:
    """Do what takes longer than an event loop may wait. Raises ApiError for a Problem."""
    try:
        return await asyncio.get_running_loop().run_in_executor(engine.pool, work, *given)
    except Problem as problem:
        raise refusal(problem) from None


async def opened_for(request: Request, name: str) -> tuple[Engine, Resolved, Opened]:
    """The model that a request names, in memory. Raises ApiError: unknown, damaged, too large."""
    check_tokens(request)
    engine: Engine = request.app.state.engine
    find = request.app.state.resolve
    resolved: Resolved = await find(request, name) if iscoroutinefunction(find) else await in_thread(engine, find, request, name)
    return engine, resolved, await in_thread(engine, engine.open, resolved)


def room(opened: Opened, prompt: Sequence[int], wanted: int | None, param: str) -> int:
    """How many tokens may answer a prompt. Raises Problem `context_length_exceeded`."""
    left = opened.context - len(prompt)
    if left < 1:
        raise Problem(
            f"This model's context is {opened.context:,} tokens, answer included, and the prompt has {len(prompt):,}; shorten the prompt",
            code="context_length_exceeded",
            param=param,
        )
    return left if wanted is None else min(wanted, left)


def check_work(asks: Sequence[Ask]) -> None:
    """Raise Problem `limit_exceeded` where a request asks for more than one request may."""
    total = sum(len(ask.ids) + ask.max_tokens for ask in asks)
    if total > MOST_TOKENS:
        text = f"This asks for up to {total:,} tokens, prompts included; one request may ask for {MOST_TOKENS:,}. Lower n or max_tokens"
        raise Problem(text, code="limit_exceeded", param="n")


@dataclass(frozen=True, slots=True)
class Answers:
    """Some answers in the making."""

    count: int
    queue: asyncio.Queue[tuple[int, Piece]]

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Which answer, and its next piece. Raises ApiError where one fails."""
        left = self.count
        while left:
            i, piece = await self.queue.get()
            if piece.problem:
                raise refusal(piece.problem)
            left -= piece.last
            yield i, piece

    async def whole(self) -> list[list[Piece]]:
        """All pieces of each answer."""
        found: list[list[Piece]] = [[] for _ in range(self.count)]
        async for i, piece in self.pieces():
            found[i].append(piece)
        return found


@asynccontextmanager
async def answers(engine: Engine, opened: Opened, asks: Sequence[Ask], spend: Spend) -> AsyncIterator[Answers]:
    """Have asks answered; leaving cancels what is unfinished, and `spend` is told what was read and written until then.

    Raises ApiError: the queue is full, a schema cannot be followed.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()

    written = [0] * len(asks)

    def put_as(i: int) -> Callable[[Piece], None]:
        def put(piece: Piece) -> None:
            written[i] = piece.tokens
            loop.call_soon_threadsafe(queue.put_nowait, (i, piece))

        return put

    submitted: list[Any] = []
    try:
        for i, ask in enumerate(asks):
            # A grammar takes milliseconds to build, and more with a new vocabulary.
            if ask.grammar is None:
                try:
                    submitted.append(engine.submit(opened, ask, put_as(i)))
                except Problem as problem:
                    raise refusal(problem) from None
            else:
                submitted.append(await in_thread(engine, engine.submit, opened, ask, put_as(i)))
        yield Answers(len(asks), queue)
    finally:
        for each in submitted:
            each.cancel()
        spend(sum(len(ids) for ids in {ask.ids for ask in asks[: len(submitted)]}), sum(written))


async def unless_gone(request: Request, work: Any) -> Any:
    """What `work` gives, or an end to it as soon as the client has hung up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "The client closed the connection")
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await each


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
