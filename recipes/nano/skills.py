"""Small exact skills: copying, lists, counting, arithmetic, word facts, letters."""

import random

from extract import Chat
from facts import FACTS
from grammar import choose, listed, say
from words import CITIES, COLOURS, COUNTRIES, DAYS, FIRST_NAMES, FOODS, GROUPS, MONTHS, OPPOSITES, PASTS, PLURALS, SYNONYMS, THINGS

_COUNTING = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
)


def _code(rng: random.Random) -> str:
    """Letters and digits that mean nothing: they can only be copied."""
    return "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 3))) + rng.choice(("", "-")) + str(rng.randint(10, 99999))


def _words(rng: random.Random, most: int = 6) -> list[str]:
    return rng.sample(rng.choice((FIRST_NAMES, THINGS, FOODS, COLOURS, CITIES, *GROUPS.values())), rng.randint(3, min(most, 6)))


def copying(rng: random.Random) -> Chat:
    """Repeat, quote, first and last words, codes found in a text."""
    sentence = say(rng, rng.choice(FACTS))
    words = sentence.rstrip(".!?").split()
    code, thing = _code(rng), rng.choice(THINGS)
    match rng.randrange(7):
        case 0:
            return [("user", choose(rng, "[Repeat|Copy|Say|Write|Repeat exactly]: ") + " " + sentence), ("assistant", sentence)]
        case 1:
            return [("user", choose(rng, f"What is the [first|first] word? {sentence}")), ("assistant", words[0])]
        case 2:
            return [("user", f"What is the last word? {sentence}"), ("assistant", words[-1])]
        case 3:
            text = choose(rng, f"[The|My] [number|code|reference|order number] [for|of] the {thing} is {code}[, please keep it|. Thanks|].")
            return [("user", choose(rng, "[Find the code.|Copy the number.|Which code is it?]") + f" {text}"), ("assistant", code)]
        case 4:
            return [
                ("system", choose(rng, "[Answer with the code only|Reply with nothing but the code].")),
                ("user", choose(rng, f"[Hello,|] it is about {code}, the {thing}[ is late| came today|].")),
                ("assistant", code),
            ]
        case 5:
            return [("user", choose(rng, f"[Write|Put] {thing} in [quotes|quotation marks].")), ("assistant", f'"{thing}"')]
        case _:
            lower = rng.random() < 0.5
            return [
                ("user", f"Write in {'small' if lower else 'capital'} letters: {sentence}"),
                ("assistant", sentence.lower() if lower else sentence.upper()),
            ]


def echo(rng: random.Random) -> tuple[tuple[str, bool], ...]:
    """Words drawn by chance, then the same words again: they can only be copied, so looking back is all that helps. What comes first is not
    to be predicted, what comes again is."""
    pool = rng.choice(((*THINGS, *FIRST_NAMES, *FOODS, *CITIES, *COLOURS), THINGS, FIRST_NAMES))
    words = [rng.choice(pool) for _ in range(rng.randint(4, 24))]
    joint = rng.choice((" ", ", ", "\n", "; "))
    return ((joint.join(words) + "\n", False), (joint.join(words) + "\n", True), (joint.join(words), True))


def lists(rng: random.Random) -> Chat:
    """Sort, reverse, count, pick, join, remove, test membership."""
    words = _words(rng)
    shown, place = ", ".join(words), rng.randrange(len(words))
    match rng.randrange(10):
        case 0:
            return [
                ("user", choose(rng, "[Sort from A to Z|Put in alphabetical order|Sort]:") + f" {shown}"),
                ("assistant", ", ".join(sorted(words, key=str.lower))),
            ]
        case 1:
            return [("user", choose(rng, "[Reverse the list|Reverse|Say it backwards]:") + f" {shown}"), ("assistant", ", ".join(reversed(words)))]
        case 2:
            return [("user", f"How many words are in the list: {shown}?"), ("assistant", str(len(words)))]
        case 3:
            ordinal = ("first", "second", "third", "fourth", "fifth", "sixth")[place]
            return [("user", f"What is the {ordinal} item? {shown}"), ("assistant", words[place])]
        case 4:
            return [
                ("user", f"Remove {words[place]} from the list: {shown}"),
                ("assistant", ", ".join(word for word in words if word != words[place])),
            ]
        case 5:
            new = rng.choice(THINGS)
            return [("user", f"Add {new} to the list: {shown}"), ("assistant", f"{shown}, {new}")]
        case 6:
            word = rng.choice(words) if rng.random() < 0.5 else rng.choice(THINGS)
            return [("user", f"Is {word} in the list? {shown}"), ("assistant", "yes" if word in words else "no")]
        case 7:
            return [
                ("user", choose(rng, "[Make a list|One a line|Write them below each other]:") + f" {listed(words)}"),
                ("assistant", "\n".join(f"- {word}" for word in words)),
            ]
        case 8:
            return [("user", f"Write as a JSON list: {listed(words)}"), ("assistant", "[" + ", ".join(f'"{word}"' for word in words) + "]")]
        case _:
            numbers = rng.sample(range(1, 99), rng.randint(3, 6))
            ask, answer = rng.choice(
                (("Sort", ", ".join(map(str, sorted(numbers)))), ("Largest number", str(max(numbers))), ("Smallest number", str(min(numbers))))
            )
            return [("user", f"{ask}: {', '.join(map(str, numbers))}"), ("assistant", answer)]


