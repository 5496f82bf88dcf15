"""Prompts -> answers: `answers` for many at once, `stream` for one that someone is reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from tunewright.data.sampler import micro_batches
from tunewright.data.tokens import end_ids
from tunewright.errors import BadModel, Problem
from tunewright.models import virtual
from tunewright.models.floats import flushed
from tunewright.models.load import context
from tunewright.models.tasks import of_model
from tunewright.models.virtual import base_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SWAP = Lock()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said. `ids` and `text` are without the token that ends it; `finished`: it ended by one, not by the limit."""

    ids: tuple[int, ...]
    text: str
    finished: bool


def answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    budget: int | None = None,
) -> list[Answer]:
    """The greedy answer to each prompt, in the prompts' order.

    Prompts of like length are answered together, padded on the left, in batches of `budget` tokens, answers
    included: without one, as many as have 256 MB of keys and values, at least 8,192.
    An answer ends at an end token, after `max_new_tokens`, or where the model's context is full.
    Raises Problem `context_length_exceeded` where a prompt leaves no room for a token.

    How prompts are batched does not change an answer in exact arithmetic. In floating point it changes the last
    bits of the logits (about 1e-6 of their size in fp32, 1e-2 in bf16), so two tokens that are as good as equally
    likely may change places, and the answer goes on from there.
    """
    rooms = [_room(model, tokenizer, ids, max_new_tokens) for ids in prompts]
    found: list[Answer | None] = [None] * len(prompts)
    with _answering(model), _greedy(model):
        # Rows short of room are few; each length of room is a batch of its own, so that none runs past its context.
        for room in sorted(set(rooms), reverse=True):
            mine = [i for i, other in enumerate(rooms) if other == room]
            for group in micro_batches([len(prompts[i]) + room for i in mine], budget or _budget(model)):
                batch = [prompts[mine[i]] for i in group]
                for i, ids in zip(group, _generate(model, tokenizer, batch, room), strict=True):
                    found[mine[i]] = _answer(ids, tokenizer)
    return [answer for answer in found if answer is not None]


def stream(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """The answer to one prompt, in pieces of text as they come; together they are `answers`' text at temperature 0.

    Above it tokens are drawn from the smallest set of likeliest ones that holds `top_p` of the probability
    (Holtzman et al. 2020), the same for the same `seed`. A piece never ends within a character.
    Raises Problem `context_length_exceeded`, at the call.
    """
    assert temperature >= 0 and 0 < top_p <= 1, (temperature, top_p)
    room = _room(model, tokenizer, ids, max_new_tokens)
    return _pieces(_tokens(model, ids, room, temperature, top_p, seed), tokenizer)


def _room(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], wanted: int) -> int:
    """How many tokens can follow a prompt. Raises Problem when none, BadModel where the model is no causal one."""
    if (task := of_model(model)) != "chat":
        raise BadModel(f"This model does not answer a conversation; it is for {task}", code="model_does_not_chat", param="model")
    assert wanted > 0 and len(ids) > 0, "a prompt has at least one token, and so has an answer"
    most = context(model, tokenizer)
    if len(ids) >= most:
        raise Problem(
            f"The prompt has {len(ids)} tokens and the model reads at most {most}, answer included; shorten the prompt",
            code="context_length_exceeded",
            param="messages",
        )
    return min(wanted, most - len(ids))


