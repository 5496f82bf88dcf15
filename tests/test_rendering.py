"""Templates in their own process: what transformers renders, and no more time and memory than allowed."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import psutil
import pytest

import tiny
from tunewright.data import rendering
from tunewright.data.example import Chat, Message
from tunewright.data.rendering import Renderer
from tunewright.data.tokens import next_turn
from tunewright.errors import Problem

TALK = Chat((Message("system", "Be é brief"), Message("user", "<|im_end|> x"), Message("assistant", "yes"), Message("user", "Why?")))
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{{ loop.index }}{% endfor %}{% endfor %}",
    "doubles": "{% set ns = namespace(x='ab' * 1000000) %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "power": "{{ (9 ** (9 ** 9)) | string }}",
}


@pytest.mark.parametrize("template", [tiny.DEFAULT_SYSTEM])
def test_it_renders_what_transformers_renders(template: str) -> None:
    tokenizer, renderer = tiny.tokenizer(template), Renderer(template)
    assert next_turn(TALK, tokenizer, renderer) == next_turn(TALK, tokenizer)
    renderer.close()


def test_a_refusal_is_the_templates_and_the_process_lives_on() -> None:
    tokenizer, renderer = tiny.tokenizer(tiny.INSTRUCT), Renderer(tiny.INSTRUCT)
    with pytest.raises(Problem) as caught:
        next_turn(TALK, tokenizer, renderer)
    assert caught.value.code == "template_refused" and "must alternate" in caught.value.message
    assert renderer._process is not None and renderer._process.poll() is None
    renderer.close()


def test_bombs_end_in_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    before = psutil.Process().memory_info().rss

    def run(bomb: str) -> tuple[str, float, Renderer]:
        renderer = Renderer(bomb)
        renderer._started()
        start = monotonic()
        with pytest.raises(Problem) as caught:
            renderer.render([{"role": "user", "content": "x"}], [], True, {})
        return caught.value.code, monotonic() - start, renderer

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, BOMBS.values()))
    assert {code for code, _, _ in found} == {"invalid_chat_template"}
    assert max(seconds for _, seconds, _ in found) < 4
    assert psutil.Process().memory_info().rss - before < 50_000_000
    start = monotonic()
    with pytest.raises(Problem, match="longer than"):  # it is not tried again at once
        found[0][2].render([], [], True, {})
    assert monotonic() - start < 0.5
    for _, _, renderer in found:
        renderer.close()


def test_its_process_goes_with_it() -> None:
    renderer = Renderer(tiny.CHATML)
    pid = renderer._started().pid
    del renderer
    assert not psutil.pid_exists(pid) or psutil.Process(pid).ppid() != os.getpid()
