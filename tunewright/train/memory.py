"""What a step takes in memory, measured before the first one: how many tokens can be computed at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

from tunewright.data.tokens import Item
from tunewright.train.plan import Precision

# More at once is no faster on a CPU, whose caches it leaves.
MOST = {"cpu": 8192, "cuda": 65_536}
# Without gradients. Measured on CPUs (nano, 7 and 50 million weights): 8,192 take up to a third longer, and several times the memory.
MOST_READ = {"cpu": 2048, "cuda": 65_536}
# A group that is measured: large enough to tell a token's share from what any step takes.
PROBE = 512
# Of the free memory. The rest is for what other programs take meanwhile, and for memory that lies in pieces: on Linux a process was seen to take up
# to 2.6 times what torch asks the C library for.
SHARE = {"cpu": 0.3, "cuda": 0.8}


@dataclass(frozen=True, slots=True)
class Fit:
    """Tokens to compute at once, and why: bytes that a token takes, bytes that a step takes whatever its size, bytes that are free, and how many
    of those can be counted on."""

    tokens: int
    each: int
    fixed: int
    free: int
    safe: int

    def needs(self, tokens: int) -> int:
        """Bytes that a micro-batch of so many tokens takes at its highest."""
        return self.fixed + tokens * self.each


def fit(sizes: list[tuple[int, int]], free: int, device: str) -> Fit:
    """What follows from measured (tokens, bytes at the highest), one or two of them: a straight line through them, and the tokens
    whose memory is the device's `SHARE` of what is free, between 16 and the device's `MOST`, as a power of two: so what is free just now rarely
    decides how sums are rounded."""
    (few, low), (many, high) = min(sizes), max(sizes)
    # Too close together, a line would be drawn through noise; all that is taken then counts as the tokens' own, which errs to the safe side.
    each = (high - low) // (many - few) if many >= 1.5 * few and high > low else -(-high // many)
    fixed = max(0, high - many * each)
    safe = int(SHARE[device] * free)
    room = max(16, (safe - fixed) // max(1, each))
    return Fit(min(MOST[device], 2 ** (room.bit_length() - 1)), each, fixed, free, safe)


def measure(
    lay_out: Callable[[Sequence[Item]], tuple[int, Callable[[Precision], None]]],
    precision: Precision,
    items: Sequence[Item],
    device: torch.device,
    later: int,
) -> Fit:
    """Measure with the first items, and with the first half of those. `lay_out` returns how many tokens items make and what computes
    them, forth and back. `later`: bytes that the optimizer will take, which are not in use yet."""
    some = list(items[:1])
    while len(some) < len(items) and sum(len(row) for item in some for row in item.rows) < PROBE:
        some = list(items[: 2 * len(some)])
    sizes = []
    for group in (some, some[: max(1, len(some) // 2)]):  # the larger one first: what a first call takes counts as its own
        tokens, compute = lay_out(group)
        sizes.append((tokens, highest(partial(compute, precision), device)))
    return fit(sizes, free(device) - later, device.type)


def highest(work: Callable[[], None], device: torch.device) -> int:
    """Bytes that are in use at the highest while something is computed, beyond what was in use before: what torch allocated."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    quiet = os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at the first profile; else it says on stderr when it starts and stops
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    if quiet == "99":
        os.environ.pop("KINETO_LOG_LEVEL", None)
    assert profile.kineto_results is not None
    changes = sorted((event.start_ns(), event.nbytes()) for event in profile.kineto_results.events() if event.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def free(device: torch.device) -> int:
    """Bytes that this process may still take: of the GPU, or of the machine and of the control group that it runs in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(psutil.virtual_memory().available, *_allowances())


def _allowances(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What the control groups (version 1 or 2) that this process runs in leave it. Files that they cache are given back when memory is short."""
    found = [psutil.virtual_memory().total]
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return found
    for _, controllers, path in lines:
        if controllers not in ("", "memory"):
            continue
        first, names = (root / "memory", _V1) if controllers else (root, _V2)
        place = first / path.lstrip("/")
        for group in (place, *place.parents):
            found += _left(group, *names)
            if group == first:
                break
    return found


_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _left(group: Path, limit: str, used: str, cached: str) -> list[int]:
    try:
        most = (group / limit).read_text().strip()
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return [] if most == "max" else [int(most) - int((group / used).read_text()) + int(stat.get(cached, 0))]
    except (OSError, ValueError):
        return []
