"""Texts -> the same in other words, through another language and back, by a model that follows instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunewright.data.example import Chat, Message
from tunewright.data.tokens import next_turn
from tunewright.models.generate import answers

if TYPE_CHECKING:
    from tunewright.models.load import Loaded


def paraphrases(loaded: Loaded, texts: Sequence[str], language: str, via: str) -> dict[str, str]:
    """What came back of each text, greedily; texts that did not come back whole (cut off, empty, unchanged) are left out."""
    there = _translated(loaded, {text: text for text in texts}, via)
    back = _translated(loaded, there, language)
    return {text: said for text, said in back.items() if said != text}


def _translated(loaded: Loaded, texts: dict[str, str], language: str) -> dict[str, str]:
    """The values in another language, under their keys."""
    asked = {}
    for key, text in texts.items():
        order = f"Translate this text into {language}. Answer with the translation alone.\n\n{text}"
        ids = next_turn(Chat((Message("user", order),)), loaded.tokenizer)
        # A translation takes about the room of the text; one that does not fit cannot come back whole.
        if 2 * len(ids) < loaded.context:
            asked[key] = ids
    room = max((2 * len(ids) for ids in asked.values()), default=1)
    said = answers(loaded.model, loaded.tokenizer, list(asked.values()), room)
    return {key: one.text.strip() for key, one in zip(asked, said, strict=True) if one.finished and one.text.strip()}
