"""The launcher: a thread that brings jobs from state to state, by what their workers' files say.

It is the only one that starts and ends workers. All it needs to know stands in the database and in the jobs' folders, so that
one that begins anew goes on where the last one was killed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from tunewright.config import TrainConfig
from tunewright.jobs.home import Home, alive, link, read_json
from tunewright.jobs.lifecycle import ATTEMPTS, fail, locked, move, next_queued, tell
from tunewright.jobs.record import record, succeed
from tunewright.jobs.store import Job, Store, new_id

log = logging.getLogger(__name__)

TICK_SECONDS = 0.2
BIRTH_SECONDS = 120.0
"""How long a nursery may take to bring a worker into the world: it imports torch first."""
CHECKS_AT_ONCE = 2
# What a worker may know of the server's surroundings: nothing that holds a secret.
ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "HF_HOME", "TOKENIZERS_PARALLELISM",
)  # fmt: skip


@dataclass(slots=True)
class Watched:
    """A worker that was asked for: its task and attempt, and when it last gave a sign, by the monotonic clock."""

    task: str
    attempt: str
    since: float = field(default_factory=time.monotonic)
    size: int = -1
    fenced: bool = False


class Launcher:
    """`start` it, `wake` it when there is news, `stop` it: running workers go on without it."""

    def __init__(
        self, store: Store, home: Home, *, concurrent: int = 1, stall_seconds: float = 900.0, organization: str = "local", hub: bool = False
    ) -> None:
        """`concurrent`: jobs that run at once. `hub`: whether workers may fetch models from the Hugging Face Hub; they ask nobody otherwise."""
        self.store = store
        self.home = home
        self.concurrent = concurrent
        self.stall_seconds = stall_seconds
        self.organization = organization
        self.hub = hub
        self.workers: dict[str, Watched] = {}
        self.check_failures: dict[str, int] = {}
        self.nursery: subprocess.Popen[str] | None = None
        self._first_round = True
        self._news = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="launcher", daemon=True)

    def start(self) -> None:
        """Adopt the workers that an earlier server left, and begin."""
        self._adopt()
        self._raise_nursery()
        self._thread.start()

    def wake(self) -> None:
        """Look now instead of at the next tick."""
        self._news.set()

    def stop(self) -> None:
        """End the thread and the nursery. Workers go on; the next launcher adopts them."""
        self._stopping = True
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        if self.nursery and self.nursery.stdin:
            self.nursery.stdin.close()

    def _work(self) -> None:
        while not self._stopping:
            try:
                self.tick()
            except Exception:
                # One bad moment (a locked database, a full disk) must not end all jobs; what it is stands in the log.
                log.exception("The launcher could not finish a round; it tries again")
                time.sleep(1)
            self._news.wait(TICK_SECONDS)
            self._news.clear()

    def tick(self) -> None:
        """One round: follow what runs, end what may not run, validate, start."""
        with self.store.read() as session:
            active = session.scalars(select(Job).where(Job.status.in_(("validating_files", "running"))).order_by(Job.seq)).all()
        for job in active:
            if job.status == "running":
                self._follow(job)
            else:
                self._validate(job)
        self._end_strays({job.id: job for job in active})
        while self._start_next():
            pass
        self._first_round = False

    # --- validating

    def _validate(self, job: Job) -> None:
        watched = self.workers.get(job.id)
        if watched is None or watched.task != "check":
            if sum(worker.task == "check" for worker in self.workers.values()) < CHECKS_AT_ONCE and self._files_there(job):
                self._order(job, "check", new_id("", 16))
            return
        folder = self.home.job(job.id)
        end = read_json(folder / f"exit-{watched.attempt}.json")
        if end is None and not self._is_lost(job.id, watched):
            return
        del self.workers[job.id]
        if end and end["status"] == "checked":
            self._checked(job, json.loads((folder / "check.json").read_text()))
            return
        self.check_failures[job.id] = failures = self.check_failures.get(job.id, 0) + 1
        if failures >= ATTEMPTS:
            reason = (end or {}).get("reason", "its process was killed")
            with self.store.write() as session:
                if (row := locked(session, job.id)) and row.status == "validating_files":
                    fail(self.store, session, row, "check_failed", f"The files could not be checked: {reason}", "training_file")

    def _files_there(self, job: Job) -> bool:
        """Whether the job has its own links to its files; made again where a power cut took them."""
        try:
            link(self.home, job.id, job.training_file, job.validation_file)
        except FileNotFoundError:
            with self.store.write() as session:
                if (row := locked(session, job.id)) and row.status == "validating_files":
                    fail(self.store, session, row, "file_not_found", "A file of this job is no longer there; upload it again", "training_file")
            return False
        return True

    def _checked(self, job: Job, report: dict[str, Any]) -> None:
        with self.store.write() as session:
            row = locked(session, job.id)
            if row is None or row.status != "validating_files":
                return
            error = _first_error(report, row)
            if error:
                fail(self.store, session, row, *error)
                return
            reports = {row.training_file: report, row.validation_file: report["validation"]}
            for file, part in reports.items():
                for fault in (part or {}).get("faults", [])[:20]:
                    words = f"{file}: {fault['message']}. {fault['mend']}"
                    tell(self.store, session, row, words, "warn", code=fault["code"], line=fault["line"], file=file)
            move(self.store, session, row, "queued")

    # --- running

    def _start_next(self) -> bool:
        """Start the job whose turn it is. False where there is none, or no room."""
        with self.store.read() as session:
            if len(session.scalars(select(Job.id).where(Job.status == "running")).all()) >= self.concurrent:
                return False
            busy = [job_id for job_id, worker in self.workers.items() if worker.task == "work"]
            job = next_queued(session, busy)  # a worker of an earlier attempt must be gone first
        if job is None:
            return False
        attempt = new_id("", 16)
        with self.store.write() as session:
            row = locked(session, job.id)
            if row is None or row.status != "queued":
                return True
            said = f"The job goes on after step {row.step}" if row.started_at else None
            move(self.store, session, row, "running", said, attempt=attempt, wish=None, started_at=self.store.now())
        self._order(job, "work", attempt)
        return True

    def _follow(self, job: Job) -> None:
        assert job.attempt is not None, job.id
        watched = self.workers.get(job.id)
        if watched is None or watched.attempt != job.attempt:
            # No worker was asked for, most likely because the server was killed before it could.
            self._lost(job, "the server was stopped before it began", counts=not self._first_round)
            return
        folder = self.home.job(job.id)
        end = read_json(folder / f"exit-{job.attempt}.json")  # read before the events: what is recorded then is all there is
        if record(self.store, self.home, job.id, job.attempt, self.organization):
            watched.since = time.monotonic()
        if end is not None:
            del self.workers[job.id]
            self._ended(job, end)
        elif self._is_lost(job.id, watched):
            if read_json(folder / f"exit-{job.attempt}.json") is None:  # it may have ended just now
                record(self.store, self.home, job.id, job.attempt, self.organization)
                del self.workers[job.id]
                self._lost(job, "its process was killed")
        elif job.wish and (read_json(folder / "attempt.json") or {}).get("wish") != job.wish:
            self._write(folder / "attempt.json", {"attempt": job.attempt, "wish": job.wish})
        elif self._hangs(folder, watched):
            self._kill(job.id, watched)
            self._lost(job, f"it made no progress for {self.stall_seconds:.0f} s")

    def _ended(self, job: Job, end: dict[str, Any]) -> None:
        """A worker left word of how it ended."""
        assert job.attempt is not None, job.id
        if end["status"] == "succeeded":
            succeed(self.store, self.home, job.id, job.attempt, self.organization)
        elif end["status"] == "crashed":
            self._lost(job, str(end["reason"]))
        else:
            with self.store.write() as session:
                row = locked(session, job.id, job.attempt)
                if row is None:
                    return
                if end["status"] == "stopped":
                    move(
                        self.store, session, row, "paused" if row.wish == "pause" else "queued", None if row.wish else "The job was stopped and waits"
                    )
                else:
                    error = end["error"]
                    param = _param(error["param"], row)
                    fail(self.store, session, row, error["code"], _without_paths(error["message"], self.home, row), param)

    def _lost(self, job: Job, why: str, counts: bool = True) -> None:
        """The worker is gone: the job goes on with another one, unless too many were lost without a step."""
        with self.store.write() as session:
            row = locked(session, job.id, job.attempt)
            if row is None:
                return
            row.attempts += counts
            if row.wish == "pause":
                move(self.store, session, row, "paused")
            elif row.attempts >= ATTEMPTS:
                text = f"{row.attempts} workers in a row were lost without completing a step; the last one: {why}"
                fail(self.store, session, row, "worker_lost", text)
            else:
                move(self.store, session, row, "queued", f"The worker was lost ({why}); the job goes on from its last checkpoint")

    # --- workers

    def _order(self, job: Job, task: str, attempt: str) -> None:
        """Have a worker born for an attempt. From here on any other one's word does not count."""
        folder = self.home.job(job.id)
        folder.mkdir(mode=0o700, exist_ok=True)
        for old in [*folder.glob("worker-*.json"), *folder.glob("exit-*.json")]:
            old.unlink(missing_ok=True)
        self._write(folder / "job.json", {"config": run_config(self.home, job), "minimum": 10})
        self._write(folder / "attempt.json", {"attempt": attempt, "wish": None})
        self.workers[job.id] = Watched(task, attempt)
        nursery = self._raise_nursery()
        assert nursery.stdin is not None
        try:
            nursery.stdin.write(json.dumps({"folder": str(folder), "attempt": attempt, "task": task}) + "\n")
            nursery.stdin.flush()
        except BrokenPipeError:
            self.nursery = None  # it was killed; the next round finds that no worker was born

    def _raise_nursery(self) -> subprocess.Popen[str]:
        if self.nursery is None or self.nursery.poll() is not None:
            environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
            environment["HF_HUB_OFFLINE"] = str(int(not self.hub))
            with (self.home.path / "nursery.log").open("a") as errors:
                command = [sys.executable, "-m", "tunewright.jobs.worker"]
                self.nursery = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, text=True, env=environment, start_new_session=True
                )
        return self.nursery

    def _process(self, job_id: str, watched: Watched) -> tuple[int, float] | None:
        """A worker's process id and start time, once it is born."""
        record = read_json(self.home.job(job_id) / f"worker-{watched.attempt}.json")
        return (int(record["pid"]), float(record["started"])) if record else None

    def _is_lost(self, job_id: str, watched: Watched) -> bool:
        """Whether a worker is gone, or was never born."""
        process = self._process(job_id, watched)
        if process is None:
            dead = self.nursery is None or self.nursery.poll() is not None
            return dead or time.monotonic() - watched.since > BIRTH_SECONDS
        return not alive(*process)

    def _hangs(self, folder: Path, watched: Watched) -> bool:
        """Whether a run has said nothing for too long: being alive is not enough."""
        try:
            size = (folder / "run" / "events.jsonl").stat().st_size
        except FileNotFoundError:
            size = 0
        if size != watched.size:
            watched.size, watched.since = size, time.monotonic()
        return time.monotonic() - watched.since > self.stall_seconds

    def _kill(self, job_id: str, watched: Watched) -> None:
        process = self._process(job_id, watched)
        if process and alive(*process):
            os.killpg(process[0], signal.SIGKILL)

    def _end_strays(self, active: dict[str, Job]) -> None:
        """End workers whose attempt is over: of jobs that were cancelled, lost or finished otherwise."""
        for job_id, watched in list(self.workers.items()):
            job = active.get(job_id)
            if job and (watched.task == "check" if job.status == "validating_files" else watched.attempt == job.attempt):
                continue
            with self.store.read() as session:  # `active` may be older than the worker
                job = session.scalar(select(Job).where(Job.id == job_id))
            if job and (job.attempt == watched.attempt or (watched.task == "check" and job.status == "validating_files")):
                continue
            if not watched.fenced:
                self._write(self.home.job(job_id) / "attempt.json", {"attempt": None, "wish": None})
                watched.fenced = True
            self._kill(job_id, watched)
            if self._is_lost(job_id, watched):
                del self.workers[job_id]

    def _adopt(self) -> None:
        """Find the workers that an earlier server began, by their jobs' rows and files."""
        with self.store.read() as session:
            running = {job.id: job.attempt for job in session.scalars(select(Job).where(Job.status == "running"))}
        for path in self.home.path.glob("jobs/*/worker-*.json"):
            job_id, attempt = path.parent.name, path.stem.removeprefix("worker-")
            process = read_json(path)
            if running.get(job_id) == attempt:
                self.workers[job_id] = Watched("work", attempt)
            elif process and alive(int(process["pid"]), float(process["started"])):
                self.workers.setdefault(job_id, Watched("work", attempt))

    @staticmethod
    def _write(path: Path, record: dict[str, Any]) -> None:
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(json.dumps(record))
        temporary.rename(path)