def _budget(model: PreTrainedModel | PeftModel) -> int:
    """The tokens of a batch: many small steps cost a small model more than a large one."""
    config = base_of(model).config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", None)
    if not all_heads:  # a recurrent model, whose states do not grow
        return 8192
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    token = 2 * config.num_hidden_layers * heads * size * next(model.parameters()).element_size()
    return max(8192, 2**28 // token)


@contextmanager
def _answering(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Without gradients and dropout."""
    training = model.training
    model.eval()
    try:
        with flushed(), torch.inference_mode():
            yield
    finally:
        model.train(training)


@contextmanager
def _greedy(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Without what the model's own folder says about generation, which `generate` takes wherever our config says nothing:
    a repetition penalty or suppressed tokens, for example. One at a time, or the second would put back the first's."""
    inner = base_of(model)
    with _SWAP:
        own, inner.generation_config = inner.generation_config, GenerationConfig()
        try:
            yield
        finally:
            inner.generation_config = own


def _generate(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """New ids for a batch of prompts, each still with what follows its end. Positions come from the mask."""
    ends = sorted(end_ids(tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    prompts = [[*virtual.ids(model), *ids] for ids in prompts]
    length = max(len(ids) for ids in prompts)
    ids = torch.full((len(prompts), length), pad, dtype=torch.long)
    mask = torch.zeros((len(prompts), length), dtype=torch.long)
    for i, row in enumerate(prompts):
        ids[i, length - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, length - len(row) :] = 1
    device = next(model.parameters()).device
    config = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=room, eos_token_id=ends, pad_token_id=pad, use_cache=True)
    inputs = virtual.inputs(model, ids.to(device))
    out = base_of(model).generate(**inputs, attention_mask=mask.to(device), generation_config=config)
    # Where embeddings were given, what comes back is the new ids alone.
    new: list[list[int]] = out[:, length if "input_ids" in inputs else 0 :].tolist()
    return new


def _answer(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in end_ids(tokenizer)), None)
    return Answer(tuple(ids[:end]), _decode(ids[:end], tokenizer), end is not None)


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _tokens(model: Any, ids: Sequence[int], room: int, temperature: float, top_p: float, seed: int | None) -> Iterator[int]:
    """One token after another, without end: whoever reads stops at an end token."""
    device = next(model.parameters()).device
    draws = torch.Generator(device)
    if seed is None:
        draws.seed()
    else:
        draws.manual_seed(seed)
    cache, next_ids = None, torch.tensor([[*virtual.ids(model), *ids]], dtype=torch.long, device=device)
    for _ in range(room):
        # Entered anew for each token: held across a yield it would hold for whoever reads the stream.
        with _answering(model):
            out = base_of(model)(**virtual.inputs(model, next_ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = choose(out.logits[0, -1].float(), temperature, top_p, draws)
            next_ids = token.view(1, 1)
        yield int(token)


def choose(logits: torch.Tensor, temperature: float, top_p: float, draws: torch.Generator) -> torch.Tensor:
    """The next token's id, a scalar, from logits (vocabulary,): the likeliest at temperature 0, else a draw from the nucleus."""
    if temperature == 0:
        return logits.argmax()
    # From the maximum down, or a small temperature overflows.
    chances, order = ((logits - logits.max()) / temperature).softmax(dim=-1).sort(descending=True)
    before = chances.cumsum(dim=-1) - chances
    kept = torch.where(before < top_p, chances, 0.0)
    return order[torch.multinomial(kept, 1, generator=draws)[0]]


def _pieces(tokens: Iterator[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    ends, text = end_ids(tokenizer), Transcript(tokenizer)
    for token in tokens:
        if token in ends:
            break
        if piece := text.add(token):
            yield piece
    if rest := text.rest():
        yield rest


class Transcript:
    """Tokens as they come -> pieces of text; together they are the text of all. A piece never ends within a character.

    A token is decoded together with those of the piece before it, since some tokenizers write a space before a word only
    where something precedes it; what ends in half a character waits for the rest.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # from the beginning of the last piece on
        self._said = 0

    def add(self, token: int) -> str:
        """The text that a token completes, often none."""
        self._ids.append(token)
        piece = self._since()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._ids, self._said = self._ids[self._said :], len(self._ids) - self._said
        return piece

    def hold(self, token: int) -> None:
        """Take a token whose text nobody asks for yet."""
        self._ids.append(token)

    def rest(self) -> str:
        """What is not yet said: the tokens held, or half a character that nothing completed, as `answers` shows it."""
        return self._since()

    def _since(self) -> str:
        return _decode(self._ids, self._tokenizer)[len(_decode(self._ids[: self._said], self._tokenizer)) :]
