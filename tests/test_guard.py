"""What the guard lets through and what not: the attacks that such servers have met, each against the app itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import openai
import pytest

import hostile
from hostile import Request, form, good, wrong
from serving import Server, server, serving
from tunewright.serve import strict
from tunewright.serve.guard import PUBLIC
from tunewright.serve.keys import list_keys, revoke_key
from tunewright.serve.quota import Buckets

__all__ = ["server"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for requests that leave nothing behind that others would mind."""
    folder = tmp_path_factory.mktemp("guard")
    (folder / "canary").write_text(hostile.CANARY)
    with serving(folder / "home", quotas={"requests_per_minute": 10_000_000, "jobs": 10_000}, limits={"bad_keys": 100_000}) as made:
        yield made


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body
        self.error = json.loads(body)["error"] if status >= 400 and body else {}


def send(server: Server, *requests: Request, key: str | None = None) -> list[Answer]:
    """Requests to the app as uvicorn would hand them over, without a client that would tidy them up."""

    async def all_of_them() -> list[Answer]:
        return [await _one(server, request, server.key if key is None else key) for request in requests]

    return asyncio.run(all_of_them())


async def _one(server: Server, request: Request, key: str) -> Answer:
    path, _, query = request.path.partition("?")
    headers = {"host": "t", "authorization": f"Bearer {key}", "content-length": str(len(request.body)), **request.headers}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method, "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    pieces = [request.body[at : at + 65536] for at in range(0, len(request.body), 65536)] or [b""]
    coming = iter([{"type": "http.request", "body": piece, "more_body": at < len(pieces) - 1} for at, piece in enumerate(pieces)])
    sent: list[Any] = []

    async def receive() -> Any:
        for message in coming:
            return message
        await asyncio.sleep(3600)  # the client waits for its answer

    async def keep(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(server.app(scope, receive, keep), 60)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}, body)


def routes(server: Server) -> list[tuple[str, str]]:
    """Every method and path that the app has, the description's own too."""
    found = [(method, path) for path, item in server.app.openapi()["paths"].items() for method in item]
    return [(method.upper(), path) for method, path in found] + [("GET", "/openapi.json")]


# --- who may ask


@pytest.mark.parametrize("key", ["", "sk-wrong", "x" * 600, "Bearer", "null", "' OR 1=1 --"])
def test_every_route_wants_a_key(shared: Server, key: str) -> None:
    asked = [Request(method, path) for method, path in routes(shared)]
    asked += [Request(method, path) for method in hostile.METHODS for path in ("/docs", "/redoc", "/v1", "//v1/models", "/v1/models/", "/ui", "/x")]
    for request, answer in zip(asked, send(shared, *asked, key=key), strict=True):
        assert answer.status == 401, (request, answer.status)
        assert request.method == "HEAD" or answer.error["code"] == "invalid_api_key"
    assert len(asked) > 80


def test_what_is_public_says_nothing(shared: Server) -> None:
    for path in PUBLIC:
        (answer,) = send(shared, Request("GET", path), key="")
        assert answer.status == 200 and len(answer.body) < 200


def test_a_revoked_key_ends(server: Server) -> None:
    key = server.add_key(owner="gone")
    assert send(server, Request("GET", "/v1/models"), key=key)[0].status == 200
    (row,) = [row for row in list_keys(server.store) if row.owner == "gone"]
    revoke_key(server.store, row.id)
    server.app.state.keys.seen.clear()  # a second later
    assert send(server, Request("GET", "/v1/models"), key=key)[0].status == 401


def test_scopes(server: Server) -> None:
    reader = server.add_key(scope="read")
    body, kind = json.dumps({"model": "no-such", "messages": [{"role": "user", "content": "x"}]}).encode(), {"content-type": "application/json"}
    listed, asked, made, deleted = send(
        server,
        Request("GET", "/v1/files"),
        Request("POST", "/v1/chat/completions", body, kind),
        Request("POST", "/v1/uploads", b"{}", kind),
        Request("DELETE", "/v1/files/file-x"),
        key=reader,
    )
    assert (listed.status, asked.status, made.status, deleted.status) == (200, 404, 403, 403)
    assert made.error["code"] == "insufficient_scope"


