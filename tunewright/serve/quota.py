"""What a key may still use: token buckets for what counts by the minute, kept in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from tunewright.jobs.store import Key
from tunewright.serve.config import Quotas
from tunewright.serve.errors import ApiError

# The client tries a 429 again by itself; where waiting does not help it is told not to.
NO_RETRY = {"x-should-retry": "false"}


Spend = Callable[[int, int], None]


class Buckets:
    """Amounts that refill evenly over a minute, by name. A bucket may be overdrawn by what was not known before: it then needs longer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.levels: dict[tuple[str, str], tuple[float, float]] = {}

    def left(self, kind: str, who: str, per_minute: int) -> float:
        """How much there is."""
        now = self.clock()
        level, since = self.levels.get((kind, who), (float(per_minute), now))
        return min(float(per_minute), level + (now - since) * per_minute / 60)

    def take(self, kind: str, who: str, per_minute: int, amount: float) -> float:
        """Take an amount, and say how much is left."""
        left = self.left(kind, who, per_minute) - amount
        if len(self.levels) > 100_000:  # a full bucket is as good as none
            self.levels = {name: kept for name, kept in self.levels.items() if kept[1] > self.clock() - 60}
        self.levels[kind, who] = (left, self.clock())
        return left


def quota(key: Key, quotas: Quotas, name: str) -> int:
    """A key's limit: its own, or the configured one."""
    return int(key.quotas.get(name, getattr(quotas, name)))


def rate_headers(limit: int, left: float) -> dict[str, str]:
    """OpenAI's headers about requests."""
    reset = max(0.0, (limit - left) * 60 / limit)
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(max(0, math.floor(left))),
        "x-ratelimit-reset-requests": f"{reset:.3f}s",
    }


def too_many(what: str, limit: int, left: float, **headers: str) -> ApiError:
    """429, with how long to wait until there is one again."""
    wait = max(1, math.ceil((1 - left) * 60 / limit))
    text = f"Too many {what}: this key may use {limit:,} a minute. Try again in {wait} s"
    return ApiError(429, text, code="rate_limit_exceeded", headers={"retry-after": str(wait), **headers})


def check_tokens(request: Request) -> None:
    """Raise ApiError 429 while the key's tokens of the last minute are used up. For chat and completions, before they begin."""
    key, state = request.state.key, request.app.state
    limit = quota(key, state.config.quotas, "tokens_per_minute")
    left = state.buckets.left("tokens", key.id, limit)
    if left < 1:
        raise too_many("tokens", limit, left)


def spending(request: Request) -> Spend:
    """Counts tokens that are read and written for who asked: how many is known at the end, and they may overdraw."""
    key, state = request.state.key, request.app.state

    def spend(read: int, written: int) -> None:
        state.buckets.take("tokens", key.id, quota(key, state.config.quotas, "tokens_per_minute"), read + written)
        state.metrics.tokens.labels("read").inc(read)
        state.metrics.tokens.labels("written").inc(written)

    return spend


def over_quota(what: str, limit: Any) -> ApiError:
    """429 that waiting alone does not end."""
    return ApiError(429, f"Over the quota of {what} ({limit:,}). Delete some, or ask for a larger quota", code="quota_exceeded", headers=NO_RETRY)
