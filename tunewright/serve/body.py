"""A request's body as it comes in: `Body` counts it, times it, and reads JSON whole before a route sees it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from starlette.types import Message, Receive, Scope

from tunewright.serve import strict
from tunewright.serve.config import Limits
from tunewright.serve.errors import ApiError

# Parsing more than this takes so long that others would wait for it.
_IN_THREAD = 64 << 10
# What multipart adds to the file: boundaries, part headers, small fields.
FORM_BYTES = 64 << 10


class Body:
    """The receiving side of a request. Its `receive` raises ApiError: 413 too large, 408 too slow."""

    def __init__(self, scope: Scope, receive: Receive, limits: Limits) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        self.length = int(headers[b"content-length"]) if headers.get(b"content-length", b"x").isdigit() else None
        self.complete = self.length == 0 or (self.length is None and b"transfer-encoding" not in headers)
        self.limits = limits
        self.limit = limits.json_bytes
        self.size = 0
        self.began = time.monotonic()
        self._receive = receive
        self._whole: Message | None = None

    def expect(self, limit: int) -> None:
        """Set how many bytes there may be. Raises ApiError 413 where the client announces more."""
        self.limit = limit + FORM_BYTES if limit != self.limits.json_bytes else limit
        if self.length is not None and self.length > self.limit:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next piece."""
        if self._whole is not None:
            message, self._whole = self._whole, None
            return message
        if self.complete and self.size:
            return await self._receive()  # only a disconnect can follow
        try:
            message = await asyncio.wait_for(self._receive(), None if self.complete else self.limits.body_seconds)
        except TimeoutError:
            raise ApiError(408, f"No more of the body came for {self.limits.body_seconds:g} s", code="body_timeout") from None
        if message["type"] == "http.request":
            self.size += len(message.get("body", b""))
            self.complete = self.complete or not message.get("more_body", False)
            if self.size > self.limit:
                raise self._too_large()
            took = time.monotonic() - self.began
            if not self.complete and took > self.limits.body_seconds and self.size < took * self.limits.body_rate:
                raise ApiError(408, f"The body comes at less than {self.limits.body_rate:,} bytes a second", code="body_timeout")
        return message

    async def read_json(self, check: bool) -> None:
        """Read all of it, and look it over where it is JSON, so that a route gets it whole. Raises ApiError 400: not strict JSON."""
        pieces = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ApiError(400, "The body ended early", code="bad_request")
            pieces.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        body = b"".join(pieces)
        if body and check:
            try:
                await (asyncio.to_thread(strict.parse, body) if len(body) > _IN_THREAD else _now(body))
            except strict.NotStrict as error:
                raise ApiError(400, str(error), code="invalid_json") from None
        elif body:
            raise ApiError(415, "Send the body as application/json", param="Content-Type", code="unsupported_content_type")
        self._whole = {"type": "http.request", "body": body, "more_body": False}

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is over {self.limit:,} bytes", code="body_too_large")


async def _now(body: bytes) -> Any:
    return strict.parse(body)


async def linger(body: Body, seconds: float = 1, most: int = 64 << 20) -> None:
    """Throw away what a client still sends after an error, for a while: closing at once could take the error away from it."""
    size = 0
    with contextlib.suppress(TimeoutError, ApiError):
        async with asyncio.timeout(seconds):
            while size < most:
                message = await body._receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
