"""A run's events -> the job's events, checkpoints, result file and outcome, each exactly once.

How far the run's events.jsonl was read stands in the job's row and changes in the transaction that records what was read.
A run that goes on after a crash says its last steps again, with the same numbers: what was recorded is not recorded twice.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tunewright.event import Event
from tunewright.jobs.home import Home
from tunewright.jobs.lifecycle import locked, move, tell
from tunewright.jobs.store import Checkpoint, File, Job, JobEvent, Store, new_id

_CHUNK = 4_000_000
CHECKPOINTS = 3
"""Epochs whose checkpoints stay."""


def record(store: Store, home: Home, job_id: str, attempt: str, organization: str) -> bool:
    """Record what the run of a job has said since the last time. True where there was something."""
    found = False
    while True:
        with store.read() as session:
            job = session.scalar(select(Job).where(Job.id == job_id))
        if job is None or job.attempt != attempt:
            return found
        text, end = _new_lines(home.job(job_id) / "run" / "events.jsonl", job.read)
        if end == job.read:
            return found
        with store.write() as session:
            job = locked(session, job_id, attempt)
            if job is None:
                return found
            for line in text.splitlines():
                _one(store, session, job, line, organization)
            job.read = end
            job.progressed_at = store.now()
        found = True


def _new_lines(path: Path, start: int) -> tuple[bytes, int]:
    """The whole lines from a place on, and where they end; a torn last line is left for later."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read(_CHUNK)
    except FileNotFoundError:
        return b"", start
    whole = text.rfind(b"\n") + 1
    return text[:whole], start + whole


def _one(store: Store, session: Session, job: Job, line: bytes, organization: str) -> None:
    try:
        event = Event.from_json(line.decode())
    except (ValueError, KeyError, TypeError):
        return  # torn by a kill; the resumed run says it again
    ends_epoch = "checkpoint" in event.data and event.data.get("epoch") is not None
    if ends_epoch:  # also where a run goes on from it: its process may have been killed before it could say so
        _checkpoint(store, session, job, event, organization)
    if event.kind == "metrics":
        _metrics(session, job, event)
    elif not (ends_epoch and event.message.startswith("Checkpoint created")) and not _was_said(session, job, event.message):
        if "n_epochs" in event.data:
            _resolved(job, event.data)
        if "kept" in event.data and event.message.startswith("Training data"):
            job.tokens = event.data["tokens"]
        tell(store, session, job, event.message, event.level, event.created_at, **_shown(event.data))
    if isinstance(finish := event.data.get("estimated_finish"), int | float):
        job.estimated_finish = float(finish)


def _metrics(session: Session, job: Job, event: Event) -> None:
    if event.step <= job.step:
        return
    data = {"step": event.step, **_shown(event.data)}
    new = JobEvent(
        id=new_id("ftevent-"), job_id=job.id, created_at=event.created_at, level=event.level, type="metrics", message=event.message, data=data
    )
    session.add(new)
    session.flush()
    job.step, job.attempts = event.step, 0
    if (total := event.data.get("total_steps")) and (finish := _finish(session, job, event, total)):
        job.estimated_finish = finish


def _finish(session: Session, job: Job, event: Event, total: int) -> float | None:
    """When the last step will be done, at the pace of the last twenty steps or fewer."""
    of_job = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.type == "metrics").order_by(JobEvent.seq.desc()).limit(20)
    before = session.scalars(of_job).all()[-1]
    steps = event.step - int(before.data["step"])
    began, done = (before.created_at, steps) if steps else (job.started_at or event.created_at, event.step)
    pace = max(0.0, event.created_at - began) / max(1, done)
    return event.created_at + pace * (total - event.step)


def _checkpoint(store: Store, session: Session, job: Job, event: Event, organization: str) -> None:
    """The checkpoint of an epoch: the job's last one carries the name of the result, those before it names of their own."""
    if session.scalar(select(Checkpoint.id).where(Checkpoint.job_id == job.id, Checkpoint.step == event.step)):
        return
    at_step = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.type == "metrics").order_by(JobEvent.seq.desc()).limit(3)
    data: dict[str, Any] = next((one.data for one in session.scalars(at_step) if one.data["step"] == event.step), {"step": event.step})
    name = model_name(job, organization)
    if event.step != data.get("total_steps"):
        name += f":ckpt-step-{event.step}"
    metrics = {key: value for key, value in data.items() if key == "step" or key.startswith(("train_", "valid_", "full_valid_"))}
    row = Checkpoint(
        id=new_id("ftckpt_"), job_id=job.id, owner=job.owner, created_at=event.created_at, step=event.step, model=name,
        folder=f"run/checkpoints/{event.data['checkpoint']}", metrics=metrics,
    )  # fmt: skip
    session.add(row)
    session.flush()
    of_job = select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step.desc())
    for old in session.scalars(of_job.offset(CHECKPOINTS)).all():
        session.delete(old)
    tell(store, session, job, f"Checkpoint created at step {event.step} with Snapshot ID: {name}", at=event.created_at, step=event.step)


