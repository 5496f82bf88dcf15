"""The routes of /fine_tuning: jobs, their events and checkpoints, and who may use a checkpoint."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, bindparam, func, select
from sqlalchemy.orm import Session

from tunewright.config import TrainConfig
from tunewright.errors import BadConfig
from tunewright.jobs.home import Home, link
from tunewright.jobs.lifecycle import MOVES, OPEN, WrongState, locked, move, words
from tunewright.jobs.store import Checkpoint, File, Job, JobEvent, Key, Permission, new_id, put
from tunewright.serve import schemas
from tunewright.serve.errors import ApiError
from tunewright.serve.lists import After, Limit10, Limit20, page
from tunewright.serve.schemas import SETTINGS, Hyperparameters, JobAsked, MethodPart, PermissionAsked

router = APIRouter(prefix="/v1/fine_tuning")

RETRY_SECONDS = 900.0
"""How long a creation that is sent again counts as the same: the client's time-out of ten minutes, and its pauses."""

# What a creation asks of the database, built once: building a statement takes longer than running it.
_LATELY = select(Job.seq).where(Job.asked == bindparam("asked"), Job.retries < bindparam("again"), Job.created_at > bindparam("since"))
_LATELY = _LATELY.order_by(Job.seq.desc()).limit(1)
_SINCE = select(Job.seq).where(Job.asked == bindparam("asked"), Job.retries > 0, Job.created_at >= bindparam("since"))
_SINCE = _SINCE.order_by(Job.seq.desc()).limit(1)
_WAITING = select(func.count()).select_from(Job).where(Job.owner == bindparam("owner"), Job.status.in_(OPEN))
_FILE = select(File.purpose, File.expires_at).where(File.id == bindparam("id"), File.owner == bindparam("owner"), File.deleted_at.is_(None))


@router.post("/jobs")
def create(asked: JobAsked, request: Request) -> dict[str, Any]:
    """Make a job. One that the client sends again, since it saw no answer, is found and not made twice."""
    state, key = request.app.state, request.state.key
    begun = state.store.now()
    again = _retry(request)
    settings, tunewright = _config(asked)
    digest = hashlib.sha256(f"{key.id}\n{asked.model_dump_json()}".encode()).hexdigest()
    with state.store.write() as session:
        state.store.queue_for(session, digest)
        if found := _sent_before(session, digest, again, begun):
            return schemas.job(found, state.config)
        connection = session.connection()  # past the session, a statement takes a fraction of the time
        _within_quota(connection, state.config, key)
        base, source = _base(session, request, asked.model)
        _usable(connection, key, asked.training_file, "training_file", begun)
        if asked.validation_file:
            _usable(connection, key, asked.validation_file, "validation_file", begun)
        row = Job(
            id=new_id("ftjob-"), owner=key.owner, key_id=key.id, asked=digest, retries=again, status="validating_files", created_at=begun,
            model=base, suffix=asked.suffix, seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
            training_file=asked.training_file, validation_file=asked.validation_file, labels=asked.metadata, result_files=[],
            hyperparameters=settings["hyperparameters"] | ({"beta": settings["method"]["beta"]} if settings["method"]["kind"] == "dpo" else {}),
            request={"method": settings["method"]["kind"], "tunewright": tunewright, "config": {**settings, "model": source}},
        )  # fmt: skip
        _give_files(state.home, row)
        put(connection, row)
        other = f" and validation file: {row.validation_file}" if row.validation_file else ""
        first, second = f"Created fine-tuning job: {row.id}", f"Validating training file: {row.training_file}{other}"
        put(connection, words(row, first, begun), words(row, second, begun))
    _wake(request)
    return schemas.job(row, state.config)


def _retry(request: Request) -> int:
    """How often the official client says that it has sent this before."""
    count = request.headers.get("x-stainless-retry-count", "0")
    return int(count) if re.fullmatch(r"\d{1,3}", count) else 0


