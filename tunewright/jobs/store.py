"""The database: tables, and transactions on SQLite or PostgreSQL.

The database is the truth for states, the run folder for training. Times are Unix seconds; `seq` orders the rows of a table
as they were made, whatever the clock did. No torch here.
"""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Connection, Float, ForeignKey, Index, Insert, Integer, String, Text, create_engine, event, insert, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tunewright.errors import Problem

_LETTERS = string.ascii_letters + string.digits
# SQLite numbers rows by itself only where the key is a plain INTEGER.
_SEQ = BigInteger().with_variant(Integer(), "sqlite")


class BadStore(Problem):
    """The database cannot be reached, or is of a newer version."""


class Table(DeclarativeBase):
    """What all tables share: JSON columns for mappings and lists."""

    type_annotation_map: ClassVar = {dict[str, Any]: JSON(none_as_null=True), list[Any]: JSON(none_as_null=True), float: Float(53), int: BigInteger}


class Key(Table):
    """Who may ask. Of the key itself only its hash is kept."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    """sha256 of the key, in hex."""
    owner: Mapped[str] = mapped_column(String(64), index=True)
    """Whose things it sees: keys of one owner share their files, jobs and models, others do not know of them."""
    name: Mapped[str] = mapped_column(String(128))
    scope: Mapped[str] = mapped_column(String(16))
    """read, write or admin; each may do what those before it may."""
    created_at: Mapped[float]
    revoked_at: Mapped[float | None]
    quotas: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Limits of this key that differ from the configured ones."""


class File(Table):
    """Uploaded bytes, at `files/ID` of the home folder."""

    __tablename__ = "files"

    seq: Mapped[int] = mapped_column(_SEQ, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    filename: Mapped[str] = mapped_column(String(512))
    """As the client named it: shown, never joined to a path."""
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    deleted_at: Mapped[float | None]


class Upload(Table):
    """A file that arrives in parts, each at `uploads/ID/PART` of the home folder until it is complete."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    filename: Mapped[str] = mapped_column(String(512))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int]
    mime_type: Mapped[str] = mapped_column(String(256))
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]
    expires_at: Mapped[float]
    file_expires_after: Mapped[int | None]
    """Seconds that the file is kept for, once complete."""
    file_id: Mapped[str | None] = mapped_column(String(64))


class Part(Table):
    """One part of an upload."""

    __tablename__ = "parts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int]
    created_at: Mapped[float]


class Job(Table):
    """A config that someone wants run, and what became of it. Its folder is `jobs/ID` of the home folder."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_owner_seq", "owner", "seq"), Index("ix_jobs_status_owner_seq", "status", "owner", "seq"))

    seq: Mapped[int] = mapped_column(_SEQ, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(64))
    asked: Mapped[str] = mapped_column(String(64), index=True)
    """Hash of who asked and what: a creation that a client sends again finds its job by it."""
    retries: Mapped[int] = mapped_column(default=0)
    """How often the client has sent it again."""
    status: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    estimated_finish: Mapped[float | None]
    model: Mapped[str] = mapped_column(String(1024))
    """The base as the client is told: an alias's target, or a tuned model to go on from."""
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int]
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    request: Mapped[dict[str, Any]]
    """What was asked for, as understood: method, hyperparameters, integrations, Tunewright's own settings."""
    hyperparameters: Mapped[dict[str, Any]]
    """"auto" while it waits, then the numbers used."""
    labels: Mapped[dict[str, Any] | None]
    """The client's metadata."""
    error: Mapped[dict[str, Any] | None]
    tokens: Mapped[int | None]
    """Tokens of its training rows, once they are counted; an epoch reads so many."""
    trained_tokens: Mapped[int | None]
    fine_tuned_model: Mapped[str | None] = mapped_column(String(1024))
    result_files: Mapped[list[Any]] = mapped_column(default=list)
    wish: Mapped[str | None] = mapped_column(String(16))
    """What a running worker was asked to do: pause or cancel."""
    attempt: Mapped[str | None] = mapped_column(String(32))
    """Token of the worker that may speak for this job; a worker with another token is stale."""
    attempts: Mapped[int] = mapped_column(default=0)
    """Attempts since a step was last completed."""
    step: Mapped[int] = mapped_column(default=0)
    """The last step that was recorded."""
    progressed_at: Mapped[float | None]
    read: Mapped[int] = mapped_column(default=0)
    """Bytes of the run's events.jsonl that are recorded here."""


