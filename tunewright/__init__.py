"""Tunewright: bring a file of examples; get back a fine-tuned language model that you can measure, trust and serve.

    from tunewright import TrainConfig, check, load, measure, train

    for event in train(TrainConfig(data="train.jsonl", validation="valid.jsonl", out="runs/first")):
        print(event.message)

What needs torch is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunewright.config import TrainConfig
from tunewright.errors import Problem
from tunewright.event import Event

if TYPE_CHECKING:
    from tunewright.data.check import check
    from tunewright.evaluate.metrics import measure
    from tunewright.evaluate.verdict import difference
    from tunewright.models.load import load
    from tunewright.train.loop import train

__version__ = "0.1.0"
__all__ = ["Event", "Problem", "TrainConfig", "check", "difference", "load", "measure", "train"]

_HOMES = {
    "check": "tunewright.data.check",
    "difference": "tunewright.evaluate.verdict",
    "load": "tunewright.models.load",
    "measure": "tunewright.evaluate.metrics",
    "train": "tunewright.train.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tunewright' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
