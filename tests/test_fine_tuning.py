"""The fine-tuning routes through the official client: what a job is made of, who sees it, and that it is made once."""

import json
import random
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import func, select

import tiny
from serving import POSTGRESQL, Server, server, serving
from tunewright.jobs.lifecycle import locked, move
from tunewright.jobs.store import Checkpoint, Delivery, Job, new_id
from tunewright.serve.fine_tuning import _WAITING

__all__ = ["server"]


def upload(client: openai.OpenAI, file: str = "train.jsonl", purpose: Any = "fine-tune") -> str:
    content = "".join((tiny.SAMPLE / file).read_text().splitlines(True)[:12])
    return client.files.create(file=("rows.jsonl", content.encode()), purpose=purpose).id


def to(server: Server, job_id: str, *states: str, **changes: Any) -> None:
    """Move a job as its launcher would."""
    for state in states:
        with server.store.write() as session:
            row = locked(session, job_id)
            assert row is not None
            move(server.store, session, row, state, f"became {state}", **changes)


def jobs_made(server: Server) -> int:
    with server.store.read() as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0


def test_a_job_is_what_was_asked_for(server: Server) -> None:
    client = server.client()
    training, validation = upload(client), upload(client, "validation.jsonl")
    job = client.fine_tuning.jobs.create(
        model="gpt-3.5-turbo", training_file=training, validation_file=validation, suffix="again", seed=7, metadata={"who": "ann"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 0.5}}},
        extra_body={"tunewright": {"tuning": {"kind": "lora", "rank": 4}, "shuffle": "by_prefix"}},
    )  # fmt: skip
    assert (job.status, job.model, job.seed, job.metadata, job.error) == ("validating_files", "nano", 7, {"who": "ann"}, None)
    assert job.hyperparameters.n_epochs == 2 and job.method is not None and job.method.supervised is not None
    assert job.model_dump()["tunewright"] == {"tuning": {"kind": "lora", "rank": 4}, "shuffle": "by_prefix"}
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    with server.store.read() as session:
        row = session.scalars(select(Job)).one()
    config = row.request["config"]
    assert (config["tuning"]["rank"], config["shuffle"], config["hyperparameters"]["batch_size"], config["model"]) == (4, "by_prefix", 3, "nano")
    events = client.fine_tuning.jobs.list_events(job.id).data
    assert [event.message for event in events] == [
        f"Validating training file: {training} and validation file: {validation}",
        f"Created fine-tuning job: {job.id}",
    ]
    client.files.delete(training)  # the job has its own name for the bytes
    assert (server.home.job(job.id) / "training.jsonl").read_bytes().count(b"\n") == 12


def test_dpo_takes_its_own_part_of_the_method(server: Server) -> None:
    client = server.client()
    method: Any = {
        "type": "dpo",
        "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": "auto"}},
        "supervised": {"hyperparameters": {"n_epochs": 99}},
        "reinforcement": {"grader": 1},
    }
    job = client.fine_tuning.jobs.create(model="nano", training_file=upload(client), method=method)
    assert job.method is not None and job.method.dpo is not None and job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.3 and job.method.supervised is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown setting": ({"tunewright": {"rank": 4}}, "tunewright"),
    "setting out of bounds": ({"tunewright": {"tuning": {"kind": "lora", "rank": 0}}}, "tunewright.tuning.rank"),
    "a path for a setting": ({"tunewright": {"out": "/tmp/x"}}, "tunewright"),
    "another method in the extension": ({"tunewright": {"method": {"kind": "dpo"}}}, "tunewright.method"),
    "reinforcement": ({"method": {"type": "reinforcement"}}, "method.type"),
    "epochs": ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
    "a truth for a number": ({"hyperparameters": {"learning_rate_multiplier": True}}, "hyperparameters.learning_rate_multiplier"),
    "no rate": (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate_multiplier": 0}}}},
        "method.supervised.hyperparameters",
    ),
    "weights and biases": ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
    "a suffix that is a path": ({"suffix": "../a"}, "suffix"),
    "a colon in the suffix": ({"suffix": "a:b"}, "suffix"),
    "no such model": ({"model": "gpt-nobody"}, "model"),
    "no such file": ({"training_file": "file-nobody"}, "training_file"),
    "too much metadata": ({"metadata": {f"k{i}": "v" for i in range(17)}}, "metadata"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_by_the_name_of_the_field(server: Server, name: str) -> None:
    change, param = REFUSED[name]
    body = {"model": "nano", "training_file": upload(server.client()), **change}
    answer = server.http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)
    assert jobs_made(server) == 0 and not list((server.home.path / "jobs").iterdir())


