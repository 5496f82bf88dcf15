"""The home folder: where a server's database, files, uploads and jobs lie, and the lock that one server holds on it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import Problem

REPORT = ".report"


class HomeTaken(Problem):
    """Another server holds the home folder."""


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below one folder. Names come from server-made ids only."""

    path: Path

    @property
    def database(self) -> str:
        """The URL of the database where none was configured."""
        return f"sqlite:///{self.path / 'tunewright.db'}"

    def file(self, id: str) -> Path:
        """An uploaded file's bytes."""
        return self.path / "files" / id

    def report(self, id: str) -> Path:
        """What a check said of an uploaded file."""
        return self.path / "files" / f"{id}{REPORT}"

    def upload(self, id: str) -> Path:
        """The folder of an upload's parts."""
        return self.path / "uploads" / id

    def job(self, id: str) -> Path:
        """A job's folder: config, attempts, and its run in `run`."""
        return self.path / "jobs" / id

    def make(self) -> None:
        """Make the folders, for this user alone."""
        for folder in (self.path, self.path / "files", self.path / "uploads", self.path / "jobs", self.path / "tmp"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lock(self, what: str) -> int:
        """Take the folder for this process until it ends, however it ends. Returns the open handle.

        Raises HomeTaken at once, naming the one that holds it: `what` is what each says of itself.
        """
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(handle, 4096, 0).decode(errors="replace").strip() or "another server"
            os.close(handle)
            text = f"{self.path} is in use by {holder}. Stop that one first, or choose another --home"
            raise HomeTaken(text, code="home_taken", param="--home") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}, {what}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
        return handle


def alive(pid: int, started: float) -> bool:
    """Whether a process with this id, started at this time (psutil's), still runs: an id alone may have passed to another."""
    import psutil

    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 0.1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON file of our own, or None where it is not there (yet) or torn."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def link(home: Home, job_id: str, training_file: str, validation_file: str | None) -> None:
    """Give a job its own names for its files' bytes: they stay while the job does, also where the files are deleted.

    Raises FileNotFoundError.
    """
    folder = home.job(job_id)
    folder.mkdir(mode=0o700, exist_ok=True)
    for file, name in ((training_file, "training.jsonl"), (validation_file, "validation.jsonl")):
        if file and not (folder / name).exists():
            os.link(home.file(file), folder / name)
