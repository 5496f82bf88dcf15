"""The corpus of nano: an endless seeded stream of documents, fresh ones for every step of training.

python recipes/nano/corpus.py --show 20     # print sample documents
python recipes/nano/corpus.py --shares      # characters by family
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import classify
import extract
import prose
import reading
import skills
from docstrings import docstrings

# Kept out of every document: together they are the keys of the task that the package's demo tunes nano for.
DEMO_KEYS = ("intent", "product", "urgency")

# family -> (weight in documents, maker). A weight is a share of documents, not of tokens; `--shares` measures the latter.
FAMILIES = {
    "extraction": (34, extract.extraction),
    "single value": (10, extract.single_value),
    "json": (2, extract.from_json),
    "classification": (34, classify.classification),
    "same meaning": (8, classify.same_meaning),
    "groups": (1, classify.odd_one),
    "echo": (6, skills.echo),
    "copying": (5, skills.copying),
    "lists": (3, skills.lists),
    "arithmetic": (1, skills.arithmetic),
    "counting": (4, skills.counting),
    "word facts": (1, skills.word_facts),
    "reading": (5, reading.reading),
    "small talk": (1, prose.small_talk),
    "story": (2, prose.story),
    "letter": (3, prose.letter),
    "knowledge": (2, prose.knowledge),
    "inventory": (1, prose.inventory),
    "docstrings": (1, None),
}
CHATS = ("copying", "lists", "arithmetic", "word facts", "single value", "json", "same meaning", "groups")


@dataclass(frozen=True)
class Document:
    """A text in parts; `learnt` says whether the model is asked to predict all of a part, or only a sample of it."""

    family: str
    parts: tuple[tuple[str, bool], ...]

    @property
    def text(self) -> str:
        return "".join(part for part, _ in self.parts)


@cache
def _docstrings() -> list[str]:
    return docstrings()


def chat_parts(chat: extract.Chat) -> tuple[tuple[str, bool], ...]:
    """A chat in the template of nano's tokenizer; only what the assistant says is learnt in full."""
    parts = []
    for role, content in chat:
        learnt = role == "assistant"
        parts += [(f"<|im_start|>{role}\n", False), (f"{content}<|im_end|>", learnt), ("\n", False)]
    return tuple(parts)


def document(rng: random.Random, family: str) -> Document:
    """One document of `family`. Small tasks come one to four to a chat, as one talks to an assistant."""
    maker = FAMILIES[family][1]
    if maker is None:
        return Document(family, ((rng.choice(_docstrings()), True),))
    made = maker(rng)
    if isinstance(made, str):
        return Document(family, ((made, True),))
    if family == "echo":
        return Document(family, made)
    if family in CHATS and made[0][0] == "user":
        for _ in range(rng.choice((0, 0, 1, 2, 3))):
            more = maker(rng)
            made += more if more[0][0] == "user" else []
    made = [(role, content) for role, content in made]
    text = " ".join(content for _, content in made)
    assert not all(f'"{key}"' in text for key in DEMO_KEYS), "the demo's task must stay out of the corpus"
    return Document(family, chat_parts(made))


def documents(seed: int) -> Iterator[Document]:
    """Documents without end; equal seeds give equal streams."""
    rng = random.Random(seed)
    names, weights = list(FAMILIES), [weight for weight, _ in FAMILIES.values()]
    while True:
        yield document(rng, rng.choices(names, weights)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=0)
    parser.add_argument("--family", choices=list(FAMILIES))
    parser.add_argument("--shares", action="store_true")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    stream = documents(args.seed)
    for _ in range(args.show):
        made = document(rng, args.family) if args.family else next(stream)
        print(f"=== {made.family}\n{made.text}\n")
    if args.shares:
        sizes: Counter[str] = Counter()
        for _ in range(20_000):
            made = next(stream)
            sizes[made.family] += len(made.text)
        for family, size in sizes.most_common():
            print(f"{family:16} {size / sizes.total():6.1%}")


if __name__ == "__main__":
    main()