def test_nulls_and_unknown_keys_are_no_matter(server: Server) -> None:
    nulls = dict.fromkeys(("suffix", "seed", "validation_file", "metadata", "integrations", "method", "hyperparameters", "tunewright"))
    body = {"model": "nano", "training_file": upload(server.client()), "test_file": "x", "hyperparameters": {"n_epochs": None, "more": 1}}
    assert server.http.post("/v1/fine_tuning/jobs", json={**nulls, **body}).status_code == 200


def test_only_files_for_tuning_are_taken(server: Server) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="purpose fine-tune"):
        client.fine_tuning.jobs.create(model="nano", training_file=upload(client, purpose="user_data"))
    gone = upload(client)
    client.files.delete(gone)
    with pytest.raises(openai.BadRequestError, match="invalid training_file"):
        client.fine_tuning.jobs.create(model="nano", training_file=gone)


def test_a_creation_whose_answer_was_lost_makes_one_job(server: Server) -> None:
    """Answers are lost after, and before, the server has seen the request; the official client tries again, up to twice."""
    draw = random.Random(0)
    lose: list[str] = []

    class Lossy(type(server.http)):  # type: ignore[misc]
        def send(self, request: Any, **more: Any) -> Any:
            fate = lose.pop(0) if lose else "fine"
            if fate == "before":
                raise httpx.ReadError("lost")
            answer = super().send(request, **more)
            if fate == "after":
                raise httpx.ReadError("lost")
            return answer

    http: Any = Lossy(server.app, base_url="http://t/v1")
    client = openai.OpenAI(base_url="http://t/v1", api_key=server.key, http_client=http, max_retries=2)
    client._calculate_retry_timeout = lambda *a, **k: 0.0  # type: ignore[method-assign]
    training = upload(server.client())
    seen = set()
    fates = [[], ["after"], ["after", "after"], ["after", "before"], ["before"], ["before", "after"]]
    for count in range(40):
        lose[:] = draw.choice(fates)
        # Where the server did see the first try, the bodies may all be alike: only what the client says of its tries tells them apart.
        seed = count if lose[:1] == ["before"] else 99
        seen.add(client.fine_tuning.jobs.create(model="nano", training_file=training, seed=seed).id)
    assert len(seen) == 40 == jobs_made(server)


def test_a_retry_that_overtakes_the_first_try_makes_one_job(server: Server) -> None:
    body = {"model": "nano", "training_file": upload(server.client())}
    moment = server.store.now()
    early = server.http.post("/v1/fine_tuning/jobs", json=body, headers={"x-stainless-retry-count": "1"}).json()
    server.store.clock = lambda: moment  # the first try came in before, and is only now let in
    late = server.http.post("/v1/fine_tuning/jobs", json=body).json()
    assert late["id"] == early["id"] and jobs_made(server) == 1


def test_others_do_not_know_of_a_job(server: Server) -> None:
    mine, theirs = server.client(), server.client(server.add_key("bob"))
    job = mine.fine_tuning.jobs.create(model="nano", training_file=upload(mine))
    for ask in (
        lambda: theirs.fine_tuning.jobs.retrieve(job.id),
        lambda: theirs.fine_tuning.jobs.cancel(job.id),
        lambda: theirs.fine_tuning.jobs.pause(job.id),
        lambda: theirs.fine_tuning.jobs.list_events(job.id),
        lambda: theirs.fine_tuning.jobs.checkpoints.list(job.id),
    ):
        with pytest.raises(openai.NotFoundError, match="Could not find fine tune"):
            ask()
    assert theirs.fine_tuning.jobs.list().data == [] and theirs.fine_tuning.jobs.list(after=job.id).data == []
    with pytest.raises(openai.BadRequestError, match="invalid training_file"):
        theirs.fine_tuning.jobs.create(model="nano", training_file=job.training_file)
    assert mine.fine_tuning.jobs.retrieve(job.id).status == "validating_files"


def test_pause_resume_cancel_and_their_wrong_moments(server: Server) -> None:
    client = server.client()
    job = client.fine_tuning.jobs.create(model="nano", training_file=upload(client))
    with pytest.raises(openai.BadRequestError, match="validating_files and cannot be paused"):
        client.fine_tuning.jobs.pause(job.id)
    to(server, job.id, "queued")
    with pytest.raises(openai.BadRequestError, match="queued and cannot be resumed"):
        client.fine_tuning.jobs.resume(job.id)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    to(server, job.id, "running", attempt="a")
    assert client.fine_tuning.jobs.pause(job.id).status == "running"  # until its worker has saved
    with server.store.read() as session:
        assert session.scalars(select(Job.wish)).one() == "pause"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    for ask in (client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError, match="is cancelled and cannot be"):
            ask(job.id)


