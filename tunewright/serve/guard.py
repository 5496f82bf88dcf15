"""The guard before every route, as pure ASGI: nothing passes unless it says who it is and keeps to the limits."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright.jobs.store import Key, Store
from tunewright.serve.body import Body, linger
from tunewright.serve.config import ServeConfig, is_loopback
from tunewright.serve.errors import ApiError
from tunewright.serve.keys import find_key, hashed
from tunewright.serve.metrics import Metrics
from tunewright.serve.quota import Buckets, quota, rate_headers, too_many

PUBLIC = frozenset({"/", "/healthz", "/readyz"})
# Asking a model changes nothing, so a key that may only read may do it.
ASKING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
MULTIPART = re.compile(r"/v1/files/?|/v1/uploads/[^/]+/parts/?")
RANK = {"read": 0, "write": 1, "admin": 2}
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}

log = logging.getLogger("tunewright.serve")


class Guard:
    """Checks, in this order: form of the request, host and origin, key, scope, rate, body. `request.state.key` is who asks."""

    def __init__(self, app: ASGIApp, config: ServeConfig, keys: Keys, buckets: Buckets, metrics: Metrics) -> None:
        self.app = app
        self.config = config
        self.buckets = buckets
        self.metrics = metrics
        self.keys = keys
        self.hosts = _hosts(config)
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = _Answer(scope, send)
        body = Body(scope, receive, self.config.limits)
        self.active += 1
        try:
            await self._answer(scope, body, answer)
        except ApiError as error:
            await answer.refuse(error, body)
        except asyncio.CancelledError:  # the server stops and this answer did not end in time
            answer.status = answer.status or 499
        except Exception:
            log.exception("request %s failed", answer.id)
            text = f"The server failed on this request, which is a fault of ours. Its log says more under {answer.id}"
            await answer.refuse(ApiError(500, text, code="internal_error"), body)
        finally:
            self.active -= 1
            self._note(scope, answer)

    async def _answer(self, scope: Scope, body: Body, answer: _Answer) -> None:
        headers = _Headers(scope["headers"])
        self._check_form(scope, headers)
        self._check_origin(scope, headers)
        if scope["path"] not in PUBLIC:
            if self.active > self.config.limits.requests:
                raise ApiError(
                    503, "The server has too many requests at hand. Try again in a moment", code="overloaded", headers={"retry-after": "1"}
                )
            key = await self._key(scope, headers)
            answer.key = key
            scope.setdefault("state", {})["key"] = key
            _check_scope(scope, key)
            limit = quota(key, self.config.quotas, "requests_per_minute")
            left = self.buckets.left("requests", key.id, limit)
            if left < 1:
                raise too_many("requests", limit, left, **rate_headers(limit, left))
            answer.more = rate_headers(limit, self.buckets.take("requests", key.id, limit, 1))
        kind = _kind(scope, headers)
        if kind == "multipart":
            body.expect(self.config.limits.file_bytes if scope["path"].startswith("/v1/files") else self.config.limits.part_bytes)
        else:
            body.expect(self.config.limits.json_bytes)
            await body.read_json(kind == "json")
        await self.app(scope, body.receive, answer.send)

    def _check_form(self, scope: Scope, headers: _Headers) -> None:
        limits = self.config.limits
        if len(scope["headers"]) > limits.headers or sum(len(name) + len(value) for name, value in scope["headers"]) > limits.header_bytes:
            raise ApiError(431, f"The headers are over {limits.header_bytes:,} bytes or {limits.headers} in number", code="headers_too_large")
        if "content-length" in headers and "transfer-encoding" in headers:
            raise ApiError(400, "The request gives its length in two ways", code="bad_request")
        if len(scope["query_string"]) > 8192:
            raise ApiError(414, "The query is over 8,192 bytes", code="query_too_large")
        if not scope["path"].startswith("/") or "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
            raise ApiError(400, "The request's path or query is not one that this server can have", code="bad_request")

    def _check_origin(self, scope: Scope, headers: _Headers) -> None:
        """A page on another site may find this server by an address of its own (DNS rebinding), or send what the browser sends unasked."""
        host = _without_port(headers.get("host", ""))
        if "*" not in self.hosts and host not in self.hosts:
            raise ApiError(421, "This server is not known by that name; its allowed_hosts say by which", param="Host", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{headers.get('host')}", f"https://{headers.get('host')}"):
            raise ApiError(403, "Requests from pages of other sites are not taken", param="Origin", code="origin_not_allowed")

    async def _key(self, scope: Scope, headers: _Headers) -> Key:
        kind, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip()
        address = (scope.get("client") or ("?", 0))[0]
        limit = self.config.limits.bad_keys
        if self.buckets.left("bad_keys", address, limit) < 1 and not self.keys.knows(given):
            raise too_many("wrong keys", limit, self.buckets.left("bad_keys", address, limit))
        row = await self.keys.find(given) if kind.lower() == "bearer" and given and len(given) <= 512 else None
        if row is None:
            self.buckets.take("bad_keys", address, limit, 1)
            text = "Incorrect API key provided." if given else "No API key was given: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, text, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return row

    def _note(self, scope: Scope, answer: _Answer) -> None:
        """One line of JSON a request: control characters cannot pass, and nothing of the body or the key is in it."""
        seconds = time.monotonic() - answer.began
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.note(scope["method"], route, answer.status, seconds)
        record = {
            "time": round(time.time(), 3),
            "request": answer.id,
            "address": (scope.get("client") or ("?", 0))[0],
            "key": answer.key.id if answer.key else None,
            "method": scope["method"][:16],
            "path": scope["path"][:512],
            "status": answer.status,
            "ms": round(seconds * 1000, 1),
        }
        log.info("%s", json.dumps(record))


class Keys:
    """Keys that were seen, each looked up again after a second."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.seen: dict[str, tuple[Key, float]] = {}

    def knows(self, key: str) -> bool:
        """Whether this key was good not long ago."""
        return hashed(key) in self.seen

    async def find(self, key: str) -> Key | None:
        """The key's row, or None."""
        digest = hashed(key)
        row, since = self.seen.get(digest, (None, 0.0))
        if row is not None and time.monotonic() - since < 1:
            return row
        found = await asyncio.to_thread(find_key, self.store, key)
        if found is None:
            self.seen.pop(digest, None)
        else:
            self.seen[digest] = (found, time.monotonic())
        return found


