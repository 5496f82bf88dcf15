"""Models: bases, and what jobs made of them; and `resolve`, from the name a client uses to the files of a model."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from tunewright.jobs.home import Home, read_json
from tunewright.jobs.store import Checkpoint, Permission, Store
from tunewright.serve.ask import Resolved
from tunewright.serve.config import ALIASES, ServeConfig
from tunewright.serve.errors import ApiError

router = APIRouter(prefix="/v1/models", tags=["models"])


def show(id: str, created: float, owner: str) -> dict[str, Any]:
    """A model as the API has it."""
    return {"id": id, "object": "model", "created": int(created), "owned_by": owner}


@router.get("")
def index(request: Request) -> dict[str, Any]:
    """Bases, and tuned models that the key's owner made or may use, newest first."""
    state = request.app.state
    store: Store = state.store
    with store.read() as session:
        rows = session.scalars(select(Checkpoint).where(*_usable(request)).order_by(Checkpoint.seq.desc())).all()
    bases = [show(name, 0, "tunewright") for name in names(state.config)]
    return {"object": "list", "data": [*bases, *(show(row.model, row.created_at, row.owner) for row in rows)]}


@router.get("/{model:path}")
def retrieve(request: Request, model: str) -> dict[str, Any]:
    """One model."""
    state = request.app.state
    if state.config.base_of(model) is not None:
        return show(model, 0, "tunewright")
    with state.store.read() as session:
        row = find_checkpoint(session, request, model)
    return show(row.model, row.created_at, row.owner)


@router.delete("/{model:path}")
def delete(request: Request, model: str) -> dict[str, Any]:
    """Delete a tuned model; its job remains. A base cannot be deleted."""
    state = request.app.state
    store: Store = state.store
    if state.config.base_of(model) is not None:
        raise ApiError(403, f"{model} is a base model and cannot be deleted", param="model", code="base_model")
    with store.write() as session:
        row = find_checkpoint(session, request, model)
        if row.owner != request.state.key.owner:
            raise ApiError(403, "The model may be used with this key, but only its owner can delete it", param="model", code="not_owner")
        session.execute(update(Checkpoint).where(Checkpoint.id == row.id).values(deleted_at=store.now()))
    return {"id": model, "object": "model", "deleted": True}


def resolve(request: Request, name: str) -> Resolved:
    """The model that a client means by a name. Raises ApiError 404 `model_not_found`; BadModel where a base cannot be found."""
    state = request.app.state
    config: ServeConfig = state.config
    home: Home = state.home
    base = config.base_of(name)
    if base is not None:
        from tunewright.models.load import find  # brings torch, which whoever asks a model needs next

        return Resolved(name, find(config.bases()[base]))
    with state.store.read() as session:
        row = find_checkpoint(session, request, name)
    folder = home.job(row.job_id) / row.folder
    # We wrote this file; a stranger's is never followed to its base.
    adapter = read_json(folder / "adapter_config.json")
    return Resolved(name, folder, str(adapter["base_model_name_or_path"]) if adapter else None)


def find_checkpoint(session: Session, request: Request, name: str) -> Checkpoint:
    """The checkpoint of that name, if the key may use it. Raises ApiError 404: another's, deleted, or never was."""
    row = session.scalar(select(Checkpoint).where(Checkpoint.model == name[:1024], *_usable(request)))
    if row is None:
        text = f"The model `{name[:256]}` does not exist or you do not have access to it."
        raise ApiError(404, text, param="model", code="model_not_found")
    return row


def names(config: ServeConfig) -> list[str]:
    """Bases, then their other names."""
    bases = config.bases()
    return list(dict.fromkeys([*bases, *ALIASES, *config.aliases]))


def _usable(request: Request) -> tuple[ColumnElement[bool], ...]:
    """Not deleted; one's own, or permitted. A project is an owner of keys, by its name."""
    owner = request.state.key.owner
    permitted = select(Permission.checkpoint).where(Permission.project_id == owner)
    return Checkpoint.deleted_at.is_(None), or_(Checkpoint.owner == owner, Checkpoint.model.in_(permitted))
