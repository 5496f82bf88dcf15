"""Jobs: moves, the order of the queue, what is recorded of a run, and that a killed worker or server costs nothing."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select

import serving
import tiny
from tunewright.config import TrainConfig
from tunewright.event import Event
from tunewright.jobs.home import Home, HomeTaken, alive, link, read_json
from tunewright.jobs.launch import Launcher
from tunewright.jobs.lifecycle import FINAL, MOVES, WrongState, fail, locked, move, next_queued, tell
from tunewright.jobs.record import record
from tunewright.jobs.store import BadStore, Checkpoint, Delivery, File, Job, JobEvent, Store, new_id, put

STATES = sorted(MOVES)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty database of the kind under test."""
    made = Store(serving.new_database() if serving.POSTGRESQL else f"sqlite:///{tmp_path / 'test.db'}")
    made.migrate()
    yield made
    made.close()


def new_job(store: Store, status: str = "queued", owner: str = "ann", **columns: Any) -> str:
    """A job's row, without files."""
    with store.write() as session:
        row = Job(
            id=new_id("ftjob-"), owner=owner, key_id=owner, asked="", status=status, created_at=store.now(), model="nano", seed=1,
            training_file="file-a", request={}, hyperparameters={}, **columns,
        )  # fmt: skip
        session.add(row)
        session.flush()
        return row.id


def get(store: Store, job_id: str) -> Job:
    with store.read() as session:
        return session.scalars(select(Job).where(Job.id == job_id)).one()


def events_of(store: Store, job_id: str) -> list[JobEvent]:
    with store.read() as session:
        return list(session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq)))


# --- moves


@pytest.mark.parametrize("to", STATES)
@pytest.mark.parametrize("state", STATES)
def test_only_the_moves_of_the_table_are_made(store: Store, state: str, to: str) -> None:
    store.sinks = ("webhook",)
    job_id = new_job(store, state)
    with store.write() as session:
        row = locked(session, job_id)
        assert row is not None
        if to in MOVES[state]:
            move(store, session, row, to, "said")
        else:
            with pytest.raises(WrongState, match=f"is {state} and cannot become {to}"):
                move(store, session, row, to, "said")
    made = to in MOVES[state]
    assert get(store, job_id).status == (to if made else state)
    assert len(events_of(store, job_id)) == made
    with store.read() as session:
        kinds = list(session.scalars(select(Delivery.kind)))
    assert kinds == ([f"fine_tuning.job.{to}"] if made and to in FINAL else [])


def test_the_table_of_moves_is_sound() -> None:
    """Said without the table: how each state is reached, and that an end is one."""
    reached = {to: {state for state in STATES if to in MOVES[state]} for to in STATES}
    open_states = {"validating_files", "queued", "running", "paused"}
    assert FINAL == {"succeeded", "failed", "cancelled"} == set(STATES) - open_states
    assert reached["validating_files"] == set() and reached["queued"] == {"validating_files", "running", "paused"}
    assert reached["running"] == {"queued"} and reached["succeeded"] == {"running"} and reached["paused"] == {"queued", "running"}
    assert reached["cancelled"] == open_states and reached["failed"] == open_states - {"paused"}


def test_a_move_is_there_whole_or_not_at_all(store: Store) -> None:
    job_id = new_job(store)

    def half() -> None:
        with store.write() as session:
            row = locked(session, job_id)
            assert row is not None
            move(store, session, row, "running", attempt="a")
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        half()
    assert get(store, job_id).status == "queued" and events_of(store, job_id) == []


def test_one_of_many_who_claim_a_job_gets_it(store: Store) -> None:
    ids = {new_job(store) for _ in range(30)}
    claimed: list[str] = []

    def claim() -> None:
        while True:
            with store.read() as session:
                row = next_queued(session)
            if row is None:
                return
            with store.write() as session:
                mine = locked(session, row.id)
                if mine is not None and mine.status == "queued":
                    move(store, session, mine, "running", attempt=new_id("", 8))
                    claimed.append(row.id)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(ids)


def test_a_stale_attempt_does_not_find_its_job(store: Store) -> None:
    job_id = new_job(store, "running", attempt="new")
    with store.write() as session:
        assert locked(session, job_id, "old") is None
        assert locked(session, job_id, "new") is not None


def test_the_queue_is_fair_between_owners(store: Store) -> None:
    many = [new_job(store, owner="many") for _ in range(5)]
    one = new_job(store, owner="one")
    order = []
    for _ in range(6):
        with store.read() as session:
            row = next_queued(session)
        assert row is not None
        order.append(row.id)
        with store.write() as session:
            mine = locked(session, row.id)
            assert mine is not None
            move(store, session, mine, "running", attempt="a", started_at=float(len(order)))
            fail(store, session, mine, "code", "over")
    assert order == [many[0], one, *many[1:]]