class _Answer:
    """What is sent back: with our headers, and remembered for the log."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.id = "req_" + secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = self.id
        self.began = time.monotonic()
        self.status = 0
        self.key: Key | None = None
        self.more: dict[str, str] = {}
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            given = {name.lower() for name, _ in headers}
            took = f"{(time.monotonic() - self.began) * 1000:.0f}"
            ours = {"x-request-id": self.id, "openai-processing-ms": took, **HEADERS, **self.more}
            headers += [(name.encode(), value.encode()) for name, value in ours.items() if name.encode() not in given]
            message = {**message, "headers": headers}
        await self._send(message)

    async def refuse(self, error: ApiError, body: Body) -> None:
        """Send an error, unless an answer has begun: what has no end is cut off by the server, which the client sees."""
        if self.status:
            return
        text = json.dumps(error.to_dict()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(text)), **error.headers}
        if not body.complete:
            headers["connection"] = "close"
        start: list[tuple[bytes, bytes]] = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": start})
        await self.send({"type": "http.response.body", "body": text, "more_body": not body.complete})
        if not body.complete:
            if error.status != 408:
                await linger(body)
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})


class _Headers:
    """Header values by lower-case name; the first one counts."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.values: dict[str, str] = {}
        for name, value in headers:
            self.values.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, otherwise: Any = None) -> Any:
        return self.values.get(name, otherwise)


def _check_scope(scope: Scope, key: Key) -> None:
    needed = "read" if scope["method"] in ("GET", "HEAD", "OPTIONS") or scope["path"].rstrip("/") in ASKING else "write"
    if RANK.get(key.scope, -1) < RANK[needed]:
        raise ApiError(403, f"This key may only {key.scope}; the request needs a key that may {needed}", code="insufficient_scope")


def _kind(scope: Scope, headers: _Headers) -> str:
    """json, multipart or none. Raises ApiError 415: any other, or compressed."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "Send the body as it is, without a Content-Encoding", param="Content-Encoding", code="unsupported_encoding")
    type, _, _ = headers.get("content-type", "").partition(";")
    match type.strip().lower():
        case "application/json":
            return "json"
        case "multipart/form-data" if MULTIPART.fullmatch(scope["path"]):
            return "multipart"
        case "" if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            return "none"
    wanted = "multipart/form-data" if MULTIPART.fullmatch(scope["path"]) else "application/json"
    raise ApiError(415, f"Send the body as {wanted}", param="Content-Type", code="unsupported_content_type")


def _hosts(config: ServeConfig) -> frozenset[str]:
    own = {"localhost", "127.0.0.1", "[::1]"} if is_loopback(config.host) else set()
    return frozenset(name.lower() for name in {*own, config.host, *config.allowed_hosts})


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()
