"""What the server's tests stand on: an app on a home folder of its own, over SQLite or, with TUNEWRIGHT_TEST_DATABASE=postgresql, PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import create_engine

from tunewright.jobs.home import Home
from tunewright.jobs.store import Store
from tunewright.serve.app import create_app
from tunewright.serve.config import ServeConfig
from tunewright.serve.keys import add_key

POSTGRESQL = os.environ.get("TUNEWRIGHT_TEST_DATABASE") == "postgresql"


@dataclass(slots=True)
class Server:
    """An app that is not behind a socket, and what it stands on."""

    app: FastAPI
    config: ServeConfig
    home: Home
    store: Store
    key: str
    http: TestClient
    """Requests with the first (admin) key; `http.get("/v1/models")`."""

    def add_key(self, owner: str = "default", scope: str = "admin", **quotas: int) -> str:
        """Another key."""
        return add_key(self.store, owner=owner, name="test", scope=scope, quotas=quotas)

    def client(self, key: str | None = None) -> openai.OpenAI:
        """The official client, speaking to this app. It tries nothing again."""
        http: Any = TestClient(self.app, base_url="http://t/v1")
        return openai.OpenAI(base_url="http://t/v1", api_key=key or self.key, http_client=http, max_retries=0)


@contextmanager
def serving(folder: Path, database: str | None = None, launcher: Any = None, engine: Any = None, **settings: Any) -> Iterator[Server]:
    """A server on a folder; a setting goes over the defaults. Each has a database of its own."""
    home = Home(folder)
    home.make()
    config = ServeConfig(**{"allowed_hosts": ("t", "127.0.0.1"), **settings})
    store = Store(database or (new_database() if POSTGRESQL else home.database))
    try:
        store.migrate()
        key = add_key(store, owner="default", name="first", scope="admin")
        app = create_app(config, store, home, launcher=launcher, engine=engine)
        http = TestClient(app, base_url="http://t", headers={"Authorization": f"Bearer {key}"})
        with http:
            yield Server(app, config, home, store, key, http)
    finally:
        store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server on an empty home folder."""
    with serving(tmp_path / "home") as made:
        yield made


def new_database() -> str:
    """The URL of an empty PostgreSQL database. Skips the test where PostgreSQL is not installed."""
    url = _cluster()
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.format(name)


@cache
def _cluster() -> str:
    """A PostgreSQL server in a temporary folder, behind a Unix socket, for as long as the tests run. Returns a URL with a place for a database's name."""
    import atexit

    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server programs are not installed (Debian: postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="tunewright-pg-"))
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    quiet: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **as_user}
    data = folder / "data"
    subprocess.run(
        [binaries / "initdb", "--no-sync", "--auth=trust", "--username=test", "--encoding=UTF8", "--locale=C", "-D", data], check=True, **quiet
    )
    options = ["-c", "fsync=off", "-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "max_connections=200"]
    process = subprocess.Popen([binaries / "postgres", "-D", data, *options], **quiet)

    def stop() -> None:
        process.send_signal(2)  # SIGINT: a fast shutdown
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    subprocess.run([binaries / "pg_isready", "-q", "-t", "20", "-h", folder], check=False)
    url = f"postgresql+psycopg://test@/{{}}?host={folder}"
    for _ in range(100):
        if subprocess.run([binaries / "pg_isready", "-q", "-h", folder], check=False).returncode == 0:
            return url
        process.poll() is None or pytest.fail("PostgreSQL did not start")
        subprocess.run(["sleep", "0.1"], check=True)
    pytest.fail("PostgreSQL did not start within 10 s")


def _binaries() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("postgres")
    return next((folder for folder in folders if (folder / "initdb").is_file()), Path(found).parent if found else None)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
