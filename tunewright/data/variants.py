"""A text -> a variant that should have the same label: one function for each method, (text, draws, kept, method) -> text.

`kept` says which words must stay. A method that finds nothing to change gives the text back.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Kept = Callable[[str], bool]
Rate = Annotated[float, Field(gt=0, le=0.5)]

NEGATIONS = frozenset(["no", "not", "never", "none", "nor", "neither", "nobody", "nothing", "nowhere", "without", "cannot", "hardly", "barely"])
"""English words that turn a sentence round; they stay in every variant, and so do words with n't."""

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class _Method(BaseModel):
    """Frozen, and an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Characters(_Method):
    """Typing slips: in some words a letter is left out, doubled, exchanged with the next, or a neighbour on the keyboard is hit."""

    method: Literal["characters"] = "characters"
    rate: Rate = 0.1
    """Share of the words."""


class Drop(_Method):
    """Some words are left out."""

    method: Literal["drop"] = "drop"
    rate: Rate = 0.1
    """Share of the words."""


class Swap(_Method):
    """Some words change places with the next."""

    method: Literal["swap"] = "swap"
    rate: Rate = 0.1
    """Share of the words."""


class Synonyms(_Method):
    """Some words are replaced by neighbours in the model's own embedding. Neighbours are often alike in use rather than in meaning: good and bad."""

    method: Literal["synonyms"] = "synonyms"
    rate: Rate = 0.1
    """Share of the words."""
    least: float = Field(0.4, ge=0, le=1)
    """Cosine of the two words' embeddings, the mean of all taken off, from which they count as neighbours."""


class Entities(_Method):
    """Names are replaced by others of the same list. Those that stand in the answer stay."""

    method: Literal["entities"] = "entities"
    lists: dict[
        Annotated[str, Field(max_length=200)],
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(min_length=2, max_length=10_000)],
    ] = Field(min_length=1, max_length=100)
    """The lists: {city: [Paris, Berlin, Rome]}."""


class Paraphrase(_Method):
    """A local model that follows instructions says the text in another language, and what it said in the first again."""

    method: Literal["paraphrase"] = "paraphrase"
    model: str = Field(min_length=1, max_length=1024)
    """A folder or a Hub id."""
    language: str = Field("English", min_length=2, max_length=50)
    """The texts' language."""
    via: str = Field("German", min_length=2, max_length=50)
    """The other one."""


Method = Annotated[Characters | Drop | Swap | Synonyms | Entities | Paraphrase, Field(discriminator="method")]
METHODS: dict[str, str] = {
    kind.model_fields["method"].default: str(kind.__doc__) for kind in get_args(Characters | Drop | Swap | Synonyms | Entities | Paraphrase)
}
"""Every method's name and what it does."""


def kept_words(answer: str, protected: Sequence[str] = ()) -> Kept:
    """Which words must stay: those with a digit, negations, words of the answer, and those named."""
    stay = {word.lower() for word in (*_WORD.findall(answer), *protected)} | NEGATIONS
    return lambda word: word.lower() in stay or any(c.isdigit() for c in word) or word.lower().replace("’", "'").endswith("n't")


def characters(text: str, draws: random.Random, kept: Kept, method: Characters) -> str:
    """Slips in words of four letters or more, never in the first letter."""
    return _each(text, draws, lambda word: len(word) >= 4 and not kept(word), method.rate, lambda word: _slip(word, draws))


def _slip(word: str, draws: random.Random) -> str:
    at = draws.randrange(1, len(word))
    match draws.randrange(4):
        case 0:
            return word[:at] + word[at + 1 :]
        case 1:
            return word[:at] + word[at] + word[at:]
        case 2:
            at = min(at, len(word) - 2)
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case _:
            row = next((row for row in _KEYBOARD if word[at].lower() in row), "")
            beside = [row[i] for i in (row.find(word[at].lower()) - 1, row.find(word[at].lower()) + 1) if row and 0 <= i < len(row)]
            return word[:at] + draws.choice(beside) + word[at + 1 :] if beside else word


def drop(text: str, draws: random.Random, kept: Kept, method: Drop) -> str:
    """Words with the white space before them; one stays at least."""
    parts = re.findall(r"\s*\S+|\s+$", text)
    free = [i for i, part in enumerate(parts) if (word := _WORD.search(part)) and word[0] == part.strip() and not kept(word[0])]
    gone = set(_some(free, draws, method.rate)[: max(0, len(text.split()) - 1)])
    left = "".join(part for i, part in enumerate(parts) if i not in gone)
    return left if text[:1].isspace() else left.lstrip()


def swap(text: str, draws: random.Random, kept: Kept, method: Swap) -> str:
    """Neighbours without punctuation between them; where both must stay their order does too."""
    words = list(_WORD.finditer(text))
    pairs = [
        i
        for i in range(len(words) - 1)
        if text[words[i].end() : words[i + 1].start()].isspace() and not kept(words[i][0]) and not kept(words[i + 1][0])
    ]
    taken: list[int] = []
    for i in _some(pairs, draws, method.rate):
        if all(abs(i - other) > 1 for other in taken):
            taken.append(i)
    for i in sorted(taken, reverse=True):
        one, other = words[i], words[i + 1]
        text = text[: one.start()] + other[0] + text[one.end() : other.start()] + one[0] + text[other.end() :]
    return text


def synonyms(text: str, draws: random.Random, kept: Kept, method: Synonyms, neighbours: Mapping[str, Sequence[str]]) -> str:
    """Words that have neighbours, in the case that the word has."""

    def other(word: str) -> str:
        chosen = draws.choice(neighbours[word.lower()])
        return chosen.capitalize() if word[:1].isupper() else chosen

    return _each(text, draws, lambda word: word.lower() in neighbours and not kept(word), method.rate, other)


def entities(text: str, draws: random.Random, kept: Kept, method: Entities) -> str:
    """Every name of a list, the same name by the same other one."""
    for names in method.lists.values():
        pattern = re.compile(r"(?<!\w)(?:" + "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) + r")(?!\w)")
        there = list(dict.fromkeys(pattern.findall(text)))
        found = [name for name in there if not any(kept(word) for word in _WORD.findall(name))]
        free = [name for name in names if name not in there]
        # Two names must not become one, so each gets a name that the text does not have, or the next one's.
        others = draws.sample(free, len(found)) if len(free) >= len(found) else found[1:] + found[:1]
        instead = dict(zip(found, others, strict=True))
        text = pattern.sub(lambda name, instead=instead: instead.get(name[0], name[0]), text)  # type: ignore[misc]
    return text


def words_of(text: str) -> list[str]:
    """The words, without what stands around them."""
    return _WORD.findall(text)


def _each(text: str, draws: random.Random, may: Callable[[str], bool], rate: float, change: Callable[[str], str]) -> str:
    words = [word for word in _WORD.finditer(text) if may(word[0])]
    chosen = set(_some(range(len(words)), draws, rate))
    for i in sorted(chosen, reverse=True):
        text = text[: words[i].start()] + change(words[i][0]) + text[words[i].end() :]
    return text


def _some(places: Sequence[int], draws: random.Random, rate: float) -> list[int]:
    """A share of the places, one at least where there is any."""
    return draws.sample(list(places), max(1, round(rate * len(places)))) if places else []
