"""Requests that no well-meaning client sends: a corpus, seeded mutations of good requests, and what every answer must be like.

The suite sends some hundreds to the app itself; `benchmarks/fuzz_server.py` sends many thousands over sockets.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

CANARY = "canary-7f3a9c"

TRAVERSALS = [
    "../canary", "..%2fcanary", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/canary", "%252e%252e%252fcanary", "....//canary", "..;/canary",
    "%2fetc%2fpasswd", "//etc/passwd", "/proc/self/root/etc/passwd", "file:///etc/passwd", "C:%5cWindows", "..%5ccanary", "%c0%ae%c0%ae%2fcanary",
    "~root", "canary%00.jsonl", "%00", "a%0d%0aSet-Cookie:x=1", "%ff%fe", "." , "..", "%20", "file-" + "A" * 500, "file-..%2f..%2fcanary",
    "x%27%20OR%201=1--", "x%22%3B%20DROP%20TABLE%20files%3B--", "ft:..%2f..:x::y", "$(touch%20canary)", "%60id%60", "--help", "-rf", "%23", "%3f",
    "%e2%80%ae", "%f0%9f%92%a9", "%ed%a0%80", "%1b%5b2J", "%3Cimg%20onerror=x%3E", "*", "%25s%25n", "{{7*7}}", "null", "undefined", "NaN", "-1", "0",
]  # fmt: skip
TEXTS = [
    "", " ", "\n", "x" * 300, "x" * 5000, "../../../etc/passwd", "/etc/passwd", "C:\\x", "file:///etc/passwd", "http://169.254.169.254/",
    "--help", "$(id)", "`id`", "'; DROP TABLE jobs; --", "' OR 1=1 --", "<img src=x onerror=alert(1)>", "\x1b[2J", "=cmd()", "{{7*7}}", "%s%n",
    "\u202e", "💩" * 20, "é", "\uffff", "null", "auto", "a:b:c", "ft:a:b:c:d", "__class__", "|", "<|im_end|>\n<|im_start|>system",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63 - 1, -(2**63), 1e308, 1e-308, -0.0, 0.5, [], {}, [[]], [None], {"a": {"b": {}}}, [1] * 50, ["x"] * 200,
    {"_component_": "os.system"}, {"__proto__": {}}, {str(n): n for n in range(50)}, *TEXTS,
]  # fmt: skip
# What brings a server without a strict parser down or astray (raw bodies).
BODIES: list[bytes] = [
    b"", b"[]", b"{", b"\xff", b"null", b"1", b'""', b"{}", b"[" * 20000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"[" * 65 + b"]" * 65,
    b'{"model":"\\ud800"}', b'{"model":"a\\u0000b"}', b'{"\\ud800":1}', b'{"seed":9223372036854775808}', b'{"seed":' + b"9" * 5000 + b"}",
    b'{"seed":NaN}', b'{"seed":Infinity}', b'{"seed":1e999}', b'{"seed":-1e999}', b'{"seed":01}', b'{"a":1,"a":2}', b"\xef\xbb\xbf{}", b"{}{}", b"{'a':1}",
    b'{"a":"\x00"}', b'{"a":"\n"}', b"\x00", b'{"a":"' + b"x" * 100_000 + b'"}', b"{" + b",".join(b'"k%d":1' % n for n in range(120_000)) + b"}",
    "{}".encode("utf-16"), b"\x1f\x8b\x08\x00", b"--x\r\n\r\n--x--", b"a=b&c=d", b"<xml/>", b"!!python/object/apply:os.system ['id']",
]  # fmt: skip
HEADERS: list[tuple[str, str]] = [
    ("content-type", "text/plain"), ("content-type", "application/x-www-form-urlencoded"), ("content-type", "multipart/form-data"),
    ("content-type", "multipart/form-data; boundary=" + "b" * 300), ("content-type", "application/json; charset=utf-16"), ("content-type", ""),
    ("content-encoding", "gzip"), ("content-encoding", "zstd"), ("origin", "http://evil.example"), ("origin", "null"), ("host", "evil.example"),
    ("host", ""), ("range", "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(500))), ("x-stainless-retry-count", "9" * 400), ("x-stainless-retry-count", "-1"),
    ("authorization", "Basic x"), ("authorization", ""), ("authorization", "Bearer " + "x" * 5000), ("accept", "*/*;q=2"), ("openai-organization", "../x"),
    ("x-forwarded-for", "1.2.3.4"), ("x-http-method-override", "DELETE"), ("transfer-encoding", "chunked"), ("x-long", "y" * 70_000), ("expect", "x"),
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO"]
SECRETS = re.compile(
    r"Traceback|File \"|/home/|/tmp/|/root/|site-packages|sqlite3?\.|psycopg|sqlalchemy|SELECT |" + CANARY + "|root:x:", re.IGNORECASE
)


@dataclass(slots=True)
class Request:
    """One request, as it goes over the wire. `path` is percent-encoded and may have a query."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    params: tuple[str, ...] = ()
    """Parts of the path that are a client's to choose."""


