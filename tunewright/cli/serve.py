"""`tunewright serve` and `tunewright keys`: what a server's process sets up before it answers, and who may ask it."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.cli.display import printable
from tunewright.errors import BadConfig
from tunewright.jobs.home import Home
from tunewright.serve.config import BUILT_IN, Quotas, ServeConfig

if TYPE_CHECKING:
    from tunewright.jobs.store import Store


def serve(folder: Path, settings: list[str] | None, **flags: object) -> None:
    """Serve until told to stop. Raises HomeTaken, BadConfig, BadStore before anything is begun."""
    home, config = open_home(folder, settings, **flags)
    home.lock(f"http://{config.host}:{config.port}")
    # Only now: the database and web libraries take a second to import, and a second server is to be refused at once.
    from tunewright.jobs.launch import Launcher
    from tunewright.jobs.store import Store
    from tunewright.serve import keys
    from tunewright.serve.app import create_app
    from tunewright.serve.run import bind, run

    try:
        listener = bind(config)
    except OSError as error:
        text = f"Cannot listen on {config.host}:{config.port}: {error.strerror}. Choose another --port"
        raise BadConfig(text, code="cannot_listen", param="--port") from None
    host, port = listener.getsockname()[:2]
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    for name in ("uvicorn.error", "alembic", "httpx", "python_multipart"):
        logging.getLogger(name).setLevel(logging.WARNING)
    hub = any(is_hub_id(model) for model in config.models.values())
    os.environ["HF_HUB_OFFLINE"] = str(int(not hub))
    with closing(Store(database_of(config, home), sinks=sinks(config))) as store:
        store.migrate()
        if made := keys.first_key(store):
            print(f"The first key, shown this once:  {made}", flush=True)
        launcher = Launcher(
            store, home, concurrent=config.concurrent_jobs, stall_seconds=config.stall_seconds, organization=config.organization, hub=hub
        )
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        print(f"Serving on {url} from {home.path.resolve()}. Stop with Ctrl-C.", flush=True)
        run(create_app(config, store, home, launcher), config, listener)


def open_home(folder: Path, settings: list[str] | None = None, **flags: object) -> tuple[Home, ServeConfig]:
    """The home folder, made where it is not there, and its configuration."""
    home = Home(folder.expanduser())
    config = ServeConfig.read(home.path / "serve.yaml", settings, **flags)
    try:
        home.make()
    except OSError as error:
        raise BadConfig(f"{home.path} cannot be used: {error.strerror}", code="home_unusable", param="--home") from None
    return home, config


def database_of(config: ServeConfig, home: Home) -> str:
    """Where the database is. It may hold a password, so the environment can give it too: a command line is seen by others."""
    return os.environ.get("TUNEWRIGHT_DATABASE") or config.database or home.database


def is_hub_id(model: str) -> bool:
    """Whether a configured model may have to be fetched: only then does the server ask anyone outside."""
    return model not in BUILT_IN and not Path(model).expanduser().exists()


def sinks(config: ServeConfig) -> tuple[str, ...]:
    """Who is told of a job's end."""
    return tuple(name for name in ("webhook", "mail") if getattr(config, name))


def add_key(folder: Path, owner: str, name: str, scope: str, quotas: list[str] | None) -> None:
    """Make a key and print it, once."""
    from tunewright.config import parse
    from tunewright.serve import keys

    given = parse(Quotas, {}, quotas)
    with closing(_store(folder)) as store:
        print(keys.add_key(store, owner, name, scope, given.model_dump(exclude_unset=True)))


def list_keys(folder: Path) -> None:
    """Print all keys, without the keys."""
    from tunewright.serve import keys

    with closing(_store(folder)) as store:
        for key in keys.list_keys(store):
            ended = f"  revoked {_day(key.revoked_at)}" if key.revoked_at else ""
            print(printable(f"{key.id}  {key.scope:5}  {key.owner}  {key.name}  since {_day(key.created_at)}{ended}"))


def revoke_key(folder: Path, id: str) -> None:
    """End a key."""
    from tunewright.serve import keys

    with closing(_store(folder)) as store:
        keys.revoke_key(store, id)


def _store(folder: Path) -> Store:
    from tunewright.jobs.store import Store

    home, config = open_home(folder)
    store = Store(database_of(config, home))
    store.migrate()
    return store


def _day(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d")
