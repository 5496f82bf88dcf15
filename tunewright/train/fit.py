"""A run that does not fit into memory -> the nearest changes that do, each measured anew before it is said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from tunewright.config import Lora, TopLayers, TrainConfig
from tunewright.errors import Problem
from tunewright.train.measure import MARGIN, apart

_SAFE = 0.95  # of the room that a change is reckoned to need, so that it is right at the first try
_TRIES = 2


@dataclass(frozen=True, slots=True)
class Change:
    """Settings to put over a config, what they change, and what that costs."""

    settings: tuple[str, ...]
    lever: str
    price: str


def nearest(config: TrainConfig, found: dict[str, Any] | None, limit: int, most: int = 2) -> Iterator[tuple[Change, dict[str, Any]]]:
    """Changes that fit into `limit` bytes, the nearest first, each with its own estimate; `most` of them.

    `found`: the estimate of the run as it is, or None where not even its weights could be loaded. One that misses is tried once more, smaller.
    """
    fitting = 0
    for change in changes(config, found, limit):
        tighter = limit
        for _ in range(_TRIES):
            try:
                tried = apart(_with(config, change), limit)
            except Problem as problem:
                if problem.code != "out_of_memory" and not isinstance(found, dict):
                    raise
                break
            if tried["fits"]:
                yield change, tried
                fitting += 1
                break
            if found is None:
                break
            tighter = int(tighter * limit / tried["estimated_peak_memory_bytes"] / MARGIN)
            again = next((other for other in changes(config, found, tighter) if other.lever == change.lever), change)
            if again == change:
                break
            change = again
        if fitting == most:
            return


def _with(config: TrainConfig, change: Change) -> TrainConfig:
    return TrainConfig.parse(config.model_dump(mode="json"), list(change.settings))


def changes(config: TrainConfig, found: dict[str, Any] | None, limit: int) -> list[Change]:
    """What could bring the peak below `limit` bytes, in the order of how little it changes; reckoned, not yet measured."""
    if found is None:
        return [_bits("tuning=lora")] if _can_quantise(config) else []
    parts = found["estimated_memory_bytes_by_part"]
    held, fixed, activations = parts["libraries_and_weights"], parts["gradients_and_optimizer"], max(1, parts["activations"])
    room = limit / MARGIN * _SAFE
    made: list[Change] = []
    tokens = int(found["largest_micro_batch_tokens"] * (room - held - fixed) / activations)
    longest = found["longest_row_tokens"]
    if tokens >= longest:
        made.append(_batch(tokens))
    if not config.recompute and held + fixed + activations / 3 < room:
        made.append(Change(("recompute=true",), "recompute", "each layer is computed again in the backward pass: slower, the same gradient"))
    if 16 <= tokens < longest:
        settings = (f"max_tokens={tokens}", f"micro_batch_tokens={tokens}")
        made.append(Change(settings, "length", f"rows of more than {tokens:,} tokens (the longest has {longest:,}) lose their end"))
    if isinstance(config.tuning, Lora):
        rank = int(config.tuning.rank * (room - held - activations) / max(1, fixed))
        if 1 <= rank < config.tuning.rank:
            rank = 1 << (rank.bit_length() - 1)
            made.append(Change((f"tuning.rank={rank}",), "rank", "smaller adapters learn less"))
    else:
        made += _fewer_layers(config, found, (room - held) / (fixed + activations))
        made.append(Change(("tuning=lora",), "tuning", "adapters in place of the weights themselves"))
    if _can_quantise(config) and held - 3.5 * found["parameters"] < room:
        few = max(longest, 16)
        made += [_bits(*(() if isinstance(config.tuning, Lora) else ("tuning=lora",)))]
        made += [_bits("tuning=lora", f"micro_batch_tokens={few}")]
    return made


def _batch(tokens: int) -> Change:
    return Change((f"micro_batch_tokens={tokens}",), "batch", "fewer rows are computed at once: slower, the same gradient")


def _fewer_layers(config: TrainConfig, found: dict[str, Any], share: float) -> list[Change]:
    """The top layers alone, as many as this share of what trains now allows."""
    layers = config.tuning.layers if isinstance(config.tuning, TopLayers) else found["layers"]
    fewer = int(share * (layers + 1)) - 1  # the head counts as one
    if not 0 <= fewer < layers:
        return []
    return [Change((f"tuning={{kind: top_layers, layers: {fewer}}}",), "layers", f"only {fewer} of {found['layers']} layers and the head learn")]


def _can_quantise(config: TrainConfig) -> bool:
    return find_spec("bitsandbytes") is not None and getattr(config.tuning, "bits", None) is None and config.tuning.kind != "prompt"


def _bits(*more: str) -> Change:
    # `tuning=lora` first: it would undo the bits.
    return Change((*more, "tuning.bits=4"), "bits" if not more else "bits and batch", "the base is held in 4 bits: slower, a little less exact")
