"""Kill workers and servers of a real `tunewright serve` at random moments, and count what that cost.

    python benchmarks/job_kills.py --kills 300 --jobs 30 --seed 0

A small random base is tuned by many jobs, two at a time, each saving a checkpoint at every step, so that many kills fall inside a
save. A kill (SIGKILL) hits one worker, the server, or the server and all workers; a server is started again at once. At the end
every job must have succeeded, once, with each step recorded once and the weights of a job that nothing happened to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import openai
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

KEY = "sk-kills-0123456789abcdef0123456789"
ENDED = ("succeeded", "failed", "cancelled")
PROGRAM = "from tunewright.cli import main; main()"


class Server:
    """A server process on one home folder, begun again each time it is killed."""

    def __init__(self, home: Path) -> None:
        import serving

        self.home = home
        self.port = serving.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=2)
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {**os.environ, "TUNEWRIGHT_API_KEY": KEY, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.home / "server.log").open("ab") as log:
            command = [sys.executable, "-c", PROGRAM, "serve", "--port", str(self.port), "--home", str(self.home)]
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        for _ in range(1200):
            try:
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                assert self.popen.poll() is None, (self.home / "server.log").read_text()[-2000:]
                time.sleep(0.05)
        raise SystemExit("the server did not start")

    def kill(self) -> None:
        """SIGKILL."""
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()


def rows(home: Path, query: str) -> list[tuple]:
    """What the database holds, without asking the server."""
    with sqlite3.connect(f"file:{home / 'tunewright.db'}?mode=ro", uri=True, timeout=30) as database:
        return database.execute(query).fetchall()


def workers(home: Path) -> dict[str, int]:
    """The live workers of running jobs that have not just lost one: job -> process id."""
    found = {}
    for job, attempt in rows(home, "SELECT id, attempt FROM jobs WHERE status = 'running' AND attempts < 2"):
        try:
            record = json.loads((home / "jobs" / job / f"worker-{attempt}.json").read_text())
            os.kill(record["pid"], 0)
        except (OSError, ValueError):
            continue
        found[job] = record["pid"]
    return found


def where(home: Path, job: str) -> str:
    """What a worker was doing, by what lies in its folder."""
    run = home / "jobs" / job / "run"
    if list(run.glob("checkpoints/.tmp-*")) or list(run.glob("checkpoints/.old-*")):
        return "inside a save"
    return "between" if (run / "events.jsonl").is_file() and list(run.glob("checkpoints/step-*")) else "starting"


def digest(home: Path, job: str) -> str:
    """The hash of a job's weights."""
    return hashlib.sha256((home / "jobs" / job / "run" / "model" / "adapter_model.safetensors").read_bytes()).hexdigest()


def main() -> None:
    import tiny

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="tunewright-kills-"))
    home = folder / "home"
    home.mkdir()
    base = tiny.save(folder / "tiny", tiny.llama(tie=False))
    (home / "serve.yaml").write_text(yaml.safe_dump({"models": {"tiny": base}, "concurrent_jobs": 2, "quotas": {"jobs": 10_000}}))
    server = Server(home)
    server.start()
    content = "".join((tiny.SAMPLE / "train.jsonl").read_text().splitlines(True)[:12]).encode()
    training = server.client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id

    def create() -> str:
        own = {"tunewright": {"checkpoints": {"every_steps": 1}, "threads": 1, "precision": "fp32", "tuning": {"kind": "lora", "rank": 4}}}
        settings = {"n_epochs": options.epochs, "batch_size": 3}
        return server.client.fine_tuning.jobs.create(model="tiny", training_file=training, seed=1, hyperparameters=settings, extra_body=own).id

    made = [create()]
    while rows(home, "SELECT status FROM jobs")[0][0] not in ENDED:
        time.sleep(0.2)
    undisturbed = digest(home, made[0])
    print(f"undisturbed: sha256 {undisturbed[:16]}…", flush=True)
    begun, kinds, moments = time.monotonic(), Counter(), Counter()
    while sum(kinds.values()) < options.kills or len(made) <= options.jobs:
        waiting = rows(home, "SELECT count(*) FROM jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled')")[0][0]
        for _ in range(4 - waiting):
            made.append(create())
        time.sleep(draw.uniform(0.05, 1.0))
        there = workers(home)
        if not there:
            continue
        kind = draw.choices(("worker", "server", "both"), (60, 25, 15))[0]
        hit = [draw.choice(sorted(there))] if kind == "worker" else sorted(there) if kind == "both" else []
        if kind != "worker":
            server.kill()
        for job in hit:
            moments[where(home, job)] += 1
            try:
                os.killpg(there[job], signal.SIGKILL)
            except ProcessLookupError:
                continue
        if kind != "worker":
            server.start()
        kinds[kind] += 1
        if sum(kinds.values()) % 25 == 0:
            print(f"{sum(kinds.values())} kills, {len(made)} jobs, {time.monotonic() - begun:.0f} s", flush=True)
    end = time.monotonic() + 600
    while time.monotonic() < end and rows(home, "SELECT count(*) FROM jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled')")[0][0]:
        time.sleep(0.5)
    states = dict(rows(home, "SELECT id, status FROM jobs"))
    steps = options.epochs * 4
    doubled = rows(
        home,
        "SELECT count(*) FROM (SELECT job_id, json_extract(data, '$.step') AS s FROM job_events WHERE type = 'metrics' GROUP BY 1, 2 HAVING count(*) > 1)",
    )[0][0]
    short = rows(home, f"SELECT count(*) FROM (SELECT job_id FROM job_events WHERE type = 'metrics' GROUP BY 1 HAVING count(*) <> {steps})")[0][0]
    results = rows(home, "SELECT count(*) FROM files WHERE purpose = 'fine-tune-results'")[0][0]
    changed = sum(digest(home, job) != undisturbed for job, state in states.items() if state == "succeeded")
    report = {
        "kills": dict(kinds), "moments": dict(moments), "jobs": len(made), "lost": len(set(made) - set(states)),
        "stuck": sum(state not in ENDED for state in states.values()), "failed": sum(state == "failed" for state in states.values()),
        "doubled": doubled + max(0, results - len(made)), "steps missing": short, "weights different": changed, "seconds": round(time.monotonic() - begun),
    }  # fmt: skip
    print(json.dumps(report))
    server.popen.terminate()
    server.popen.wait()
    sys.exit(any(report[name] for name in ("lost", "stuck", "failed", "doubled", "steps missing", "weights different")))


if __name__ == "__main__":
    main()
