"""Hostile requests against a running server: none may bring a 5xx, a traceback, another shape of error, or a wait of five seconds.

    python benchmarks/fuzz_server.py --requests 20000 --seed 0
    python benchmarks/fuzz_server.py --schema 200      # and schemathesis, 200 examples an operation

Starts `tunewright serve` on an empty home folder, sends the corpus of tests/hostile.py on every route and then seeded mutations
of good requests, over keep-alive sockets from four threads. Every answer is looked at: its status, its headers, its shape, and
whether it tells of files, code or the database. At the end the server must still be healthy and have left nothing in its tmp
folder. With --schema, schemathesis makes requests of its own from the server's description. Exit code 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.request import urlopen

import openai
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hostile import CANARY, Request, corpus, good, mutated, wrong  # noqa: E402

KEY = "sk-fuzz-0123456789abcdef"
THREADS = 4
SETTINGS = ("quotas.requests_per_minute=10000000", "quotas.jobs=1000000", "limits.bad_keys=1000000")


class Totals:
    """What was seen, by all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.longest = 0.0
        self.faults: list[str] = []

    def note(self, request: Request, status: int, seconds: float, fault: str | None) -> None:
        with self.lock:
            self.statuses[status] += 1
            self.longest = max(self.longest, seconds)
            if seconds > 5:
                fault = fault or f"took {seconds:.1f} s"
            if fault:
                self.faults.append(f"{request.method} {request.path[:120]} {request.headers} {request.body[:200]!r}: {fault}")


class Line:
    """A keep-alive connection that sends bytes as they are: a client library would tidy them up."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket: socket.socket | None = None

    def ask(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Send a request and read its answer. A connection that the server has closed meanwhile is opened anew, once."""
        headers = {"Host": "127.0.0.1", "Authorization": f"Bearer {KEY}", "Content-Length": str(len(request.body))}
        for name, value in request.headers.items():
            headers = {old: kept for old, kept in headers.items() if old.lower() != name} | {name: value}
        lines = [f"{request.method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        data = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + request.body
        for fresh in (False, True):
            try:
                return self._once(data, request.method, fresh)
            except (OSError, HTTPException):
                self.close()
                if fresh:
                    raise
        raise AssertionError

    def _once(self, data: bytes, method: str, fresh: bool) -> tuple[int, dict[str, str], bytes]:
        if self.socket is None or fresh:
            self.close()
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=30)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):  # refused before all was sent: the answer is there nevertheless
            self.socket.sendall(data)
        answer = HTTPResponse(self.socket, method=method)
        answer.begin()
        body = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def fuzz(port: int, requests: list[Request], totals: Totals) -> None:
    """Send requests over one connection after the other."""
    line = Line(port)
    for request in requests:
        began = time.monotonic()
        try:
            status, headers, body = line.ask(request)
        except (OSError, HTTPException) as error:
            totals.note(request, 0, time.monotonic() - began, f"no answer: {type(error).__name__}: {error}")
            continue
        # What is refused before it is a request has no headers of ours.
        unread = status == 400 and b'"The request cannot be read' in body
        totals.note(request, status, time.monotonic() - began, None if unread else wrong(request, status, headers, body))
    line.close()


def start(home: Path) -> tuple[subprocess.Popen[str], int]:
    """A server on a free port."""
    program = "from tunewright.cli import main; main()"
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-u", "-c", program, "serve", "--home", str(home), "--port", "0", *options]
    log = (home.parent / "log").open("w")
    environment = {**os.environ, "TUNEWRIGHT_API_KEY": KEY, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert process.stdout
    for said in process.stdout:
        if found := re.search(r"127\.0\.0\.1:(\d+)/v1", said):
            port = int(found[1])
            break
    else:
        sys.exit((home.parent / "log").read_text())
    while True:
        try:
            if urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).status == 200:
                return process, port
        except OSError:
            time.sleep(0.1)


def schema(port: int, examples: int, folder: Path) -> int:
    """Schemathesis over the server's own description; what it remembers goes into `folder`. Returns its exit code."""
    command = [
        str(Path(sys.executable).parent / "st"), "run", f"http://127.0.0.1:{port}/openapi.json", "--url", f"http://127.0.0.1:{port}",
        "-H", f"Authorization: Bearer {KEY}", "-n", str(examples), "--phases", "examples,fuzzing", "--max-response-time", "5",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance", "--seed", "0", "-w", "2",
        "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    return subprocess.run(command, check=False, cwd=folder).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schema", type=int, default=0, metavar="EXAMPLES", help="also run schemathesis, with so many examples an operation")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        (Path(folder) / "canary").write_text(CANARY)
        process, port = start(home)
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
            file = client.files.create(file=("a.jsonl", b"{}\n" * 10), purpose="fine-tune").id
            upload = client.uploads.create(bytes=3, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune").id
            job = client.fine_tuning.jobs.create(model="nano", training_file=file).id
            basis = good(file, upload, job)
            known = list(corpus(basis))
            mine = [*known, *itertools.islice(mutated(basis, asked.seed), max(0, asked.requests - len(known)))][: asked.requests]
            client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "hi"}], max_tokens=1)  # loaded before it is timed
            before = psutil.Process(process.pid).memory_info().rss
            totals, began = Totals(), time.monotonic()
            threads = [threading.Thread(target=fuzz, args=(port, mine[n::THREADS], totals)) for n in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - began
            grown = (psutil.Process(process.pid).memory_info().rss - before) / 1e6
            healthy = urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).status == 200
            left = [path.name for path in (home / "tmp").iterdir()]
            outcome = schema(port, asked.schema, Path(folder)) if asked.schema else 0
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        log = (Path(folder) / "log").read_text()
        traced = log.count("Traceback")
        for part in log.split("Traceback")[1:4]:
            print(f"TRACEBACK {part[:3000]}")
    for fault in totals.faults[:20]:
        print(f"WRONG {fault}")
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(totals.statuses.items()))
    print(f"\n{len(mine):,} requests in {took:.0f} s, {len(totals.faults)} wrong; statuses {statuses}")
    print(
        f"longest {totals.longest:.2f} s; server's memory grew by {grown:.0f} MB; tracebacks in its log: {traced}; left in tmp: {len(left)}; healthy: {healthy}"
    )
    print(f"seed {asked.seed}; {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    sys.exit(bool(totals.faults or traced or left or not healthy or outcome))


if __name__ == "__main__":
    main()
