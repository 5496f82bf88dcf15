"""Text -> token ids: of a rendered chat with the mask of what is learnt, of any text as plain text, and the ids at which an answer ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data.turns import Rendering, Span, special_ids
from tunewright.errors import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>")


def encode(chats: Sequence[Rendering], tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], np.ndarray]]:
    """Ids and mask of rendered chats.

    The tokenizer's own reading of the whole text is taken where it is safe: no special token stems from what
    a user wrote (text that looks like one must stay text), and no token lies across the start of an answer
    (or `prompt` would not be a prefix). Otherwise the text is cut there and the pieces are encoded alone.
    """
    made: list[tuple[list[int], np.ndarray]] = []
    for chat, (ids, offsets) in zip(chats, _read([chat.text for chat in chats], tokenizer), strict=True):
        places = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(ids)).reshape(-1, 2)
        cuts: set[int] = set()
        trained, unsafe = _mask(chat, ids, places, tokenizer)
        while not unsafe <= cuts:
            cuts |= unsafe
            ids, places = _encode_pieces(chat, cuts, tokenizer)
            trained, unsafe = _mask(chat, ids, places, tokenizer)
        made.append((ids, trained))
    return made


def _read(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
    """Ids and offsets of each text, special tokens read as such and none added."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.truncation or backend.padding or backend.encode_special_tokens:
        whole = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True) if texts else {"input_ids": [], "offset_mapping": []}
        yield from zip(whole["input_ids"], whole["offset_mapping"], strict=True)
    else:  # the same, without the copies that the general way makes of what is not asked for
        for encoding in backend.encode_batch(texts, add_special_tokens=False):
            yield encoding.ids, encoding.offsets


def _mask(chat: Rendering, ids: list[int], offsets: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, set[int]]:
    """(tokens,) bool, which of a chat's tokens are trained; and the places of the spans that this reading does not keep safe."""
    special = special_ids(tokenizer)
    begins, ends = offsets[:, 0], offsets[:, 1]
    is_special = np.array([i in special for i in ids], bool)
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
    after: np.ndarray, ids: list[int], is_special: np.ndarray, text: str, offsets: np.ndarray, tokenizer: PreTrainedTokenizerBase
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


def _encode_pieces(chat: Rendering, cuts: set[int], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], np.ndarray]:
    """Ids and offsets, with the spans at the places `cuts` as plain text, what is between them as it reads; each piece encoded alone."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    at = 0
    for span in [*(chat.spans[i] for i in sorted(cuts)), Span(len(chat.text), len(chat.text), False)]:
        for start, end, plain in ((at, span.start, {}), (span.start, span.end, {"split_special_tokens": True})):
            piece = tokenizer(chat.text[start:end], add_special_tokens=False, return_offsets_mapping=True, **plain)
            ids += piece["input_ids"]
            offsets += [(start + first, start + last) for first, last in piece["offset_mapping"]]
        at = span.end
    return ids, np.array(offsets, np.int64).reshape(-1, 2)


def plain(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Encode texts in which nothing is a special token, whatever it looks like."""
    return list(tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]) if texts else []


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
