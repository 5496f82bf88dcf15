"""How well the data check and the cleaning find what was planted: near duplicates, personal data and misspelt words, seeded.

    python benchmarks/gate.py 20000

Everything is made here: the words, the rows, the addresses and numbers; the slips are planted into the built-in sample. So are what must not be found: rows that are alike
but not enough, numbers with a wrong checksum, versions, prices, dates, sums.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from tunewright.data.near import ALIKE, alike, near, triples_of
from tunewright.data.personal import find, is_card, is_iban
from tunewright.data.recipe import Spelling
from tunewright.data.rows import RawRow
from tunewright.data.spelling import Speller

KINDS = ("email", "phone", "card", "iban", "ip", "secret")
SAMPLE = Path(__file__).resolve().parents[1] / "tunewright" / "data" / "sample" / "train.jsonl"
CONSONANTS, VOWELS = "bcdfghklmnprstvz", "aeiou"


def near_duplicates(rows: int, seed: int) -> tuple[float, float, int]:
    """(recall, precision, planted) among `rows` rows of 12 to 80 words, a tenth of them copies of others with one to five words changed.

    A pair counts as planted where its exact share of word triples is at least `ALIKE`; copies below that must not be found.
    """
    draw = random.Random(seed)
    words = ["".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(draw.randint(1, 4))) for _ in range(5000)]
    texts = [" ".join(draw.choices(words, k=draw.randint(12, 80))) for _ in range(rows - rows // 10)]
    planted, copies = set(), []
    for original in draw.sample(range(len(texts)), rows // 10):
        copy = texts[original].split()
        for at in draw.sample(range(len(copy)), draw.randint(1, 5)):
            copy[at] = draw.choice(words)
        if alike(triples_of(texts[original]), triples_of(" ".join(copy))) >= ALIKE:
            planted.add((len(texts) + len(copies), original))
        copies.append(" ".join(copy))
    found = {(i, j) for i, j, begins in near([*texts, *copies]) if not begins}
    return len(found & planted) / len(planted), len(found & planted) / max(1, len(found)), len(planted)


def personal_data(rows: int, seed: int) -> dict[str, tuple[float, float]]:
    """(recall, precision) by kind, over `rows` texts that hold one of a kind and as many that hold none."""
    draw = random.Random(seed)
    hits = dict.fromkeys(KINDS, 0)
    reported = dict.fromkeys(KINDS, 0)
    for at in range(rows):
        kind = KINDS[at % len(KINDS)]
        before, value, after = (
            draw.choice(["Please use ", "My new one is ", "It was ("]),
            _planted(kind, draw),
            draw.choice([".", ", thanks", ")", " today"]),
        )
        for hit in find(before + value + after):
            reported[hit.kind] += 1
            hits[kind] += hit == (kind, len(before), len(before) + len(value))
        for hit in find(f"{before}{_harmless(draw)}{after}"):
            reported[hit.kind] += 1
    each = rows / len(KINDS)
    return {kind: (hits[kind] / each, hits[kind] / max(1, reported[kind])) for kind in KINDS}


def _planted(kind: str, draw: random.Random) -> str:
    digits = lambda n: "".join(draw.choices("0123456789", k=n))  # noqa: E731
    name = lambda: "".join(draw.choices(CONSONANTS + VOWELS, k=draw.randint(3, 9)))  # noqa: E731
    secret = lambda n: "".join(draw.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=n))  # noqa: E731
    match kind:
        case "email":
            return f"{name()}{draw.choice(['.', '_', '+', '-', ''])}{name()}@{draw.choice(['', 'mail.'])}{name()}.{draw.choice(['com', 'de', 'co.uk', 'io'])}"
        case "phone":
            area, middle = draw.randint(200, 989), draw.randint(200, 989)
            forms = [f"+49 {draw.randint(30, 999)} {digits(7)}", f"+1-{area}-{middle}-{digits(4)}", f"({area}) {middle}-{digits(4)}"]
            return draw.choice(
                [*forms, f"{area}.{middle}.{digits(4)}", f"+44 20 {digits(4)} {digits(4)}", f"+33 1 {digits(2)} {digits(2)} {digits(2)} {digits(2)}"]
            )
        case "card":
            start = draw.choice(["4" + digits(14), "5" + str(draw.randint(1, 5)) + digits(13), "37" + digits(12)])
            number = next(start + last for last in "0123456789" if is_card(start + last))
            return draw.choice(
                [number, " ".join(number[i : i + 4] for i in range(0, len(number), 4)), "-".join(number[i : i + 4] for i in range(0, len(number), 4))]
            )
        case "iban":
            country, length = draw.choice([("DE", 18), ("FR", 23), ("GB", 18), ("NL", 14)])
            account = digits(length)
            number = next(made for check in range(2, 99) if is_iban(made := f"{country}{check:02d}{account}"))
            return draw.choice([number, " ".join(number[i : i + 4] for i in range(0, len(number), 4))])
        case "ip":
            four = ".".join(str(draw.randint(1, 126)) for _ in range(4))
            return draw.choice([four, ":".join(f"{draw.randint(1, 65535):x}" for _ in range(8))])
        case _:
            return draw.choice([f"sk-{secret(40)}", f"ghp_{secret(36)}", f"AKIA{secret(16).upper()}", f"hf_{secret(34)}", f"glpat-{secret(20)}"])


def _harmless(draw: random.Random) -> str:
    n = draw.randint
    number = "".join(draw.choices("0123456789", k=16))
    return draw.choice(
        [
            f"version {n(1, 9)}.{n(0, 99)}.{n(0, 99)}",
            f"${n(1, 999)},{n(100, 999)}.{n(10, 99)}",
            f"{n(1900, 2030)}-{n(10, 12)}-{n(10, 28)}",
            f"{n(100, 999)}*{n(10, 99)}={n(1000, 99999)}",
            f"@{draw.choice(['ada', 'bob', 'team'])} at {n(1, 12)}:{n(10, 59)}:{n(10, 59)}",
            number if not is_card(number) else "none",
            f"order {n(10**6, 10**9)}",
            f"{n(256, 999)}.{n(256, 999)}.{n(256, 999)}.{n(256, 999)}",
            f"DE{n(10, 98)} {n(1000, 9999)} street",
            f"sk-learn and {n(1, 9)}+{n(1, 9)}",
        ]
    )


def misspelt(seed: int) -> tuple[float, float, int]:
    """(recall, precision, planted): slips in one of thirty of the built-in sample's longer words, and what `clean --step spelling` makes of them."""
    draw, planted, rows = random.Random(seed), dict[int, list[tuple[str, str]]](), []
    for line, raw in enumerate(SAMPLE.read_text().splitlines(), 1):
        text = json.loads(raw)["messages"][1]["content"]
        for word in {word for word in text.split() if word.isalpha() and word.islower() and len(word) >= 6 and draw.random() < 1 / 30}:
            text = text.replace(f" {word} ", f" {(wrong := _slip(word, draw))} ")
            if f" {wrong} " in text and wrong != word:
                planted.setdefault(line, []).append((wrong, word))
        rows.append(RawRow(line, {"text": text}))
    speller, found, right = Speller(rows, Spelling()), 0, 0
    for row in rows:
        before = row.fields["text"]
        changed = [pair for pair in zip(before.split(), speller.correct(before, "text").split(), strict=True) if pair[0] != pair[1]]
        found += len(changed)
        right += sum(pair in planted.get(row.line, []) for pair in changed)
    count = sum(map(len, planted.values()))
    return right / count, right / max(1, found), count


def _slip(word: str, draw: random.Random) -> str:
    """Two letters that changed places, one left out, one typed twice, or any other in its place, anywhere in the word."""
    i = draw.randrange(len(word) - 1)
    return draw.choice(
        [
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + word[i + 1 :],
            word[: i + 1] + word[i:],
            word[:i] + draw.choice("abcdefghijklmnopqrstuvwxyz") + word[i + 1 :],
        ]
    )


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    for seed in (1, 2, 3):
        start = time.perf_counter()
        recall, precision, planted = near_duplicates(rows, seed)
        took = time.perf_counter() - start
        print(f"near duplicates, seed {seed}: {planted:,} planted in {rows:,} rows, recall {recall:.4f}, precision {precision:.4f}, {took:.1f} s")
    for kind, (recall, precision) in personal_data(6000, 1).items():
        print(f"personal data, {kind}: recall {recall:.4f}, precision {precision:.4f}")
    for seed in (1, 2, 3):
        recall, precision, planted = misspelt(seed)
        print(f"misspelt words, seed {seed}: {planted:,} planted, recall {recall:.3f}, precision {precision:.3f}")


if __name__ == "__main__":
    main()
