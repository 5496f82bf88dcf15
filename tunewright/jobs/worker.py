"""A worker: one process that checks a job's files or trains it, in a job's folder, by files alone.

    job.json       what to do: the TrainConfig, and how many rows a training file must have
    attempt.json   written by the server: which attempt may go on, and whether it is asked to pause
    worker-A.json  written by the worker of attempt A first: who it is
    run/           the run folder, with events.jsonl
    check.json     what a check found
    exit-A.json    written by the worker of attempt A last: how it ended

Workers are forked from a nursery, a process that has imported torch once and computes nothing itself, so that a job starts at
once. A worker is a session of its own: it goes on when the server or the nursery ends, and is found again by its files.
Nothing is sent over sockets or pipes but, from the server to the nursery, which folder to begin with.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunewright.errors import BadData, Problem, RunFailed
from tunewright.jobs.home import read_json

LOG_BYTES = 1_000_000
_PATIENCE = 300  # tenths of a second


def main() -> None:
    """The nursery: fork a worker for each line of standard input, until that ends."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that end are gone at once
    import tunewright.train.loop  # noqa: F401  what every worker needs, imported once

    for line in sys.stdin:
        order = json.loads(line)
        if os.fork() == 0:
            _born(Path(order["folder"]), order["attempt"], order["task"])


def _born(folder: Path, attempt: str, task: str) -> None:
    """Become the worker of one attempt; does not return."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(folder / "worker.log", os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if _large(folder / "worker.log") else os.O_APPEND), 0o600)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    try:
        run(folder, attempt, {"check": check, "work": work}[task])
    finally:
        # Libraries may hang or abort when an interpreter winds down; exit.json has said it all.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > LOG_BYTES


def run(folder: Path, attempt: str, task: Callable[[Path, str], dict[str, Any]]) -> None:
    """Do a task and leave word of how it ended. What is not a Problem is written to the log and said as a crash."""
    import psutil

    if not _may_speak(folder, attempt):
        return
    _write(folder / f"worker-{attempt}.json", {"pid": os.getpid(), "started": psutil.Process().create_time()})
    try:
        end = task(folder, attempt)
    except Problem as problem:
        end = {"status": "failed", "error": {"code": problem.code, "message": problem.message, "param": problem.param}}
        if isinstance(problem, BadData):
            end["faults"] = [{"line": fault.line, "code": fault.code, "message": f"{fault.message}. {fault.mend}"} for fault in problem.faults[:100]]
    except MemoryError:
        end = {"status": "crashed", "reason": "out of memory"}
    except Exception as error:
        traceback.print_exc()
        end = {"status": "crashed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if _may_speak(folder, attempt):
        _write(folder / f"exit-{attempt}.json", end)


def work(folder: Path, attempt: str) -> dict[str, Any]:
    """Train until the end, or until asked to pause. An attempt that was given to another worker ends without a word."""
    from tunewright.config import TrainConfig
    from tunewright.train.loop import train

    job = json.loads((folder / "job.json").read_text())
    config = TrainConfig.parse({**job["config"], "out": str(folder / "run")})
    _wait_for_room(config.out)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    events = train(config)
    for _ in events:
        order = read_json(folder / "attempt.json") or {}
        if order.get("attempt") != attempt:
            os._exit(0)
        if (order.get("wish") == "pause" or stop) and not (folder / "run" / "exit.json").is_file():
            events.close()
            return {"status": "stopped"}
    return {"status": "succeeded"}


def _wait_for_room(run: Path) -> None:
    """Until the worker before this one has let go of the run folder: a process that was killed counts as dead before its last thread is."""
    from tunewright.train.folder import hold

    for _ in range(_PATIENCE):
        try:
            with hold(run):
                return
        except RunFailed:
            time.sleep(0.1)


def check(folder: Path, attempt: str) -> dict[str, Any]:
    """Look the files over as `tunewright check` does; what is found goes to check.json."""
    from tunewright.data.check import check

    job = json.loads((folder / "job.json").read_text())
    config, minimum = job["config"], job["minimum"]
    validation = config.get("validation")
    report = check(Path(config["data"]), Path(validation) if validation else None, minimum)
    _write(folder / "check.json", report.to_dict())
    return {"status": "checked"}


def _may_speak(folder: Path, attempt: str) -> bool:
    return (read_json(folder / "attempt.json") or {}).get("attempt") == attempt


def _write(path: Path, record: dict[str, Any]) -> None:
    """Write a small file that is there whole or not at all; each process has a temporary name of its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with temporary.open("w") as file:
        file.write(json.dumps(record))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


if __name__ == "__main__":
    main()