def test_a_database_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadStore, match="cannot be opened"):
        Store(f"sqlite:///{tmp_path / 'no' / 'folder' / 'x.db'}").migrate()


def test_migrations_make_the_tables_that_the_code_has(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from tunewright.jobs.store import Table

    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
    store.migrate()  # a second time there is nothing to do


def test_what_is_put_is_what_a_session_would_store(store: Store) -> None:
    """One row of each by `put`, one by the session, defaults and nulls included; events are numbered as they come."""
    given: dict[str, Any] = {
        "owner": "o", "key_id": "k", "asked": "", "status": "queued", "created_at": 1.5, "model": "nano", "seed": 3, "training_file": "f",
        "request": {"é": [1, None]}, "hyperparameters": {}, "labels": None, "suffix": None,
    }  # fmt: skip
    said = {"created_at": 1.0, "level": "info", "type": "message", "data": {}}
    with store.write() as session:
        put(session.connection(), Job(id="a", **given))
        put(session.connection(), *(JobEvent(id=f"e{i}", job_id="a", message=str(i), **said) for i in range(9)))
        session.add(Job(id="b", **given))
    with store.read() as session:
        put_, added = session.execute(select(Job.__table__).order_by(Job.id)).mappings().all()
        assert {**put_, "id": 0, "seq": 0} == {**added, "id": 0, "seq": 0}
        nulls = "select count(*) from jobs where labels is null and error is null"  # and not JSON's null
        assert session.connection().exec_driver_sql(nulls).scalar() == 2
        assert session.scalars(select(JobEvent.message).order_by(JobEvent.seq)).all() == list("012345678")


def test_ids_are_letters_and_digits_of_every_kind() -> None:
    ids = [new_id("ftjob-") for _ in range(500)]
    assert len(set(ids)) == 500 and all(re.fullmatch(r"ftjob-[A-Za-z0-9]{24}", each) for each in ids)
    for place in range(6, 30):  # all 62 at each place, but for one chance in 50 a place to miss one
        assert len({each[place] for each in ids}) > 55


def test_a_home_has_one_server(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    handle = home.lock("http://127.0.0.1:1")
    with pytest.raises(HomeTaken, match=rf"process {os.getpid()}, http://127.0.0.1:1"):
        home.lock("http://127.0.0.1:2")
    os.close(handle)
    os.close(home.lock("http://127.0.0.1:3"))


# --- recording


def said(steps: int, each: int, restart_at: int | None = None) -> list[str]:
    """The events of a run as lines; killed after a step, it goes on from the epoch before."""
    begin = [
        Event(0, "Training data: 9 of 9 rows, 90 tokens", {"kept": 9, "tokens": 90}),
        Event(0, "nano: decided", {"n_epochs": steps // each, "batch_size": 3}),
    ]
    lines = [event.to_json() for event in begin]
    step = 0
    while step < steps:
        step += 1
        data = {"epoch": 1 + (step - 1) // each, "total_steps": steps, "train_loss": 1 / step, "train_mean_token_accuracy": 0.5}
        lines.append(Event(step, f"Step {step}/{steps}", data, kind="metrics").to_json())
        if step == restart_at:
            restart_at = None
            step = step // each * each
            again = {"checkpoint": f"step-{step:08d}", "epoch": step // each} if step else {}
            lines += [lines[-1][:20], *(event.to_json() for event in begin), Event(step, "Resumed" if step else "No checkpoint", again).to_json()]
            continue
        if step % each == 0:
            lines.append(Event(step, f"Checkpoint created at step {step}", {"checkpoint": f"step-{step:08d}", "epoch": step // each}).to_json())
    return lines


@pytest.mark.parametrize("restart_at", [None, 1, 4, 6, 11])
def test_what_a_run_says_is_recorded_exactly_once(store: Store, tmp_path: Path, restart_at: int | None) -> None:
    home = Home(tmp_path / "home")
    home.make()
    job_id = new_job(store, "running", attempt="a")
    path = home.job(job_id) / "run" / "events.jsonl"
    path.parent.mkdir(parents=True)
    text = "".join(f"{line}\n" for line in said(12, 3, restart_at)).encode()
    draw = random.Random(restart_at)
    with path.open("wb", buffering=0) as file:  # written in torn pieces, and read between them
        while text:
            size = draw.randint(1, 200)
            file.write(text[:size])
            text = text[size:]
            record(store, home, job_id, "a", "org")
    record(store, home, job_id, "stale", "org")
    events = events_of(store, job_id)
    assert [event.data["step"] for event in events if event.type == "metrics"] == list(range(1, 13))
    words = [event.message for event in events if event.type == "message"]
    assert len(words) == len(set(words)) and sum(word.startswith("Checkpoint created") for word in words) == 4
    with store.read() as session:
        rows = session.scalars(select(Checkpoint).order_by(Checkpoint.step)).all()
    assert [row.step for row in rows] == [6, 9, 12]  # of the last three epochs
    assert [row.metrics["train_loss"] for row in rows] == [1 / 6, 1 / 9, 1 / 12]
    assert rows[0].model.endswith(":ckpt-step-6") and rows[2].model.startswith("ft:nano:org::") and "ckpt" not in rows[2].model
    job = get(store, job_id)
    assert (job.step, job.tokens, job.hyperparameters["n_epochs"]) == (12, 90, 4)
    assert job.read == path.stat().st_size


def test_the_finish_is_estimated_from_the_pace(store: Store, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    job_id = new_job(store, "running", attempt="a", started_at=1000.0)
    path = home.job(job_id) / "run" / "events.jsonl"
    path.parent.mkdir(parents=True)
    lines = [Event(step, f"Step {step}", {"total_steps": 100}, kind="metrics", created_at=1000.0 + 2 * step).to_json() for step in range(1, 31)]
    path.write_text("".join(f"{line}\n" for line in lines))
    record(store, home, job_id, "a", "org")
    assert get(store, job_id).estimated_finish == pytest.approx(1200.0)


# --- workers


@dataclass
class Yard:
    """A store and a home with a small base and files, and a launcher whose nursery serves all tests."""

    store: Store
    home: Home
    base: str
    launcher: Launcher

    def add(self, epochs: int = 4, **settings: Any) -> str:
        """A job of the small base on 12 rows, 3 a step, in the state it has after its creation."""
        job_id = new_id("ftjob-")
        link(self.home, job_id, "file-train", "file-valid")
        config = {
            "data": "-",
            "model": self.base,
            "threads": 1,
            "precision": "fp32",
            "hyperparameters": {"n_epochs": epochs, "batch_size": 3},
            **settings,
        }
        made = TrainConfig.parse(config).model_dump(mode="json")
        with self.store.write() as session:
            row = Job(
                id=job_id, owner="ann", key_id="ann", asked="", status="validating_files", created_at=self.store.now(), model="tiny", seed=1,
                training_file="file-train", validation_file="file-valid", request={"config": made}, hyperparameters=made["hyperparameters"],
            )  # fmt: skip
            session.add(row)
            session.flush()
            tell(self.store, session, row, f"Created fine-tuning job: {job_id}")
        self.launcher.wake()
        return job_id

    def wait(self, job_id: str, *states: str, seconds: float = 300) -> Job:
        """The job, once it is in one of these states."""
        end = time.monotonic() + seconds
        while (job := get(self.store, job_id)).status not in states:
            assert time.monotonic() < end, f"still {job.status} at step {job.step}: {[e.message for e in events_of(self.store, job_id)][-5:]}"
            time.sleep(0.02)
        return job

    def worker(self, job_id: str) -> int | None:
        """The process id of the worker of a job's present attempt, where it lives."""
        attempt = get(self.store, job_id).attempt
        found = read_json(self.home.job(job_id) / f"worker-{attempt}.json")
        return found["pid"] if found and alive(found["pid"], found["started"]) else None

    def weights(self, job_id: str) -> str:
        """The hash of a job's result."""
        return hashlib.sha256((self.home.job(job_id) / "run" / "model" / "adapter_model.safetensors").read_bytes()).hexdigest()

    def restart(self) -> None:
        """The launcher's process is killed and started again: all it had in memory is gone. The nursery is kept, to save its seconds."""
        old = self.launcher
        old._stopping = True
        old._news.set()
        old._thread.join()
        self.launcher = Launcher(self.store, self.home, concurrent=2)
        self.launcher.nursery = old.nursery
        self.launcher.start()


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("yard")
    home = Home(folder / "home")
    home.make()
    base = tiny.save(folder / "base", tiny.llama())
    for name, file, count in (("file-train", "train.jsonl", 12), ("file-valid", "validation.jsonl", 6)):
        home.file(name).write_text("".join((tiny.SAMPLE / file).read_text().splitlines(True)[:count]))
    store = Store(serving.new_database() if serving.POSTGRESQL else home.database)
    store.migrate()
    made = Yard(store, home, base, Launcher(store, home, concurrent=2))
    made.launcher.start()
    yield made
    made.launcher.stop()
    assert made.launcher.nursery is not None
    made.launcher.nursery.wait(20)
    store.close()


@pytest.fixture(scope="module")
def undisturbed(yard: Yard) -> str:
    """A job of twelve epochs that nothing happened to."""
    job_id = yard.add(12)
    yard.wait(job_id, *FINAL)
    return job_id


@pytest.fixture(scope="module")
def long_undisturbed(yard: Yard) -> str:
    """One that takes long enough for something to happen to its like."""
    job_id = yard.add(30)
    yard.wait(job_id, *FINAL)
    return job_id


def test_a_job_goes_from_its_files_to_a_model(yard: Yard, undisturbed: str) -> None:
    job = get(yard.store, undisturbed)
    assert (job.status, job.error, job.step) == ("succeeded", None, 48), job.error
    words = [event.message for event in events_of(yard.store, undisturbed) if event.type == "message"]
    order = [
        "Created fine-tuning job",
        "Files validated",
        "Fine-tuning job started",
        "Training data",
        "New fine-tuned model created",
        "The job has successfully",
    ]
    places = [next(i for i, word in enumerate(words) if word.startswith(begin)) for begin in order]
    assert places == sorted(places)
    assert job.fine_tuned_model and job.fine_tuned_model in words[-2]
    with yard.store.read() as session:
        rows = session.scalars(select(Checkpoint).where(Checkpoint.job_id == undisturbed).order_by(Checkpoint.step)).all()
        result = session.scalars(select(File).where(File.id == job.result_files[0])).one()
    assert [row.step for row in rows] == [40, 44, 48] and rows[-1].model == job.fine_tuned_model
    assert all((yard.home.job(undisturbed) / row.folder / "adapter_model.safetensors").is_file() for row in rows)
    content = yard.home.file(result.id).read_bytes()
    assert hashlib.sha256(content).hexdigest() == result.sha256 and len(content.splitlines()) == 49
    assert job.trained_tokens == 12 * (job.tokens or 0) > 0
    assert not [name for name in os.listdir(yard.home.job(undisturbed)) if name.startswith(".")]


def test_bad_files_fail_the_job_with_every_problem(yard: Yard) -> None:
    good = json.loads(yard.home.file("file-train").read_text().splitlines()[0])
    lines = [json.dumps(good)] * 11 + ['{"messages": []}', "no json"]
    yard.home.file("file-bad").write_text("\n".join(lines) + "\n")
    job_id = yard.add()
    folder = yard.home.job(job_id)
    (folder / "training.jsonl").unlink()
    os.link(yard.home.file("file-bad"), folder / "training.jsonl")
    job = yard.wait(job_id, "failed")
    assert job.error and job.error["param"] == "training_file" and "line 12" in job.error["message"] and "line 13" in job.error["message"]
    assert str(folder) not in json.dumps(job.error)


def test_a_paused_job_frees_its_worker_and_goes_on_to_the_same_weights(yard: Yard, long_undisturbed: str) -> None:
    job_id = yard.add(30)
    while get(yard.store, job_id).step < 5:
        time.sleep(0.01)
    process = yard.worker(job_id)
    with yard.store.write() as session:
        row = locked(session, job_id)
        assert row is not None and row.status == "running"
        row.wish = "pause"
    yard.wait(job_id, "paused")
    assert process is None or not alive_soon(process)
    with yard.store.write() as session:
        row = locked(session, job_id)
        assert row is not None
        move(yard.store, session, row, "queued", "The job was resumed")
    assert yard.wait(job_id, *FINAL).status == "succeeded"
    assert yard.weights(job_id) == yard.weights(long_undisturbed)


def alive_soon(pid: int) -> bool:
    """Whether a process is still there after a moment to end in."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return False
        time.sleep(0.05)
    return True


def test_a_cancelled_job_loses_its_worker(yard: Yard) -> None:
    job_id = yard.add(200)
    while (process := yard.worker(job_id)) is None:
        time.sleep(0.02)
    with yard.store.write() as session:
        row = locked(session, job_id)
        assert row is not None
        move(yard.store, session, row, "cancelled")
    yard.launcher.wake()
    assert not alive_soon(process)
    assert get(yard.store, job_id).status == "cancelled"


def test_twenty_kills_lose_nothing_double_nothing_and_change_no_bit(yard: Yard, undisturbed: str) -> None:
    """Workers are killed at random moments, inside saves too, and the launcher is begun anew."""
    draw = random.Random(0)
    ids: list[str] = []
    kills = 0
    while kills < 20:
        if sum(get(yard.store, job_id).status not in FINAL for job_id in ids) < 3:
            ids.append(yard.add(12, checkpoints={"every_steps": 1}))
        time.sleep(draw.uniform(0.05, 0.5))
        if kills % 7 == 6:
            yard.restart()
            kills += 1
            continue
        running = [job_id for job_id in ids if get(yard.store, job_id).attempts == 0 and yard.worker(job_id)]
        if running and (process := yard.worker(draw.choice(running))):
            try:
                os.killpg(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
            kills += 1
    for job_id in ids:
        job = yard.wait(job_id, *FINAL)
        assert job.status == "succeeded", job.error
        assert yard.weights(job_id) == yard.weights(undisturbed)
        steps = [event.data["step"] for event in events_of(yard.store, job_id) if event.type == "metrics"]
        assert steps == list(range(1, 49))
        with yard.store.read() as session:
            assert session.scalar(select(func.count()).select_from(Checkpoint).where(Checkpoint.job_id == job_id)) == 3
            assert session.scalar(select(func.count()).select_from(File).where(File.id.in_(job.result_files))) == 1


def test_a_launcher_that_begins_goes_on_with_the_workers_it_finds_and_ends_those_that_may_not_be(yard: Yard) -> None:
    job_id = yard.add(30)
    while get(yard.store, job_id).step < 2:
        time.sleep(0.01)
    process = yard.worker(job_id)
    over = yard.home.job(new_job(yard.store, "cancelled"))
    over.mkdir()
    stray = subprocess.Popen(["sleep", "300"], start_new_session=True)
    (over / "worker-itslast.json").write_text(json.dumps({"pid": stray.pid, "started": psutil.Process(stray.pid).create_time()}))
    yard.restart()
    assert stray.wait(20) == -signal.SIGKILL
    assert yard.worker(job_id) == process
    assert yard.wait(job_id, *FINAL).status == "succeeded"
    assert len(list(yard.home.job(job_id).glob("worker-*.json"))) == 1


def test_a_job_whose_workers_keep_dying_fails_after_three(yard: Yard) -> None:
    job_id = yard.add(200)
    killed: set[int] = set()
    while get(yard.store, job_id).status not in FINAL:
        process = yard.worker(job_id) if get(yard.store, job_id).status == "running" else None
        if process and process not in killed:  # as soon as it is born: before its first step
            os.killpg(process, signal.SIGKILL)
            killed.add(process)
        time.sleep(0.005)
    job = get(yard.store, job_id)
    assert job.status == "failed" and job.error and job.error["code"] == "worker_lost"
    assert len(killed) == 3


def test_a_hung_worker_is_found_by_its_progress_and_may_not_speak_later(yard: Yard, long_undisturbed: str) -> None:
    """SIGSTOP: the process is alive and does nothing. Killed, its place is taken by one that ends with the same bits."""
    job_id = yard.add(30)
    while get(yard.store, job_id).step < 3:
        time.sleep(0.01)
    process = yard.worker(job_id)
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    yard.launcher.stall_seconds = 1.0
    try:
        while process == yard.worker(job_id):
            time.sleep(0.05)
    finally:
        yard.launcher.stall_seconds = 900.0
    assert yard.wait(job_id, *FINAL).status == "succeeded"
    assert not alive_soon(process)
    assert yard.weights(job_id) == yard.weights(long_undisturbed)


def test_a_worker_knows_no_secret_and_listens_nowhere(yard: Yard) -> None:
    os.environ["TUNEWRIGHT_TEST_SECRET"] = "sk-planted"
    job_id = yard.add(200)
    while (process := yard.worker(job_id)) is None:
        time.sleep(0.02)
    worker = psutil.Process(process)
    assert "TUNEWRIGHT_TEST_SECRET" not in worker.environ() and worker.environ()["HF_HUB_OFFLINE"] == "1"
    assert [c for c in worker.net_connections() if c.status == psutil.CONN_LISTEN] == []
    with yard.store.write() as session:
        row = locked(session, job_id)
        assert row is not None
        move(yard.store, session, row, "cancelled")
    yard.launcher.wake()
    assert not alive_soon(process)


def test_a_worker_waits_until_the_one_before_has_let_go(yard: Yard, undisturbed: str) -> None:
    """The kernel may still hold a killed process's lock when the process counts as dead."""
    from tunewright.train.folder import hold

    job_id = yard.add(12)
    with hold(yard.home.job(job_id) / "run"):
        while yard.worker(job_id) is None or get(yard.store, job_id).status != "running":
            time.sleep(0.02)
        time.sleep(0.5)
    assert yard.wait(job_id, *FINAL).status == "succeeded"
    assert yard.weights(job_id) == yard.weights(undisturbed)
