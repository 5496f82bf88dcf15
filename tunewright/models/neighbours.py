"""Words -> words that a model's own embedding holds to be near: `neighbours`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from tunewright.models.load import Loaded

_LONGEST = 200_000  # words that are asked about
_BLOCK = 1024


def neighbours(loaded: Loaded, words: Iterable[str], least: float, most: int = 5) -> dict[str, list[str]]:
    """For each word that is one token of the model, in lower case, up to `most` others, the nearest first; words without any are left out.

    Near is the cosine of the input embeddings after their mean is taken off (Mu & Viswanath 2018, arXiv:1702.01417), `least` or more.
    Words that begin alike are taken for forms of one word and left out, for a form would break the sentence.
    """
    tokens = _words(loaded)
    names = list(tokens)
    asked = [word for word in dict.fromkeys(word.lower() for word in words) if word in tokens][:_LONGEST]
    if not asked or len(names) < 2:
        return {}
    table = loaded.model.get_input_embeddings().weight
    vectors = table[torch.tensor([tokens[name] for name in names], device=table.device)].detach().float()
    vectors = F.normalize(vectors - vectors.mean(dim=0), dim=-1)
    place = {name: i for i, name in enumerate(names)}
    found: dict[str, list[str]] = {}
    for start in range(0, len(asked), _BLOCK):
        some = asked[start : start + _BLOCK]
        cosines, order = (vectors[[place[word] for word in some]] @ vectors.T).topk(min(len(names), 4 * most + 1), dim=-1)
        for word, values, others in zip(some, cosines.tolist(), order.tolist(), strict=True):
            near = [names[i] for value, i in zip(values, others, strict=True) if value >= least and not _one_word(word, names[i])]
            if near:
                found[word] = near[:most]
    return found


def _words(loaded: Loaded) -> dict[str, int]:
    """The tokens that are whole words in lower case after a space, of three letters or more."""
    tokenizer, size = loaded.tokenizer, loaded.model.get_input_embeddings().weight.shape[0]
    special, vocabulary = set(tokenizer.all_special_ids), tokenizer.get_vocab()
    is_wordpiece = any(raw.startswith("##") for raw in vocabulary)
    found = {}
    for raw, i in vocabulary.items():
        # SentencePiece and byte-level tokens carry the space before a word; WordPiece marks what is no beginning.
        begins = not raw.startswith("##") if is_wordpiece else raw.startswith(("\u2581", "\u0120"))
        if begins and i < size and i not in special:
            word = tokenizer.decode([i]).strip()
            if len(word) >= 3 and word.isalpha() and word.islower():
                found[word] = i
    return found


def _one_word(one: str, other: str) -> bool:
    return one[:4] == other[:4] or one.startswith(other) or other.startswith(one)