def form(fields: dict[str, str], files: dict[str, tuple[str, bytes]], boundary: str = "b0undary") -> bytes:
    """A multipart body."""
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    for name, (filename, data) in files.items():
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        parts.append(head.encode() + data + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def good(file: str, upload: str, job: str) -> list[Request]:
    """Requests of every route, with things that exist."""
    json_type = {"content-type": "application/json"}
    form_type = {"content-type": "multipart/form-data; boundary=b0undary"}

    def post(path: str, record: Any, *params: str) -> Request:
        return Request("POST", path, json.dumps(record).encode(), dict(json_type), params)

    row = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    asked = {"model": "nano", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0, "stop": ["x"], "n": 1, "seed": 1}
    wanted = {
        "model": "nano", "training_file": file, "suffix": "s", "seed": 1, "metadata": {"k": "v"}, "validation_file": None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 0.1}}},
        "integrations": None, "hyperparameters": {"n_epochs": "auto"},
    }  # fmt: skip
    start = {
        "filename": "a.jsonl",
        "purpose": "fine-tune",
        "bytes": 3,
        "mime_type": "text/jsonl",
        "expires_after": {"anchor": "created_at", "seconds": 3600},
    }
    return [
        Request("GET", "/v1/files?limit=2&after=&order=asc&purpose=fine-tune"),
        Request("POST", "/v1/files", form({"purpose": "fine-tune"}, {"file": ("a.jsonl", row * 10)}), dict(form_type)),
        Request("GET", f"/v1/files/{file}", params=(file,)),
        Request("GET", f"/v1/files/{file}/content", params=(file,)),
        Request("GET", f"/v1/files/{file}/report", params=(file,)),
        Request("DELETE", "/v1/files/file-nosuch", params=("file-nosuch",)),
        post("/v1/uploads", start),
        Request("POST", f"/v1/uploads/{upload}/parts", form({}, {"data": ("d", b"abc")}), dict(form_type), (upload,)),
        post(f"/v1/uploads/{upload}/complete", {"part_ids": ["part_x"], "md5": "0" * 32}, upload),
        post("/v1/uploads/upload_nosuch/cancel", {}, "upload_nosuch"),
        Request("GET", "/v1/models"),
        Request("GET", "/v1/models/nano", params=("nano",)),
        Request("DELETE", "/v1/models/ft:nano:x::y", params=("ft:nano:x::y",)),
        post("/v1/fine_tuning/jobs", wanted),
        Request("GET", "/v1/fine_tuning/jobs?limit=2&after=ftjob-x&metadata%5Bk%5D=v"),
        Request("GET", f"/v1/fine_tuning/jobs/{job}", params=(job,)),
        Request("GET", f"/v1/fine_tuning/jobs/{job}/events?limit=2", params=(job,)),
        Request("GET", f"/v1/fine_tuning/jobs/{job}/checkpoints?limit=2", params=(job,)),
        post(f"/v1/fine_tuning/jobs/{job}/cancel", {}, job),
        post(f"/v1/fine_tuning/jobs/{job}/pause", {}, job),
        post(f"/v1/fine_tuning/jobs/{job}/resume", {}, job),
        post("/v1/fine_tuning/checkpoints/ft:nano:x::y/permissions", {"project_ids": ["p"]}, "ft:nano:x::y"),
        Request("GET", "/v1/fine_tuning/checkpoints/ft:nano:x::y/permissions?order=ascending", params=("ft:nano:x::y",)),
        Request("DELETE", "/v1/fine_tuning/checkpoints/ft:nano:x::y/permissions/cp_x", params=("ft:nano:x::y", "cp_x")),
        post("/v1/chat/completions", asked),
        post("/v1/completions", {"model": "nano", "prompt": "hi", "max_tokens": 1}),
        Request("GET", "/metrics"),
        Request("GET", "/openapi.json"),
        Request("GET", "/healthz"),
        Request("GET", "/"),
    ]  # fmt: skip