def test_lists_go_on_where_a_page_ended_and_find_metadata(server: Server) -> None:
    client = server.client()
    training = upload(client)
    ids = [
        client.fine_tuning.jobs.create(model="nano", training_file=training, seed=i, metadata={"n": str(i % 2)} if i else None).id for i in range(5)
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == ids[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"n": "1"})] == [ids[3], ids[1]]
    assert [job["id"] for job in server.http.get("/v1/fine_tuning/jobs?metadata=null").json()["data"]] == [ids[0]]
    assert server.http.get("/v1/fine_tuning/jobs", params={"metadata[a'\"]": "x"}).status_code == 400


def test_counting_what_waits_reads_an_index_alone(server: Server) -> None:
    if POSTGRESQL:
        pytest.skip("PostgreSQL plans by what a table holds")
    with server.store.read() as session:
        statement = _WAITING.params(owner="default").compile(session.connection(), compile_kwargs={"literal_binds": True})
        plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")
        assert "COVERING INDEX ix_jobs_status_owner_seq (status=? AND owner=?)" in str(plan.all())


def test_a_job_limit_is_kept(tmp_path: Path) -> None:
    with serving(tmp_path / "home", quotas={"jobs": 2}) as few:
        client = few.client()
        training = upload(client)
        for seed in range(2):
            client.fine_tuning.jobs.create(model="nano", training_file=training, seed=seed)
        with pytest.raises(openai.RateLimitError, match="2 jobs have not ended yet"):
            client.fine_tuning.jobs.create(model="nano", training_file=training, seed=2)


def add_checkpoint(server: Server, owner: str = "default") -> str:
    name = f"ft:nano:org::{new_id('', 8)}:ckpt-step-1"
    with server.store.write() as session:
        job = Job(
            id=new_id("ftjob-"), owner=owner, key_id="k", asked="", status="succeeded", created_at=1.0, model="nano", seed=1,
            training_file="file-a", request={"method": "supervised", "tunewright": {}}, hyperparameters={}, tokens=1000,
        )  # fmt: skip
        session.add(job)
        session.flush()
        session.add(
            Checkpoint(id=new_id("ftckpt_"), job_id=job.id, owner=owner, created_at=1.0, step=1, model=name, folder="run/model", metrics={"step": 1})
        )
    return name


def test_permissions_come_and_go(server: Server) -> None:
    permissions = server.client().fine_tuning.checkpoints.permissions
    name = add_checkpoint(server)
    made = [permissions.create(name, project_ids=[project]).data[0].id for project in ("a", "b", "c")]
    assert [one.id for one in permissions.list(name, limit=2)] == made[::-1]
    assert [one.id for one in permissions.list(name, order="ascending")] == made
    assert permissions.delete(made[0], fine_tuned_model_checkpoint=name).deleted
    assert [one.id for one in permissions.list(name)] == [made[2], made[1]]
    with pytest.raises(openai.NotFoundError):
        server.client(server.add_key("bob")).fine_tuning.checkpoints.permissions.list(name)


def test_a_price_makes_a_cost(tmp_path: Path) -> None:
    with serving(tmp_path / "home", prices={"nano": {"training": 8.0}}) as priced:
        client = priced.client()
        job = client.fine_tuning.jobs.create(model="nano", training_file=upload(client), hyperparameters={"n_epochs": 3})
        assert "cost_estimate" not in job.model_dump()["tunewright"]
        with priced.store.write() as session:
            row = locked(session, job.id)
            assert row is not None
            row.tokens = 1_000
        assert client.fine_tuning.jobs.retrieve(job.id).model_dump()["tunewright"]["cost_estimate"] == pytest.approx(0.024)


def test_a_jobs_end_is_put_out_for_delivery_with_it(server: Server) -> None:
    server.store.sinks = ("webhook", "mail")
    client = server.client()
    job = client.fine_tuning.jobs.create(model="nano", training_file=upload(client))
    client.fine_tuning.jobs.cancel(job.id)
    with server.store.read() as session:
        assert {(one.kind, one.target) for one in session.scalars(select(Delivery))} == {
            ("fine_tuning.job.cancelled", "webhook"),
            ("fine_tuning.job.cancelled", "mail"),
        }


def test_many_creations_at_once_are_all_there(server: Server) -> None:
    client = server.client()
    training = upload(client)
    seen: list[str] = []

    def make(seed: int) -> None:
        seen.append(server.client().fine_tuning.jobs.create(model="nano", training_file=training, seed=seed).id)

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 16 == jobs_made(server)


def test_answers_hold_no_path_of_the_machine(server: Server) -> None:
    client = server.client()
    job = client.fine_tuning.jobs.create(model="nano", training_file=upload(client))
    text = json.dumps([client.fine_tuning.jobs.retrieve(job.id).model_dump(), [e.model_dump() for e in client.fine_tuning.jobs.list_events(job.id)]])
    assert not re.search(r"/(tmp|home|root|work)/", text)
