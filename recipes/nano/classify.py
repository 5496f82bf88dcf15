"""Which label fits: sentences sorted under label sets that change from document to document, and sentences that mean the same."""

import random

from extract import Chat, labels_of
from facts import FACTS
from grammar import choose, fill, listed, rough, say
from phrases import CLOSINGS, CONCEPTS, OPENINGS
from words import GROUPS

_ASK = (
    "[Classify|Label|Sort] the [text|sentence|message]. [Labels|Answers|Choose from]: {labels}.",
    "[Which|What] label fits? [Answer with|Choose] one of: {labels}.",
    "Answer with one [word|label]: {labels}.",
    "[Is it|Would you say it is] {either}?",
    "{key}: {labels}?",
    "Say [only|just] the {key}: {labels}.",
    "You label [texts|short messages]. The labels are {labels}. [Answer with the label only.|]",
)


def classification(rng: random.Random) -> Chat:
    """One to five sentences under one label set."""
    concept = rng.choice(list(CONCEPTS))
    labels, key = labels_of(rng, concept, 6), rng.choice(CONCEPTS[concept][0])
    names = rng.sample(list(labels), len(labels))
    ask = (
        choose(rng, rng.choice(_ASK))
        .replace("{labels}", rng.choice((", ", " | ", " / ")).join(names))
        .replace("{either}", listed(names, "or"))
        .replace("{key}", key)
    )
    ask = ask[:1].upper() + ask[1:]
    chat: Chat = [("system", ask)] if (in_system := rng.random() < 0.6) else []
    for turn in range(rng.choice((1, 1, 2, 3, 4, 5))):
        label, templates = rng.choice(list(labels.items()))
        text = message(rng, templates)
        if not in_system and turn == 0:
            text = f"{ask}\n{text}" if rng.random() < 0.5 else f"{text}\n{ask}"
        chat += [("user", text), ("assistant", label)]
    return chat


def message(rng: random.Random, templates: tuple[str, ...]) -> str:
    """One template said among things that do not matter."""
    parts = [rough(rng, say(rng, rng.choice(templates)))]
    if rng.random() < 0.25:
        parts.insert(rng.randrange(2), say(rng, rng.choice(FACTS)))
    return " ".join([say(rng, rng.choice(OPENINGS)), *parts, say(rng, rng.choice(CLOSINGS))]).strip()


def two_ways(rng: random.Random) -> tuple[str, str, str, str, str]:
    """Two sentences with one meaning, one with another meaning, and the two labels, all about the same things."""
    concept = rng.choice(("mood", "priority", "priority", "condition", "condition", "act", "act", "act", "answer", "weather"))
    (names, templates), (other_names, others) = rng.sample(list(CONCEPTS[concept][1].items()), 2)
    slots: dict[str, str] = {}
    first, second = (fill(rng, choose(rng, template), slots) for template in rng.sample(templates, 2))
    return first, second, fill(rng, choose(rng, rng.choice(others)), slots), names[0], other_names[0]


def same_meaning(rng: random.Random) -> Chat:
    """Sentences compared, said in another way, or matched."""
    first, second, third, label, other = two_ways(rng)
    match rng.randrange(4):
        case 0:
            same = rng.random() < 0.5
            ask = choose(rng, "[Do these two say much the same?|Is the meaning alike? Answer yes or no.|Same meaning, yes or no?]")
            return [("user", f"{ask}\n1. {first}\n2. {second if same else third}"), ("assistant", "yes" if same else "no")]
        case 1:
            ask = choose(rng, "[Say it in another way|Say this differently|Other words, please|Rephrase this]:")
            return [("user", f"{ask} {first}"), ("assistant", second)]
        case 2:
            options = rng.sample([(second, "yes"), (third, "no")], 2)
            ask = choose(rng, "Which is closer to this: A or B?")
            answer = "AB"[[mark for _, mark in options].index("yes")]
            return [("user", f"{ask} {first}\nA: {options[0][0]}\nB: {options[1][0]}"), ("assistant", answer)]
        case _:
            sentence, answer = rng.choice(((first, label), (third, other)))
            statement = choose(rng, f"[Does this mean|Is this]: {label}? {sentence}")
            return [("user", statement), ("assistant", "yes" if answer == label else "no")]


def odd_one(rng: random.Random) -> Chat:
    """Words and their groups: which group, which word does not belong, sort into groups."""
    (group, words), (other, strangers) = rng.sample(list(GROUPS.items()), 2)
    match rng.randrange(4):
        case 0:
            groups = rng.sample([group, *rng.sample([name for name in GROUPS if name != group], rng.randint(1, 4))], 2)
            word = rng.choice(words)
            names = sorted({group, *groups})
            return [("user", f"Is {word} one of the {listed(names, 'or')}?"), ("assistant", group)]
        case 1:
            stranger = rng.choice([word for word in strangers if word not in words])
            shown = [*rng.sample(words, 3), stranger]
            rng.shuffle(shown)
            return [
                ("user", choose(rng, "[Which word does not belong?|Find the odd one out.|Odd one out?]") + " " + ", ".join(shown)),
                ("assistant", stranger),
            ]
        case 2:
            mixed = [(word, group) for word in rng.sample(words, 3)] + [
                (word, other) for word in rng.sample([w for w in strangers if w not in words], 3)
            ]
            rng.shuffle(mixed)
            lines = [f"{name}: {', '.join(word for word, of in mixed if of == name)}" for name in (group, other)]
            return [("user", f"Sort into {group} and {other}: {', '.join(word for word, _ in mixed)}"), ("assistant", "\n".join(lines))]
        case _:
            count = rng.randint(2, 6)
            return [("user", choose(rng, f"[Name|Give me|List|Tell me] {count} {group}.")), ("assistant", ", ".join(rng.sample(words, count)))]
