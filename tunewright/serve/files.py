"""Files: sent, listed, read back, deleted. What a client calls a file is shown and never becomes part of a path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from tunewright.jobs.home import Home
from tunewright.jobs.store import File, Key, Part, Store, Upload, new_id
from tunewright.serve.errors import ApiError
from tunewright.serve.forms import Form, receive, settle, temporary
from tunewright.serve.lists import After, page
from tunewright.serve.quota import over_quota, quota

router = APIRouter(prefix="/v1/files", tags=["files"])

# The hosted service's `evals` is not among them: it has no such purpose in its answers, and this server no evals.
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data")
LONGEST = 2_592_000
# A client that got no answer sends the same again, and says so in this header.
RETRY = "x-stainless-retry-count"
_AGAIN_SECONDS = 600

Purpose = Annotated[str | None, Query(max_length=64, description="Only files of this purpose.")]
Limit = Annotated[int, Query(ge=1, le=10_000, description="Rows a page: 10,000 by default.")]


def show(file: File) -> dict[str, Any]:
    """A file as the API has it."""
    record = {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
    }
    return record | ({"expires_at": int(file.expires_at)} if file.expires_at is not None else {})


@router.post("", openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {"type": "object"}}}}})
async def create(request: Request) -> dict[str, Any]:
    """Send a file: multipart with `purpose`, `file` and perhaps `expires_after[anchor]`, `expires_after[seconds]`."""
    state = request.app.state
    await run_in_threadpool(_check_room_now, request)
    with temporary(state.home) as path:
        form = await receive(request, path, "file", state.config.limits.file_bytes)
        purpose = form.fields.get("purpose")
        if purpose is None:
            raise ApiError(400, "purpose: Field required", param="purpose", code="missing_field")
        keep = _expiry(form.fields)
        check_file(form.filename, purpose, form.bytes)
        again = request.headers.get(RETRY, "0") != "0"
        return show(await run_in_threadpool(_keep, request, path, form, purpose, keep, again))


def _check_room_now(request: Request) -> None:
    """Before a large body is read in vain."""
    state = request.app.state
    with state.store.read() as session:
        check_room(session, request.state.key, state, 0)


def _keep(request: Request, path: Any, form: Form, purpose: str, keep: int | None, again: bool) -> File:
    state, key = request.app.state, request.state.key
    store: Store = state.store
    now = store.now()
    file = new_file(key.owner, form.filename or "upload", purpose, form.bytes, form.sha256, now, keep)
    if again and (known := _sent_before(store, file)):
        return known
    settle(path, state.home.file(file.id))
    try:
        with store.write() as session:
            check_room(session, key, state, form.bytes)
            session.add(file)
    except BaseException:
        state.home.file(file.id).unlink(missing_ok=True)
        raise
    return file


def new_file(owner: str, filename: str, purpose: str, size: int, sha256: str, now: float, keep: int | None) -> File:
    """A row for bytes that are at hand; whether they make sense as training data is for the job to say."""
    return File(
        id=new_id("file-"),
        owner=owner,
        filename=filename[:512],
        purpose=purpose,
        bytes=size,
        sha256=sha256,
        status="processed",
        created_at=now,
        expires_at=None if keep is None else int(now) + keep,
        deleted_at=None,
    )


def check_file(filename: str | None, purpose: str, size: int) -> None:
    """Raise ApiError 400 for what can be told without reading the file."""
    if purpose not in PURPOSES:
        raise ApiError(400, f"{purpose[:64]!r} is not one of {list(PURPOSES)} - 'purpose'", param="purpose", code="invalid_value")
    if filename is None:
        raise ApiError(400, "file: Field required", param="file", code="missing_field")
    if size == 0:
        raise ApiError(400, "The file is empty", param="file", code="empty_file")
    if purpose == "fine-tune" and not filename.endswith(".jsonl"):
        raise ApiError(400, "Invalid file format for Fine-Tuning API. Must be .jsonl", param="file", code="invalid_file_format")


def check_room(session: Session, key: Key, state: Any, more: int) -> None:
    """Raise ApiError 429 where the owner would keep more than the quotas of bytes and of files."""
    kept = select(func.count(), func.coalesce(func.sum(File.bytes), 0)).where(File.owner == key.owner, File.deleted_at.is_(None))
    files, size = session.execute(kept).one()
    pending = select(func.count()).where(Upload.owner == key.owner, Upload.status == "pending")
    parts = select(func.coalesce(func.sum(Part.bytes), 0)).join(Upload).where(Upload.owner == key.owner, Upload.status == "pending")
    size += (session.scalar(parts) or 0) + more
    files += (session.scalar(pending) or 0) + 1
    for what, found, name in (("bytes stored", size, "bytes"), ("files", files, "files")):
        if found > (limit := quota(key, state.config.quotas, name)):
            raise over_quota(what, limit)


def _sent_before(store: Store, file: File) -> File | None:
    """The file that the first try of this very request made, where the answer did not arrive."""
    same = (File.owner == file.owner, File.sha256 == file.sha256, File.filename == file.filename, File.purpose == file.purpose)
    with store.read() as session:
        recent = select(File).where(*same, File.deleted_at.is_(None), File.created_at > file.created_at - _AGAIN_SECONDS)
        return session.scalars(recent.order_by(File.seq.desc()).limit(1)).first()


def _expiry(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise ApiError(400, "expires_after.anchor: should be 'created_at'", param="expires_after.anchor", code="invalid_value")
    if seconds is None or not seconds.isascii() or not seconds.isdigit() or len(seconds) > 8 or not 3600 <= int(seconds) <= LONGEST:
        raise ApiError(400, f"expires_after.seconds: should be from 3600 to {LONGEST}", param="expires_after.seconds", code="invalid_value")
    return int(seconds)


@router.get("")
def index(
    request: Request, purpose: Purpose = None, limit: Limit = 10_000, after: After = None, order: Literal["asc", "desc"] = "desc"
) -> dict[str, Any]:
    """The key's files, newest first."""
    store: Store = request.app.state.store
    where = [*_there(store), *([File.purpose == purpose] if purpose is not None else [])]
    mine = [File.owner == request.state.key.owner]
    with store.read() as session:
        body = page(session, File, show, within=mine, where=where, limit=limit, after=after, newest_first=order == "desc", ends=True)
    # The schema has no null here.
    return body | {"first_id": body["first_id"] or "", "last_id": body["last_id"] or ""}