def test_wrong_keys_are_slowed_and_right_ones_are_not(tmp_path: Path) -> None:
    with serving(tmp_path / "home", limits={"bad_keys": 5}) as server:
        assert send(server, Request("GET", "/v1/models"))[0].status == 200
        rotating = [Request("GET", "/v1/models", headers={"x-forwarded-for": f"10.0.0.{n}"}) for n in range(8)]
        answers = send(server, *rotating, key="sk-guess")
        assert [answer.status for answer in answers] == [401] * 5 + [429] * 3
        assert int(answers[-1].headers["retry-after"]) > 0
        assert send(server, Request("GET", "/v1/models"))[0].status == 200


def test_requests_by_the_minute(server: Server) -> None:
    key = server.add_key(requests_per_minute=3)
    answers = send(server, *[Request("GET", "/v1/models")] * 4, key=key)
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[-1].headers["retry-after"] == "20"
    assert send(server, Request("GET", "/v1/models"))[0].status == 200  # another key is not held up


def test_buckets_refill_with_time() -> None:
    now = 0.0
    buckets = Buckets(lambda: now)
    assert buckets.take("a", "k", 60, 60) == 0
    now = 1.5
    assert buckets.left("a", "k", 60) == pytest.approx(1.5)
    assert buckets.take("a", "k", 60, 30) == pytest.approx(-28.5)  # overdrawn: it was not known before
    now = 1000.0
    assert buckets.left("a", "k", 60) == 60 and buckets.left("b", "k", 60) == 60


# --- the form of a request

KIND = {"content-type": "application/json"}
ODD: list[tuple[str, Request, int]] = [
    ("host of another", Request("GET", "/v1/models", headers={"host": "evil.example"}), 421),
    ("no host", Request("GET", "/v1/models", headers={"host": ""}), 421),
    ("origin of another", Request("GET", "/v1/models", headers={"origin": "http://evil.example"}), 403),
    ("origin null", Request("POST", "/v1/uploads", b"{}", {"origin": "null", **KIND}), 403),
    ("preflight", Request("OPTIONS", "/v1/files", headers={"origin": "http://evil.example", "access-control-request-method": "POST"}), 403),
    ("simple request of a page", Request("POST", "/v1/uploads", b"{}", {"content-type": "text/plain"}), 415),
    ("form of a page", Request("POST", "/v1/uploads", b"a=b", {"content-type": "application/x-www-form-urlencoded"}), 415),
    ("body without a type", Request("POST", "/v1/uploads", b"{}"), 415),
    ("multipart where JSON belongs", Request("POST", "/v1/uploads", b"{}", {"content-type": "multipart/form-data; boundary=x"}), 415),
    ("JSON where multipart belongs", Request("POST", "/v1/files", b"{}", KIND), 400),
    ("gzip", Request("POST", "/v1/uploads", b"\x1f\x8b", {"content-encoding": "gzip", **KIND}), 415),
    ("zstd", Request("POST", "/v1/files", b"x", {"content-encoding": "zstd", "content-type": "multipart/form-data; boundary=x"}), 415),
    ("two lengths", Request("POST", "/v1/uploads", b"{}", {"transfer-encoding": "chunked", **KIND}), 400),
    ("headers too large", Request("GET", "/v1/models", headers={"x": "y" * 70_000}), 431),
    ("headers too many", Request("GET", "/v1/models", headers={f"x{n}": "" for n in range(200)}), 431),
    ("query too long", Request("GET", "/v1/models?" + "x" * 9000), 414),
    ("absolute form", Request("GET", "http://evil.example/v1/models"), 400),
    ("NUL in the path", Request("GET", "/v1/files/a%00b"), 400),
    ("NUL in the query", Request("GET", "/v1/files?after=a%00b"), 400),
    ("announced too large", Request("POST", "/v1/uploads", b"", {"content-length": str(1 << 40), **KIND}), 413),
    ("unknown path", Request("GET", "/v1/nothing"), 404),
    ("wrong method", Request("PUT", "/v1/models", b"{}", KIND), 405),
    ("limit below", Request("GET", "/v1/files?limit=-1"), 400),
    ("limit above", Request("GET", "/v1/files?limit=1" + "0" * 30), 400),
    ("limit no number", Request("GET", "/v1/files?limit=NaN"), 400),
    ("order unknown", Request("GET", "/v1/files?order=sideways"), 400),
]


