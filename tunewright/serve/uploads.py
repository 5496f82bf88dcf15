"""Uploads: a large file in parts, joined in the order that the client says."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from tunewright.jobs.home import Home
from tunewright.jobs.store import File, Part, Store, Upload, new_id
from tunewright.serve import files
from tunewright.serve.errors import ApiError
from tunewright.serve.files import LONGEST, RETRY, check_file, check_room, new_file
from tunewright.serve.forms import create as create_new
from tunewright.serve.forms import disk_full, receive, settle, temporary

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])
SECONDS = 3600
PARTS = 10_000


class ExpiresAfter(BaseModel):
    """When the finished file goes."""

    model_config = ConfigDict(strict=True, extra="forbid")
    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=LONGEST)


class CreateUpload(BaseModel):
    """What is to come."""

    model_config = ConfigDict(strict=True, extra="forbid")
    filename: str = Field(min_length=1, max_length=512)
    purpose: Literal["assistants", "batch", "fine-tune", "vision"]
    bytes: int = Field(ge=0, le=1 << 44)
    mime_type: str = Field(max_length=256)
    expires_after: ExpiresAfter | None = None


class CompleteUpload(BaseModel):
    """The parts in their order."""

    model_config = ConfigDict(strict=True)
    part_ids: list[Annotated[str, Field(max_length=64)]] = Field(max_length=PARTS)
    md5: str | None = Field(None, max_length=64)


def show(upload: Upload, file: File | None = None) -> dict[str, Any]:
    """An upload as the API has it."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at),
        "expires_at": int(upload.expires_at),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": files.show(file) if file else None,
    }


@router.post("")
def create(request: Request, body: CreateUpload) -> dict[str, Any]:
    """Begin an upload; it waits an hour for its parts."""
    state, key = request.app.state, request.state.key
    check_file(body.filename, body.purpose, 1)
    if body.bytes > state.config.limits.upload_bytes:
        raise ApiError(400, f"bytes: should be {state.config.limits.upload_bytes} at most", param="bytes", code="file_too_large")
    store: Store = state.store
    now = store.now()
    upload = Upload(
        id=new_id("upload_"),
        owner=key.owner,
        filename=body.filename,
        purpose=body.purpose,
        bytes=body.bytes,
        mime_type=body.mime_type,
        status="pending",
        created_at=now,
        expires_at=now + SECONDS,
        file_expires_after=body.expires_after.seconds if body.expires_after else None,
        file_id=None,
    )
    with store.write() as session:
        check_room(session, key, state, body.bytes)
        session.add(upload)
    state.home.upload(upload.id).mkdir(mode=0o700)
    return show(upload)


@router.post(
    "/{upload_id}/parts", openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {"type": "object"}}}}}
)
async def add_part(request: Request, upload_id: str) -> dict[str, Any]:
    """Add a part: multipart with `data`."""
    state = request.app.state
    await run_in_threadpool(_find_open, request, upload_id)
    with temporary(state.home) as path:
        form = await receive(request, path, "data", state.config.limits.part_bytes)
        if form.filename is None:
            raise ApiError(400, "data: Field required", param="data", code="missing_field")
        return await run_in_threadpool(_keep_part, request, upload_id, path, form.bytes)


def _keep_part(request: Request, upload_id: str, path: Path, size: int) -> dict[str, Any]:
    state, key = request.app.state, request.state.key
    store: Store = state.store
    part = Part(id=new_id("part_"), upload_id=upload_id, bytes=size, created_at=store.now())
    place = state.home.upload(upload_id) / part.id
    settle(path, place)
    try:
        with store.write() as session:
            upload = _open(session, store, key.owner, upload_id)
            kept = session.scalars(select(Part.bytes).where(Part.upload_id == upload_id)).all()
            # A part whose answer was lost is sent again, so there may be some more than in the end.
            if len(kept) >= PARTS or sum(kept) + size > 2 * upload.bytes + (1 << 20):
                raise ApiError(400, f"The parts are more than the upload's {upload.bytes} bytes", param="data", code="upload_too_large")
            check_room(session, key, state, size)
            session.add(part)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    return {"id": part.id, "object": "upload.part", "created_at": int(part.created_at), "upload_id": upload_id}


