"""The routes that answer, through the official client, over tiny real models."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

import tiny
from test_generate import make
from tunewright.jobs.store import Key, Store
from tunewright.serve import chat, completions
from tunewright.serve.ask import Resolved
from tunewright.serve.config import ServeConfig
from tunewright.serve.engine import Engine
from tunewright.serve.errors import ApiError
from tunewright.serve.metrics import Metrics
from tunewright.serve.quota import Buckets

HELLO: Any = [{"role": "user", "content": "Where is my lamp?"}]


def app_for(engine: Any, models: dict[str, Resolved]) -> FastAPI:
    """What the server does around these routes, in a few lines."""
    app = FastAPI()
    app.include_router(chat.router)
    app.include_router(completions.router)

    async def resolve(request: Request, name: str) -> Resolved:
        if name not in models:
            raise ApiError(404, f"The model `{name}` does not exist or you do not have access to it.", None, "model_not_found")
        return models[name]

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return JSONResponse(error.to_dict(), error.status, error.headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return JSONResponse(ApiError(400, str(error.errors()[0]["msg"])).to_dict(), 400)

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.state.engine, app.state.resolve = engine, resolve
    app.state.config, app.state.buckets, app.state.metrics = ServeConfig(), Buckets(), Metrics(Store("sqlite:///unused.db"))
    app.add_middleware(_Known)
    return app


class _Known:
    """Where the guard would stand: everyone is the same key."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["key"] = Key(id="key_test", quotas={})
        await self.app(scope, receive, send)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny.save(folder, make("llama"))
    engine = Engine()
    yield app_for(engine, {"base": Resolved("base", folder)})
    engine.close()


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(base_url="http://test/v1", api_key="x", http_client=http, max_retries=0) as client,
    ):
        yield client


def ask(app: FastAPI, **settings: Any) -> Any:
    """One chat completion; a list of chunks where it is streamed."""

    async def go() -> Any:
        async with client_of(app) as client:
            out = await client.chat.completions.create(**{"model": "base", "messages": HELLO, "max_tokens": 12, "temperature": 0, **settings})
            return [chunk async for chunk in out] if settings.get("stream") else out

    return asyncio.run(go())


