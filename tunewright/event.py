"""Everything that a run says: `Event`, to and from one JSON line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Level = Literal["info", "warn", "error"]
Kind = Literal["message", "metrics"]


@dataclass(frozen=True, slots=True)
class Event:
    """A message and its data, said at an optimizer step (0: before the first one).

    `kind` is "metrics" for the numbers of a step, else "message"; `data` holds JSON values only.
    """

    step: int
    message: str
    data: dict[str, Any] = field(default_factory=dict)
    level: Level = "info"
    kind: Kind = "message"
    created_at: float = field(default_factory=time.time)

    def to_json(self) -> str:
        """One line of strict JSON: a number that is not finite becomes null, never a made-up value."""
        record: dict[str, Any] = {"step": self.step, "level": self.level, "type": self.kind, "message": self.message}
        record |= {"created_at": round(self.created_at, 3), "data": _finite(self.data)}
        return json.dumps(record, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Event:
        """Parse what `to_json` wrote. Raises ValueError or KeyError on anything else."""
        record = json.loads(line)
        return cls(
            step=record["step"],
            message=record["message"],
            data=record["data"],
            level=record["level"],
            kind=record["type"],
            created_at=record["created_at"],
        )


def read_events(path: Path) -> Iterator[Event]:
    """The events of a run folder's `events.jsonl`, oldest first.

    A process killed while writing leaves a torn line; it is skipped, for the resumed run says it again.
    """
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                try:
                    yield Event.from_json(line.decode())
                except (ValueError, KeyError):
                    continue


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def duration(seconds: float) -> str:
    """Seconds as one would say them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
