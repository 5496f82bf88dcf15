"""The vLLM back end against a small server that speaks vLLM's API as its documentation has it, over a real tiny model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from test_chat_api import HELLO, app_for, ask, post
from test_engine import save_all
from tunewright.serve.ask import Ask, Resolved
from tunewright.serve.engine import Engine
from tunewright.serve.vllm import VllmEngine


@dataclass
class Fake:
    """Loaded adapters by name, the bodies of what was asked, and the address."""

    url: str = ""
    base: Path = Path()
    adapters: dict[str, str] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)


def vllm(fake: Fake, engine: Engine, base: Resolved) -> FastAPI:
    """vLLM's routes; our own engine says the words."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> Any:
        ids = [str(base.folder), *fake.adapters]
        return {"object": "list", "data": [{"id": each, "object": "model", "max_model_len": 256} for each in ids]}

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        body = await request.json()
        assert body.keys() == {"lora_name", "lora_path"}
        if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
            return JSONResponse({"error": {"message": "No adapter found", "type": "NotFoundError", "param": None, "code": 404}}, 404)
        fake.adapters[body["lora_name"]] = body["lora_path"]
        return PlainTextResponse(f"Success: LoRA adapter '{body['lora_name']}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        del fake.adapters[(await request.json())["lora_name"]]
        return PlainTextResponse("Success")

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body = await request.json()
        fake.bodies.append(body)
        if body["temperature"] == 2:
            return JSONResponse({"error": {"message": "too hot", "type": "BadRequestError", "param": None, "code": 400}}, 400)
        path = fake.adapters.get(body["model"])
        opened = engine.open(base if path is None else Resolved(body["model"], Path(path), str(base.folder)))
        wanted = Ask(
            tuple(body["prompt"]), body["max_tokens"], body["temperature"], body["top_p"], stop=tuple(body["stop"]), top_logprobs=body.get("logprobs")
        )

        async def events() -> AsyncIterator[str]:
            for piece in engine.answer(opened, wanted):
                names = [f"token_id:{c.id}" for c in piece.chances]
                tops = [{f"token_id:{i}": p for i, p in c.top} for c in piece.chances]
                logs = {"tokens": names, "token_logprobs": [c.logprob for c in piece.chances], "top_logprobs": tops, "text_offset": [0] * len(names)}
                choice = {"index": 0, "text": piece.text, "logprobs": logs if names else None, "finish_reason": piece.finish}
                yield f"data: {json.dumps({'choices': [choice], 'usage': {'completion_tokens': piece.tokens}})}\n\n"
            yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': piece.tokens}})}\n\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fake, FastAPI, FastAPI]]:
    """The fake, our routes over it, and our routes over our own engine."""
    resolved = save_all(tmp_path_factory.mktemp("models"), "llama", ["lora", "wide", "few", "prompt"])
    base = Resolved(str(resolved["base"].folder), resolved["base"].folder)
    models = {**resolved, "base": base}
    fake, engine = Fake(base=base.folder), Engine()
    server = uvicorn.Server(uvicorn.Config(vllm(fake, engine, base), port=0, log_level="warning", lifespan="off"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        sleep(0.01)
    fake.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    remote = VllmEngine(fake.url, adapters=2)
    yield fake, app_for(remote, models), app_for(engine, models)
    remote.close()
    engine.close()
    server.should_exit = True
    thread.join(10)


def test_answers_are_those_of_the_model_asked(both: tuple[Fake, FastAPI, FastAPI]) -> None:
    fake, remote, own = both
    said = set()
    for name in ("base", "lora", "wide", "few", "lora"):
        here = ask(own, model=name, logprobs=True, top_logprobs=2)
        there = ask(remote, model=name, logprobs=True, top_logprobs=2)
        assert there.choices == here.choices and there.usage == here.usage, name
        chunks = ask(remote, model=name, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == here.choices[0].message.content
        said.add(here.choices[0].message.content)
    assert len(said) == 4
    assert len(fake.adapters) == 2  # the least recently used one was unloaded


def test_what_is_sent_is_tokens_and_every_setting(both: tuple[Fake, FastAPI, FastAPI]) -> None:
    fake, remote, _ = both
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ask(remote, response_format=form, seed=5, stop=["zz"], logit_bias={"3": -1.0}, temperature=0.5, top_p=0.0, presence_penalty=1)
    body = fake.bodies[-1]
    assert all(isinstance(token, int) for token in body["prompt"]) and body["structured_outputs"] == {"json": schema}
    assert (body["seed"], body["stop"], body["logit_bias"], body["presence_penalty"]) == (5, ["zz"], {"3": -1.0}, 1)
    assert 0 < body["top_p"] < 1e-6 and body["repetition_penalty"] == 1.0 and body["top_k"] == 0


def test_refusals_are_told_in_our_shape(both: tuple[Fake, FastAPI, FastAPI]) -> None:
    fake, remote, _ = both
    body = {"model": "base", "messages": HELLO}
    hot = post(remote, "/v1/chat/completions", body | {"temperature": 2})
    assert hot.status_code == 400 and "too hot" in hot.json()["error"]["message"]
    prompt = post(remote, "/v1/chat/completions", body | {"model": "prompt"})
    assert prompt.status_code == 400 and prompt.json()["error"]["code"] == "adapter_unsupported"
    away = VllmEngine("http://127.0.0.1:9")
    try:
        gone = post(app_for(away, {"base": Resolved("base", fake.base)}), "/v1/chat/completions", body)
        assert gone.status_code == 503 and gone.json()["error"]["code"] == "backend_unavailable"
    finally:
        away.close()
