"""Telling of a job's end: signed webhooks and letters, from the deliveries that the job's last transaction left in the database.

A delivery is tried until it arrives or three days are over. One that arrived just before the server was killed arrives again,
under the same id.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

import httpx
from sqlalchemy import select

from tunewright.jobs.store import Delivery, Job, Store
from tunewright.serve.config import Mail, ServeConfig, Webhook

log = logging.getLogger("tunewright.serve")

_EVERY = 1.0
_SECONDS = 10.0
_LONGEST_WAIT = 6 * 3600.0
_GIVE_UP = 3 * 86400.0


class NotDelivered(Exception):
    """Why a try failed."""


@contextmanager
def notifying(store: Store, config: ServeConfig) -> Iterator[None]:
    """Deliver what is due, in a thread, until the block ends. Nothing is configured: nothing runs."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(_EVERY):
            try:
                deliver_due(store, config)
            except Exception:
                log.exception("deliveries could not be looked up; they are tried again")

    thread = threading.Thread(target=run, name="notify", daemon=True)
    if config.webhook or config.mail:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join(1)


def deliver_due(store: Store, config: ServeConfig) -> None:
    """Try each delivery whose time has come, once."""
    now = store.now()
    with store.read() as session:
        due = select(Delivery, Job).join(Job, Job.id == Delivery.job_id).where(Delivery.done_at.is_(None), Delivery.due_at <= now)
        found = session.execute(due.order_by(Delivery.due_at).limit(20)).all()
    for delivery, job in found:
        trouble = _try(delivery, job, config)
        with store.write() as session:
            row = session.get_one(Delivery, delivery.id)
            row.tries += 1
            row.trouble = trouble
            row.due_at = store.now() + min(_LONGEST_WAIT, 5.0 * 4 ** min(row.tries - 1, 10))
            if trouble is None or store.now() - row.created_at > _GIVE_UP:
                row.done_at = store.now()
        if trouble is not None:
            log.warning("%s", json.dumps({"delivery": delivery.id, "target": delivery.target, "trouble": trouble}))


def _try(delivery: Delivery, job: Job, config: ServeConfig) -> str | None:
    """Why it did not arrive; None: it did."""
    try:
        match delivery.target:
            case "webhook" if config.webhook:
                post(config.webhook, delivery)
            case "mail" if config.mail:
                send_mail(config.mail, letter(config.mail, delivery, job))
            case _:
                return f"no {delivery.target} is configured"
    except (NotDelivered, httpx.HTTPError, smtplib.SMTPException, OSError, TimeoutError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
    return None


def post(webhook: Webhook, delivery: Delivery) -> None:
    """Send an event to a webhook, signed as https://www.standardwebhooks.com has it. Raises NotDelivered or httpx.HTTPError."""
    event = {
        "id": delivery.id,
        "object": "event",
        "type": delivery.kind,
        "created_at": int(delivery.created_at),
        "data": {"id": delivery.job_id},
    }
    body = json.dumps(event).encode()
    moment = str(int(time.time()))
    headers = {
        "content-type": "application/json",
        "user-agent": "tunewright",
        "webhook-id": delivery.id,
        "webhook-timestamp": moment,
        "webhook-signature": sign(webhook.secret.get_secret_value(), delivery.id, moment, body),
    }
    asyncio.run(_post(webhook, body, headers))


def sign(secret: str, id: str, moment: str, body: bytes) -> str:
    """The signature of a message."""
    key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
    return "v1," + base64.b64encode(hmac.digest(key, f"{id}.{moment}.".encode() + body, hashlib.sha256)).decode()


async def _post(webhook: Webhook, body: bytes, headers: dict[str, str]) -> None:
    """The name is looked up once and the connection goes to that address: a second look could be answered otherwise. Redirects are not followed."""
    parts = urlsplit(webhook.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    async with asyncio.timeout(_SECONDS):
        address = await asyncio.to_thread(address_of, host, port, webhook.allow_private)
        url = httpx.URL(webhook.url).copy_with(host=address)
        named = {"host": parts.netloc, **headers}
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=_SECONDS) as client,
            client.stream("POST", url, content=body, headers=named, extensions={"sni_hostname": host}) as answer,
        ):
            if not answer.is_success:
                raise NotDelivered(f"it answered {answer.status_code}")


def address_of(host: str, port: int, allow_private: bool, look_up: Callable[..., Sequence[Any]] = socket.getaddrinfo) -> str:
    """An address of a host. Raises NotDelivered: it has none, or one that is not public where only such are allowed."""
    try:
        found = [str(entry[4][0]) for entry in look_up(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise NotDelivered(f"{host} cannot be found: {error.strerror or error}") from None
    for address in found:
        if not allow_private and not is_public(address):
            raise NotDelivered(f"{host} is {address}, which is not a public address; webhook.allow_private would allow it")
    if not found:
        raise NotDelivered(f"{host} has no address")
    return found[0]


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, also where it is written inside another."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inside: list[Any] = []
    if isinstance(ip, ipaddress.IPv6Address):
        inside = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inside.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return ip.is_global and not ip.is_multicast and all(one.is_global for one in inside if one is not None)


def letter(mail: Mail, delivery: Delivery, job: Job) -> EmailMessage:
    """What a person reads about a job's end."""
    ended = delivery.kind.rsplit(".", 1)[-1]
    lines = [f"The fine-tuning job {job.id} has {'been cancelled' if ended == 'cancelled' else ended}.", "", f"Base model:  {job.model}"]
    if job.fine_tuned_model:
        lines.append(f"New model:   {job.fine_tuned_model}")
    if job.trained_tokens is not None:
        lines.append(f"Tokens:      {job.trained_tokens:,}")
    if job.error:
        lines.append(f"Reason:      {' '.join(str(job.error.get('message')).split())[:2000]}")
    message = EmailMessage()
    message["From"], message["To"] = mail.sender, ", ".join(mail.to)
    message["Subject"] = f"Fine-tuning job {job.id}: {ended}"
    message["Message-ID"] = f"<{delivery.id}@tunewright>"
    message.set_content("\n".join(lines) + "\n")
    return message


def send_mail(mail: Mail, message: EmailMessage) -> None:
    """Hand a letter to the SMTP server. Raises smtplib.SMTPException or OSError."""
    secure = ssl.create_default_context()
    at_once = mail.tls and mail.port == 465
    connect = (
        smtplib.SMTP_SSL(mail.host, mail.port, timeout=_SECONDS, context=secure) if at_once else smtplib.SMTP(mail.host, mail.port, timeout=_SECONDS)
    )
    with connect as server:
        if mail.tls and not at_once:
            server.starttls(context=secure)
        if mail.user and mail.password:
            server.login(mail.user, mail.password.get_secret_value())
        server.send_message(message)
