"""Templates to text: `[a|b]` chooses, `{slot}` draws from the word list of that name and is remembered in `slots`."""

import random
import re

from words import LISTS

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([a-z]+)(\d?)\}")
_CONTRACTIONS = (
    ("do not", "don't"),
    ("does not", "doesn't"),
    ("is not", "isn't"),
    ("it is", "it's"),
    ("I am", "I'm"),
    ("I have", "I've"),
    ("cannot", "can't"),
    ("will not", "won't"),
    ("did not", "didn't"),
    ("It is", "It's"),
    ("I would", "I'd"),
    ("we are", "we're"),
)


def choose(rng: random.Random, template: str) -> str:
    """`template` with every `[a|b]` replaced by one of its choices, the innermost first."""
    while "[" in template:
        template = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template)
    return re.sub(r" +([.,!?])", r"\1", re.sub(r"  +", " ", template)).strip()


def fill(rng: random.Random, text: str, slots: dict[str, str]) -> str:
    """`text` with its slots filled; a slot seen before keeps its value, `{name2}` is a second, different `{name}`."""

    def value(match: re.Match) -> str:
        key = match[1] + match[2]
        if key not in slots:
            taken = {slots.get(match[1] + digit) for digit in ("", "2", "3", "4")}
            slots[key] = rng.choice([word for word in rng.sample(LISTS[match[1]], min(6, len(LISTS[match[1]]))) if word not in taken])
        return slots[key]

    return capital(_SLOT.sub(value, text))


def say(rng: random.Random, template: str, slots: dict[str, str] | None = None) -> str:
    """One sentence from a template."""
    return fill(rng, choose(rng, template), {} if slots is None else slots)


def capital(text: str) -> str:
    """`text` with a capital at its start and after full stops, as people write on a good day."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def rough(rng: random.Random, text: str, keep: tuple[str, ...] = ()) -> str:
    """`text` as people write on other days: contractions, small letters, lost full stops, a typo. Words of `keep` stay whole."""
    if rng.random() < 0.6:
        for long, short in _CONTRACTIONS:
            text = text.replace(long, short)
    style = rng.random()
    if style < 0.08:
        text = text[:1].lower() + text[1:] if any(text.startswith(word) for word in keep) is False else text
        text = text.rstrip(".")
    elif style < 0.14:
        text = text.replace("!", ".").rstrip(".")
    elif style < 0.20:
        text = text.rstrip(".") + rng.choice(("!", "!!", "...", " :)"))
    if rng.random() < 0.06:
        text = typo(rng, text, keep)
    return text


def typo(rng: random.Random, text: str, keep: tuple[str, ...]) -> str:
    """`text` with two letters swapped, or one lost, in one longer word that is not part of a word in `keep`."""
    words = text.split(" ")
    kept = " ".join(keep).lower()
    places = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha() and word.lower() not in kept]
    if places:
        place = rng.choice(places)
        word, at = words[place], rng.randrange(1, len(words[place]) - 2)
        words[place] = word[:at] + (word[at + 1] + word[at] if rng.random() < 0.5 else word[at + 1]) + word[at + 2 :]
    return " ".join(words)


def a(word: str) -> str:
    """`word` with its indefinite article, or none before a plural."""
    plurals = ("headphones", "trousers", "jeans", "socks", "shoes", "boots", "sandals", "slippers", "gloves", "scissors", "scales")
    return word if word in plurals else f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def listed(words: list[str], last: str = "and") -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
