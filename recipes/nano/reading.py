"""Short paragraphs and questions about them: yes or no, a letter from A to D, a word, a number."""

import random

from extract import Chat
from grammar import choose, fill
from words import LISTS

# What can be asked about a person in a paragraph: (sentence, question, slot that answers).
ASKED = (
    ("{first} lives in {city}.", "Where does {first} live?", "city"),
    ("{first} works as a {job}.", "What is {first}'s job?", "job"),
    ("{first} likes {hobby}.", "What does {first} like?", "hobby"),
    ("{first} has a {animal}.", "Which animal does {first} have?", "animal"),
    ("{first} bought a {thing}.", "What did {first} buy?", "thing"),
    ("{first} is in the {place}.", "Where is {first}?", "place"),
    ("{first} comes on {day}.", "When does {first} come?", "day"),
    ("{first} ate {food}.", "What did {first} eat?", "food"),
    ("{first}'s coat is {colour}.", "What colour is {first}'s coat?", "colour"),
    ("{first} paid {price}.", "How much did {first} pay?", "price"),
    ("{first} was born in {month}.", "In which month was {first} born?", "month"),
    ("{first} has {amount} books.", "How many books does {first} have?", "amount"),
    ("{first} gets up at {time}.", "When does {first} get up?", "time"),
    ("{first} shops at {shop}.", "Where does {first} shop?", "shop"),
    ("{first} lost the {thing}.", "What did {first} lose?", "thing"),
    ("{first} waits at the {place}.", "Where does {first} wait?", "place"),
)


def passage(rng: random.Random) -> tuple[str, list[tuple[str, str, str]]]:
    """A paragraph about two to four people and (question, answer, slot) for every sentence."""
    sentences, asked = [], []
    people = rng.sample(LISTS["first"], rng.randint(2, 4))
    for person in people:
        used: set[str] = set()
        for sentence, question, slot in rng.sample(ASKED, rng.randint(1, 3)):
            if slot in used:
                continue
            used.add(slot)
            slots = {"first": person}
            sentences.append(fill(rng, sentence, slots))
            asked.append((fill(rng, question, slots), slots[slot], slot))
    order = rng.sample(range(len(sentences)), len(sentences))
    return " ".join(sentences[i] for i in order), [asked[i] for i in order]


def reading(rng: random.Random) -> Chat:
    """A passage and one to four questions, all of one kind so that the form can be learnt."""
    text, asked = passage(rng)
    kind = rng.choice(("word", "letter", "letter", "true", "count"))
    chat: Chat = []
    rule = {
        "word": "[Answer in a few words.|Answer with words from the text.|]",
        "letter": "[Answer with the letter.|Answer with A, B, C or D.|Reply with one letter.]",
        "true": "[Answer yes or no.|Yes or no?|Reply with yes or no.]",
        "count": "[Answer with a number.|]",
    }[kind]
    rule = choose(rng, rule)
    if rule and rng.random() < 0.5:
        chat.append(("system", rule))
        rule = ""
    for turn, (question, answer, slot) in enumerate(rng.sample(asked, min(len(asked), rng.randint(1, 4)))):
        match kind:
            case "letter":
                question, answer = _letters(rng, question, answer, slot, [value for _, value, other in asked if other == slot])
            case "true":
                sentence = _sentence(question, answer, slot)
                wrong = rng.choice([word for word in LISTS[slot] if word != answer])
                question, answer = (f"True? {sentence}", "yes") if rng.random() < 0.5 else (f"True? {_sentence(question, wrong, slot)}", "no")
            case "count":
                question, answer = rng.choice(
                    (
                        ("How many sentences has the text?", str(len(asked))),
                        ("How many people are named?", str(len({word for word in text.replace("'s", " ").split() if word in LISTS["first"]}))),
                    )
                )
        body = f"{question} {rule}".strip()
        chat += [("user", f"{text}\n\n{body}" if turn == 0 else body), ("assistant", answer)]
        if kind == "count":
            break
    return chat


def _sentence(question: str, answer: str, slot: str) -> str:
    """The question and a proposed answer, as one line that is right or wrong."""
    return f"{question} {answer[:1].upper()}{answer[1:]}."


def _letters(rng: random.Random, question: str, answer: str, slot: str, near: list[str]) -> tuple[str, str]:
    """The question with four options; wrong options come from the passage first, so that the right person must be found."""
    wrong = list(dict.fromkeys([*near, *rng.sample(LISTS[slot], min(5, len(LISTS[slot])))]))
    options = [*[word for word in wrong if word != answer][:3], answer]
    rng.shuffle(options)
    form = rng.choice(("{}: {}", "({}) {}", "{}. {}", "{}) {}"))
    lines = "\n".join(form.format(letter, option) for letter, option in zip("ABCD", options, strict=False))
    return f"{question}\n{lines}\n", "ABCD"[options.index(answer)]
