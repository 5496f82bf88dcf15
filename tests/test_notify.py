"""Being told of a job's end: a real HTTP target, a real SMTP conversation, and targets that must not be reached."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from serving import POSTGRESQL, new_database
from tunewright.jobs.home import Home
from tunewright.jobs.lifecycle import fail, locked, move
from tunewright.jobs.store import Delivery, Job, Store, new_id
from tunewright.serve.config import ServeConfig
from tunewright.serve.notify import NotDelivered, address_of, deliver_due, is_public

SECRET = "whsec_" + "c2VjcmV0" * 4


class Target(ThreadingHTTPServer):
    """Keeps what is posted; answers with the next of `statuses`, and then 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?x=1"


class _Handler(BaseHTTPRequestHandler):
    server: Target

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("location", self.server.url.replace("hook", "elsewhere"))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *given: Any) -> None:
        pass


class _Smtp(socketserver.StreamRequestHandler):
    """A post office that takes every letter."""

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().decode().strip():
            word = line.split()[0].upper()
            if word == "DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (line := self.rfile.readline().decode()) != ".\r\n":
                    lines.append(line)
                self.server.letters.append("".join(lines))  # type: ignore[attr-defined]
            self.wfile.write({"EHLO": b"250 here\r\n", "QUIT": b"221 bye\r\n"}.get(word, b"250 ok\r\n"))
            if word == "QUIT":
                return


@contextmanager
def running(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def target() -> Iterator[Target]:
    with running(Target()) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    home = Home(tmp_path)
    home.make()
    store = Store(new_database() if POSTGRESQL else home.database, sinks=("webhook",))
    store.migrate()
    yield store
    store.close()


def ended_job(store: Store, how: str = "cancelled") -> Job:
    """A job that has ended as it does in life: by a move in a transaction."""
    job = Job(
        id=new_id("ftjob-"), owner="o", key_id="k", status="running", created_at=1.0, model="nano", seed=0, training_file="file-x",
        request={}, hyperparameters={}, result_files=[], **{name: value for name, value in {"asked": "x", "retries": 0}.items() if hasattr(Job, name)},
    )  # fmt: skip
    with store.write() as session:
        session.add(job)
    with store.write() as session:
        row = locked(session, job.id)
        assert row
        if how == "failed":
            fail(store, session, row, "bad", "The rows\r\nBcc: someone@example.com\r\nare bad", "training_file")
        else:
            move(store, session, row, how, **({"fine_tuned_model": "ft:nano:o::x", "trained_tokens": 1234} if how == "succeeded" else {}))
    return job


def deliveries(store: Store) -> list[Delivery]:
    with store.read() as session:
        return list(session.query(Delivery).order_by(Delivery.created_at))


def config_for(target: Target, allow_private: bool = True) -> ServeConfig:
    return ServeConfig(webhook={"url": target.url, "secret": SECRET, "allow_private": allow_private})


@pytest.mark.parametrize("how", ["succeeded", "failed", "cancelled"])
def test_the_official_client_verifies_the_signature(store: Store, target: Target, how: str) -> None:
    job = ended_job(store, how)
    deliver_due(store, config_for(target))
    deliver_due(store, config_for(target))  # what has arrived is not sent again
    ((path, headers, body),) = target.got
    assert path == "/hook?x=1"
    client = openai.OpenAI(api_key="x", webhook_secret=SECRET)
    event = client.webhooks.unwrap(body, headers)
    assert (event.type, event.data.id, event.object) == (f"fine_tuning.job.{how}", job.id, "event")  # type: ignore[union-attr]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body.replace(b"ftjob", b"ftjoc"), headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body, headers, secret="whsec_" + "b3RoZXIh" * 4)
    (delivery,) = deliveries(store)
    assert delivery.done_at and delivery.trouble is None


def test_a_delivery_is_tried_again_under_the_same_id_and_given_up_in_the_end(store: Store, target: Target) -> None:
    ended_job(store)
    now = store.now()
    store.clock = lambda: now
    target.statuses = [500, 302] + [503] * 100
    waits = []
    for _ in range(100):
        deliver_due(store, config_for(target))
        (delivery,) = deliveries(store)
        if delivery.done_at:
            break
        deliver_due(store, config_for(target))  # not before its time
        waits.append(delivery.due_at - now)
        now = delivery.due_at
    assert waits[:4] == [5, 20, 80, 320] and max(waits) == 6 * 3600
    assert {headers["webhook-id"] for _, headers, _ in target.got} == {delivery.id}
    assert len(target.got) == delivery.tries == len(waits) + 1
    assert all(path.startswith("/hook") for path, _, _ in target.got), "a redirect was followed"
    assert delivery.trouble and "503" in delivery.trouble and now - delivery.created_at > 3 * 86400


def test_a_private_target_is_not_reached_unless_allowed(store: Store, target: Target) -> None:
    ended_job(store)
    deliver_due(store, config_for(target, allow_private=False))
    (delivery,) = deliveries(store)
    assert target.got == [] and delivery.trouble and "not a public address" in delivery.trouble


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "no address",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(NotDelivered):  # one of several is enough: which one is connected to is not ours to say
        address_of("h", 80, False, lambda *given, **named: [(0, 0, 0, "", ("93.184.216.34", 80)), (0, 0, 0, "", (address, 80))])


def test_a_name_is_looked_up_once() -> None:
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])
    found = address_of("h", 80, False, lambda *given, **named: [(0, 0, 0, "", (address, 80)) for address in next(answers)])
    assert found == "93.184.216.34" and is_public("2606:4700::1111")


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f.1", "2130706433", "017700000001"])
def test_other_spellings_of_this_machine(host: str) -> None:
    with pytest.raises(NotDelivered):
        address_of(host, 80, False)


def test_a_letter_says_what_became_of_the_job(store: Store) -> None:
    store.sinks = ("mail",)
    office: Any = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp)
    office.letters = []
    with running(office):
        mail = {
            "host": "127.0.0.1",
            "port": office.server_address[1],
            "sender": "server@example.com",
            "to": ["a@example.com", "b@example.com"],
            "tls": False,
        }
        done, failed = ended_job(store, "succeeded"), ended_job(store, "failed")
        deliver_due(store, ServeConfig(mail=mail))
    first, second = office.letters
    assert f"Subject: Fine-tuning job {done.id}: succeeded\r\n" in first and "ft:nano:o::x" in first and "1,234" in first
    assert f"Subject: Fine-tuning job {failed.id}: failed\r\n" in second and "The rows Bcc: someone@example.com are bad" in second
    assert "\r\nBcc:" not in second and "To: a@example.com, b@example.com\r\n" in second
    assert all(delivery.done_at for delivery in deliveries(store))


def test_a_server_that_has_no_tls_gets_no_letter_where_tls_is_wanted(store: Store) -> None:
    store.sinks = ("mail",)
    ended_job(store)
    office: Any = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp)
    office.letters = []
    with running(office):
        mail = {"host": "127.0.0.1", "port": office.server_address[1], "sender": "server@example.com", "to": ["a@example.com"]}
        deliver_due(store, ServeConfig(mail=mail))
    (delivery,) = deliveries(store)
    assert office.letters == [] and delivery.trouble and "STARTTLS" in delivery.trouble
