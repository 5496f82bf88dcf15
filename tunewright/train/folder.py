"""A run folder: what it holds, who may write to it, and what a run leaves there.

config.json as asked · plan.json as resolved · events.jsonl · checkpoints/ · tensorboard/ · model/ · README.md · exit.json last.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewright.config import TrainConfig
from tunewright.data.container import files
from tunewright.errors import BadConfig, RunFailed
from tunewright.event import Event


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process alone. Raises RunFailed when another one writes to it.

    The lock is the kernel's, so it goes with a process however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunFailed(f"{folder} cannot be written to: {error.strerror}", code="folder_unwritable", param="out") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise RunFailed(f"{folder} is being written to by process {owner}", code="folder_in_use", param="out") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def open_run(config: TrainConfig) -> TrainConfig:
    """Begin a run in `config.out`, or go on with the one that is there. Returns the config with absolute paths.

    Raises BadConfig when the folder holds a run with other settings, or files that are not a run's.
    """
    place = config.out / "config.json"
    resolved = config.model_copy(
        update={
            "data": config.data.absolute(),
            "validation": config.validation and config.validation.absolute(),
            "out": config.out.absolute(),
            "model": str(Path(config.model).absolute()) if Path(config.model).is_dir() and config.model != "nano" else config.model,
        }
    )
    if place.is_file():
        there = read_config(config.out)
        if there.model_copy(update={"out": resolved.out}) != resolved:
            other = [key for key in type(there).model_fields if key != "out" and getattr(there, key) != getattr(resolved, key)]
            raise BadConfig(
                f"{config.out} holds a run with another {', '.join(other)}; choose another --out, "
                f"or go on with that run: tunewright train --resume {config.out}",
                code="folder_holds_another_run",
                param="out",
            )
        return resolved
    # A process killed while it wrote its very first file leaves that file's beginning.
    if others := [path.name for path in config.out.iterdir() if path.name != "lock" and not path.name.startswith(".tmp-")]:
        raise BadConfig(f"{config.out} is not empty ({others[0]}) and holds no run; choose another --out", code="folder_not_empty", param="out")
    write_json(place, resolved.model_dump(mode="json"))
    return resolved


def read_config(folder: Path) -> TrainConfig:
    """The config of a run folder, its `out` being where it lies now. Raises BadConfig when there is no run."""
    place = folder / "config.json"
    try:
        record = json.loads(place.read_text())
    except (OSError, ValueError):
        raise BadConfig(f"{folder} holds no run: there is no readable config.json in it", code="no_run", param="--resume") from None
    return TrainConfig.parse({**record, "out": str(folder.absolute())})


def write_json(place: Path, record: dict[str, Any]) -> None:
    """Write a small JSON file so that it is there whole or not at all."""
    temporary = place.with_name(f".tmp-{place.name}")
    with temporary.open("w") as file:
        file.write(json.dumps(record, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(place)


def sha256(path: Path) -> str:
    """The hash of a file's bytes; of several files that a pattern or a folder names, that of their hashes."""
    found = files(path)
    if len(found) > 1 or found[0] != path:
        return hashlib.sha256("".join(map(sha256, found)).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded(events: Iterator[Event], folder: Path) -> Iterator[Event]:
    """Pass events on, each written to `events.jsonl` first and its numbers to TensorBoard.

    The line is in the file before anyone acts on it, so what was seen is what is kept.
    """
    from torch.utils.tensorboard import SummaryWriter

    path = folder / "events.jsonl"
    torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file, SummaryWriter(str(folder / "tensorboard")) as board:
        if torn:
            file.write("\n")
        for event in events:
            try:
                file.write(event.to_json() + "\n")
                file.flush()
            except OSError as error:
                raise RunFailed(f"{path} cannot be written: {error.strerror}. Make room and resume", code="disk_full") from None
            if event.kind == "metrics":
                for name, value in event.data.items():
                    if isinstance(value, float):
                        board.add_scalar(name, value, event.step)
            yield event
