"""`Engine`: which models are in memory, and the way to ask them. Importing it brings no torch; opening the first model does."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING

from tunewright.errors import BadModel, Problem
from tunewright.serve.ask import Ask, Piece, Resolved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tunewright.data.rendering import Renderer
    from tunewright.models.adapters import Adapter
    from tunewright.models.load import Loaded
    from tunewright.serve.grammar import Tokens
    from tunewright.serve.runner import Put, Request, Runner


@dataclass(frozen=True, slots=True)
class Limits:
    """`slots`: answers written at once a base. `waiting`: answers that may wait for one. `chunk`: prompt tokens read in a pass beside the others'
    next tokens. `memory`: bytes of keys and values a base. `adapters`: adapters kept a base. `models`: bytes of weights kept in all.
    `timeout`: seconds an answer may take. `threads`: a base's torch threads, 0 for torch's own choice. `templates`: foreign chat templates with a process at hand."""

    slots: int = 64
    waiting: int = 1024
    chunk: int = 256
    memory: int = 1 << 30
    adapters: int = 64
    models: int = 16 << 30
    timeout: float = 600.0
    threads: int = 0
    templates: int = 4


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model that is in memory. `tokenizing` is held while its tokenizer is used: it does not bear two threads at once.
    `context`: the most tokens it reads, its answer included. `renderer` runs a chat template that is not one of ours."""

    name: str
    runner: Runner
    adapter: Adapter | None
    tokenizer: PreTrainedTokenizerBase
    tokenizing: Lock
    context: int
    stamp: tuple[int, ...]
    renderer: Renderer | None = None

    @property
    def tokens(self) -> Tokens:
        """Its vocabulary as bytes."""
        return self.runner.tokens


class Engine:
    """The models in memory: some bases, each with its thread, and many adapters on them. Least recently used ones leave."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._opened: OrderedDict[tuple[str, str | None], Opened] = OrderedDict()
        self._runners: OrderedDict[str, Runner] = OrderedDict()
        self._renderers: OrderedDict[str, Renderer] = OrderedDict()
        self._loading, self._table = Lock(), Lock()
        self._closed = False
        # For what takes longer than an event loop may wait: loading, templates, tokenizers, grammars.
        self.pool = ThreadPoolExecutor(8, "engine")

    def open(self, resolved: Resolved) -> Opened:
        """The model, loaded if it is not: that takes from milliseconds (an adapter) to minutes (a large base).

        Raises BadModel where it cannot be used: `model_not_found`, `model_rejected`, `adapter_mismatch`, `out_of_memory`, `model_cannot_chat`.
        """
        key = (str(resolved.folder), resolved.base)
        stamp = stamp_of(resolved.folder)
        if found := self._known(key, stamp):
            return found
        with self._loading:
            if found := self._known(key, stamp):
                return found
            if self._closed:
                raise Problem("The server is stopping; ask again in a moment", code="server_stopping")
            opened = self._load(resolved, stamp)
            opened = replace(opened, renderer=self._renderer(str(opened.tokenizer.chat_template)))
            with self._table:
                self._opened[key] = opened
                mine = [k for k, other in self._opened.items() if other.runner is opened.runner and other.adapter is not None]
                for old in mine[: max(len(mine) - self._limits.adapters, 0)]:
                    del self._opened[old]
            return opened

    def submit(self, opened: Opened, ask: Ask, put: Put) -> Request:
        """Ask a model; `put` is given the answer's pieces, in another thread, until one is the last. The answer can be cancelled.

        Raises Problem `queue_full`, `invalid_json_schema`.
        """
        return opened.runner.submit(ask, opened.adapter, put)

    def answer(self, opened: Opened, ask: Ask) -> Iterator[Piece]:
        """The pieces of an answer, for who can wait. Leaving early cancels it."""
        queue: SimpleQueue[Piece] = SimpleQueue()
        request = self.submit(opened, ask, queue.put)
        try:
            while not (piece := queue.get()).last:
                yield piece
            if piece.problem:
                raise piece.problem
            yield piece
        finally:
            request.cancel()

    def close(self) -> None:
        """End all threads. Answers in the making end with Problem `server_stopping`."""
        self._closed = True
        with self._table:
            runners = list(self._runners.values())
            self._runners.clear()
            self._opened.clear()
        for runner in runners:
            runner.close()
        for renderer in self._renderers.values():
            renderer.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _known(self, key: tuple[str, str | None], stamp: tuple[int, ...]) -> Opened | None:
        with self._table:
            found = self._opened.get(key)
            if found is None or found.stamp != stamp:
                return None
            self._opened.move_to_end(key)
            for name, runner in self._runners.items():
                if runner is found.runner:
                    self._runners.move_to_end(name)
                    break
            return found

    def _load(self, resolved: Resolved, stamp: tuple[int, ...]) -> Opened:
        from tunewright.models import adapters, quantized
        from tunewright.models.load import context, load, tokenizer_of

        folder, name = resolved.folder, resolved.name
        _check_manifest(folder, name)
        check_task(resolved)
        if not (folder / "adapter_config.json").is_file():
            runner = self._runner(f"{folder} {stamp}", str(folder), lambda: load(str(folder)))
            return Opened(name, runner, None, runner.loaded.tokenizer, runner.tokenizing, runner.loaded.context, stamp)
        if resolved.base is None:
            raise BadModel(f"{name}: it is an adapter, and its base is not known", code="adapter_without_base", param="model")
        base = resolved.base
        bits = quantized.recorded(folder, name)
        runner = self._runner(f"{base} in {bits} bits" if bits else base, base, lambda: load(base, bits=bits))
        adapter = adapters.read(folder, name, runner.loaded.model)
        if adapter is None:  # of a kind that changes more than what adapters can lay on a shared base
            runner = self._runner(f"{folder} {stamp}", str(folder), lambda: load(str(folder), base=base))
            return Opened(name, runner, None, runner.loaded.tokenizer, runner.tokenizing, runner.loaded.context, stamp)
        tokenizer, lock = runner.loaded.tokenizer, runner.tokenizing
        if (folder / "tokenizer_config.json").is_file():
            tokenizer, lock = tokenizer_of(folder, name), Lock()
        virtual = len(adapter.embeddings) if isinstance(adapter, adapters.PromptAdapter) else 0
        return Opened(name, runner, adapter, tokenizer, lock, context(runner.loaded.model, tokenizer) - virtual, stamp)

    def _renderer(self, template: str) -> Renderer | None:
        """What runs a template; None for ours. Templates are few, for tuned models share their base's."""
        from tunewright.data.rendering import Renderer
        from tunewright.data.tokens import PLAIN_TEMPLATE
        from tunewright.models.load import NANO

        if template in (PLAIN_TEMPLATE, (NANO / "chat_template.jinja").read_text(encoding="utf-8")):
            return None
        found = self._renderers.setdefault(template, Renderer(template))
        self._renderers.move_to_end(template)
        while len(self._renderers) > self._limits.templates:
            self._renderers.popitem(last=False)[1].close()
        return found

    def _runner(self, key: str, name: str, load: Callable[[], Loaded]) -> Runner:
        """A base's thread; idle bases leave where the weights of all are too many."""
        from tunewright.serve.runner import Runner

        with self._table:
            if key in self._runners:
                self._runners.move_to_end(key)
                return self._runners[key]
        limits = self._limits
        runner = Runner(
            load(),
            slots=limits.slots,
            capacity=limits.memory,
            waiting=limits.waiting,
            chunk=limits.chunk,
            timeout=limits.timeout,
            threads=limits.threads,
        )
        with self._table:
            self._runners[key] = runner
            leaving = []
            for old in list(self._runners)[:-1]:
                if sum(each.bytes for each in self._runners.values()) <= limits.models:
                    break
                if not self._runners[old].busy:
                    leaving.append(self._runners.pop(old))
            self._opened = OrderedDict((k, opened) for k, opened in self._opened.items() if opened.runner not in leaving)
        for each in leaving:
            each.close()
        return runner