def model_name(job: Job, organization: str) -> str:
    """A new name in the hosted service's form, ft:BASE:ORGANISATION:SUFFIX:ID."""
    base = job.model.split(":")[1] if job.model.startswith("ft:") else job.model
    return f"ft:{base}:{organization}:{job.suffix or ''}:{new_id('', 8)}"


def _resolved(job: Job, data: dict[str, Any]) -> None:
    """What "auto" became."""
    rate = job.hyperparameters.get("learning_rate_multiplier")
    job.hyperparameters = {
        **job.hyperparameters,
        "n_epochs": data["n_epochs"],
        "batch_size": data["batch_size"],
        "learning_rate_multiplier": 1.0 if rate in (None, "auto") else rate,
    }


def _was_said(session: Session, job: Job, message: str) -> bool:
    words = select(JobEvent.id).where(JobEvent.job_id == job.id, JobEvent.type == "message", JobEvent.message == message)
    return session.scalar(words.limit(1)) is not None


def _shown(data: dict[str, Any]) -> dict[str, Any]:
    """An event's data for clients: what was not measured is left out, and so are the machine's paths."""
    kept = {key: value for key, value in data.items() if value is not None and not (isinstance(value, str) and value.startswith("/"))}
    return {key: value for key, value in kept.items() if not (isinstance(value, float) and not math.isfinite(value))}


def succeed(store: Store, home: Home, job_id: str, attempt: str, organization: str) -> None:
    """Record a run's good end: the model, the result file, the tokens, the state."""
    with store.read() as session:
        table = _result_table(session, job_id)
        result = _stored(store, home, session, job_id, table)
    with store.write() as session:
        job = locked(session, job_id, attempt)
        if job is None:
            home.file(result.id).unlink(missing_ok=True)
            return
        session.add(result)
        last = _final_checkpoint(session, job, organization)
        tell(store, session, job, f"New fine-tuned model created: {last.model}")
        move(store, session, job, "succeeded", fine_tuned_model=last.model, result_files=[result.id], trained_tokens=_tokens(session, job))


def _final_checkpoint(session: Session, job: Job, organization: str) -> Checkpoint:
    """The checkpoint that the result is: the last, or the best one where a run stopped early and went back to it."""
    rows = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step.desc())).all()
    back = select(JobEvent).where(JobEvent.job_id == job.id, JobEvent.message.startswith("The result is the best checkpoint"))
    best = session.scalar(back)
    step = int(best.message.rsplit(" ", 1)[1]) if best else (rows[0].step if rows else job.step)
    row = next((row for row in rows if row.step == step), None)
    if row is None:  # its turn in the list was over, or the disk was full when it was due
        row = Checkpoint(
            id=new_id("ftckpt_"), job_id=job.id, owner=job.owner, created_at=job.progressed_at or job.created_at, step=step,
            model=model_name(job, organization), folder="run/model", metrics={"step": step},
        )  # fmt: skip
        session.add(row)
    if ":ckpt-step-" in row.model:
        row.model = model_name(job, organization)
    row.folder = "run/model"
    return row


def _tokens(session: Session, job: Job) -> int:
    """Tokens of the training rows times epochs, as the hosted service counts them."""
    of_job = select(JobEvent.data).where(JobEvent.job_id == job.id, JobEvent.type == "metrics").order_by(JobEvent.seq.desc())
    last = session.scalar(of_job.limit(1)) or {}
    return (job.tokens or 0) * int(last.get("epoch", 1))


def _result_table(session: Session, job_id: str) -> bytes:
    """One row a step; a cell is empty where nothing was computed."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"])
    of_job = select(JobEvent.data).where(JobEvent.job_id == job_id, JobEvent.type == "metrics").order_by(JobEvent.seq)
    for data in session.scalars(of_job):
        accuracy = next((value for key, value in data.items() if key.startswith("train_") and key.endswith("accuracy")), "")
        checked = next((value for key, value in data.items() if key.startswith("valid_") and key.endswith("accuracy")), "")
        table.writerow([data["step"], data.get("train_loss", ""), accuracy, data.get("valid_loss", ""), checked])
    return out.getvalue().encode()


def _stored(store: Store, home: Home, session: Session, job_id: str, content: bytes) -> File:
    """A result file on disk, flushed, and the row that will make it known."""
    job = session.scalar(select(Job).where(Job.id == job_id))
    assert job is not None, job_id
    row = File(
        id=new_id("file-"), owner=job.owner, filename="step_metrics.csv", purpose="fine-tune-results", bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(), status="processed", created_at=store.now(),
    )  # fmt: skip
    with home.file(row.id).open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return row