def post(app: FastAPI, path: str, body: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            return await http.post(path, json=body)

    return asyncio.run(go())


def test_a_chat_is_answered_with_every_required_field(app: FastAPI) -> None:
    body = post(app, "/v1/chat/completions", {"model": "base", "messages": HELLO, "max_tokens": 5, "temperature": 0, "stop": None, "x": 1}).json()
    (choice,) = body["choices"]
    assert body["id"].startswith("chatcmpl-") and body["object"] == "chat.completion" and body["model"] == "base"
    assert choice["logprobs"] is None and choice["message"]["refusal"] is None and choice["finish_reason"] in ("stop", "length")
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert 1 <= body["usage"]["completion_tokens"] <= 5


def test_a_stream_says_what_the_plain_answer_says(app: FastAPI) -> None:
    plain = ask(app)
    chunks = ask(app, stream=True, stream_options={"include_usage": True})
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage and all(chunk.usage is None for chunk in chunks[:-1])
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == [plain.choices[0].finish_reason]


def test_the_whole_conversation_reaches_the_model(app: FastAPI) -> None:
    first = [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d e f"}]
    longer, shorter = ask(app, messages=[*first, *HELLO]), ask(app, messages=first[:1])
    assert longer.usage.prompt_tokens > shorter.usage.prompt_tokens + ask(app).usage.prompt_tokens - 12
    assert longer.choices[0].message.content != ask(app, messages=first).choices[0].message.content


def test_stop_cuts_before_its_text_and_streams_none_of_it(app: FastAPI) -> None:
    text = ask(app).choices[0].message.content
    mark = text[3:6]
    answer = ask(app, stop=[mark, "never said"])
    assert answer.choices[0].message.content == text[: text.index(mark)] and answer.choices[0].finish_reason == "stop"
    chunks = ask(app, stop=mark, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text[: text.index(mark)]


def test_logprobs_are_the_models_own(app: FastAPI) -> None:
    answer = ask(app, logprobs=True, top_logprobs=3, max_tokens=6)
    found = answer.choices[0].logprobs.content
    assert b"".join(bytes(t.bytes) for t in found).decode(errors="replace") == answer.choices[0].message.content
    for token in found:
        assert token.logprob <= 0 and token.top_logprobs[0].logprob == token.logprob and len(token.top_logprobs) == 3


def test_n_answers_differ_and_a_seed_repeats_them(app: FastAPI) -> None:
    one, two = (ask(app, n=4, temperature=1.5, seed=7) for _ in range(2))
    assert [c.index for c in one.choices] == [0, 1, 2, 3]
    assert [c.message.content for c in one.choices] == [c.message.content for c in two.choices]
    assert len({c.message.content for c in one.choices}) > 1


def test_json_by_a_schema(app: FastAPI) -> None:
    schema = {"type": "object", "properties": {"lamp": {"enum": ["on", "off"]}, "n": {"type": "integer", "maximum": 9, "minimum": 0}}}
    schema |= {"required": ["lamp", "n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = json.loads(ask(app, response_format=form, max_tokens=200).choices[0].message.content)
    assert answer["lamp"] in ("on", "off") and 0 <= answer["n"] <= 9


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


HOSTILE = {
    "self": {"$ref": "#"},
    "remote": {"$ref": "http://127.0.0.1:1/x"},
    "file": {"$ref": "file:///etc/passwd"},
    "nested": nested(90),
    "enum": {"enum": [str(i) for i in range(20000)]},
    "choices": {"allOf": [{"oneOf": [{"properties": {f"{k}{i}": {"type": "string"}}} for k in "ab"]} for i in range(30)]},
    "digits": {"type": "number", "multipleOf": 1e-300},
    "lookahead": {"type": "string", "pattern": "(?=a)(?!b)a"},
    "backward": {"type": "string", "pattern": "(a)\\1"},
}
SLOW = {
    "ambiguous": {"type": "string", "pattern": "^(a+)+$"},
    "repeats": {"type": "string", "pattern": "(a{1,5000}){1,5000}"},
    "long": {"type": "string", "minLength": 10**9},
    "many": {"type": "array", "items": {"type": "string"}, "minItems": 10**6},
    "keys": {"type": "object", "patternProperties": {"(x+x+)+y": {"type": "string"}}},
}


@pytest.mark.parametrize("name", [*HOSTILE, *SLOW])
def test_hostile_schemas_are_refused_or_followed_in_time(app: FastAPI, name: str) -> None:
    schema = {**HOSTILE, **SLOW}[name]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    start = monotonic()
    answer = post(app, "/v1/chat/completions", {"model": "base", "messages": HELLO, "max_tokens": 5, "response_format": form})
    assert monotonic() - start < 5
    assert answer.status_code == (400 if name in HOSTILE else 200), answer.text


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "no-such-model"}, "model_not_found"),
        ({"messages": []}, None),
        ({"messages": None}, None),
        ({"messages": [{"role": "wizard", "content": "x"}]}, None),
        ({"messages": [{"role": "user", "content": None}]}, "missing_content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}, "unsupported_content"),
        ({"messages": [{"role": "user", "content": "x " * 400}]}, "context_length_exceeded"),
        ({"temperature": 3}, None),
        ({"temperature": "hot"}, None),
        ({"n": 10**6}, None),
        ({"max_tokens": 10**9}, None),
        ({"max_tokens": 0}, None),
        ({"top_logprobs": 2}, None),
        ({"stop": ["x"] * 5}, None),
        ({"stop": [""]}, None),
        ({"logit_bias": {"999999": 1}}, "invalid_token"),
        ({"logit_bias": {"x": 1}}, None),
        ({"chat_template": "{{ 1 }}"}, None),
        ({"chat_template_kwargs": {"tokenize": True}}, None),
        ({"response_format": {"type": "json_schema"}}, None),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wizard"}}}}, "invalid_json_schema"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused(app: FastAPI, change: dict[str, Any], code: str | None, stream: bool) -> None:
    answer = post(app, "/v1/chat/completions", {"model": "base", "messages": HELLO, "stream": stream, **change})
    assert answer.status_code == (404 if code == "model_not_found" else 400), answer.text
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"} and answer.json()["error"]["code"] == code


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """Models that are for something else, and an adapter for one of them."""
    folder, sizes = tmp_path_factory.mktemp("others"), {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 1}
    classifier = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=64, num_attention_heads=4, max_position_embeddings=256))
    causal = LlamaForSequenceClassification(LlamaConfig(**sizes, intermediate_size=64, num_attention_heads=4, pad_token_id=0))
    made = {"intents": classifier, "spam": causal, "summaries": tiny.encoder_decoder("t5"), "bart": tiny.encoder_decoder("bart")}
    models = {name: Resolved(name, Path(tiny.save(folder / name, model))) for name, model in (made | {"encoder": tiny.encoder("bert")}).items()}
    get_peft_model(classifier, LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).save_pretrained(folder / "adapter")
    models["ft:adapter"] = Resolved("ft:adapter", folder / "adapter", str(folder / "intents"))
    engine = Engine()
    yield app_for(engine, models)
    engine.close()


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("intents", "is a classifier"),
        ("spam", "is a classifier"),
        ("ft:adapter", "is a classifier"),
        ("summaries", "is an encoder-decoder"),
        ("bart", "is an encoder-decoder"),
        ("encoder", "is an encoder without a head"),
    ],
)
def test_models_that_do_not_write_are_refused_with_what_they_are(others: FastAPI, model: str, what: str) -> None:
    for route, body in (("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "Where"})):
        for stream in (False, True):
            answer = post(others, f"/v1/{route}", {"model": model, "stream": stream, **body})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "model_cannot_chat", "model"), answer.text
            assert error["message"].startswith(f"{model} {what}") and "such as nano" in error["message"]


def test_completions_go_on_from_a_text(app: FastAPI) -> None:
    def complete(**settings: Any) -> Any:
        answer = post(app, "/v1/completions", {"model": "base", "prompt": "The lamp", "max_tokens": 6, "temperature": 0, **settings})
        assert answer.status_code == 200, answer.text
        return answer.json()

    plain = complete()
    assert plain["id"].startswith("cmpl-") and plain["object"] == "text_completion"
    assert complete(echo=True)["choices"][0]["text"] == "The lamp" + plain["choices"][0]["text"]
    several = complete(prompt=["The lamp", "A kettle"], n=2)
    assert [c["index"] for c in several["choices"]] == [0, 1, 2, 3] and several["choices"][1]["text"] == plain["choices"][0]["text"]
    assert complete(prompt=[5, 6, 7])["usage"]["prompt_tokens"] == 3
    for empty in ("", None):
        assert complete(prompt=empty)["choices"][0]["text"] is not None
    logs = complete(logprobs=2)["choices"][0]["logprobs"]
    assert len(logs["tokens"]) == len(logs["token_logprobs"]) == len(logs["top_logprobs"]) == len(logs["text_offset"])
    assert complete(best_of=5, temperature=1.5, seed=1)["choices"][0]["index"] == 0
    for bad in ({"suffix": "x"}, {"best_of": 1, "n": 2}, {"prompt": [10**6]}, {"prompt": []}, {"echo": True, "logprobs": 1}):
        assert post(app, "/v1/completions", {"model": "base", "prompt": "x", **bad}).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_when_its_client_has_gone(app: FastAPI, stream: bool) -> None:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        engine: Engine = app.state.engine
        ask(app, max_tokens=1)
        (runner,) = engine._runners.values()
        body = json.dumps({"model": "base", "messages": HELLO, "n": 100, "temperature": 2, "logit_bias": {"2": -100}, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head.encode() + body)
            if stream:
                client.recv(100)
            while not runner.busy:
                sleep(0.005)
        start = monotonic()
        while runner.busy and monotonic() - start < 10:
            sleep(0.005)
        assert not runner.busy and monotonic() - start < 2  # all that was wanted would take far longer
    finally:
        server.should_exit = True
        thread.join(timeout=10)
