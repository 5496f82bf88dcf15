"""Text -> token ids: of a rendered chat with the mask of what is learnt, of any text as plain text, and the ids at which an answer ends."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data.turns import TURN, Rendering, Span, special_ids
from tunewright.errors import BadModel

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>")


def read(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[Encoding]:
    """How the tokenizer reads each text, special tokens as such and none added. Threads may call it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    with TURN:
        if not texts:
            return []
        if backend is None or backend.truncation or backend.padding or backend.encode_special_tokens:
            return list(tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True).encodings or [])
        # The same, without the copies that the general way makes of what is not asked for.
        return list(backend.encode_batch(texts, add_special_tokens=False))


def plain(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Encode texts in which nothing is a special token, whatever it looks like. Threads may call it."""
    if not texts:
        return []
    with TURN:
        return list(tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def masked(chat: Rendering, reading: Encoding, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """(tokens,) int32 ids of a chat, (tokens,) bool which are learnt: answers, each with what ends its turn.

    The tokenizer's own reading of the whole text is taken where it is safe: no special token stems from what
    a user wrote (text that looks like one must stay text), and no token lies across the start of an answer
    (or `prompt` would not be a prefix). Otherwise the text is cut there and the pieces are encoded alone.
    """
    ids, places = _arrays(reading.ids, reading.offsets)
    cuts: set[int] = set()
    trained, unsafe = _mask(chat, ids, places, tokenizer)
    while not unsafe <= cuts:
        cuts |= unsafe
        ids, places = _encode_pieces(chat, cuts, tokenizer)
        trained, unsafe = _mask(chat, ids, places, tokenizer)
    return ids, trained


def _arrays(ids: list[int], offsets: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """(tokens,) int32, (tokens, 2) int64."""
    return np.array(ids, np.int32), np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)


def _mask(chat: Rendering, ids: np.ndarray, offsets: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, set[int]]:
    """(tokens,) bool, which of a chat's tokens are trained; and the places of the spans that this reading does not keep safe."""
    special = _special(tokenizer)
    begins, ends = offsets[:, 0], offsets[:, 1]
    is_special = special[np.minimum(ids, len(special) - 1)]
    trained = np.zeros(len(ids), bool)
    unsafe: set[int] = set()
    for at, span in enumerate(chat.spans):
        inside = (begins < span.end) & (ends > span.start)
        # Bytes of one character share its offsets, so a boundary within a character cannot hide here.
        across = span.whole and (inside & (begins < span.start)).any()
        if across or (is_special & inside).any() or (span.trained and (inside & (ends > span.end)).any()):
            unsafe.add(at)
        if span.trained:
            trained |= inside
            trained |= _ending(begins >= span.end, ids, is_special, chat.text, offsets, tokenizer)
    for start, end in chat.turns:
        turn = ((begins >= start) & (ends <= end)).nonzero()[0]
        last = [i for i in turn if is_special[i] and ids[i] in end_ids(tokenizer)] or [
            i for i in turn if chat.text[offsets[i, 0] : offsets[i, 1]].strip()
        ]
        trained[turn[turn <= last[-1]] if last else turn] = True
    return trained, unsafe


def _ending(
    after: np.ndarray, ids: np.ndarray, is_special: np.ndarray, text: str, offsets: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> np.ndarray:
    """The mask of an answer's end: the first special token after it, with the white space in between."""
    mask = np.zeros(len(ids), bool)
    for i in after.nonzero()[0]:
        if is_special[i]:
            mask[i] = ids[i] in end_ids(tokenizer)
            return mask if mask[i] else np.zeros(len(ids), bool)
        if text[offsets[i, 0] : offsets[i, 1]].strip():
            break
        mask[i] = True
    return np.zeros(len(ids), bool)


def _encode_pieces(chat: Rendering, cuts: set[int], tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """Ids and offsets, with the spans at the places `cuts` as plain text, what is between them as it reads; each piece encoded alone."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    at = 0
    for span in [*(chat.spans[i] for i in sorted(cuts)), Span(len(chat.text), len(chat.text), False)]:
        for start, end, plain in ((at, span.start, {}), (span.start, span.end, {"split_special_tokens": True})):
            with TURN:
                piece = tokenizer(chat.text[start:end], add_special_tokens=False, return_offsets_mapping=True, **plain)
            ids += piece["input_ids"]
            offsets += [(start + first, start + last) for first, last in piece["offset_mapping"]]
        at = span.end
    return _arrays(ids, offsets)


@lru_cache(maxsize=16)
def _special(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(ids,) bool, which ids are special tokens; the last one stands for all that follow."""
    ids = list(special_ids(tokenizer))
    special = np.zeros(max(ids, default=0) + 2, bool)
    special[ids] = True
    return special


def begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands before a text that no template renders."""
    return [tokenizer.bos_token_id] if getattr(tokenizer, "add_bos_token", False) and tokenizer.bos_token_id is not None else []


def end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end-of-sequence token. Raises BadModel `no_end_token`."""
    if tokenizer.eos_token_id is None:
        raise BadModel("The tokenizer names no end-of-sequence token, so a tuned model would never stop", code="no_end_token")
    return int(tokenizer.eos_token_id)


@lru_cache(maxsize=16)
def end_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids at which an answer ends: the end-of-sequence token, and the end-of-turn token where a template has one."""
    known = tokenizer.get_added_vocab()
    return {known[name] for name in _ENDS if name in known} | {end(tokenizer)}
