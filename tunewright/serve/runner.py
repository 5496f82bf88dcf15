"""The thread that answers for one base: a pass over all requests at hand, a token for each, again and again.

Requests join and leave between passes. A prompt is read in pieces beside the others' tokens, so a long one holds nobody up.
A greedy answer does not depend on who else is asked at the time: where the two likeliest tokens are so near that the
arithmetic of another batch could swap them, the pass is repeated for that request alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread
from time import monotonic
from typing import Any

import torch

from tunewright.data.tokens import end_ids
from tunewright.errors import Problem
from tunewright.models.adapters import Adapter, LoraAdapter, PromptAdapter, SideBySide
from tunewright.models.floats import flushed
from tunewright.models.generate import Transcript, choose
from tunewright.models.load import Loaded
from tunewright.models.slots import Memory, NotServed, RowMemory, Span, advance, advance_rows, attach
from tunewright.models.virtual import base_of
from tunewright.serve.ask import Ask, Chance, Piece
from tunewright.serve.grammar import Constraint, Tokens

Put = Callable[[Piece], None]
# Two logits nearer than this part of the largest could change places in another batch; fp32 sums differ by about 1e-6 of it.
_NEAR = 3e-5
# A request joins only where memory is left for everyone to write so many tokens more.
_AHEAD = 128

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Request:
    """One answer in the making. `ids`: prompt and answer so far, a tuned prompt's places before them; the first `done` are computed."""

    ask: Ask
    adapter: Adapter | None
    put: Put
    until: float
    ids: list[int]
    first: int
    transcript: Transcript
    draws: torch.Generator
    constraint: Constraint | None
    done: int = 0
    held: str = ""
    counts: dict[int, int] = field(default_factory=dict)
    chances: list[Chance] = field(default_factory=list)
    cancelled: bool = False

    @property
    def said(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - self.first

    def cancel(self) -> None:
        """Nobody reads it any longer: it leaves before the next pass."""
        self.cancelled = True


class Runner:
    """A base in memory, and its thread. `slots`: most requests at once. `capacity`: most bytes of keys and values.
    `waiting`: most requests that wait for a slot. `chunk`: most prompt tokens in a pass. `timeout`: seconds an answer may take."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        slots: int = 64,
        capacity: int = 1 << 30,
        waiting: int = 1024,
        chunk: int = 256,
        timeout: float = 600.0,
        threads: int = 0,
    ) -> None:
        self.loaded = loaded
        self.model: Any = base_of(loaded.model)
        self.bytes = sum(weight.nbytes for weight in self.model.parameters())
        self.tokenizing = Lock()
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.tokens = Tokens(deepcopy(loaded.tokenizer), self.vocabulary)
        self._tokenizer = deepcopy(loaded.tokenizer)  # this thread's own: tokenizers do not bear two at once
        self._ends = end_ids(self._tokenizer)
        try:
            per_token, self._chunk = attach(self.model), chunk
            self._fresh: type[Memory | RowMemory] = Memory
        except NotServed as why:
            _log.warning("%s answers one request after another: %s", loaded.base, why)
            per_token, self._chunk, self._fresh = 1, 1 << 30, RowMemory
        self._memory, self._beside = self._fresh(), SideBySide(self.model)
        self._slots, self._tokens_at_most, self._waiting_at_most = slots, max(capacity // per_token, 1), waiting
        self._timeout, self._threads = timeout, threads
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []
        self._there = Condition()
        self._closed = False
        self._thread = Thread(target=self._run, name=f"answers of {loaded.base}", daemon=True)
        self._thread.start()

    def submit(self, ask: Ask, adapter: Adapter | None, put: Put) -> Request:
        """Queue an answer; its pieces go to `put`, called in this base's thread. Raises Problem `queue_full`, `server_stopping`, `invalid_grammar`."""
        virtual = len(adapter.embeddings) if isinstance(adapter, PromptAdapter) else 0
        ids = [0] * virtual + list(ask.ids)
        draws = torch.Generator()
        draws.seed() if ask.seed is None else draws.manual_seed(ask.seed)
        constraint = self.tokens.constraint(ask.grammar) if ask.grammar is not None else None
        request = Request(ask, adapter, put, monotonic() + self._timeout, ids, len(ids), Transcript(self._tokenizer), draws, constraint)
        with self._there:
            if self._closed:
                raise Problem("The server is stopping; ask again in a moment", code="server_stopping")
            if len(self._waiting) >= self._waiting_at_most:
                raise Problem(f"{len(self._waiting):,} answers are waiting; ask again in a moment", code="queue_full")
            self._waiting.append(request)
            self._there.notify()
        return request

    @property
    def busy(self) -> bool:
        """Whether anyone waits for an answer."""
        with self._there:
            return bool(self._waiting or self._active)

    def close(self) -> None:
        """End the thread; whoever still waits is told."""
        with self._there:
            self._closed = True
            self._there.notify()
        self._thread.join(timeout=10)

    @torch.inference_mode()
    @flushed()
    def _run(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)
        while True:
            with self._there:
                while not (self._waiting or self._active or self._closed):
                    self._memory = self._fresh()
                    self._there.wait()
                closed = self._closed
            if closed:
                self._end_all(Problem("The server is stopping; ask again in a moment", code="server_stopping"))
                return
            try:
                self._pass()
            except Exception:  # the edge of the thread: those in this pass are told, the others are served on
                _log.exception("a pass of %s failed", self.loaded.base)
                self._end_all(Problem("The model failed while it answered; the server's log says why", code="engine_failed"), waiting=False)

    def _end_all(self, problem: Problem, waiting: bool = True) -> None:
        with self._there:
            there = [*self._active, *(self._waiting if waiting else ())]
            self._active.clear()
            if waiting:
                self._waiting.clear()
        for request in there:
            self._tell(request, Piece("", request.said, problem=problem))
        self._memory = self._fresh()

    def _tell(self, request: Request, piece: Piece) -> None:
        try:
            request.put(piece)
        except Exception:  # whoever read it is gone, with its event loop
            request.cancelled = True

    def _admit(self) -> None:
        """Let requests leave and join. Memory is a rectangle: as many slots as requests, each as long as the longest."""
        now = monotonic()
        for i in reversed(range(len(self._active))):
            late = now > self._active[i].until
            if late and not self._active[i].cancelled:
                problem = Problem(f"The answer took longer than {self._timeout:.0f} seconds", code="timeout")
                self._tell(self._active[i], Piece("", self._active[i].said, problem=problem))
            if late or self._active[i].cancelled:
                self._leave(i)
        self._make_room()
        with self._there:
            while self._waiting and len(self._active) < self._slots:
                longest = max(len(request.ids) for request in [*self._active, self._waiting[0]]) + _AHEAD
                if self._active and (len(self._active) + 1) * longest > self._tokens_at_most:
                    break
                request = self._waiting.popleft()
                if not request.cancelled:
                    self._active.append(request)
        if self._active and isinstance(self._memory, Memory):
            self._memory.reserve(len(self._active), max(len(request.ids) for request in self._active), self._tokens_at_most)

    def _make_room(self) -> None:
        """Send the newest requests back to wait where answers have grown over the memory. They are computed again from their tokens."""
        while len(self._active) > 1 and len(self._active) * max(len(request.ids) for request in self._active) > self._tokens_at_most:
            newest = max(range(len(self._active)), key=lambda i: self._active[i].until)
            request = self._active[newest]
            self._leave(newest)
            request.done = 0
            with self._there:
                self._waiting.appendleft(request)

    def _leave(self, slot: int) -> None:
        """Free a slot; the last one's request moves there, so that slots in use lie side by side."""
        last = self._active.pop()
        if slot < len(self._active):
            if last.done:
                self._memory.move(len(self._active), slot, last.done)
            self._active[slot] = last

    def _pass(self) -> None:
        self._admit()
        spans, asked, room = [], [], self._chunk
        for several in (False, True):
            for slot, request in enumerate(self._active):
                left = len(request.ids) - request.done
                if (left > 1) != several:
                    continue
                count = left if not several else min(left, room)
                if several and count < 2:
                    continue
                room -= count if several else 0
                spans.append(_span(request, slot, count))
                asked.append(request)
        if not spans:
            return
        logits = self._compute(spans, asked)
        for request, span in zip(asked, spans, strict=True):
            request.done += len(span.ids)
        ready = [i for i, request in enumerate(asked) if request.done == len(request.ids)]
        finished = self._choose([asked[i] for i in ready], logits if len(ready) == len(asked) else logits[ready])
        for slot in sorted((self._active.index(request) for request in finished), reverse=True):
            self._leave(slot)

    def _compute(self, spans: Sequence[Span], asked: Sequence[Request]) -> torch.Tensor:
        if isinstance(self._memory, RowMemory):
            return torch.cat([self._compute_row(self._memory, span, request) for span, request in zip(spans, asked, strict=True)])
        loras = [request.adapter if isinstance(request.adapter, LoraAdapter) else None for request in asked]
        self._beside.lay([(adapter, len(span.ids)) for adapter, span in zip(loras, spans, strict=True)])
        return advance(self.model, self._memory, spans).float()

    def _compute_row(self, memory: RowMemory, span: Span, request: Request) -> torch.Tensor:
        self._beside.lay([(request.adapter if isinstance(request.adapter, LoraAdapter) else None, len(span.ids))])
        return advance_rows(self.model, memory, span).float()

    def _alone(self, request: Request) -> torch.Tensor:
        """The logits for a request's next token, from its tokens alone, however its passes were shared. (vocabulary,)"""
        memory, self._memory = self._memory, self._fresh()
        try:
            span = Span(0, 0, request.ids, request.adapter.embeddings if isinstance(request.adapter, PromptAdapter) else None)
            return self._compute([span], [request])[0]
        finally:
            self._memory = memory

    def _choose(self, requests: Sequence[Request], logits: torch.Tensor) -> list[Request]:
        """Give each request its next token. Returns those that have come to their end."""
        if not requests:
            return []
        tops, places = logits.topk(2)
        near = (tops[:, 0] - tops[:, 1] <= _NEAR * tops.abs().amax(dim=1)).tolist()
        best = places[:, 0].tolist()
        finished = []
        for i, request in enumerate(requests):
            ask = request.ask
            plain = ask.temperature == 0 and not (ask.logit_bias or ask.presence_penalty or ask.frequency_penalty or request.constraint)
            if plain and not near[i]:
                token = best[i]
            else:
                try:
                    token = self._chosen(request, logits[i], near[i])
                except Problem as problem:  # a grammar that grew too large: this request's trouble alone
                    self._tell(request, Piece("", request.said, problem=problem))
                    finished.append(request)
                    continue
            chance = _chance(logits[i], token, ask.top_logprobs) if ask.top_logprobs is not None else None
            if self._say(request, token, chance):
                finished.append(request)
        return finished

    def _chosen(self, request: Request, logits: torch.Tensor, near: bool) -> int:
        """A token under the request's own settings; of two that are too near to tell, as when it is asked alone."""
        ask = request.ask
        shaped = _shaped(request, logits)
        if ask.temperature == 0:
            tops = shaped.topk(2).values.tolist()
            if near or tops[0] - tops[1] <= _NEAR * max(abs(tops[0]), abs(tops[1])):
                shaped = _shaped(request, self._alone(request))
        return int(choose(shaped, ask.temperature, ask.top_p, request.draws))

    def _say(self, request: Request, token: int, chance: Chance | None) -> bool:
        """Take a token into the answer, and hand on the text that it completes. True where the answer has ended."""
        ask = request.ask
        request.ids.append(token)
        ended = token in self._ends
        if not ended:
            request.counts[token] = request.counts.get(token, 0) + 1
            if chance is not None:
                request.chances.append(chance)
            if ask.pieces or ask.stop:
                request.held += request.transcript.add(token)
            else:
                request.transcript.hold(token)
        if request.constraint is not None and not ended:
            ended = request.constraint.take(token)
        full = request.said >= ask.max_tokens
        if ended or full:
            request.held += request.transcript.rest()
        stopped = _cut(request)
        finish = "stop" if ended or stopped else "length" if full else None
        text = _ready(request, finish is not None)
        if finish or (ask.pieces and (text or request.chances)):
            self._tell(request, Piece(text, request.said, tuple(request.chances), finish))
            request.chances.clear()
        return finish is not None


def _span(request: Request, slot: int, count: int) -> Span:
    virtual = None
    if isinstance(request.adapter, PromptAdapter) and request.done < len(request.adapter.embeddings):
        virtual = request.adapter.embeddings[request.done : request.done + count]
    return Span(slot, request.done, request.ids[request.done : request.done + count], virtual)


def _cut(request: Request) -> bool:
    """Cut what is not yet handed on before the first stop sequence in it. True where there is one."""
    places = [at for stop in request.ask.stop if (at := request.held.find(stop)) >= 0]
    if places:
        request.held = request.held[: min(places)]
    return bool(places)


def _ready(request: Request, all_of_it: bool) -> str:
    """Take what can be handed on: all but what may be the beginning of a stop sequence."""
    keep = 0
    if not all_of_it:
        if not request.ask.pieces:
            return ""
        for stop in request.ask.stop:
            keep = max(keep, *(n for n in range(min(len(stop) - 1, len(request.held)) + 1) if request.held.endswith(stop[:n])))
    at = len(request.held) - keep
    text, request.held = request.held[:at], request.held[at:]
    return text


def _shaped(request: Request, logits: torch.Tensor) -> torch.Tensor:
    """The logits with the request's bias, penalties and grammar."""
    ask = request.ask
    if not (ask.logit_bias or request.constraint or ((ask.presence_penalty or ask.frequency_penalty) and request.counts)):
        return logits
    shaped = logits.clone()
    if ask.logit_bias:
        shaped[torch.tensor(list(ask.logit_bias))] += torch.tensor(list(ask.logit_bias.values()))
    if request.counts and (ask.presence_penalty or ask.frequency_penalty):
        often = torch.tensor(list(request.counts.values()), dtype=shaped.dtype)
        shaped[torch.tensor(list(request.counts))] -= ask.presence_penalty + ask.frequency_penalty * often
    if request.constraint is not None:
        shaped.masked_fill_(~torch.from_numpy(request.constraint.allowed(len(shaped))), -torch.inf)
    return shaped


def _chance(logits: torch.Tensor, token: int, top: int) -> Chance:
    """What the model gave to a token, before bias, penalties and temperature."""
    logs = logits.log_softmax(dim=-1)
    values, places = logs.topk(top) if top else (logs[:0], logs[:0])
    return Chance(token, float(logs[token]), tuple(zip(map(int, places.tolist()), values.tolist(), strict=True)))