@router.post("/{upload_id}/complete")
def complete(request: Request, upload_id: str, body: CompleteUpload) -> dict[str, Any]:
    """Join the parts to a file."""
    state, key = request.app.state, request.state.key
    store: Store = state.store
    home: Home = state.home
    if done := _done_before(request, upload_id, "completed"):
        return done
    with store.read() as session:
        upload = _open(session, store, key.owner, upload_id)
        known = set(session.scalars(select(Part.id).where(Part.upload_id == upload_id)))
    if len(set(body.part_ids)) != len(body.part_ids) or not known.issuperset(body.part_ids):
        raise ApiError(400, "part_ids: a part is named twice, or is not one of this upload", param="part_ids", code="invalid_part")
    with temporary(home) as path:
        size, sha256, md5 = _join([home.upload(upload_id) / id for id in body.part_ids], path)
        if size != upload.bytes:
            raise ApiError(400, f"The parts have {size} bytes together, the upload was to have {upload.bytes}", param="part_ids", code="wrong_size")
        if body.md5 is not None and body.md5.lower() != md5:
            raise ApiError(400, f"The parts' md5 is {md5}", param="md5", code="wrong_checksum")
        check_file(upload.filename, upload.purpose, size)
        file = new_file(key.owner, upload.filename, upload.purpose, size, sha256, store.now(), upload.file_expires_after)
        settle(path, home.file(file.id))
    try:
        with store.write() as session:
            upload = _open(session, store, key.owner, upload_id)  # the one that comes second finds it closed
            upload.status, upload.file_id = "completed", file.id
            session.add(file)
    except BaseException:
        home.file(file.id).unlink(missing_ok=True)
        raise
    shutil.rmtree(home.upload(upload_id), ignore_errors=True)
    return show(upload, file)


@router.post("/{upload_id}/cancel")
def cancel(request: Request, upload_id: str) -> dict[str, Any]:
    """Give an upload up; its parts go."""
    state = request.app.state
    store: Store = state.store
    if done := _done_before(request, upload_id, "cancelled"):
        return done
    with store.write() as session:
        upload = _open(session, store, request.state.key.owner, upload_id)
        upload.status = "cancelled"
    shutil.rmtree(state.home.upload(upload_id), ignore_errors=True)
    return show(upload)


def _join(parts: list[Path], path: Path) -> tuple[int, str, str]:
    """Write the parts one after the other to `path`, on the disk when this returns. Returns size, sha256 and md5."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    try:
        with create_new(path) as file:
            for part in parts:
                with open(part, "rb") as source:
                    while piece := source.read(1 << 20):
                        sha256.update(piece)
                        md5.update(piece)
                        size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        raise ApiError(400, "The upload is no longer open", code="upload_closed") from None
    except OSError as error:
        raise disk_full(error) from None
    return size, sha256.hexdigest(), md5.hexdigest()


def _find_open(request: Request, id: str) -> Upload:
    store: Store = request.app.state.store
    with store.read() as session:
        return _open(session, store, request.state.key.owner, id)


def _open(session: Session, store: Store, owner: str, id: str) -> Upload:
    """An upload that waits for parts. Raises ApiError: 404 there is none, 400 it waits no longer."""
    upload = session.scalar(select(Upload).where(Upload.id == id[:64], Upload.owner == owner))
    if upload is None:
        raise ApiError(404, f"No such Upload object: {id[:64]}", param="id")
    status = "expired" if upload.status == "pending" and upload.expires_at <= store.now() else upload.status
    if status != "pending":
        raise ApiError(400, f"The upload is {status}; begin another", param="id", code="upload_closed")
    return upload


def _done_before(request: Request, id: str, status: str) -> dict[str, Any] | None:
    """The answer that did not arrive, where the client sends the same request again."""
    if request.headers.get(RETRY, "0") == "0":
        return None
    store: Store = request.app.state.store
    with store.read() as session:
        upload = session.scalar(select(Upload).where(Upload.id == id[:64], Upload.owner == request.state.key.owner, Upload.status == status))
        file = session.scalar(select(File).where(File.id == upload.file_id)) if upload and upload.file_id else None
    return show(upload, file) if upload else None
