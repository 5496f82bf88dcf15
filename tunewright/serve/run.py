"""The server as a process: uvicorn with a guard on each connection, because by then a request is read it is too late for some attacks."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import Any, ClassVar

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from tunewright.serve.config import Limits, ServeConfig

_REFUSED = b'{"error": {"message": "The request cannot be read: it is not HTTP as RFC 9112 has it, or its head is too large", "type": "invalid_request_error", "param": null, "code": "bad_request"}}'


class GuardedProtocol(H11Protocol):
    """A connection whose requests must arrive within a time, of which one address may hold only so many."""

    limits = Limits()
    by_address: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else "?"
        self.by_address[self.address] += 1
        self.head_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections or self.by_address[self.address] > self.limits.connections_per_address:
            transport.abort()
            return
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.by_address[self.address] -= 1
        if not self.by_address[self.address]:
            del self.by_address[self.address]
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._waits():
            self._time_head()
        super().data_received(data)
        if not self._waits():
            self._head_came()

    def on_response_complete(self) -> None:
        self._head_came()  # from here uvicorn's own time for idle connections counts
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Tell of a request that cannot be read, in the shape of all other errors, and close. What is being answered already learns nothing more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSED)).encode()), (b"connection", b"close")]
            for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=_REFUSED), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _waits(self) -> bool:
        """Whether the next thing to come is a request's head."""
        return self.cycle is None or self.cycle.response_complete

    def _time_head(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(self.limits.head_seconds, self._head_is_late)

    def _head_came(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _head_is_late(self) -> None:
        self.head_timer = None
        if self._waits() and not self.transport.is_closing():
            self.transport.close()


def bind(config: ServeConfig) -> socket.socket:
    """A socket on the configured address, so that a port in use is told before anything else begins. Raises OSError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # With the protocol named, asyncio sends small answers at once; without it they wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host.strip("[]"), config.port))
    except OSError:
        listener.close()
        raise
    return listener


def run(app: FastAPI, config: ServeConfig, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; then streams have `limits.stop_seconds` to end."""
    limits = config.limits
    protocol: Any = type("Protocol", (GuardedProtocol,), {"limits": limits, "by_address": Counter()})
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=limits.stop_seconds,
        h11_max_incomplete_event_size=limits.header_bytes,
        backlog=1024,
    )
    uvicorn.Server(settings).run(sockets=[listener])
