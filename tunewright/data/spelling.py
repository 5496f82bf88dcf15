"""Misspelt words -> the words that were meant, by pyspellchecker's word lists: `Speller.correct`, a step that edits.

Precision goes first: a word of the file's own (a name, a term) that is "corrected" does more harm than a slip that stays. So a word is changed only

- where it is in lower case and neither listed nor part of an address, of code or of something joined by signs,
- to a listed word that is common (2 in a million or more) and ten times as common as any other within reach,
- by one slip of the hand inside it: letters that changed places, one too many or too few, one vowel for another,
- unless the file uses it in three rows or more, and the other word in fewer than twenty times as many,
- in texts most of whose words are of the language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from tunewright.data.recipe import Spelling
from tunewright.data.rows import RawRow, edited, is_whole

if TYPE_CHECKING:
    from spellchecker import SpellChecker

_COMMON = 2e-6
_CLEARLY = 10
_OWN_ROWS, _OWN_SHARE = 3, 20
_OF_THE_LANGUAGE = 0.6

# Code, addresses; then words with nothing beside them that would make them a part of something else.
_NO_PROSE = re.compile(r"```.*?```|`[^`\n]*`|\S*(?:://|www\.|@)\S*", re.DOTALL)
_WORD = re.compile(r"(?<![\w@#$/\\.:<>{}=~^`'’&%*+|\[-])[^\W\d_]+(?![\w@/\\<>{}=~^`'’*|\]]|[-.:]\w)")
# Both spellings of English are right, and the lists have one of them.
_VARIANTS = [
    ("our", "or"),
    ("is(?=e|ing|ation|able)", "iz"),
    ("ys(?=e|ing)", "yz"),
    ("re(?=$|s$|d$)", "er"),
    ("nce", "nse"),
    ("ogue", "og"),
    ("ll", "l"),
]
_VARIANTS += [("[ao]e", "e"), ("mme", "m")]


class Speller:
    """Corrects the texts of one file, whose own words it knows by the rows that hold them."""

    def __init__(self, rows: Iterable[RawRow], step: Spelling) -> None:
        self.step, self._list = step, _words(step.language)
        self._most = _COMMON * self._list.word_frequency.total_words
        self._protected = {word.lower() for word in step.protect}
        self._rows: Counter[str] = Counter()
        self._found: dict[str, str] = {}
        for row in filter(is_whole, rows):
            held: set[str] = set()
            edited(row.fields, partial(_note, held))
            self._rows.update(held)

    def correct(self, text: str, key: str) -> str:
        """The text with its slips mended; labels and texts in another language as they are."""
        words = _lower(text) if key != "label" else []
        wrong = {word for word in words if word not in self._list}
        if not wrong or sum(word in self._list for word in words) < _OF_THE_LANGUAGE * len(words):
            return text
        parts, end = [], 0
        for code in _NO_PROSE.finditer(text):
            parts += [_WORD.sub(self._mended, text[end : code.start()]), code[0]]
            end = code.end()
        return "".join([*parts, _WORD.sub(self._mended, text[end:])])

    def _mended(self, match: re.Match[str]) -> str:
        word = match[0]
        if len(word) < self.step.at_least or not word.islower():
            return word
        if word not in self._found:
            self._found[word] = self._meant(word)
        return self._found[word]

    def _meant(self, word: str) -> str:
        if word in self._list or word in self._protected:
            return word
        near = sorted((self._list[one], one) for one in self._list.known(self._list.edit_distance_1(word)))
        if not near or near[-1][0] < self._most or (len(near) > 1 and near[-1][0] < _CLEARLY * near[-2][0]):
            return word
        best = near[-1][1]
        own = self._rows[word] >= _OWN_ROWS and self._rows[best] < _OWN_SHARE * self._rows[word]
        return word if own or not _slip(word, best) or _variant(word) == _variant(best) else best


def _note(held: set[str], text: str, key: str) -> str:
    held.update(_lower(text))
    return text


def _lower(text: str) -> list[str]:
    """The words of a text that are all in lower case."""
    return [word for word in _WORD.findall(_NO_PROSE.sub(" ", text)) if word.islower()]


def _slip(word: str, meant: str) -> bool:
    """Whether one became the other inside: at its ends, letters are what makes another word of one."""
    if word[0] != meant[0] or word[-1] != meant[-1]:
        return False
    differ = [(a, b) for a, b in zip(word, meant, strict=False) if a != b]
    return len(word) != len(meant) or len(differ) == 2 or all(map(_vowel, differ[0]))


def _vowel(letter: str) -> bool:
    return unicodedata.normalize("NFD", letter)[0] in "aeiouy"


def _variant(word: str) -> str:
    for one, other in _VARIANTS:
        word = re.sub(one, other, word)
    return word


@lru_cache(2)
def _words(language: str) -> SpellChecker:
    from spellchecker import SpellChecker

    return SpellChecker(language=language, distance=1)
