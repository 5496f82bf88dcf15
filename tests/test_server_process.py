"""The server as its users start it: a process, spoken to over a socket."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import yaml

import tiny
from serving import POSTGRESQL, free_port, new_database

KEY = "sk-test-0123456789abcdef0123456789"


@dataclass
class Process:
    """A running `tunewright serve`."""

    popen: subprocess.Popen[bytes]
    url: str
    home: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY)


@contextmanager
def started(home: Path, database: str | None = None) -> Iterator[Process]:
    """`tunewright serve` on a home folder, once it is ready; killed at the end if it still runs."""
    port = free_port()
    environment = {**os.environ, "TUNEWRIGHT_API_KEY": KEY, **({"TUNEWRIGHT_DATABASE": database} if database else {})}
    with (home / "server.log").open("ab") as log:
        program = "from tunewright.cli import main; main()"
        popen = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--port", str(port), "--home", str(home)], stdout=log, stderr=log, env=environment
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert popen.poll() is None, (home / "server.log").read_text()
            try:
                if httpx.get(f"{url}/healthz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield Process(popen, url, home)
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder whose one base beside the built-in ones is `tiny`."""
    folder = tmp_path / "home"
    folder.mkdir()
    base = tiny.save(tmp_path / "tiny", tiny.llama(tie=False, positions=1024))
    (folder / "serve.yaml").write_text(yaml.safe_dump({"models": {"tiny": base}}))
    return folder


def test_the_conformance_kit_finds_nothing_wrong(home: Path, shared_data: Path) -> None:
    kit = shared_data.parent / "conformance" / "client_flow.py"
    rows = (tiny.SAMPLE / "train.jsonl").read_text().splitlines(True)
    (home / "train.jsonl").write_text("".join(rows[:24]))
    (home / "valid.jsonl").write_text("".join(rows[24:36]))
    with started(home, new_database() if POSTGRESQL else None) as server:
        command = [sys.executable, str(kit), "--base-url", f"{server.url}/v1", "--api-key", KEY, "--model", "tiny", "--n-epochs", "4", "--keep"]
        command += ["--train", str(home / "train.jsonl"), "--valid", str(home / "valid.jsonl"), "--poll", "0.1"]
        command += ["--groups", "core,strict,uploads,pause,completions,dpo,permissions"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=400)
        lines = said.stdout.splitlines()
        assert said.returncode == 0, [line for line in lines if line.startswith("FAIL")] or said.stderr[-2000:]
        assert re.fullmatch(r"1[67]\d passed, 0 failed", lines[-1]), lines[-1]
        bodies = [sys.executable, str(kit.with_name("validate_responses.py")), "--base-url", f"{server.url}/v1", "--api-key", KEY]
        said = subprocess.run(bodies, capture_output=True, text=True, timeout=100)
        assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-2000:]
        log = (home / "server.log").read_text()
        assert "Traceback" not in log and KEY not in log


def test_a_second_server_on_a_home_refuses_and_names_the_first(home: Path) -> None:
    with started(home) as server:
        begun = time.monotonic()
        program = "from tunewright.cli import main; main()"
        second = subprocess.run(
            [sys.executable, "-c", program, "serve", "--port", "0", "--home", str(home)], capture_output=True, text=True, timeout=60
        )
        assert second.returncode != 0 and f"process {server.popen.pid}" in second.stderr and "Traceback" not in second.stderr
        assert time.monotonic() - begun < 10  # of which the interpreter's start is the most


def test_sigterm_ends_a_server_with_streams_open(home: Path) -> None:
    content = b"x" * 50_000_000
    with started(home) as server, ExitStack() as streams:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "go on"}], "stream": True, "max_tokens": 900}
        known = {"Authorization": f"Bearer {KEY}"}
        answer = streams.enter_context(httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, headers=known, timeout=120))
        reading: list[Iterator[str] | Iterator[bytes]] = [answer.iter_lines()]  # httpx ends a stream whose iterator is forgotten
        # Who takes a file and does not read on would hold a server for ever.
        file = server.client.files.create(file=("x.png", content), purpose="vision").id
        for _ in range(5):
            answer = streams.enter_context(httpx.stream("GET", f"{server.url}/v1/files/{file}/content", headers=known, timeout=120))
            reading.append(answer.iter_bytes(1))
        assert all(next(stream) for stream in reading)
        begun = time.monotonic()
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(20) in (0, -signal.SIGTERM)
        assert time.monotonic() - begun < 5


def test_a_server_killed_while_a_job_trains_finds_it_again(home: Path) -> None:
    database = new_database() if POSTGRESQL else None
    content = "".join((tiny.SAMPLE / "train.jsonl").read_text().splitlines(True)[:12]).encode()
    with started(home, database) as server:
        training = server.client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id
        job = server.client.fine_tuning.jobs.create(model="tiny", training_file=training, hyperparameters={"n_epochs": 50, "batch_size": 2}, seed=1)
        events = home / "jobs" / job.id / "run" / "events.jsonl"
        while not (events.exists() and b"train_loss" in events.read_bytes()):
            time.sleep(0.02)
        server.popen.kill()
        server.popen.wait()
        workers = set((home / "jobs" / job.id).glob("worker-*.json"))
        assert not (home / "jobs" / job.id / "run" / "exit.json").exists()
    with started(home, database) as server:
        while (job := server.client.fine_tuning.jobs.retrieve(job.id)).status not in ("succeeded", "failed", "cancelled"):
            time.sleep(0.1)
        assert job.status == "succeeded", job.error
        events = list(server.client.fine_tuning.jobs.list_events(job.id, limit=100))
        steps = [event.data["step"] for event in events if event.type == "metrics"]  # type: ignore[index]
        assert steps == list(range(300, 0, -1))
        assert set((home / "jobs" / job.id).glob("worker-*.json")) == workers != set()  # it went on, and was adopted
        answer = server.client.chat.completions.create(model=job.fine_tuned_model or "", messages=[{"role": "user", "content": "hi"}], max_tokens=4)
        assert answer.usage and answer.usage.completion_tokens <= 4