@pytest.mark.parametrize(("request_", "status"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
def test_odd_requests_are_refused(shared: Server, request_: Request, status: int) -> None:
    (answer,) = send(shared, request_)
    assert answer.status == status, answer.body
    assert wrong(request_, answer.status, answer.headers, answer.body) is None


def test_a_page_of_the_server_itself_may_ask(shared: Server) -> None:
    assert send(shared, Request("GET", "/v1/models", headers={"origin": "http://t"}))[0].status == 200


def test_the_clients_empty_bodies_are_taken(shared: Server) -> None:
    for headers in (KIND, {}):
        (answer,) = send(shared, Request("POST", "/v1/uploads/upload_x/cancel", b"", headers))
        assert answer.status == 404, answer.body


def test_bodies_over_the_limit_are_not_read_on(tmp_path: Path) -> None:
    with serving(tmp_path / "home", limits={"json_bytes": 2000, "file_bytes": 200_000}) as server:
        stated = Request("POST", "/v1/uploads", b"x" * 3000, dict(KIND))
        streamed = Request("POST", "/v1/uploads", b"x" * 3000, {"content-length": "nothing", "transfer-encoding": "chunked", **KIND})
        kind = {"content-type": "multipart/form-data; boundary=b0undary"}
        file = Request("POST", "/v1/files", form({"purpose": "vision"}, {"file": ("a", b"x" * 200_001)}), kind)
        fits = Request("POST", "/v1/files", form({"purpose": "vision"}, {"file": ("a", b"x" * 200_000)}), kind)
        answers = send(server, stated, streamed, file, fits)
        assert [answer.status for answer in answers[:1]] == [413]
        assert answers[1].status in (400, 413) and answers[2].status == 413 and answers[3].status == 200
        assert not list((server.home.path / "tmp").iterdir())


FORMS: list[tuple[str, bytes, str]] = [
    ("no boundary", form({}, {"file": ("a", b"x")}), "multipart/form-data"),
    ("another boundary", form({}, {"file": ("a", b"x")}), "multipart/form-data; boundary=other"),
    ("no end", form({"purpose": "vision"}, {"file": ("a", b"x")})[:-20], "multipart/form-data; boundary=b0undary"),
    ("nothing", b"", "multipart/form-data; boundary=b0undary"),
    ("20,000 fields", form({str(n): "x" for n in range(20_000)}, {}), "multipart/form-data; boundary=b0undary"),
    ("a field of 1 MB", form({"purpose": "x" * 1_000_000}, {}), "multipart/form-data; boundary=b0undary"),
    ("a part's head of 1 MB", form({"x" * 1_000_000: ""}, {}), "multipart/form-data; boundary=b0undary"),
    (
        "the file twice",
        form({"purpose": "vision"}, {"file": ("a", b"x")})[:-14] + form({}, {"file": ("b", b"y")}),
        "multipart/form-data; boundary=b0undary",
    ),
    ("a file of another name", form({"purpose": "vision"}, {"other": ("a", b"x")}), "multipart/form-data; boundary=b0undary"),
    (
        "a name that is not UTF-8",
        form({"purpose": "vision"}, {"file": ("a", b"x")}).replace(b'"a"', b'"\xff"'),
        "multipart/form-data; boundary=b0undary",
    ),
    ("no file", form({"purpose": "vision"}, {}), "multipart/form-data; boundary=b0undary"),
    ("no purpose", form({}, {"file": ("a", b"x")}), "multipart/form-data; boundary=b0undary"),
]


@pytest.mark.parametrize(("body", "kind"), [case[1:] for case in FORMS], ids=[case[0] for case in FORMS])
def test_odd_forms_are_refused_and_leave_nothing(shared: Server, body: bytes, kind: str) -> None:
    before = len(list((shared.home.path / "files").iterdir()))
    (answer,) = send(shared, Request("POST", "/v1/files", body, {"content-type": kind}))
    assert answer.status == 400, answer.body
    assert not list((shared.home.path / "tmp").iterdir()) and len(list((shared.home.path / "files").iterdir())) == before


NOT_STRICT = [
    b"{", b"\xff", b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"[" * 20000, b"[" * 65 + b"]" * 65, b'{"a":' * 65 + b"1" + b"}" * 65, b'{"a":1,"a":2}',
    b'[{"a":{"b":1,"b":1}}]', b'["\\ud800"]', b'["\\udc00\\ud800"]', b'{"\\ud800":1}', b'["\\u0000"]', b'{"\\u0000":1}', b'["\x00"]', b"[9223372036854775808]",
    b"[-9223372036854775809]", b"[" + b"9" * 5000 + b"]", b"[NaN]", b"[-Infinity]", b"[1e999]", b"[-1e999]", b"[01]", b"{}{}", b"{'a':1}",
    b"[" + b"1," * 100_001 + b"1]", b"{" + b",".join(b'"k%d":1' % n for n in range(100_001)) + b"}", b'["' + b"x" * 1000, b'["\\',
]  # fmt: skip
STRICT = [
    (b'["a\\u00e9\\ud83d\\ude00", "\\\\ud800", "\\\\u0000"]', ["aé😀", "\\ud800", "\\u0000"]), (b"[" * 64 + b"]" * 64, None), (b'{"a":' * 64 + b"1" + b"}" * 64, None),
    (b"[9223372036854775807, -9223372036854775808, 1e308, -0.0]", [2**63 - 1, -(2**63), 1e308, -0.0]), (b'[{"a":1},{"a":2}]', [{"a": 1}, {"a": 2}]),
    (b'"' + b"[{,}]" * 50_000 + b'"', "[{,}]" * 50_000), (b'["\\"[[[[\\\\", "]"]', ['"[[[[\\', "]"]), (b"null", None), (b" {} \n", {}), (b"[" + b"1," * 90_000 + b"1]", None),
]  # fmt: skip


@pytest.mark.parametrize("body", NOT_STRICT, ids=range(len(NOT_STRICT)))
def test_what_strict_json_is_not(body: bytes) -> None:
    with pytest.raises(strict.NotStrict) as caught:
        strict.parse(body)
    assert str(caught.value).isascii() and len(str(caught.value)) < 200


@pytest.mark.parametrize(("body", "value"), STRICT, ids=range(len(STRICT)))
def test_what_strict_json_is(body: bytes, value: Any) -> None:
    found = strict.parse(body)
    assert found == json.loads(body) and (value is None or found == value)


@pytest.mark.parametrize("body", hostile.BODIES, ids=range(len(hostile.BODIES)))
def test_json_that_brings_servers_down(shared: Server, body: bytes) -> None:
    request = Request("POST", "/v1/uploads", body, dict(KIND))
    (answer,) = send(shared, request)
    assert answer.status == 400 and wrong(request, answer.status, answer.headers, answer.body) is None, answer.body


# --- all routes


@pytest.fixture(scope="module")
def requests(shared: Server) -> list[Request]:
    client = shared.client()
    file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="fine-tune").id
    upload = client.uploads.create(bytes=3, filename="x.jsonl", mime_type="text/jsonl", purpose="fine-tune").id
    return good(file, upload, "ftjob-nosuch")


def test_good_requests_are_of_every_route(shared: Server, requests: list[Request]) -> None:
    patterns = [(method, re.compile(re.sub(r"\{\w+(:path)?\}", "[^?]+", path))) for method, path in routes(shared)]
    for method, pattern in patterns:
        assert any(request.method == method and pattern.fullmatch(request.path.partition("?")[0]) for request in requests), (method, pattern.pattern)


def test_hostile_names_and_bodies_on_every_route(shared: Server, requests: list[Request]) -> None:
    asked = list(hostile.corpus(requests))
    faults = [
        (request, fault)
        for request, answer in zip(asked, send(shared, *asked), strict=True)
        if (fault := wrong(request, answer.status, answer.headers, answer.body))
    ]
    assert len(asked) > 700 and not faults, faults[:5]
    assert not list((shared.home.path / "tmp").iterdir())


@pytest.mark.parametrize("seed", range(1))
def test_mutated_requests(shared: Server, requests: list[Request], seed: int) -> None:
    asked = list(itertools.islice(hostile.mutated(requests, seed), 300))
    faults = [
        (request, fault)
        for request, answer in zip(asked, send(shared, *asked), strict=True)
        if (fault := wrong(request, answer.status, answer.headers, answer.body))
    ]
    assert not faults, faults[:5]


def test_every_number_and_list_has_a_bound(shared: Server) -> None:
    """The description itself is walked, so that a new field without a bound is seen."""
    loose: list[str] = []

    def walk(schema: Any, where: str) -> None:
        if isinstance(schema, list):
            for at, item in enumerate(schema):
                walk(item, f"{where}[{at}]")
        elif isinstance(schema, dict):
            kind = schema.get("type")
            if kind in ("integer", "number") and not (
                {"maximum", "exclusiveMaximum"} & set(schema) and {"minimum", "exclusiveMinimum"} & set(schema)
            ):
                loose.append(f"{where}: {kind}")
            if kind == "array" and "maxItems" not in schema:
                loose.append(f"{where}: array")
            if kind == "string" and not {"maxLength", "enum", "const", "pattern"} & set(schema):
                loose.append(f"{where}: string")
            for key, value in schema.items():
                if key not in ("description", "title", "default", "example"):
                    walk(value, f"{where}.{key}")

    description = shared.app.openapi()
    assert "422" not in str(description) and "HTTPValidationError" not in str(description)
    for name, schema in description["components"]["schemas"].items():
        walk(schema, name)
    for path, item in description["paths"].items():
        for method, operation in item.items():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "query":
                    walk(parameter["schema"], f"{method} {path} {parameter['name']}")
    assert not loose, loose


# --- what is told to whom


def test_a_fault_of_ours_tells_nothing(server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*given: Any, **named: Any) -> Any:
        raise RuntimeError("at /home/secret with SELECT * FROM keys")

    monkeypatch.setattr("tunewright.serve.files.page", broken)
    with caplog.at_level(logging.ERROR):
        (answer,) = send(server, Request("GET", "/v1/files"))
    assert answer.status == 500 and answer.error["type"] == "server_error"
    assert "secret" not in answer.body.decode() and answer.headers["x-request-id"] in answer.error["message"]
    assert answer.headers["x-request-id"] in caplog.text and "secret" in caplog.text


def test_the_log_is_lines_of_json_without_secrets(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tunewright.serve"):
        send(server, Request("GET", "/v1/files/%1b%5b2J%0aforged"), Request("POST", "/v1/uploads", b'{"filename": "in-the-body"}', dict(KIND)))
    assert len(caplog.messages) == 2
    for line in caplog.messages:
        record = json.loads(line)
        assert "\n" not in line and "\x1b" not in line and record["status"] in (400, 404) and record["key"].startswith("key_")
        assert server.key not in line and "in-the-body" not in line


def test_the_database_holds_no_key(server: Server) -> None:
    for path in server.home.path.rglob("*"):
        assert not path.is_file() or server.key.encode() not in path.read_bytes()


def test_metrics_count_by_route_and_not_by_name(shared: Server) -> None:
    send(shared, *[Request("GET", f"/v1/files/file-{n}") for n in range(5)], Request("GET", "/nowhere"), Request("WEIRD", "/v1/models"))
    text = send(shared, Request("GET", "/metrics"))[0].body.decode()
    assert 'method="GET",route="/v1/files/{file_id}",status="404"' in text and 'method="other"' in text and "file-3" not in text
    assert "tunewright_files " in text


BANNED = re.compile(
    r"\bimport pickle|pickle\.load|torch\.load\(|yaml\.(unsafe_)?load\(|(?<![.\w])(eval|exec)\(|shell=True|trust_remote_code=True|allow_pickle=True|os\.system"
)


def test_nothing_that_runs_what_it_reads() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (ROOT / "tunewright").rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if BANNED.search(line)
    ]
    assert not found


def test_tokens_by_the_minute(server: Server) -> None:
    """What was read and written counts, streams that were left early too; a key without any left is told before a model is loaded."""
    key = server.add_key(tokens_per_minute=12)
    client = server.client(key)
    asked: Any = {"model": "nano", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0}
    first = client.chat.completions.create(**asked).usage
    assert first and first.total_tokens < 12
    with client.chat.completions.create(**{**asked, "max_tokens": 100}, stream=True) as stream:
        next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="tokens"):
        client.chat.completions.create(**asked)
    server.client().chat.completions.create(**asked)
    text = send(server, Request("GET", "/metrics"))[0].body.decode()
    assert float(re.findall(r'tunewright_tokens_total\{kind="read"\} (\S+)', text)[0]) == 3 * first.prompt_tokens
