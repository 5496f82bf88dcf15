"""`tunewright serve` as a process: how it starts, what its sockets bear, and how it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import openai
import psutil
import pytest

from tunewright.cli import serve as cli
from tunewright.errors import BadConfig
from tunewright.jobs.home import Home, HomeTaken
from tunewright.jobs.store import Store
from tunewright.serve.config import ServeConfig
from tunewright.serve.keys import find_key, first_key, list_keys, revoke_key

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-test-0123456789abcdef"
PROGRAM = "from tunewright.cli import main; main()"


@dataclass(slots=True)
class Running:
    """A server and where it is."""

    process: subprocess.Popen[str]
    home: Path
    port: int
    said: str

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return made

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0)


@contextmanager
def running(home: Path, *settings: str, **environment: str) -> Iterator[Running]:
    """A server on a free port, once it answers."""
    options = [word for setting in settings for word in ("--set", setting)]
    log = (home.parent / f"{home.name}.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, "serve", "--home", str(home), "--port", "0", *options],
        cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        said = ""
        while "Serving on" not in said:
            line = process.stdout.readline()
            assert line, (process.wait(), Path(log.name).read_text())
            said += line
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", said)
        assert found, said
        server = Running(process, home, int(found[1]), said)
        for _ in range(600):
            try:
                if urlopen(f"http://127.0.0.1:{server.port}/readyz", timeout=5).status == 200:
                    break
            except OSError:
                time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("serve") / "home"
    with running(home, "limits.head_seconds=0.7", "limits.body_seconds=0.7", "limits.connections_per_address=60", TUNEWRIGHT_API_KEY=KEY) as server:
        yield server


def test_an_unmodified_client_walks_in(serve: Running) -> None:
    client = serve.client()
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune")
    assert client.files.content(file.id).read() == b"{}\n"
    assert {"nano", "gpt-3.5-turbo"} <= {model.id for model in client.models.list()}
    assert KEY not in serve.said, "a key that was given is not shown"


def test_a_second_server_is_refused_and_told_of_the_first(serve: Running) -> None:
    began = time.monotonic()
    with pytest.raises(HomeTaken, match=f"process {serve.process.pid}"):
        cli.serve(serve.home, None, port=0)
    assert time.monotonic() - began < 1


def test_it_listens_once_and_calls_nobody(serve: Running) -> None:
    processes = [psutil.Process(serve.process.pid), *psutil.Process(serve.process.pid).children(recursive=True)]
    connections = [one for process in processes for one in process.net_connections("inet")]
    assert {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN} == {serve.port}
    assert all(one.laddr.ip == "127.0.0.1" for one in connections)
    assert not [one for one in connections if one.raddr and one.raddr.ip != "127.0.0.1"]


def answer(server: Running, data: bytes, wait: float = 5) -> tuple[bytes, bool]:
    """What comes back for some bytes, and whether the server then closed."""
    with server.connect() as made:
        made.settimeout(wait)
        made.sendall(data)
        got = b""
        try:
            while piece := made.recv(65536):
                got += piece
        except TimeoutError:
            return got, False
        except ConnectionResetError:
            return got, True
        return got, True


AUTH = f"Host: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\n".encode()
WIRE: list[tuple[str, bytes, int]] = [
    ("two lengths of one body", b"POST /v1/uploads HTTP/1.1\r\n" + AUTH + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics", 400),
    ("two lengths", b"POST /v1/uploads HTTP/1.1\r\n" + AUTH + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", 400),
    ("a length below zero", b"POST /v1/uploads HTTP/1.1\r\n" + AUTH + b"Content-Length: -1\r\n\r\n", 400),
    ("an odd transfer encoding", b"POST /v1/uploads HTTP/1.1\r\n" + AUTH + b"Transfer-Encoding: xchunked\r\n\r\n", 400),
    ("HTTP/0.9", b"GET /v1/models\r\n\r\n", 400),
    ("CONNECT", b"CONNECT evil.example:80 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 400),
    ("absolute form", b"GET http://evil.example/v1/models HTTP/1.1\r\nConnection: close\r\n" + AUTH + b"\r\n", 400),
    ("two hosts", b"GET /v1/models HTTP/1.1\r\nHost: a\r\n" + AUTH + b"\r\n", 400),
    ("no host", b"GET /v1/models HTTP/1.1\r\n\r\n", 400),
    ("a head that has no end", b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"x: " + b"y" * 200_000, 400),
    ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10 + b"\r\n\r\n", 400),
    ("a space before the colon", b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n" + AUTH + b"x : y\r\n\r\n", 400),
    ("a body too large", b"POST /v1/uploads HTTP/1.1\r\n" + AUTH + b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{", 413),
    ("a chunk that is none", b"POST /v1/uploads HTTP/1.1\r\n" + AUTH + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ("a body that stops", b"POST /v1/uploads HTTP/1.1\r\n" + AUTH + b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{", 408),
    ("upgrade", b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"Connection: upgrade, close\r\nUpgrade: websocket\r\n\r\n", 200),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status"), [case[1:] for case in WIRE], ids=[case[0] for case in WIRE])
def test_odd_http(serve: Running, data: bytes, status: int) -> None:
    got, closed = answer(serve, data)
    assert got.startswith(f"HTTP/1.1 {status} ".encode()), got[:300]
    assert closed and len(re.findall(rb"HTTP/1.1 \d", got)) == 1, "one request has one answer, and the connection ends"
    if status >= 400:
        assert set(json.loads(got.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}


def test_requests_that_never_end_do_not_hold_the_server(serve: Running) -> None:
    """Slow heads, one byte at a time, and connections that say nothing; meanwhile others are served."""
    starts = [b"", b"G", b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"]
    slow = [serve.connect() for _ in range(45)]
    for at, made in enumerate(slow):
        made.sendall(starts[at % 3])
    longest, end = 0.0, time.monotonic() + 8
    open_still = list(slow)
    while open_still and time.monotonic() < end:
        began = time.monotonic()
        assert urlopen(f"http://127.0.0.1:{serve.port}/healthz", timeout=5).status == 200
        longest = max(longest, time.monotonic() - began)
        for made in list(open_still):
            made.setblocking(False)
            try:
                made.send(b"x")
                if made.recv(65536) == b"":
                    open_still.remove(made)
            except BlockingIOError:
                pass
            except OSError:
                open_still.remove(made)
        time.sleep(0.1)
    for made in slow:
        made.close()
    assert not open_still and longest < 2


def test_one_address_has_only_so_many_connections(serve: Running) -> None:
    made = [serve.connect() for _ in range(80)]
    try:
        refused = 0
        for one in made:
            one.settimeout(0.05)
            try:
                refused += one.recv(10) == b""
            except TimeoutError:
                pass
            except OSError:
                refused += 1
        assert refused >= 15
    finally:
        for one in made:
            one.close()
    retry(lambda: urlopen(f"http://127.0.0.1:{serve.port}/healthz", timeout=5).status == 200)


def retry(done: Callable[[], bool]) -> None:
    for _ in range(50):
        try:
            if done():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("not within 5 s")


def test_keys_from_the_command_line(serve: Running, capsys: pytest.CaptureFixture[str]) -> None:
    cli.add_key(serve.home, "ann", "for \x1b[2J tests", "read", ["requests_per_minute=100"])
    key = capsys.readouterr().out.strip()
    client = serve.client().with_options(api_key=key)
    assert client.files.list().data == []  # another owner's
    cli.list_keys(serve.home)
    listed = capsys.readouterr().out
    assert key not in listed and KEY not in listed and "\x1b" not in listed
    (line,) = [line for line in listed.splitlines() if "ann" in line]
    cli.revoke_key(serve.home, line.split()[0])
    time.sleep(1.1)
    with pytest.raises(openai.AuthenticationError):
        client.files.list()
    for wrong in (lambda: cli.revoke_key(serve.home, "key_x"), lambda: cli.add_key(serve.home, "a", "", "root", None)):
        with pytest.raises(BadConfig):
            wrong()
    with pytest.raises(BadConfig, match="jobs"):
        cli.add_key(serve.home, "a", "", "read", ["jobs=-1"])


def test_it_stops_within_five_seconds_with_an_answer_under_way(serve: Running) -> None:
    """Last of all: a download that nobody reads, and an idle connection."""
    client = serve.client()
    file = client.files.create(file=("big.jsonl", b"x" * 30_000_000), purpose="fine-tune")
    with serve.connect() as reader, serve.connect():
        reader.sendall(f"GET /v1/files/{file.id}/content HTTP/1.1\r\n".encode() + AUTH + b"\r\n")
        assert reader.recv(100).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        serve.process.send_signal(signal.SIGTERM)
        serve.process.wait(15)
        took = time.monotonic() - began
    log = Path(f"{serve.home}.log").read_text()
    assert took < 5 and "Traceback" not in log, (took, log[-2000:])
    assert KEY not in log


def test_the_first_key_is_made_once_or_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    home.make()
    store = Store(home.database)
    store.migrate()
    monkeypatch.delenv("TUNEWRIGHT_API_KEY", raising=False)
    made = first_key(store)
    assert made and find_key(store, made) and first_key(store) is None
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", KEY)
    assert first_key(store) is None and first_key(store) is None
    (row,) = [row for row in list_keys(store) if row.name == "TUNEWRIGHT_API_KEY"]
    assert row.scope == "admin" and find_key(store, KEY)
    revoke_key(store, row.id)
    assert first_key(store) is None and find_key(store, KEY) is None, "a key that was revoked does not come back by itself"
    monkeypatch.setenv("TUNEWRIGHT_API_KEY", "short")
    with pytest.raises(BadConfig, match="16"):
        first_key(store)
    store.close()


@pytest.mark.parametrize(
    ("setting", "said"),
    [("host=0.0.0.0", "allowed_hosts"), ("limits.json_bytes=1", "json_bytes"), ("nonsense=1", "no such setting"), ("aliases.x=nowhere", "nowhere")],
)
def test_a_configuration_that_cannot_be_is_told(tmp_path: Path, setting: str, said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        ServeConfig.read(tmp_path / "serve.yaml", [setting])


def test_the_file_the_flags_and_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nhost: 127.0.0.2\nlimits: {headers: 50}\nwebhook: {url: 'https://x.example/h', secret: sixteen-or-longer}\n")
    config = ServeConfig.read(file, ["limits.json_bytes=5000"], port=2)
    assert (config.port, config.host, config.limits.headers, config.limits.json_bytes) == (2, "127.0.0.2", 50, 5000)
    assert "sixteen" not in repr(config), "secrets are not printed"


def test_the_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadConfig, match=f"127.0.0.1:{port}"):
            cli.serve(tmp_path / "home", None, port=port)