def _sent_before(session: Session, digest: str, again: int, begun: float) -> Job | None:
    """The job that this very creation has made already.

    A retry looks for one that was made lately and that no other retry has claimed; a first try, for one that its own retry,
    overtaking it, has made since it came in.
    """
    if again:
        seq = session.connection().scalar(_LATELY, {"asked": digest, "again": again, "since": begun - RETRY_SECONDS})
    else:
        seq = session.connection().scalar(_SINCE, {"asked": digest, "since": begun})
    found = None if seq is None else session.get_one(Job, seq)
    if again and found:
        found.retries = again
    return found


def _config(asked: JobAsked) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a TrainConfig as JSON values, and Tunewright's own among them as they were sent. Raises ApiError."""
    method, given = _method(asked)
    if asked.integrations:
        text = "This server sends nothing to other services. Leave integrations out; each job has TensorBoard files, events and a result file"
        raise ApiError(400, text, "integrations", "unsupported_integration")
    own = asked.tunewright or {}
    if unknown := sorted(own.keys() - SETTINGS):
        raise ApiError(
            400, f"tunewright: there is no setting {unknown[0]!r}; there are {', '.join(sorted(SETTINGS))}", "tunewright", "unknown_parameter"
        )
    wanted = own.get("method", {})
    if not isinstance(wanted, dict) or wanted.get("kind", method) != method:
        raise ApiError(400, "tunewright.method holds more settings of the method that `method` names", "tunewright.method", "invalid_value")
    values = {name: value if value is not None else "auto" for name, value in given.model_dump(exclude={"beta"}).items()}
    more = {"beta": "auto" if given.beta is None else given.beta} if method == "dpo" else {}
    try:
        config = TrainConfig.parse({**own, "data": "-", "method": {**more, **wanted, "kind": method}, "hyperparameters": values})
    except BadConfig as problem:
        raise ApiError(400, f"tunewright: {problem.message}", f"tunewright.{problem.param}", "invalid_value") from None
    settings = config.model_dump(mode="json", exclude={"data", "validation", "out", "model", "seed"})
    if method == "dpo":
        settings["method"]["beta"] = more["beta"]
    return settings, own


def _method(asked: JobAsked) -> tuple[str, Hyperparameters]:
    """The method's name, and its hyperparameters: those that stand under it, else those beside it."""
    if asked.method is None:
        return "supervised", asked.hyperparameters or Hyperparameters()
    kind = asked.method.type
    if kind == "reinforcement":
        raise ApiError(400, "method.type: this server has supervised and dpo", "method.type", "unsupported_method")
    part = getattr(asked.method, kind)
    try:
        given = MethodPart.model_validate(part).hyperparameters if part is not None else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["method", kind, *(str(name) for name in first["loc"])])
        raise ApiError(400, f"{where}: {first['msg'].removeprefix('Value error, ')}"[:1000], where[:256], "invalid_value") from None
    return kind, given or asked.hyperparameters or Hyperparameters()


def _base(session: Session, request: Request, name: str) -> tuple[str, str]:
    """A model's name as the job shows it, and what it is loaded by. Raises ApiError: not there, or not this key's."""
    state = request.app.state
    base = state.config.base_of(name)
    if base is not None:
        return base, state.config.bases()[base]
    mine = select(Checkpoint).where(Checkpoint.model == name, Checkpoint.owner == request.state.key.owner, Checkpoint.deleted_at.is_(None))
    if (row := session.scalar(mine)) and (folder := state.home.job(row.job_id) / row.folder).is_dir():
        return name, str(folder)
    raise ApiError(400, f"Model {name} is not available for fine-tuning or does not exist.", "model", "model_not_available")


def _usable(connection: Connection, key: Key, file_id: str, param: str, now: float) -> None:
    row = connection.execute(_FILE, {"id": file_id, "owner": key.owner}).first()
    if row is None or (row.expires_at is not None and row.expires_at <= now):
        raise ApiError(400, f"invalid {param}: {file_id}", param, "invalid_file")
    if row.purpose != "fine-tune":
        raise ApiError(400, f"{param}: file {file_id} was uploaded for {row.purpose}; upload it with purpose fine-tune", param, "invalid_purpose")


