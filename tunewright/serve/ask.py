"""What goes into the engine and what comes out: `Ask`, `Piece`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tunewright.errors import Problem


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model that may be asked. `folder`: a model, or an adapter that lies on the model called `base`."""

    name: str
    folder: Path
    base: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer that is wanted. `grammar`: llguidance's form of what the answer must be. `pieces`: whether text is wanted as it
    comes, or all at once. `top_logprobs`: None where no log-probabilities are wanted."""

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: dict[int, float] = field(default_factory=dict)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None
    grammar: str | None = None
    pieces: bool = True


@dataclass(frozen=True, slots=True)
class Chance:
    """A token's log-probability in nats, and those of the likeliest in its place: (id, log-probability)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of an answer. The last has a `finish` ("stop" or "length") or a `problem`. `tokens`: how many the answer has so far, with
    the one that ended it."""

    text: str
    tokens: int
    chances: tuple[Chance, ...] = ()
    finish: str | None = None
    problem: Problem | None = None

    @property
    def last(self) -> bool:
        """Whether nothing follows."""
        return self.finish is not None or self.problem is not None
