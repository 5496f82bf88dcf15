"""Chat templates that came with a model: `Renderer` runs one in a process of its own, within limits of time and memory.

A template is a program. The sandbox keeps it from the machine, but not from filling the memory or going on for ever.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from select import select
from threading import Lock
from time import monotonic
from typing import IO, Any

from tunewright.errors import Problem

# Seconds that one rendering may take, and that it may take to start the process.
SECONDS, START_SECONDS = 2.0, 60.0
# Bytes that rendering may add to the process, and bytes of text that may come out.
MEMORY, LENGTH = 256 << 20, 64 << 20
# Seconds for which a template that ran away is not tried again.
REST = 10.0


class Renderer:
    """One template. Its process starts at the first use, and ends with this object. Threads take turns."""

    def __init__(self, template: str) -> None:
        self._template = template
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._rest_until, self._why = 0.0, ""

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], generation: bool, special: Mapping[str, Any]) -> str:
        """The rendered chat. `special`: the tokenizer's special tokens, by their names.

        Raises Problem `invalid_chat_template` when it takes too long or too much memory, ValueError when the template refuses the chat.
        """
        call = {"template": self._template, "messages": messages, "tools": tools, "generation": generation, "special": special}
        line = json.dumps(call).encode() + b"\n"
        with self._lock:
            if monotonic() < self._rest_until:
                raise _invalid(self._why)
            process = self._started()
            assert process.stdin and process.stdout
            try:
                answer = _exchange(process.stdin, process.stdout, line, SECONDS)
            except TimeoutError:
                raise self._ran_away(f"takes longer than {SECONDS:.0f} seconds") from None
            except (OSError, ValueError):
                raise self._ran_away("ends its process, for want of memory most likely") from None
        if "text" in answer:
            return str(answer["text"])
        if answer.get("memory"):
            raise _invalid("takes too much memory, or writes too much")
        raise ValueError(str(answer.get("refused")))

    def close(self) -> None:
        """End the process; a later use starts another."""
        with self._lock:
            self._stop()

    def _ran_away(self, why: str) -> Problem:
        self._stop()
        self._rest_until, self._why = monotonic() + REST, why
        return _invalid(why)

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            command = [sys.executable, "-m", "tunewright.data.rendering"]
            known = {name: value for name, value in os.environ.items() if not name.startswith("TUNEWRIGHT")}  # no keys
            self._process = subprocess.Popen(command, env=known, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._end = weakref.finalize(self, _kill, self._process)
            assert self._process.stdin and self._process.stdout
            try:
                _exchange(self._process.stdin, self._process.stdout, b"", START_SECONDS)
            except (TimeoutError, OSError, ValueError):
                self._stop()
                raise _invalid("could not be run: its process did not start") from None
        return self._process


def _invalid(why: str) -> Problem:
    return Problem(f"The model's chat template {why}", code="invalid_chat_template", param="model")


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _exchange(to: IO[bytes], back: IO[bytes], line: bytes, seconds: float) -> dict[str, Any]:
    """Write a line and read the one that answers. Raises TimeoutError, or OSError and ValueError where the process is gone."""
    until = monotonic() + seconds
    os.set_blocking(to.fileno(), False)
    left, found = memoryview(line), bytearray()
    while not found.endswith(b"\n"):
        ready, writable, _ = select([back], [to] if left else [], [], max(until - monotonic(), 0))
        if not (ready or writable):
            raise TimeoutError
        if writable:
            left = left[os.write(to.fileno(), left[: 1 << 16]) :]
        if ready:
            some = os.read(back.fileno(), 1 << 20)
            found += some
            if not some or len(found) > LENGTH + (1 << 20):
                raise ValueError("the process is gone, or says too much")
    answer: dict[str, Any] = json.loads(found)
    return answer


def _serve() -> None:
    """The process: a line of JSON in, a line out."""
    import warnings

    warnings.simplefilter("ignore")
    from transformers.utils.chat_template_utils import render_jinja_template

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else 1 << 18
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        # Should whoever asks die meanwhile, nobody else would end a template that goes on for ever.
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + 5 * SECONDS) + 1, resource.RLIM_INFINITY))
        sys.stdout.write(_answer(json.loads(line), render_jinja_template) + "\n")
        sys.stdout.flush()


def _answer(call: dict[str, Any], render: Any) -> str:
    from jinja2 import TemplateError

    try:
        texts, _ = render(
            [[{key: value for key, value in message.items() if value is not None} for message in call["messages"]]],
            tools=call["tools"] or None,
            chat_template=call["template"],
            add_generation_prompt=call["generation"],
            **call["special"],
        )
        if len(texts[0]) > LENGTH // 8:
            return '{"memory": true}'
        return json.dumps({"text": texts[0]})
    except (MemoryError, RecursionError, OverflowError):
        return '{"memory": true}'
    except (TemplateError, TypeError, KeyError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        return json.dumps({"refused": f"{type(error).__name__}: {error}"[:500]})


if __name__ == "__main__":
    _serve()