def _within_quota(connection: Connection, config: Any, key: Key) -> None:
    most = key.quotas.get("jobs", config.quotas.jobs)
    waiting = connection.scalar(_WAITING, {"owner": key.owner}) or 0
    if waiting >= most:
        text = f"{waiting} jobs have not ended yet, and this key may have {most}. Wait for one to end, or cancel one"
        raise ApiError(429, text, code="job_limit_exceeded", headers={"retry-after": "60", "x-should-retry": "false"})


def _give_files(home: Home, row: Job) -> None:
    """The job's own names for the bytes it learns from, and for those of a tuned model it goes on from: deleting them elsewhere leaves it alone."""
    link(home, row.id, row.training_file, row.validation_file)
    if row.model.startswith("ft:"):
        place = home.job(row.id) / "base"
        skipped = shutil.ignore_patterns("trainer.safetensors", "state.json", "manifest.json", "README.md")
        shutil.copytree(row.request["config"]["model"], place, ignore=skipped, copy_function=os.link)
        row.request = {**row.request, "config": {**row.request["config"], "model": str(place)}}


@router.get("/jobs")
def list_jobs(request: Request, after: After = None, limit: Limit20 = 20) -> dict[str, Any]:
    """The newest first; `metadata[name]=value` picks those with that pair, `metadata=null` those without any."""
    state = request.app.state
    with state.store.read() as session:
        within = [Job.owner == request.state.key.owner]
        return page(session, Job, lambda row: schemas.job(row, state.config), within=within, where=_with_metadata(request), limit=limit, after=after)


def _with_metadata(request: Request) -> list[ColumnElement[bool]]:
    wanted: list[ColumnElement[bool]] = []
    for name, value in request.query_params.multi_items():
        if name == "metadata" and value == "null":
            wanted.append(Job.labels.is_(None))
        elif match := re.fullmatch(r"metadata\[(.*)\]", name, re.DOTALL):
            if not re.fullmatch(r"[\w. -]{1,64}", match[1]):
                raise ApiError(400, "metadata: jobs are found by names of letters, digits, spaces and - _ . alone", "metadata", "invalid_value")
            wanted.append(Job.labels[match[1]].as_string() == value)
    return wanted


@router.get("/jobs/{job_id}")
def retrieve(job_id: str, request: Request) -> dict[str, Any]:
    """One job."""
    with request.app.state.store.read() as session:
        return schemas.job(_job(session, request, job_id), request.app.state.config)


@router.post("/jobs/{job_id}/cancel")
def cancel(job_id: str, request: Request) -> dict[str, Any]:
    """End a job for good. Checkpoints that it made stay."""
    return _moved(request, job_id, "cancelled")


@router.post("/jobs/{job_id}/pause")
def pause(job_id: str, request: Request) -> dict[str, Any]:
    """Have a running job save and free its place; one that waits just stays out of the queue."""
    with request.app.state.store.write() as session:
        row = _job(session, request, job_id, lock=True)
        if row.status == "running":
            row.wish = "pause"
        else:
            _move(request, session, row, "paused")
    _wake(request)
    return schemas.job(row, request.app.state.config)


@router.post("/jobs/{job_id}/resume")
def resume(job_id: str, request: Request) -> dict[str, Any]:
    """Put a paused job back into the queue."""
    return _moved(request, job_id, "queued", only="paused")


def _moved(request: Request, job_id: str, to: str, only: str | None = None) -> dict[str, Any]:
    with request.app.state.store.write() as session:
        row = _job(session, request, job_id, lock=True)
        _move(request, session, row, to, only)
    _wake(request)
    return schemas.job(row, request.app.state.config)


