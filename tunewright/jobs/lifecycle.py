"""The states of a job: one table of moves, and functions that make one move in the caller's transaction, with its events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tunewright.errors import Problem
from tunewright.jobs.store import Delivery, Job, JobEvent, Store, new_id

# From each state to those that may follow. A worker that is lost puts its job back into the queue.
MOVES: dict[str, frozenset[str]] = {
    "validating_files": frozenset({"queued", "failed", "cancelled"}),
    "queued": frozenset({"running", "paused", "failed", "cancelled"}),
    "running": frozenset({"queued", "paused", "succeeded", "failed", "cancelled"}),
    "paused": frozenset({"queued", "cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
FINAL = frozenset(state for state, after in MOVES.items() if not after)
OPEN = tuple(state for state in MOVES if state not in FINAL)

ATTEMPTS = 3
"""Workers that may be lost in a row without a step completed."""

_SAID = {
    "queued": "Files validated, moving job to queued state",
    "running": "Fine-tuning job started",
    "paused": "The job was paused",
    "succeeded": "The job has successfully completed",
    "cancelled": "The job was cancelled",
}


class WrongState(Problem):
    """A job cannot go from where it is to where it was asked to go."""


def locked(session: Session, job_id: str, attempt: str | None = None) -> Job | None:
    """A job, held by this transaction until it ends; None where there is none, or where another attempt now speaks for it."""
    job = session.scalar(select(Job).where(Job.id == job_id).with_for_update())
    return job if job and (attempt is None or job.attempt == attempt) else None


def move(store: Store, session: Session, job: Job, to: str, said: str | None = None, **changes: Any) -> None:
    """Bring a job into another state, with its event and, at its end, the messages to the outside.

    `said`: the event's words, where they are not the usual ones. `changes`: columns that change with it.
    Raises WrongState where the table does not have the move.
    """
    if to not in MOVES[job.status]:
        raise WrongState(f"Job {job.id} is {job.status} and cannot become {to}", code="wrong_state", param="fine_tuning_job_id")
    now = store.now()
    job.status = to
    if to != "running":
        job.attempt, job.wish, job.estimated_finish = None, None, None
    for name, value in changes.items():
        setattr(job, name, value)
    tell(store, session, job, said or _SAID[to], level="error" if to == "failed" else "info")
    if to in FINAL:
        job.finished_at = now
        for sink in store.sinks:
            kind = f"fine_tuning.job.{to}"
            session.add(Delivery(id=new_id("evt_"), job_id=job.id, kind=kind, target=sink, created_at=now, due_at=now))


def fail(store: Store, session: Session, job: Job, code: str, message: str, param: str | None = None) -> None:
    """Bring a job to its bad end, with the reason in its error and in an event."""
    move(store, session, job, "failed", f"The job failed: {message}", error={"code": code, "message": message, "param": param})


def tell(store: Store, session: Session, job: Job, message: str, level: str = "info", at: float | None = None, **data: Any) -> None:
    """Add an event of words."""
    session.add(words(job, message, at or store.now(), level, **data))
    session.flush()  # events are numbered in the order in which they are said


def words(job: Job, message: str, at: float, level: str = "info", **data: Any) -> JobEvent:
    """An event of words, not added yet. `at`: Unix seconds."""
    return JobEvent(id=new_id("ftevent-"), job_id=job.id, created_at=at, level=level, type="message", message=message, data=data)


def next_queued(session: Session, but: Iterable[str] = ()) -> Job | None:
    """The job that is to start next: of the owner with the fewest running jobs, then of the one who has waited longest for a start, then the oldest.

    So one who queues a hundred jobs does not hold up another who queues one.
    """
    waiting = select(Job.owner, func.min(Job.seq).label("first")).where(Job.status == "queued", Job.id.not_in(list(but))).group_by(Job.owner)
    heads = session.execute(waiting).all()
    if not heads:
        return None
    running: dict[str, int] = {}
    for owner, count in session.execute(select(Job.owner, func.count()).where(Job.status == "running").group_by(Job.owner)):
        running[owner] = count
    owners = [owner for owner, _ in heads]
    served: dict[str, float] = {}
    for owner, when in session.execute(select(Job.owner, func.max(Job.started_at)).where(Job.owner.in_(owners)).group_by(Job.owner)):
        served[owner] = when or 0.0
    _, first = min(heads, key=lambda head: (running.get(head.owner, 0), served.get(head.owner, 0.0), head.first))
    return session.get(Job, first)