def run_config(home: Home, job: Job) -> dict[str, Any]:
    """The TrainConfig that a job's row asks for, as JSON values."""
    folder = home.job(job.id)
    settings = {key: value for key, value in job.request["config"].items() if key not in ("data", "validation", "out")}
    record = {**settings, "data": str(folder / "training.jsonl"), "seed": job.seed, "out": str(folder / "run")}
    if job.validation_file:
        record["validation"] = str(folder / "validation.jsonl")
    return TrainConfig.parse(record).model_dump(mode="json")


# Codes that the hosted service has a name of its own for.
_HOSTED = {"too_few_examples": "invalid_n_examples"}


def _first_error(report: dict[str, Any], job: Job) -> tuple[str, str, str] | None:
    """The code, words and param of the first thing wrong with a job's files, and how many more there are."""
    for part, param in ((report, "training_file"), (report["validation"], "validation_file")):
        errors = [fault for fault in (part or {}).get("faults", []) if not fault["warning"]]
        if errors:
            shown = [(f"line {fault['line']}: " if fault["line"] else "") + f"{fault['message']}. {fault['mend']}" for fault in errors[:100]]
            more = f"; and {len(errors) - 100} more" if len(errors) > 100 else ""
            return _HOSTED.get(errors[0]["code"], errors[0]["code"]), "; ".join(shown) + more, param
    method = job.request["config"]["method"]["kind"]
    if (report["format"] == "pair") != (method == "dpo"):
        text = (
            "method dpo learns from pairs, and the file holds other rows"
            if method == "dpo"
            else "The file holds pairs of answers; use the method dpo"
        )
        return "invalid_training_file", text, "training_file"
    return None


def _param(param: str | None, job: Job) -> str | None:
    """A setting at fault by the API's name."""
    if param and "/" in param:
        return "validation_file" if param.endswith("validation.jsonl") else "training_file"
    return param


def _without_paths(message: str, home: Home, job: Job) -> str:
    """Words for a client: where a file lies on this machine is not its business."""
    folder = str(home.job(job.id))
    named = message.replace(f"{folder}/training.jsonl", job.training_file).replace(f"{folder}/validation.jsonl", job.validation_file or "")
    return named.replace(folder, job.id)
