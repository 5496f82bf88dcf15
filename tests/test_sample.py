"""The committed sample data: its form, its balance, and that the splits share no sentence."""

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tunewright" / "data" / "sample"
ROWS = {"train": 640, "validation": 100, "test": 200}
KEYS = ["intent", "product", "urgency"]
GREETING = re.compile(r"^(hi|hello|hey|good (morning|evening)|dear)( there| team)?, ")


def read(split: str) -> list[list[dict[str, str]]]:
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def users(split: str) -> list[str]:
    return [messages[1]["content"] for messages in read(split)]


def answers(split: str) -> list[dict[str, str]]:
    return [json.loads(messages[2]["content"]) for messages in read(split)]


def sentences(message: str) -> list[str]:
    """A message's filled sentences, whatever its greeting, case, spacing and punctuation."""
    text = GREETING.sub("", " ".join(message.lower().split()))
    parts = [re.sub(r"[^a-z0-9 ]", "", part) for part in re.split(r"[.!?]+(?:\s|$)", text)]
    return [part for part in parts if part]


def shared(splits: dict[str, list[str]]) -> set[str]:
    """The filled sentences that occur in more than one split."""
    found = {name: {s for text in texts for s in sentences(text)} for name, texts in splits.items()}
    return {s for a, b in combinations(found.values(), 2) for s in a & b}


def test_no_sentence_is_shared_between_splits() -> None:
    splits = {split: users(split) for split in ROWS}
    assert shared(splits) == set()
    # The check can fail: one training sentence, differently dressed, planted in a test row.
    planted = sentences(splits["train"][0])[0]
    splits["test"][7] += f" {planted.upper()}!"
    assert shared(splits) == {planted}


def test_no_sentence_occurs_twice() -> None:
    counts = Counter(s for split in ROWS for text in users(split) for s in sentences(text))
    assert [s for s, n in counts.items() if n > 1] == []


def test_rows_are_counted_chat_rows() -> None:
    for split, rows in ROWS.items():
        conversations = read(split)
        assert len(conversations) == rows
        for messages in conversations:
            assert [message["role"] for message in messages] == ["system", "user", "assistant"]
        assert len({messages[0]["content"] for messages in conversations}) == 1
        for text in users(split):
            assert text.isascii() and "{" not in text and 8 <= len(text.split()) <= 36, text


def test_answers_are_json_with_three_keys_in_order() -> None:
    for split in ROWS:
        for messages in read(split):
            text = messages[2]["content"]
            answer = json.loads(text)
            assert list(answer) == KEYS
            assert json.dumps(answer) == text


def test_the_product_is_named_and_is_the_only_one() -> None:
    products = {answer["product"] for answer in answers("train")}
    for split in ROWS:
        for text, answer in zip(users(split), answers(split), strict=True):
            words = {word.removesuffix("s") for word in re.findall(r"[a-z]+", text.lower())}
            assert words & products == {answer["product"]}, text


def test_labels_are_balanced_and_all_trained() -> None:
    sizes = {"intent": 5, "product": 10, "urgency": 3}
    for key, size in sizes.items():
        trained = {answer[key] for answer in answers("train")}
        assert len(trained) == size
        for split, rows in ROWS.items():
            counts = Counter(answer[key] for answer in answers(split))
            assert set(counts) == trained
            assert all(abs(n - rows / size) < 1 for n in counts.values()), (split, counts)


def test_generator_rewrites_the_committed_files() -> None:
    command = [sys.executable, str(ROOT / "recipes" / "sample" / "make.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
