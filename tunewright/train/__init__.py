"""Training: the loop is an iterator of events."""

import sys
from types import ModuleType
from typing import Any

import tunewright.models  # noqa: F401  first of all, for it keeps back what the import of peft would say


class _Called(ModuleType):
    """The package itself may be called: importing it puts it in the place of the function `tunewright.train`, so it must do the same."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from tunewright.train.loop import train

        return train(*arguments, **named)


sys.modules[__name__].__class__ = _Called
