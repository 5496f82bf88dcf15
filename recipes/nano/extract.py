"""Everyday notes to JSON (or to lines): key sets, key names, key orders and label sets vary from document to document."""

import json
import random

from facts import FACT_KEYS, FACTS
from grammar import choose, fill, rough, say
from phrases import CLOSINGS, CONCEPTS, OPENINGS
from words import LISTS

Chat = list[tuple[str, str]]

_SLOT_OF_FACT = {fact: tuple(slot for slot in FACT_KEYS if "{" + slot + "}" in fact) for fact in FACTS}


def labels_of(rng: random.Random, concept: str, most: int = 5) -> dict[str, tuple[str, ...]]:
    """A label set for `concept`: some of its answers, each under one of its names, with the templates that say it."""
    answers = list(CONCEPTS[concept][1].items())
    chosen = rng.sample(answers, rng.randint(2, min(most, len(answers))))
    labels = {rng.choice(names) if rng.random() < 0.7 else names[0]: templates for names, templates in chosen}
    if rng.random() < 0.2:
        labels = {label.replace(" ", "_"): templates for label, templates in labels.items()}
    return labels if len(labels) > 1 else labels_of(rng, concept, most)


def task(rng: random.Random) -> tuple[list[tuple[str, str]], dict[str, dict], dict[str, tuple[str, ...]]]:
    """Keys to fill: `(key, source)` in order, the label sets by key, and closed word lists by key."""
    concepts = rng.sample(list(CONCEPTS), rng.choice((0, 1, 1, 1, 2, 2, 2, 3)))
    if rng.random() < 0.4 and "priority" not in concepts:
        concepts.append("priority")
    slots = rng.sample(
        ["name", "place", "thing", "day", "time", "colour", "size", "amount", "price", "city", "food", "animal", "material", "job", "shop", "date"],
        rng.choice((1, 1, 2, 2, 3) if concepts else (1, 2, 3, 4)),
    )
    if rng.random() < 0.5 and "thing" not in slots:
        slots[0] = "thing"
    keys, labels, closed = [], {}, {}
    for source in rng.sample(concepts + slots, len(concepts) + len(slots)):
        key = rng.choice(CONCEPTS[source][0] if source in CONCEPTS else FACT_KEYS[source])
        if key in dict(keys):
            continue
        keys.append((key, source))
        if source in CONCEPTS:
            labels[key] = labels_of(rng, source)
        elif rng.random() < 0.3:
            closed[key] = tuple(rng.sample(LISTS[source], min(rng.randint(3, 8), len(LISTS[source]))))
    return keys, labels, closed


def note(rng: random.Random, keys: list, labels: dict, closed: dict) -> tuple[str, dict[str, str | None]]:
    """One note that holds an answer for (nearly) every key, and the answers."""
    slots = {source: rng.choice(closed[key]) for key, source in keys if key in closed}
    wanted = [source for _, source in keys if source in FACT_KEYS and rng.random() < 0.95]
    sentences, answers = [], {}
    for key in labels:
        answers[key], templates = rng.choice(list(labels[key].items()))
        sentence = choose(rng, rng.choice(templates))
        sentences.append(sentence.replace("{first}", "{name}") if "name" in wanted else sentence)
    for slot in wanted:
        if not any("{" + slot + "}" in sentence for sentence in sentences):
            sentences.append(fact_about(rng, slot, sentences))
    rng.shuffle(sentences)
    carried = {source for _, source in keys if any("{" + source + "}" in sentence for sentence in sentences)}
    texts = [fill(rng, sentence, slots) for sentence in sentences]
    kept = tuple(slots.values())
    texts = [rough(rng, text, kept) for text in texts]
    body = " ".join([say(rng, rng.choice(OPENINGS), {}), *texts, say(rng, rng.choice(CLOSINGS), {})]).strip()
    if rng.random() < 0.08:
        body = body.lower()
    for key, source in keys:
        if key not in labels:
            answers[key] = slots[source] if source in carried else None
    return body, {key: answers[key] for key, _ in keys}


def fact_about(rng: random.Random, slot: str, sentences: list[str]) -> str:
    """A sentence that holds `slot`, if possible without one that the note already holds."""
    held = {other for other in FACT_KEYS if any("{" + other + "}" in sentence for sentence in sentences)} - {"thing", "name"}
    for _ in range(12):
        sentence = choose(rng, rng.choice([fact for fact in FACTS if slot in _SLOT_OF_FACT[fact]]))
        if "{" + slot + "}" in sentence and not any("{" + other + "}" in sentence for other in held):
            return sentence
    return f"The {slot} is {{{slot}}}."