@router.get("/{file_id}")
def retrieve(request: Request, file_id: str) -> dict[str, Any]:
    """One file."""
    return show(find_file(request, file_id))


@router.delete("/{file_id}")
def delete(request: Request, file_id: str) -> dict[str, Any]:
    """Delete a file. A job that has begun keeps what it needs of it."""
    file = find_file(request, file_id)
    state = request.app.state
    remove_file(state.store, state.home, file.id)
    return {"id": file.id, "object": "file", "deleted": True}


@router.get("/{file_id}/content", response_class=StreamingResponse)
def content(request: Request, file_id: str) -> StreamingResponse:
    """The bytes, always to be saved and never to be shown by a browser."""
    file = find_file(request, file_id)
    try:
        handle = os.open(request.app.state.home.file(file.id), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:  # deleted just now, or not the file that was put there
        raise _unknown(file_id) from None
    headers = {"content-length": str(file.bytes), "content-disposition": f'attachment; filename="{file.id}"'}
    return StreamingResponse(_bytes(handle), media_type="application/octet-stream", headers=headers)


def _bytes(handle: int) -> Iterator[bytes]:
    with os.fdopen(handle, "rb") as file:
        while piece := file.read(1 << 18):
            yield piece


def find_file(request: Request, id: str) -> File:
    """A file of the key's owner. Raises ApiError 404, whether it is another's, deleted, expired or never was."""
    store: Store = request.app.state.store
    with store.read() as session:
        file = session.scalar(select(File).where(File.id == id[:64], File.owner == request.state.key.owner, *_there(store)))
    if file is None:
        raise _unknown(id)
    return file


def remove_file(store: Store, home: Home, id: str) -> None:
    """Delete a file: first that it is there, then its bytes and its report."""
    with store.write() as session:
        session.execute(update(File).where(File.id == id, File.deleted_at.is_(None)).values(deleted_at=store.now()))
    home.file(id).unlink(missing_ok=True)
    home.report(id).unlink(missing_ok=True)


def _there(store: Store) -> list[Any]:
    return [File.deleted_at.is_(None), (File.expires_at.is_(None)) | (File.expires_at > store.now())]


def _unknown(id: str) -> ApiError:
    return ApiError(404, f"No such File object: {id[:64]}", param="id")
