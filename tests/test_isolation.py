"""Two owners on one server: what is one's does not exist for the other, on any route; and models by name, shared and deleted."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from hostile import Request, good
from serving import Server, server
from test_guard import routes, send
from tunewright.jobs.store import Checkpoint, Job, new_id

__all__ = ["server"]
NAME = "ft:nano:org-tunewright::AbCdEfGh"


@pytest.fixture
def things(server: Server) -> list[Request]:
    """A request of every route, with things of the first owner, which all exist."""
    client = server.client()
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune").id
    upload = client.uploads.create(bytes=3, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune").id
    job = client.fine_tuning.jobs.create(model="nano", training_file=file).id
    add_checkpoint(server, job, NAME)
    permission = client.fine_tuning.checkpoints.permissions.create(NAME, project_ids=["nobody"]).data[0].id
    names = {"ft:nano:x::y": NAME, "file-nosuch": file, "upload_nosuch": upload, "cp_x": permission}
    requests = good(file, upload, job)
    for request in requests:
        for old, new in names.items():
            request.path = request.path.replace(old, new)
            request.body = request.body.replace(old.encode(), new.encode())
            request.params = tuple(param.replace(old, new) for param in request.params)
    return requests


def add_checkpoint(server: Server, job: str, name: str, step: int = 1) -> None:
    """As the worker's records would."""
    with server.store.write() as session:
        owner = session.query(Job).filter_by(id=job).one().owner
        row = Checkpoint(
            id=new_id("ftckpt_"), job_id=job, owner=owner, created_at=1.0, step=step, model=name, folder="run/model", metrics={"step": step}, deleted_at=None
        )  # fmt: skip
        session.add(row)


def test_nothing_of_another_owner_is_there(server: Server, things: list[Request]) -> None:
    other = server.add_key(owner="other")
    named = [request for request in things if request.params and request.params != ("nano",)]
    assert len(named) >= 16
    for request, answer in zip(named, send(server, *named, key=other), strict=True):
        assert answer.status == 404, (request.method, request.path, answer.status, answer.body)
    lists = [Request(method, path) for method, path in routes(server) if method == "GET" and "{" not in path and path.startswith("/v1/")]
    ours = {param for request in named for param in request.params}
    for request, answer in zip(lists, send(server, *lists, key=other), strict=True):
        assert answer.status == 200 and not [name for name in ours if name in answer.body.decode()], request.path
    job = next(request for request in things if request.path == "/v1/fine_tuning/jobs" and request.method == "POST")
    chat = Request("POST", "/v1/chat/completions", json.dumps({"model": NAME, "messages": [{"role": "user", "content": "x"}]}).encode(), job.headers)
    tuned = Request("POST", job.path, job.body.replace(b'"nano"', json.dumps(NAME).encode()), job.headers)
    assert [answer.status for answer in send(server, job, tuned, chat, key=other)] == [400, 400, 404]
    # And all of it still is, for whom it belongs to.
    reading = [request for request in named if request.method == "GET"]
    assert {answer.status for answer in send(server, *reading)} == {200}


def test_a_permitted_model_may_be_used_but_not_deleted(server: Server, things: list[Request]) -> None:
    mine, other = server.client(), server.client(server.add_key(owner="friends"))
    with pytest.raises(openai.NotFoundError):
        other.models.retrieve(NAME)
    mine.fine_tuning.checkpoints.permissions.create(NAME, project_ids=["friends"])
    assert other.models.retrieve(NAME).id == NAME and NAME in [model.id for model in other.models.list()]
    with pytest.raises(openai.PermissionDeniedError):
        other.models.delete(NAME)
    mine.models.delete(NAME)
    for client in (mine, other):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(NAME)
        assert NAME not in [model.id for model in client.models.list()]


def test_bases_by_all_their_names(server: Server) -> None:
    client = server.client()
    names = [model.id for model in client.models.list()]
    assert len(names) == len(set(names)) and {"nano", "gpt-3.5-turbo-0125", "babbage-002"} <= set(names)
    for name in names:
        assert client.models.retrieve(name).id == name
    for name in ("nano", "gpt-3.5-turbo"):
        with pytest.raises(openai.PermissionDeniedError):
            client.models.delete(name)
    unknown: Any = client.models.with_raw_response
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        unknown.retrieve("no-such/model")
