"""Chats answered together and one at a time, over adapters of one base and beside `transformers serve`; and the time to a first token.

Both servers run in processes of their own; ours whole, with keys and quotas. The adapters are LoRA of rank 8 on every linear
module of nano, with random weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
KEY = "sk-benchmark-of-serving"
HEADERS = {"Authorization": f"Bearer {KEY}"}
NANO = ROOT / "tunewright" / "models" / "nano"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--firsts", type=int, default=200, help="streams whose first token is timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--peer", action="store_true", help="also `transformers serve`, which holds no adapters: nano itself on both sides")
    parser.add_argument("--app", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.app:
        serve(given.app, given.port)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_models(Path(folder), given.adapters)
        asyncio.run(measure(given, Path(folder)))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {given.threads} torch threads, load {os.getloadavg()[0]:.1f}")


def make_models(folder: Path, adapters: int) -> None:
    """`adapters` random adapters of nano, and a model of two narrow layers whose computing takes next to no time."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunewright.models.load import load

    for i in range(adapters):
        torch.manual_seed(i)
        model = get_peft_model(load("nano").model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.01)
        model.save_pretrained(folder / f"adapter-{i}")
    sizes: Any = {"vocab_size": 8192, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=1024, tie_word_embeddings=True)).save_pretrained(folder / "trivial")
    AutoTokenizer.from_pretrained(NANO).save_pretrained(folder / "trivial")


def serve(folder: Path, port: int) -> None:
    """Our side: the whole server on a home of its own; what lies in `folder` stands for what jobs made."""
    from fastapi import Request

    from tunewright.jobs.home import Home
    from tunewright.jobs.store import Store
    from tunewright.serve import keys
    from tunewright.serve.app import create_app
    from tunewright.serve.ask import Resolved
    from tunewright.serve.config import ServeConfig
    from tunewright.serve.run import bind, run

    config, home = ServeConfig(port=port), Home(folder / "home")
    home.make()
    store = Store(home.database)
    store.migrate()
    keys.first_key(store)
    app = create_app(config, store, home)

    async def resolve(request: Request, name: str) -> Resolved:
        return Resolved(name, NANO if name == "nano" else folder / name, "nano" if name.startswith("adapter") else None)

    app.state.resolve = resolve
    run(app, config, bind(config))


@contextmanager
def running(command: list[str], threads: int) -> Iterator[str]:
    """A server's process; yields its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TUNEWRIGHT_API_KEY": KEY}
    process = subprocess.Popen([*command, "--port", str(port)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended with {process.returncode}")
            try:
                httpx.get(address)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def questions(count: int) -> list[Any]:
    lines = (ROOT / "tunewright" / "data" / "sample" / "test.jsonl").read_text().splitlines()
    return [[m for m in json.loads(lines[i % len(lines)])["messages"] if m["role"] != "assistant"] for i in range(count)]


async def ask(http: httpx.AsyncClient, model: str, messages: Any, tokens: int) -> tuple[str, int]:
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}
    answer = (await http.post("/v1/chat/completions", json=body)).raise_for_status().json()
    return answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]


async def timed(http: httpx.AsyncClient, asked: list[tuple[str, Any]], tokens: int, together: bool) -> tuple[float, list[tuple[str, int]]]:
    start = time.perf_counter()
    if together:
        found = await asyncio.gather(*(ask(http, model, messages, tokens) for model, messages in asked))
    else:
        found = [await ask(http, model, messages, tokens) for model, messages in asked]
    return time.perf_counter() - start, list(found)


async def compare(name: str, address: str, asked: list[tuple[str, Any]], given: argparse.Namespace) -> None:
    limits = httpx.Limits(max_connections=given.chats + 1, max_keepalive_connections=given.chats + 1)
    async with httpx.AsyncClient(base_url=address, headers=HEADERS, timeout=600, limits=limits) as http:
        await timed(http, asked, 4, together=True)
        ratios, seconds, alone = [], [], []
        for _ in range(given.repeats):
            at_once, said = await timed(http, asked, given.tokens, together=True)
            in_turn, same = await timed(http, asked, given.tokens, together=False)
            ratios.append(in_turn / at_once)
            seconds.append(at_once)
            alone.append(in_turn)
        written = sum(tokens for _, tokens in said)
        equal = sum(a == b for a, b in zip(said, same, strict=True))
    print(
        f"{name}: {len(asked)} chats together {spread(seconds)} s ({written / statistics.median(seconds):,.0f} tokens/s), "
        f"one at a time {spread(alone)} s, {spread(ratios)} times as fast; {equal} of {len(asked)} answers equal"
    )


def spread(values: list[float]) -> str:
    """The median, and the least and most."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


async def firsts(address: str, count: int) -> None:
    body = {"model": "trivial", "messages": [{"role": "user", "content": "Where is my lamp?"}], "max_tokens": 2, "temperature": 0, "stream": True}
    body["logit_bias"] = {"2": -100}
    found = []
    async with httpx.AsyncClient(base_url=address, headers=HEADERS, timeout=60) as http:
        for _ in range(count + 20):
            start = time.perf_counter()
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                        break
            found.append((time.perf_counter() - start) * 1000)
    ordered = sorted(found[20:])
    print(
        f"time to the first token of a trivial model: median {ordered[count // 2]:.1f} ms, p99 {ordered[int(count * 0.99) - 1]:.1f} ms, {count} streams"
    )


async def measure(given: argparse.Namespace, folder: Path) -> None:
    asks = questions(given.chats)
    ours = [sys.executable, __file__, "--app", str(folder)]
    with running(ours, given.threads) as address:
        await compare(f"{given.adapters} adapters", address, [(f"adapter-{i % given.adapters}", each) for i, each in enumerate(asks)], given)
        await compare("the base", address, [("nano", each) for each in asks], given)
        await firsts(address, given.firsts)
    if given.peer:
        for kind in ("--continuous-batching", "--no-continuous-batching"):
            theirs = [str(Path(sys.executable).with_name("transformers")), "serve", "--device", "cpu", "--dtype", "float32", kind]
            with running([*theirs, "--attn-implementation", "sdpa"], given.threads) as address:
                await compare(f"transformers serve {kind}", address, [(str(NANO), each) for each in asks], given)


if __name__ == "__main__":
    main()
