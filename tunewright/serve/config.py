"""ServeConfig: everything that decides how a server behaves, as data. Read from `serve.yaml` in the home folder and the command line."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from tunewright.config import parse, read_yaml

Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[\w.@/ -]+$")]

BUILT_IN = {"nano": "nano", "minilm": "minilm"}
# What clients and notebooks already ask for, so that they run unchanged.
ALIASES = dict.fromkeys(
    (
        "gpt-3.5-turbo", "gpt-3.5-turbo-0125", "gpt-3.5-turbo-1106", "gpt-3.5-turbo-0613",
        "gpt-4o-mini", "gpt-4o-mini-2024-07-18", "gpt-4o", "gpt-4o-2024-08-06",
        "gpt-4.1", "gpt-4.1-2025-04-14", "gpt-4.1-mini", "gpt-4.1-mini-2025-04-14", "gpt-4.1-nano", "gpt-4.1-nano-2025-04-14",
        "babbage-002", "davinci-002",
    ),
    "nano",
)  # fmt: skip


class _Strict(BaseModel):
    """Frozen, and an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Limits(_Strict):
    """What one request may be. Bytes, seconds, counts."""

    json_bytes: int = Field(8 << 20, ge=1024, le=1 << 30)
    """A JSON body."""
    file_bytes: int = Field(512 << 20, ge=1024, le=1 << 40)
    """A file sent whole."""
    upload_bytes: int = Field(8 << 30, ge=1024, le=1 << 44)
    """A file sent in parts."""
    part_bytes: int = Field(64 << 20, ge=1024, le=1 << 30)
    """One part of it."""
    header_bytes: int = Field(64 << 10, ge=4096, le=1 << 20)
    """All headers together."""
    headers: int = Field(100, ge=10, le=1000)
    """How many headers."""
    connections: int = Field(1000, ge=1, le=100_000)
    """Open connections."""
    connections_per_address: int = Field(200, ge=1, le=100_000)
    """Open connections from one address."""
    requests: int = Field(500, ge=1, le=100_000)
    """Requests being answered, streams included."""
    head_seconds: float = Field(10, gt=0, le=3600)
    """For a request's head to arrive."""
    body_seconds: float = Field(10, gt=0, le=3600)
    """Without a byte of the body; and after which it must have come at `body_rate` or faster."""
    body_rate: int = Field(10_000, ge=0, le=1 << 30)
    """Bytes a second, on average."""
    keep_alive_seconds: int = Field(15, ge=1, le=3600)
    """That an idle connection is kept."""
    report_seconds: float = Field(120, gt=0, le=86400)
    """For the check of a file, its turn included."""
    stop_seconds: int = Field(2, ge=0, le=600)
    """That streams have to end when the server is told to stop."""
    bad_keys: int = Field(30, ge=1, le=1_000_000)
    """Wrong keys a minute from one address, before it is told to wait."""


class Quotas(_Strict):
    """What one key may use. A key can have its own, given when it is made."""

    requests_per_minute: int = Field(6000, ge=1, le=100_000_000)
    tokens_per_minute: int = Field(10_000_000, ge=1, le=10**12)
    """Tokens read and written by chat and completions."""
    jobs: int = Field(100, ge=1, le=10_000_000)
    """Jobs that have not ended."""
    bytes: int = Field(100 << 30, ge=1, le=1 << 50)
    """Files and parts kept, of all keys of the same owner together."""
    files: int = Field(100_000, ge=1, le=100_000_000)
    """How many files, and uploads that wait for parts."""


class Price(_Strict):
    """Of a million tokens, in whatever currency you count."""

    training: float = Field(0, ge=0, le=1e9)
    input: float = Field(0, ge=0, le=1e9)
    output: float = Field(0, ge=0, le=1e9)


class Webhook(_Strict):
    """Where to tell of a job's end."""

    url: str = Field(min_length=1, max_length=2048)
    """http or https."""
    secret: SecretStr
    """Signs each message; `whsec_` and base64, as OpenAI's are, or any text of 16 characters or more."""
    allow_private: bool = False
    """Also deliver to addresses of this machine and of private networks."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise ValueError("should be an http or https address without a user name in it")
        return url

    @field_validator("secret")
    @classmethod
    def _is_long(cls, secret: SecretStr) -> SecretStr:
        if len(secret.get_secret_value()) < 16:
            raise ValueError("should have 16 characters or more")
        return secret


class Mail(_Strict):
    """Whom to write to at a job's end, and through which SMTP server."""

    host: str = Field(min_length=1, max_length=255)
    port: int = Field(587, ge=1, le=65535)
    sender: str = Field(min_length=3, max_length=320, pattern=r"^[^\s@]+@[^\s@]+$")
    to: tuple[Annotated[str, Field(min_length=3, max_length=320, pattern=r"^[^\s@]+@[^\s@]+$")], ...] = Field(min_length=1, max_length=100)
    tls: bool = True
    """STARTTLS, or TLS from the start on port 465. Without it the letter and the password travel in the open."""
    user: str | None = Field(None, min_length=1, max_length=320)
    password: SecretStr | None = None


