"""How fast the server answers: the list of 10,000 jobs, creations that are on the disk, and what it adds to a chat.

    python benchmarks/server.py

The app runs in a process of its own behind uvicorn, as `tunewright serve` runs it, without a launcher, so that nothing trains
meanwhile; requests come over the loopback from another process. A chat asks a random model of two layers for one token, over
HTTP and directly of the engine: the difference is what HTTP, keys, limits and rendering add.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
KEY = "sk-bench-0123456789abcdef0123456789"


def serve(home: Path, port: int, base: str) -> None:
    """The server's process."""
    os.environ["TUNEWRIGHT_API_KEY"] = KEY
    from tunewright.jobs.home import Home
    from tunewright.jobs.store import Store
    from tunewright.serve import keys
    from tunewright.serve.app import create_app
    from tunewright.serve.config import ServeConfig
    from tunewright.serve.run import bind, run

    place = Home(home)
    place.make()
    quotas = {"jobs": 1_000_000, "requests_per_minute": 10_000_000}
    config = ServeConfig(port=port, models={"tiny": base}, quotas=quotas)
    store = Store(place.database)
    store.migrate()
    keys.first_key(store)
    run(create_app(config, store, place), config, bind(config))


def spread(name: str, seconds: list[float]) -> None:
    """A line of milliseconds."""
    ordered = sorted(seconds)
    at = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] * 1e3 for share in (50, 90, 99)}
    print(f"{name}: " + ", ".join(f"{label} {value:.1f} ms" for label, value in at.items()) + f" ({len(ordered)} times)", flush=True)


def timed(times: int, ask: Any) -> list[float]:
    """Seconds of each of so many calls, after ten that do not count."""
    found = []
    for i in range(times + 10):
        begun = time.perf_counter()
        ask()
        if i >= 10:
            found.append(time.perf_counter() - begun)
    return found


def creations(client: httpx.Client, body: dict[str, Any], seconds: float, threads: int) -> float:
    """Jobs a second that so many clients at once have made."""
    made, end = [0] * threads, time.monotonic() + seconds

    def work(which: int) -> None:
        with httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60) as own:
            while time.monotonic() < end:
                assert own.post("/fine_tuning/jobs", json={**body, "seed": which * 1_000_000 + made[which]}).status_code == 200
                made[which] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    begun = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(made) / (time.monotonic() - begun)


def main() -> None:
    import serving
    import tiny

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tunewright-server-"))
    base, port = tiny.save(folder / "tiny", tiny.llama(tie=False, positions=1024)), serving.free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(folder / "home", port, base), daemon=True)
    process.start()
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", headers={"Authorization": f"Bearer {KEY}"}, timeout=120)
    for _ in range(1200):
        try:
            if client.get("/models").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.05)
    rows = "".join((tiny.SAMPLE / "train.jsonl").read_text().splitlines(True)[:12]).encode()
    training = client.post("/files", files={"file": ("rows.jsonl", rows)}, data={"purpose": "fine-tune"}).json()["id"]
    body = {"model": "tiny", "training_file": training}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}", flush=True)
    for threads in (1, 4):
        print(f"durable creations, {threads} at once: {creations(client, body, options.seconds, threads):.0f} a second", flush=True)
    fill(folder / "home", options.jobs)
    spread(f"list of 20 of {options.jobs:,} jobs", timed(500, lambda: client.get("/fine_tuning/jobs")))
    last = client.get("/fine_tuning/jobs?limit=1000").json()["data"][-1]["id"]
    spread("a page from the middle", timed(500, lambda: client.get(f"/fine_tuning/jobs?after={last}")))
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 1, "temperature": 0, "stream": True}
    over = timed(300, lambda: client.post("/chat/completions", json=chat))
    direct = directly(base, 300)
    spread("a chat of one token over HTTP", over)
    spread("the same of the engine alone", direct)
    added = sorted(one - statistics.median(direct) for one in over)
    spread("added by the server", added)
    process.terminate()


def fill(home: Path, count: int) -> None:
    """Jobs of one owner up to a number, as rows."""
    import sqlite3

    with sqlite3.connect(home / "tunewright.db", timeout=60) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(jobs)") if row[1] not in ("seq", "id")]
        there = database.execute("SELECT count(*) FROM jobs").fetchone()[0]
        names = ", ".join(columns)
        for i in range(max(0, count - there)):
            database.execute(f"INSERT INTO jobs (id, {names}) SELECT ?, {names} FROM jobs ORDER BY seq LIMIT 1", (f"ftjob-{i:024d}",))


def directly(base: str, times: int) -> list[float]:
    """Seconds to the first token of the same chat without a server."""
    import torch

    from tunewright.data.example import Chat, Message
    from tunewright.data.tokens import prompt
    from tunewright.models.load import load
    from tunewright.serve.ask import Ask, Resolved
    from tunewright.serve.engine import Engine

    torch.set_num_threads(1)
    engine = Engine()
    opened = engine.open(Resolved("tiny", Path(base)))
    ids = tuple(prompt(Chat((Message("user", "Hello there"),)), load(base).tokenizer))

    def ask() -> None:
        list(engine.answer(opened, Ask(ids, max_tokens=1, temperature=0.0)))

    found = timed(times, ask)
    engine.close()
    return found


if __name__ == "__main__":
    main()
