"""`VllmEngine`: the same routes over a vLLM server, for machines with a GPU.

vLLM holds the base; adapters are loaded through its API when they are first asked for. Conversations are rendered here, by the
template and the tokenizer that training uses, and sent as token ids: so an answer continues the very tokens that were trained,
and what looks like a control token in a message stays text.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

import httpx

from tunewright.errors import BadModel, Problem
from tunewright.serve.ask import Ask, Chance, Piece, Resolved
from tunewright.serve.engine import Opened, check_task, stamp_of

if TYPE_CHECKING:
    from tunewright.serve.grammar import Tokens


@dataclass(frozen=True, slots=True)
class _Remote:
    """A model on the vLLM server. `served`: its name there."""

    served: str
    vocabulary: int
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer in the making."""

    task: Future[None]

    def cancel(self) -> None:
        """Close the connection; vLLM stops when it notices."""
        self.task.cancel()


class VllmEngine:
    """What `Engine` is, over a vLLM server at `address`, started with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, on the
    same file system. `adapters`: most that are kept loaded there; least recently used ones leave. `timeout`: seconds an answer may take."""

    def __init__(self, address: str, key: str | None = None, adapters: int = 64, timeout: float = 600.0) -> None:
        self._adapters, self._timeout = adapters, timeout
        self._opened: OrderedDict[tuple[str, str | None], Opened] = OrderedDict()
        self._lock = Lock()
        self.pool = ThreadPoolExecutor(8, "vllm")
        self._loop = asyncio.new_event_loop()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=address, headers=headers, timeout=httpx.Timeout(timeout, connect=10), trust_env=False)
        self._thread = Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    def open(self, resolved: Resolved) -> Opened:
        """The model, its adapter loaded by vLLM if it is not. Raises BadModel."""
        key, stamp = (str(resolved.folder), resolved.base), stamp_of(resolved.folder)
        with self._lock:
            found = self._opened.get(key)
            if found is None or found.stamp != stamp:
                if found is not None:
                    self._unload(found)
                found = self._opened[key] = self._load(resolved, stamp)
            self._opened.move_to_end(key)
            loaded = [k for k in self._opened if k[1] is not None]
            for old in loaded[: max(len(loaded) - self._adapters, 0)]:
                self._unload(self._opened.pop(old))
            return found

    def submit(self, opened: Opened, ask: Ask, put: Callable[[Piece], None]) -> _Answer:
        """As `Engine.submit`. Raises Problem `invalid_json_schema`, and `unsupported_parameter` for a grammar that is none."""
        runner: Any = opened.runner
        body = _body(ask, runner.served)
        if ask.grammar is not None:
            runner.tokens.constraint(ask.grammar)  # what cannot be followed is refused here, within bounds
        return _Answer(asyncio.run_coroutine_threadsafe(self._answer(body, ask, put), self._loop))

    def close(self) -> None:
        """End all connections."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _load(self, resolved: Resolved, stamp: tuple[int, ...]) -> Opened:
        from tunewright.models import quantized
        from tunewright.models.load import find, read_json, tokenizer_of
        from tunewright.serve.grammar import Tokens

        check_task(resolved)
        base = resolved.base or resolved.name
        served = self._call("GET", "/v1/models")["data"]
        there = next((each for each in served if each.get("id") in (base, str(resolved.folder))), None)
        if there is None:
            names = ", ".join(str(each.get("id")) for each in served)
            raise BadModel(f"{base} is not on the vLLM server, which has {names}", code="model_not_found", param="model")
        name = str(there["id"])
        if resolved.base is not None:
            kind = read_json(resolved.folder / "adapter_config.json", resolved.name).get("peft_type")
            if kind != "LORA" or quantized.recorded(resolved.folder, resolved.name):
                text = f"{resolved.name}: vLLM serves LoRA adapters that were learnt on a base in full; this one is {str(kind)[:40]} or learnt on fewer bits"
                raise BadModel(text, code="adapter_unsupported", param="model")
            name = f"{resolved.name}@{stamp[1]}"
            self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(resolved.folder.absolute())})
        folder = resolved.folder if (resolved.folder / "tokenizer_config.json").is_file() else find(base)
        tokenizer = tokenizer_of(folder, resolved.name)
        context = min(int(there.get("max_model_len") or 1 << 30), int(tokenizer.model_max_length))
        runner: Any = _Remote(name, len(tokenizer), Tokens(tokenizer, len(tokenizer)))
        return Opened(resolved.name, runner, None, tokenizer, Lock(), context, stamp)

    def _unload(self, opened: Opened) -> None:
        runner: Any = opened.runner
        self._call("POST", "/v1/unload_lora_adapter", {"lora_name": runner.served})

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """A call's JSON, or its text where it is none. Raises Problem."""

        async def go() -> httpx.Response:
            return await self._http.request(method, path, json=body)

        try:
            answer = asyncio.run_coroutine_threadsafe(go(), self._loop).result(self._timeout)
        except (httpx.HTTPError, TimeoutError) as error:
            raise _unreachable(error) from None
        if answer.status_code >= 400 and "already" not in answer.text:
            raise _refused(answer.status_code, answer.text)
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer.text

    async def _answer(self, body: dict[str, Any], ask: Ask, put: Callable[[Piece], None]) -> None:
        """One answer, piece by piece, over one connection."""
        told: list[Piece] = []  # where it is wanted whole
        try:
            async with asyncio.timeout(self._timeout), self._http.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code >= 400:
                    raise _refused(answer.status_code, (await answer.aread()).decode(errors="replace"))
                async for piece in _pieces(answer, ask.top_logprobs or 0):
                    told = [_joined([*told, piece])]
                    if piece.last or (ask.pieces and (piece.text or piece.chances)):
                        put(told.pop())
                    if piece.last:
                        return
            raise _unreachable(ConnectionError("it closed the connection"))
        except Problem as problem:
            put(Piece("", 0, problem=problem))
        except (httpx.HTTPError, TimeoutError, ValueError, LookupError, TypeError) as error:
            put(Piece("", 0, problem=_unreachable(error)))