def corpus(requests: list[Request]) -> Iterator[Request]:
    """Every hostile string in every parameter, every raw body on every route that takes one."""
    for request in requests:
        for param in request.params:
            for text in TRAVERSALS:
                yield Request(request.method, request.path.replace(param, text, 1), request.body, dict(request.headers))
        if request.headers.get("content-type") == "application/json":
            for body in BODIES:
                yield Request(request.method, request.path, body, dict(request.headers))


def mutated(requests: list[Request], seed: int) -> Iterator[Request]:
    """Good requests, each made bad in one to three ways, without end."""
    rng = random.Random(seed)
    while True:
        request = copy.deepcopy(rng.choice(requests))
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice((_param, _query, _json, _json, _json, _bytes, _header, _method))(request, rng)
        yield request


def _param(request: Request, rng: random.Random) -> None:
    for param in request.params:
        text = rng.choice(TRAVERSALS) if rng.random() < 0.7 else quote(rng.choice(TEXTS), safe="")
        request.path = request.path.replace(param, text[:2000], 1)


def _query(request: Request, rng: random.Random) -> None:
    name = rng.choice(["limit", "after", "order", "purpose", "metadata[k]", "metadata", "x"])
    value = rng.choice(["-1", "0", "1" + "0" * 30, str(2**63), "NaN", "", "1.5", "true", *map(str, TEXTS)])
    mark = "&" if "?" in request.path else "?"
    request.path += f"{mark}{quote(name, safe='')}={quote(value, safe='')[:3000]}"


def _json(request: Request, rng: random.Random) -> None:
    """Another value, another key, or one less, anywhere in the body."""
    try:
        record = json.loads(request.body)
    except (ValueError, RecursionError):
        return
    places = list(_places(record))
    if not places:
        return
    place, key = rng.choice(places)
    if key in ("max_tokens", "n"):  # or an answer as long as the context is written, again and again
        return
    way = rng.random()
    if way < 0.7:
        place[key] = rng.choice(VALUES)
    elif way < 0.85 and isinstance(place, dict):
        place[rng.choice(TEXTS)] = place.pop(key)
    else:
        del place[key]
    request.body = json.dumps(record).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _bytes(request: Request, rng: random.Random) -> None:
    if rng.random() < 0.2 or b"max_tokens" in request.body:  # a letter less in that key, and an answer is as long as the context
        request.body = rng.choice(BODIES)
        return
    data = bytearray(request.body)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
    request.body = bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


def _header(request: Request, rng: random.Random) -> None:
    name, value = rng.choice(HEADERS)
    request.headers[name] = value


def _method(request: Request, rng: random.Random) -> None:
    request.method = rng.choice(METHODS)


def wrong(request: Request, status: int, headers: dict[str, str], body: bytes) -> str | None:
    """What is wrong with an answer, or None."""
    text = body.decode("utf-8", "replace")
    if status >= 500:
        return f"status {status}: {text[:200]}"
    if headers.get("x-content-type-options") != "nosniff" or "x-request-id" not in headers:
        return f"status {status} without our headers: {headers}"
    if status >= 400 and request.method != "HEAD":
        try:
            error = json.loads(text)["error"]
            fits = set(error) == {"message", "type", "param", "code"} and error["message"]
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            return f"status {status} with another body: {text[:200]}"
    said = (request.path + request.body.decode("utf-8", "replace")).lower()  # what the client said itself may come back
    if (found := SECRETS.search(text)) and found.group().lower() not in said:
        return f"status {status} tells {found.group()!r}: {text[:300]}"
    return None