def wording(rng: random.Random, keys: list, labels: dict, closed: dict, form: str) -> str:
    """The instruction: which keys, which labels, which form."""
    names = [key for key, _ in keys]
    sets = {key: tuple(labels[key]) for key in labels} | closed
    if rng.random() < 0.4:
        sets = {key: tuple(rng.sample(words, len(words))) for key, words in sets.items()}
    document = rng.choice(("note", "message", "text", "sentence", "short note", "mail", "line"))
    if form == "lines":
        start = choose(
            rng,
            f"[Read the {document}.|From each {document},|] [Write one line a key|Answer in lines of the form key: value|List]: {', '.join(names)}.",
        )
    elif rng.random() < 0.25:
        shown = {key: rng.choice(("...", "|".join(sets[key]))) if key in sets else "..." for key in names}
        start = choose(rng, f"[Turn|Convert] the {document} into JSON like") + " " + json.dumps(shown) + "."
        if all(value != "..." or key not in sets for key, value in shown.items()) and rng.random() < 0.7:
            return start
    else:
        start = choose(
            rng,
            f"[Read the {document} and answer|Reply|Answer|You read a {document} and reply|Summarise the {document}|Turn the {document} into data. Answer] [only with|with|in|with nothing but] "
            f"[one JSON object|JSON|a JSON object] [with the keys|. Keys:|that has] {', '.join(names)}.",
        ).replace(" .", ".")
    start += {"tight": " No spaces.", "indented": " Indent it."}.get(form, "")
    parts = []
    for key in names:
        if key in sets and rng.random() < 0.93:
            parts.append(
                choose(rng, f"{key} [is one of|is one of|must be|can be|:] ").strip()
                + " "
                + rng.choice((", ", ", ", " | ", " or ")).join(sets[key])
                + "."
            )
    if rng.random() < 0.3:
        parts.append(choose(rng, "[Use null|Write null|null] if [it is not said|something is missing|unknown]."))
    return " ".join([start, *parts]).replace(" : ", ": ")


def render(answers: dict[str, str | None], form: str) -> str:
    """The answer in the form that the instruction asked for."""
    if form == "lines":
        return "\n".join(f"{key}: {value if value is not None else 'null'}" for key, value in answers.items())
    if form == "tight":
        return json.dumps(answers, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(answers, ensure_ascii=False, indent=2 if form == "indented" else None)


def extraction(rng: random.Random) -> Chat:
    """A chat of one to four notes under one instruction."""
    keys, labels, closed = task(rng)
    form = rng.choices(("json", "lines", "tight", "indented"), (86, 6, 4, 4))[0]
    instruction = wording(rng, keys, labels, closed, form)
    chat: Chat = []
    place = rng.random()
    if place < 0.75:
        chat.append(("system" if rng.random() < 0.93 else "developer", instruction))
    for turn in range(rng.choice((1, 1, 2, 2, 3, 4))):
        body, answers = note(rng, keys, labels, closed)
        if place >= 0.75 and turn == 0:
            body = f"{instruction}\n\n{body}" if rng.random() < 0.7 else f"{body}\n\n{instruction}"
        chat += [("user", body), ("assistant", render(answers, form))]
    return chat


def single_value(rng: random.Random) -> Chat:
    """A note and a question about one thing in it."""
    fact = rng.choice(FACTS)
    slots: dict[str, str] = {}
    text = say(rng, fact, slots)
    others = [say(rng, rng.choice(FACTS), {}) for _ in range(rng.choice((0, 0, 1, 2)))]
    slot, value = rng.choice([(slot, value) for slot, value in slots.items() if slot in FACT_KEYS])
    if others:
        others = [other for other in others if not any(word in other for word in LISTS[slot.rstrip("2")])]
    sentences = rng.sample([text, *others], 1 + len(others))
    noun = {"thing": "object", "part": "part of the day", "name2": "last person", "food2": "last food"}.get(slot, slot)
    ask = choose(
        rng,
        f"[[Which|What] {noun} [is named|is mentioned|does the text name|comes up]?|Copy the {noun} from the text.|Give only the {noun}.|Find the {noun}.]",
    )
    body = " ".join(sentences)
    pattern = rng.random()
    if pattern < 0.4:
        return [("system", ask), ("user", body), ("assistant", value)]
    return [("user", f"{ask}\n{body}" if pattern < 0.7 else f"{body}\n{ask}"), ("assistant", value)]


def from_json(rng: random.Random) -> Chat:
    """JSON read: a value looked up, a key changed, added or removed, or a sentence written from it."""
    slots = rng.sample(list(FACT_KEYS), rng.randint(2, 5))
    record = {rng.choice(FACT_KEYS[slot]): rng.choice(LISTS[slot.rstrip("2")]) for slot in slots}
    key = rng.choice(list(record))
    shown = json.dumps(record, ensure_ascii=False)
    match rng.randrange(6):
        case 0:
            return [("user", choose(rng, f"[What is|Give me|Read out|Look up] the value of {key}[?|.]") + f"\n{shown}"), ("assistant", record[key])]
        case 1:
            new = rng.choice(LISTS["thing"])
            return [("user", f"Set {key} to {new}.\n{shown}"), ("assistant", json.dumps(record | {key: new}, ensure_ascii=False))]
        case 2:
            return [("user", f"Remove {key}.\n{shown}"), ("assistant", json.dumps({k: v for k, v in record.items() if k != key}, ensure_ascii=False))]
        case 3:
            return [("user", f"Which keys does it have?\n{shown}"), ("assistant", ", ".join(record))]
        case 4:
            return [
                ("user", choose(rng, "[Write it as lines|One line a key, please|Turn the JSON into lines].") + f"\n{shown}"),
                ("assistant", "\n".join(f"{k}: {v}" for k, v in record.items())),
            ]
        case _:
            return [
                (
                    "user",
                    choose(rng, "[Write it as JSON|Turn the lines into JSON|JSON, please].")
                    + "\n"
                    + "\n".join(f"{k}: {v}" for k, v in record.items()),
                ),
                ("assistant", shown),
            ]