def _body(ask: Ask, served: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": served,
        "prompt": list(ask.ids),
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "top_p": ask.top_p or 1e-9,  # vLLM takes none under or at 0
        # Said outright, or vLLM takes what the model's own folder says about generation.
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": list(ask.stop),
        "presence_penalty": ask.presence_penalty,
        "frequency_penalty": ask.frequency_penalty,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if ask.seed is not None:
        body["seed"] = ask.seed
    if ask.logit_bias:
        body["logit_bias"] = {str(token): value for token, value in ask.logit_bias.items()}
    if ask.top_logprobs is not None:
        body |= {"logprobs": ask.top_logprobs, "return_tokens_as_token_ids": True}
    if ask.grammar is not None:
        body["structured_outputs"] = {"json": _schema(ask.grammar)}
    return body


def _schema(grammar: str) -> Any:
    """The JSON schema in llguidance's form of it."""
    try:
        schema = json.loads(grammar)["grammars"][0]["json_schema"]
        return {key: value for key, value in schema.items() if key != "x-guidance"}
    except (ValueError, LookupError, TypeError, AttributeError):
        text = "a call of a tool cannot be demanded of a model on vLLM; leave tool_choice at auto"
        raise Problem(text, code="unsupported_parameter", param="tool_choice") from None


async def _pieces(answer: httpx.Response, most: int) -> AsyncIterator[Piece]:
    async for line in answer.aiter_lines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise _refused(500, json.dumps(chunk))
        for choice in chunk["choices"]:
            chances = _chances(choice.get("logprobs"), most)
            yield Piece(choice["text"], int((chunk.get("usage") or {}).get("completion_tokens", 0)), chances, choice.get("finish_reason"))


def _chances(logprobs: Any, most: int) -> tuple[Chance, ...]:
    if not logprobs:
        return ()
    tops = logprobs.get("top_logprobs") or [{}] * len(logprobs["tokens"])
    # vLLM adds the token that was written where it is not among the likeliest.
    return tuple(
        Chance(_id(token), logprob, tuple((_id(other), value) for other, value in sorted((top or {}).items(), key=lambda each: -each[1])[:most]))
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    )


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _joined(pieces: list[Piece]) -> Piece:
    chances = tuple(chance for piece in pieces for chance in piece.chances)
    return Piece("".join(piece.text for piece in pieces), pieces[-1].tokens, chances, pieces[-1].finish)


def _refused(status: int, text: str) -> Problem:
    """What vLLM says, as ours: a request it refuses is the client's, anything else the server's."""
    try:
        said = json.loads(text)
        said = said.get("error", said)
        message = str(said["message"])[:500]
    except (ValueError, LookupError, AttributeError, TypeError):
        message = " ".join(text.split())[:300]
    code = "queue_full" if status == 429 else "backend_refused" if status < 500 else "backend_unavailable"
    return Problem(f"vLLM: {message}", code=code)


def _unreachable(error: Exception) -> Problem:
    return Problem(f"The vLLM server does not answer: {type(error).__name__}", code="backend_unavailable")