def stamp_of(folder: Path) -> tuple[int, ...]:
    """What changes when a folder's weights do. Raises BadModel where the folder is gone."""
    try:
        found = [file.stat() for file in sorted(folder.glob("*.safetensors"))]
    except OSError:
        found = []
    if not found:
        raise BadModel("The model's files are no longer there", code="model_not_found", param="model")
    return tuple(number for each in found for number in (each.st_ino, each.st_mtime_ns, each.st_size))


def check_task(resolved: Resolved) -> None:
    """Raise BadModel `model_cannot_chat` where a model, by its files alone, is for something else than going on from a text."""
    from tunewright.models import tasks
    from tunewright.models.load import check_folder, purpose, read_json

    folder, name = resolved.folder, resolved.name
    if (folder / "adapter_config.json").is_file():
        of_adapter = tasks.of_adapter(read_json(folder / "adapter_config.json", name))
        task = of_adapter or (purpose(resolved.base) if resolved.base else "chat")
    else:
        task = tasks.of_config(check_folder(folder, name))
    if task == "chat":
        return
    what, instead = {
        "classification": ("a classifier: it gives a text one of its labels", "Ask it with `tunewright chat` or `tunewright label`"),
        "text_to_text": ("an encoder-decoder: it turns one text into another", "Ask it with `tunewright chat`"),
        "encoder": ("an encoder without a head: it gives no answers", "Tune it on rows of text + label to classify with it"),
    }[task]
    text = f"{name} is {what}, and cannot be asked at chat completions or completions. {instead}; for these choose a model that writes, such as nano"
    raise BadModel(text, code="model_cannot_chat", param="model")


def _check_manifest(folder: Path, name: str) -> None:
    """A checkpoint is compared with its manifest before it is read."""
    from tunewright.train.checkpoint import verify

    if (folder / "manifest.json").is_file() and (folder / "state.json").is_file() and (wrong := verify(folder)):
        raise BadModel(f"{name}: the checkpoint is damaged: {wrong}", code="model_rejected", param="model")
