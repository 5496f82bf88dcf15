"""Write Tunewright's sample data: support messages and the JSON answer a model should give.

    python recipes/sample/make.py            rewrite tunewright/data/sample/*.jsonl
    python recipes/sample/make.py --check    exit 1 where a committed file differs

The output depends on SEED and phrases.toml alone. No filled sentence occurs twice in the data,
so a test row can share patterns and words with the training rows, but no sentence.
"""

import argparse
import json
import random
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "tunewright" / "data" / "sample"
PHRASES: dict[str, Any] = tomllib.loads((HERE / "phrases.toml").read_text(encoding="utf-8"))

SEED = 20240611
ROWS = {"train": 640, "validation": 100, "test": 200}
SYSTEM = (
    "Sort the support message. Answer in JSON with intent (refund, repair, delivery, cancel or how_to), product, and urgency (low, normal or high)."
)
WORDS = range(8, 26)
"""Lengths a message may have, in words before the greeting."""


def allowed(values: list[str], split: str) -> list[str]:
    """The values that a split may use: see the comment above [slots] in phrases.toml."""
    if len(values) < 6:
        return values
    held = max(1, len(values) // 8)
    shared = values[: -2 * held]
    own = {"train": [], "validation": values[-2 * held : -held], "test": values[-held:]}
    return shared + own[split]


def number(rng: random.Random, low: int, high: int, split: str) -> str:
    """A number of this split: its digit sum modulo 5 is 0 for test, 1 for validation."""
    while True:
        value = rng.randint(low, high)
        rest = sum(map(int, str(value))) % 5
        if {0: "test", 1: "validation"}.get(rest, "train") == split:
            return str(value)


def normalise(sentence: str) -> str:
    """The sentence's letters and digits: equal for two spellings of one filled sentence."""
    return " ".join(re.sub(r"[^a-z0-9 ]", "", sentence.lower()).split())


def sentences(text: str) -> list[str]:
    """The sentences of a text without a greeting."""
    return re.split(r"(?<=[.!?])\s+", text)


class Writer:
    """Fills patterns for one split, and never the same sentence twice over all splits."""

    def __init__(self, split: str, seen: set[str]) -> None:
        self.split = split
        self.seen = seen
        self.rng = random.Random(f"{SEED} {split}")
        self.decks: dict[tuple[str, str], list[str]] = {}

    def deal(self, kind: str, label: str) -> str:
        """The next pattern of a label: each comes once before any comes again."""
        deck = self.decks.setdefault((kind, label), [])
        if not deck:
            deck.extend(PHRASES[kind][label])
            self.rng.shuffle(deck)
        return deck.pop()

    def fill(self, pattern: str, product: str) -> str:
        """The pattern with a random value in each slot."""
        rng, split = self.rng, self.split
        pools = {slot: allowed(values, split) for slot, values in PHRASES["slots"].items()}
        values = {slot: rng.choice(pool) for slot, pool in pools.items()}
        own = {key: allowed(vs, split) for key, vs in PHRASES["products"][product].items()}
        task = rng.choice(own["task"])
        thing = rng.choice(["my {p}", "the {p}", "my {c} {p}", "our {c} {p}"])
        thing = thing.format(p=product, c=values["c"])
        return pattern.format(
            **values,
            p=product,
            c2=rng.choice([colour for colour in pools["c"] if colour != values["c"]]),
            symptom=rng.choice(own["symptom"]),
            task=task.format(x=thing),
            task_it=task.format(x="it"),
            order=number(rng, 10000, 99999, split),
            ending=number(rng, 1000, 9999, split),
            house=rng.randint(1, 99),
            price=rng.randint(12, 240),
        )

    def body(self, intent: str, product: str, urgency: str) -> list[str]:
        """New sentences that carry the three labels, in order."""
        rng = self.rng
        while True:
            request = sentences(self.fill(self.deal("intents", intent), product))
            notes: list[str] = []
            # A normal message says nothing about time, or a neutral thing beside.
            if urgency != "normal" or rng.random() < 0.5:
                notes.append(self.fill(self.deal("urgency", urgency), product))
            found = notes + request if rng.random() < 0.12 else request + notes
            keys = [normalise(sentence) for sentence in found]
            new = len(set(keys)) == len(keys) and self.seen.isdisjoint(keys)
            if new and len(" ".join(keys).split()) in WORDS:
                self.seen.update(keys)
                return found

    def message(self, intent: str, product: str, urgency: str) -> str:
        """A whole message: greeting, sentences, and now and then a careless hand."""
        rng = self.rng
        found = self.body(intent, product, urgency)
        if rng.random() < 0.3:
            found[0] = f"{rng.choice(PHRASES['greetings'])} {found[0]}"
        text = " ".join(sentence[0].upper() + sentence[1:] for sentence in found)
        if rng.random() < 0.1:
            text = text.lower()
        if rng.random() < 0.2:
            text = text.rstrip(".?")
        return text


def balanced(rng: random.Random, labels: list[str], rows: int) -> list[str]:
    """The labels in random order, each as often as any other, give or take one."""
    dealt = [labels[i % len(labels)] for i in range(rows)]
    rng.shuffle(dealt)
    return dealt


def make() -> dict[str, str]:
    """The text of each split's JSONL file."""
    seen: set[str] = set()
    files = {}
    for split, rows in ROWS.items():
        writer = Writer(split, seen)
        columns = [balanced(writer.rng, list(PHRASES[key]), rows) for key in ("intents", "products", "urgency")]
        lines = []
        for intent, product, urgency in zip(*columns, strict=True):
            answer = {"intent": intent, "product": product, "urgency": urgency}
            messages = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": writer.message(intent, product, urgency)},
                {"role": "assistant", "content": json.dumps(answer)},
            ]
            lines.append(json.dumps({"messages": messages}) + "\n")
        files[split] = "".join(lines)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the sample data.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    wrong = 0
    for split, text in make().items():
        path = OUTPUT / f"{split}.jsonl"
        if not check:
            path.write_bytes(text.encode())
        elif not path.is_file() or path.read_bytes() != text.encode():
            print(f"{path}: differs; run python recipes/sample/make.py", file=sys.stderr)
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