class Vllm(_Strict):
    """A vLLM server that answers in place of this process."""

    url: str = Field(min_length=1, max_length=2048)
    """Its address, without /v1."""
    key: SecretStr | None = None
    """What its `--api-key` says."""
    adapters: int = Field(64, ge=1, le=10_000)
    """Most adapters kept loaded there."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("should be an http or https address")
        return url


class Answering(_Strict):
    """How models are held and asked."""

    slots: int = Field(64, ge=1, le=4096)
    """Answers written at once, a base."""
    waiting: int = Field(1024, ge=1, le=1_000_000)
    """Answers that may wait for one, a base; further ones are refused with 429."""
    chunk: int = Field(256, ge=16, le=1 << 20)
    """Tokens of new prompts read in a pass, beside the next token of every answer."""
    memory_bytes: int = Field(1 << 30, ge=1 << 20, le=1 << 44)
    """Keys and values, a base."""
    adapters: int = Field(64, ge=1, le=100_000)
    """Adapters in memory, a base."""
    models_bytes: int = Field(16 << 30, ge=1 << 20, le=1 << 46)
    """Weights in memory, all bases."""
    timeout_seconds: float = Field(600, gt=0, le=86400)
    """That an answer may take, waiting included."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads a base computes with; 0: torch's own choice."""
    vllm: Vllm | None = None


class ServeConfig(_Strict):
    """A server, complete."""

    host: str = Field("127.0.0.1", min_length=1, max_length=255)
    """The address to listen on. Any but this machine's own needs `allowed_hosts`."""
    port: int = Field(8000, ge=0, le=65535)
    """0: any free one."""
    database: str | None = Field(None, min_length=1, max_length=2048)
    """A database URL such as postgresql+psycopg://user@host/name. None: SQLite in the home folder."""
    models: dict[Name, Annotated[str, Field(min_length=1, max_length=1024)]] = Field(default_factory=dict, max_length=1000)
    """Base models by the name that clients use: a folder or a Hugging Face Hub id. `nano` and `minilm` are there already."""
    aliases: dict[Name, Name] = Field(default_factory=dict, max_length=1000)
    """Other names of base models, over those that are there already (`gpt-3.5-turbo` and the like, for nano)."""
    concurrent_jobs: int = Field(1, ge=1, le=1000)
    """Jobs that train at the same time."""
    stall_seconds: float = Field(600, ge=5, le=86400)
    """A worker without progress for so long is taken for hung and started again."""
    organization: str = Field("org-tunewright", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")
    """In jobs' `organization_id` and in the names of tuned models."""
    allowed_hosts: tuple[Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9.:\[\]*_-]+$")], ...] = Field((), max_length=100)
    """Names by which clients may address the server, without the port; `*`: any. This machine's own names are there already."""
    answering: Answering = Answering()
    limits: Limits = Limits()
    quotas: Quotas = Quotas()
    prices: dict[Name, Price] = Field(default_factory=dict, max_length=1000)
    """By base model."""
    webhook: Webhook | None = None
    mail: Mail | None = None
    keep_expired_days: float = Field(30, ge=0, le=36500)
    """How long the records of what was deleted or expired are kept."""

    @model_validator(mode="after")
    def _is_reachable_on_purpose(self) -> ServeConfig:
        if not is_loopback(self.host) and not self.allowed_hosts:
            text = f"listening on {self.host} needs allowed_hosts: the names that clients address this server by"
            raise ValueError(text)
        for name, target in self.aliases.items():
            if target not in BUILT_IN and target not in self.models:
                raise ValueError(f"aliases.{name}: there is no model {target!r}")
        return self

    @classmethod
    def read(cls, path: Path, assignments: list[str] | None = None, **flags: object) -> ServeConfig:
        """The file at `path` if there is one, with flags and `a.b=c` assignments over it. Raises BadConfig."""
        record = read_yaml(path) if path.exists() else {}
        return parse(cls, {**record, **{name: value for name, value in flags.items() if value is not None}}, assignments)

    def bases(self) -> dict[str, str]:
        """Base models: name -> what `tunewright.models.load.load` takes."""
        return {**BUILT_IN, **self.models}

    def base_of(self, name: str) -> str | None:
        """The base model that a name stands for, itself or by alias; None: it is not a base's."""
        bases = self.bases()
        target = {**ALIASES, **self.aliases}.get(name, name)
        return name if name in bases else target if target in bases else None


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