def _move(request: Request, session: Session, row: Job, to: str, only: str | None = None) -> None:
    if to not in MOVES[row.status] or (only and row.status != only):
        verb = {"cancelled": "cancelled", "paused": "paused", "queued": "resumed"}[to]
        raise ApiError(400, f"Job {row.id} is {row.status} and cannot be {verb}", "fine_tuning_job_id", "wrong_state")
    try:
        move(request.app.state.store, session, row, to, "The job was resumed" if only else None)
    except WrongState as problem:
        raise ApiError(400, problem.message, problem.param, problem.code) from None


def _job(session: Session, request: Request, job_id: str, lock: bool = False) -> Job:
    """A job of this key's owner. ApiError 404 otherwise: that another has it is not told."""
    row = locked(session, job_id) if lock else session.scalar(select(Job).where(Job.id == job_id))
    if row is None or row.owner != request.state.key.owner:
        raise ApiError(404, f"Could not find fine tune: {job_id[:64]}", "fine_tune_id", "fine_tune_not_found")
    return row


def _wake(request: Request) -> None:
    if request.app.state.launcher is not None:
        request.app.state.launcher.wake()


@router.get("/jobs/{job_id}/events")
def list_events(job_id: str, request: Request, after: After = None, limit: Limit20 = 20) -> dict[str, Any]:
    """What a job said, the newest first."""
    with request.app.state.store.read() as session:
        within = [JobEvent.job_id == _job(session, request, job_id).id]
        return page(session, JobEvent, schemas.event, within=within, limit=limit, after=after)


@router.get("/jobs/{job_id}/checkpoints")
def list_checkpoints(job_id: str, request: Request, after: After = None, limit: Limit10 = 10) -> dict[str, Any]:
    """The checkpoints of a job's last epochs, the newest first."""
    with request.app.state.store.read() as session:
        within = [Checkpoint.job_id == _job(session, request, job_id).id]
        return page(session, Checkpoint, schemas.checkpoint, within=within, limit=limit, after=after, ends=True)


@router.post("/checkpoints/{checkpoint:path}/permissions")
def permit(checkpoint: str, asked: PermissionAsked, request: Request) -> dict[str, Any]:
    """Let projects use a checkpoint. Answers the list of what was made."""
    store = request.app.state.store
    with store.write() as session:
        name = _checkpoint(session, request, checkpoint).model
        rows = [
            Permission(id=new_id("cp_"), checkpoint=name, project_id=project, created_at=store.now()) for project in dict.fromkeys(asked.project_ids)
        ]
        session.add_all(rows)
        session.flush()
    data = [schemas.permission(row) for row in rows]
    return {"object": "list", "data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}


@router.get("/checkpoints/{checkpoint:path}/permissions")
def list_permissions(
    checkpoint: str,
    request: Request,
    after: After = None,
    limit: Limit10 = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str | None, Query(max_length=64)] = None,
) -> dict[str, Any]:
    """Who may use a checkpoint."""
    with request.app.state.store.read() as session:
        within = [Permission.checkpoint == _checkpoint(session, request, checkpoint).model]
        where = [Permission.project_id == project_id] if project_id else []
        newest = order == "descending"
        return page(session, Permission, schemas.permission, within=within, where=where, limit=limit, after=after, newest_first=newest, ends=True)


@router.delete("/checkpoints/{checkpoint:path}/permissions/{permission_id}")
def forbid(checkpoint: str, permission_id: str, request: Request) -> dict[str, Any]:
    """Take a permission back."""
    with request.app.state.store.write() as session:
        name = _checkpoint(session, request, checkpoint).model
        row = session.scalar(select(Permission).where(Permission.id == permission_id, Permission.checkpoint == name))
        if row is None:
            raise ApiError(404, f"No such permission: {permission_id[:64]}", "permission_id")
        session.delete(row)
    return {"id": permission_id, "object": "checkpoint.permission", "deleted": True}


def _checkpoint(session: Session, request: Request, name: str) -> Checkpoint:
    row = session.scalar(select(Checkpoint).where(Checkpoint.model == name, Checkpoint.owner == request.state.key.owner))
    if row is None:
        raise ApiError(404, f"No such checkpoint: {name[:256]}", "fine_tuned_model_checkpoint", "model_not_found")
    return row