def arithmetic(rng: random.Random) -> Chat:
    """Sums, differences, small products, comparisons, in figures and in short stories."""
    x, y, name, thing = rng.randint(0, 50), rng.randint(0, 30), rng.choice(FIRST_NAMES), rng.choice(FOODS)
    if rng.random() < 0.5:
        x, y = x % 10, y % 10
    match rng.randrange(8):
        case 0 | 1:
            return [("user", choose(rng, f"[{x} + {y} =|What is {x} + {y}?|{x} plus {y}?|Add {x} and {y}.]")), ("assistant", str(x + y))]
        case 2:
            x, y = max(x, y), min(x, y)
            return [("user", choose(rng, f"[{x} - {y} =|What is {x} - {y}?|{x} minus {y}?|Take {y} from {x}.]")), ("assistant", str(x - y))]
        case 3:
            x, y = x % 11, y % 11
            return [("user", choose(rng, f"[{x} * {y} =|What is {x} times {y}?]")), ("assistant", str(x * y))]
        case 4:
            return [
                ("user", choose(rng, f"{name} has {x} {thing} and [gets|buys|finds] {y} more. How many {thing} does {name} have?")),
                ("assistant", str(x + y)),
            ]
        case 5:
            x, y = max(x, y), min(x, y)
            return [("user", choose(rng, f"{name} has {x} {thing} and [eats|sells|gives away] {y}. How many are left?")), ("assistant", str(x - y))]
        case 6:
            return [("user", f"Which is more, {x} or {y}?"), ("assistant", str(max(x, y)))]
        case _:
            n = rng.randrange(len(_COUNTING))
            return rng.choice(
                (
                    [("user", f"Write {n} in words."), ("assistant", _COUNTING[n])],
                    [("user", f"Write {_COUNTING[n]} in figures."), ("assistant", str(n))],
                    [("user", f"Count from {x} to {x + 5}."), ("assistant", ", ".join(str(x + i) for i in range(6)))],
                )
            )


def counting(rng: random.Random) -> Chat:
    """Counting up or down, in words or figures, as far as was asked or as far as an answer goes on."""
    tens = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
    words = [*_COUNTING[1:20], *(f"{ten}{f'-{_COUNTING[one]}' if one else ''}" for ten in tens for one in range(10)), "one hundred"]
    first = 1 if rng.random() < 0.7 else rng.randint(2, 20)
    last = min(100, first + rng.randint(3, 30)) if rng.random() < 0.8 else 100
    if rng.random() < 0.6:
        ask, said = f"[Count|Please count] from {words[first - 1]} to {words[last - 1]} [in words|in words, please]", words[first - 1 : last]
    else:
        ask, said = f"[Count|Please count] from {first} to {last}", [str(n) for n in range(first, last + 1)]
    return [("user", choose(rng, f"{ask}.")), ("assistant", ", ".join(said))]


def word_facts(rng: random.Random) -> Chat:
    """Opposites, plurals, past forms, synonyms, days, months, capitals, spelling."""

    def ask(pairs: dict[str, str], question: str) -> Chat:
        word = rng.choice(list(pairs))
        return [("user", choose(rng, question).replace("{}", word)), ("assistant", pairs[word])]

    match rng.randrange(9):
        case 0:
            return ask(
                OPPOSITES if rng.random() < 0.5 else {after: before for before, after in OPPOSITES.items()},
                "[What is the opposite of {}?|Opposite of {}?|Give the opposite of {}.]",
            )
        case 1:
            return ask(PLURALS, "[What is the plural of {}?|One {}, two|Plural of {}?]")
        case 2:
            return ask(PASTS, "[What is the past of {}?|Today I {}, yesterday I|Past form of {}?]")
        case 3 | 4:
            return ask(
                SYNONYMS if rng.random() < 0.5 else {after: before for before, after in SYNONYMS.items()},
                "[What is another word for {}?|Another word for {}?|What does {} mean?|{} means]",
            )
        case 5:
            cycle = rng.choice((DAYS, MONTHS))
            at, step = rng.randrange(len(cycle)), rng.choice((1, -1))
            return [
                (
                    "user",
                    choose(
                        rng, f"[What|Which] [{'day|day' if cycle is DAYS else 'month|month'}] comes {'after' if step > 0 else 'before'} {cycle[at]}?"
                    ),
                ),
                ("assistant", cycle[(at + step) % len(cycle)]),
            ]
        case 6:
            return ask(COUNTRIES, "[What is the capital of {}?|Capital of {}?|Name the capital of {}.]")
        case 7:
            word = rng.choice(THINGS).split()[0]
            return rng.choice(
                (
                    [("user", f"Spell {word}."), ("assistant", "-".join(word))],
                    [("user", f"How many letters has {word}?"), ("assistant", str(len(word)))],
                    [("user", f"What is the first letter of {word}?"), ("assistant", word[0])],
                )
            )
        case _:
            group, words = rng.choice(list(GROUPS.items()))
            return [("user", choose(rng, f"[Name one of the|Give me one of the] {group}.")), ("assistant", rng.choice(words))]
