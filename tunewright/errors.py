"""What can go wrong, said so that it can be mended: `Problem` and its few kinds.

The command line prints a problem as one sentence and leaves with its `exit_code`; the API turns
the same three fields into its error object. Anything that is not a `Problem` is a defect of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Problem(Exception):
    """What went wrong, where, and what to do about it.

    `message` is for people, `code` is stable for programs, `param` names the setting or file at fault.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class BadConfig(Problem):
    """A setting is unknown, of the wrong type, or outside its bounds."""

    exit_code = 2


class BadModel(Problem):
    """A model folder or name cannot be used, or does not fit into memory."""

    exit_code = 4


class RunFailed(Problem):
    """Training stopped for a reason of its own: non-finite losses, a full disk, a broken run folder."""

    exit_code = 5


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a data file. `line` counts from 1; 0 means the file as a whole."""

    line: int
    code: str
    message: str
    mend: str
    warning: bool = False


class BadData(Problem):
    """A data file has faults. All of them are in `faults`, in the order of their lines."""

    exit_code = 3

    def __init__(self, path: str, faults: Sequence[Fault]) -> None:
        first = faults[0]
        where = f"line {first.line}: " if first.line else ""
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{path}: {where}{first.message}. {first.mend}{more}", code=first.code, param=path)
        self.faults = tuple(faults)