class JobEvent(Table):
    """What a job said."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job_seq", "job_id", "seq"),)

    seq: Mapped[int] = mapped_column(_SEQ, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[float]
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]


class Checkpoint(Table):
    """A checkpoint of a job that can be asked and tuned further, under the name of a model."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_job_step", "job_id", "step", unique=True),)

    seq: Mapped[int] = mapped_column(_SEQ, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    owner: Mapped[str] = mapped_column(String(64), index=True)
    created_at: Mapped[float]
    step: Mapped[int]
    model: Mapped[str] = mapped_column(String(1024), unique=True)
    """The name to ask it by."""
    folder: Mapped[str] = mapped_column(String(256))
    """Where its files lie, from the job's folder."""
    metrics: Mapped[dict[str, Any]]
    deleted_at: Mapped[float | None]
    """When its model was deleted; what the job was remains."""


class Permission(Table):
    """That a project may use a checkpoint."""

    __tablename__ = "permissions"

    seq: Mapped[int] = mapped_column(_SEQ, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    checkpoint: Mapped[str] = mapped_column(String(1024), index=True)
    project_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float]


class Delivery(Table):
    """A message to the outside about a job's end: put here in the transaction that ended it, removed once it arrived."""

    __tablename__ = "deliveries"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    kind: Mapped[str] = mapped_column(String(64))
    """The event: fine_tuning.job.succeeded, .failed or .cancelled."""
    target: Mapped[str] = mapped_column(String(16))
    """webhook or mail."""
    created_at: Mapped[float]
    tries: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[float]
    done_at: Mapped[float | None]
    trouble: Mapped[str | None] = mapped_column(Text)
    """Why the last try failed."""


class Store:
    """A database by its URL, and the clock."""

    def __init__(self, url: str, clock: Callable[[], float] = time.time, sinks: tuple[str, ...] = ()) -> None:
        """`sinks`: who is told of a job's end, of "webhook" and "mail"."""
        self.url = make_url(url)
        self.clock = clock
        self.sinks = sinks
        self.engine = create_engine(self.url, pool_pre_ping=self.url.get_backend_name() != "sqlite", pool_size=16, max_overflow=16)
        if self.url.get_backend_name() == "sqlite":
            event.listen(self.engine, "connect", _on_connect)
            event.listen(self.engine, "begin", _on_begin)

    def now(self) -> float:
        """Unix seconds by the store's clock."""
        return self.clock()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only looks: one state of the database throughout."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is there whole or not at all, durable when the block ends. SQLite has one writer at a time."""
        with (
            self.engine.connect().execution_options(tunewright_write=True) as connection,
            Session(connection, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def queue_for(self, session: Session, name: str) -> None:
        """Wait until no other transaction that queued for this name is under way. On SQLite writing transactions queue as it is."""
        if self.url.get_backend_name() != "sqlite":
            session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})

    def migrate(self) -> None:
        """Bring the tables to this version. Raises BadStore: not to be reached, or made by a newer Tunewright."""
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        try:
            with self.engine.connect().execution_options(tunewright_write=True) as connection, connection.begin():
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except OperationalError as error:
            reason = " ".join(str(error.orig).split())
            raise BadStore(f"The database cannot be opened: {reason}", code="store_unreachable", param="database") from None
        except CommandError as error:
            raise BadStore(f"The database was made by another version of Tunewright: {error}", code="store_version", param="database") from None

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def put(connection: Connection, *rows: Table) -> None:
    """Insert new rows of one table, in this order, past the session, which takes a fraction of a flush. What the database fills in stays unset in them."""
    values = [{name: value for name, value in vars(row).items() if name != "_sa_instance_state"} for row in rows]
    connection.execute(_insert(type(rows[0])), values if len(values) > 1 else values[0])


@cache
def _insert(table: type[Table]) -> Insert:
    return insert(table.__table__)  # type: ignore[arg-type]


def new_id(prefix: str, length: int = 24) -> str:
    """`prefix` and random letters and digits, by default 24: 142 bits."""
    number, letters = secrets.randbelow(len(_LETTERS) ** length), []
    for _ in range(length):
        number, at = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[at])
    return prefix + "".join(letters)


def _on_connect(connection: Any, _: Any) -> None:
    # SQLAlchemy begins transactions itself (below), so that reading and writing ones can differ.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    # A transaction that will write takes the lock at once: one that upgrades later can fail without waiting.
    writes = connection.get_execution_options().get("tunewright_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
