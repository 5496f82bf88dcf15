"""Splitting: every row in one part, like rows in the same part, labels in proportion, and the same again for the same seed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data.check import check
from tunewright.data.example import Chat, Completion, Labelled, Message
from tunewright.data.groups import near_links
from tunewright.data.near import ALIKE, alike, triples_of
from tunewright.data.split import Split, split
from tunewright.errors import BadConfig

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
WORDS = [a + b for a in ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti") for b in ("da", "fe", "gi", "ho", "pu", "xa", "ze")]


def prose(seed: int, count: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def part_of(made: Split) -> list[str]:
    return [next(name for name, rows in made.parts.items() if i in rows) for i in range(len(made.groups))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    shares=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.7, 0.3), (0.34, 0.33, 0.33)]),
    seed=st.integers(0, 2**40),
)
def test_every_label_is_within_one_row_of_its_share(sizes: list[int], shares: tuple[float, ...], seed: int) -> None:
    asked = dict(zip(SHARES, shares, strict=False))
    rows = [Labelled(f"row {label} {i}", f"label {label}") for label, size in enumerate(sizes) for i in range(size)]
    if len(rows) * min(shares) < len(sizes) + 1:
        return  # too few for every part
    made = split(rows, asked, seed)
    assert sorted(sum(made.parts.values(), [])) == list(range(len(rows)))  # noqa: RUF017
    for name, share in asked.items():
        counts = Counter(rows[i].label for i in made.parts[name])
        assert all(abs(counts[f"label {label}"] - size * share) < 1 for label, size in enumerate(sizes))
        assert abs(len(made.parts[name]) - len(rows) * share) <= 1
        assert made.parts[name] == sorted(made.parts[name])
    assert split(rows, asked, seed) == made


@settings(max_examples=40, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 9), min_size=30, max_size=60), seed=st.integers(0, 2**40))
def test_no_group_is_torn_and_parts_keep_their_size(sizes: list[int], seed: int) -> None:
    keys = [group for group, size in enumerate(sizes) for _ in range(size)]
    order = random.Random(seed).sample(range(len(keys)), len(keys))
    keys = [keys[i] for i in order]
    made = split([Completion(f"q {i}", f"a {i}") for i in range(len(keys))], SHARES, seed, keys)
    parts = part_of(made)
    assert all(len({part for part, key in zip(parts, keys, strict=True) if key == group}) == 1 for group in keys)
    assert Counter(parts).total() == len(keys)
    for name, share in SHARES.items():
        assert abs(len(made.parts[name]) - len(keys) * share) <= max(sizes)


def test_rows_about_one_passage_and_near_duplicates_stay_together() -> None:
    rng = random.Random(3)
    rows: list[Chat | Completion] = []
    for i in range(40):
        passage = prose(i, 50)
        questions = [prose(1000 + 10 * i + k, 20) for k in range(rng.randint(1, 5))]
        rows += [Chat((Message("system", "Be brief."), Message("user", f"{passage} {q}"), Message("assistant", "yes", True))) for q in questions]
    for i in range(60):
        words = prose(5000 + i, 40).split()
        copies = [words, [*words[:-1], "end"], ["start", *words[1:]]][: rng.randint(1, 3)]
        rows += [Chat((Message("user", " ".join(copy)), Message("assistant", "no", True))) for copy in copies]
    rng.shuffle(rows)
    made = split(rows, SHARES, 1)
    texts = ["\n".join(m.content for m in row.messages if m.role != "system") for row in rows]  # type: ignore[union-attr]
    parts = part_of(made)
    torn = 0
    for i, j in combinations(range(len(rows)), 2):
        is_alike = alike(triples_of(texts[i]), triples_of(texts[j])) >= ALIKE or texts[i].split()[:30] == texts[j].split()[:30]
        torn += is_alike and parts[i] != parts[j]
        assert not is_alike or made.groups[i] == made.groups[j]
    assert torn == 0 and made.joined["same passage"] > 20 and made.joined["near duplicate"] >= 20
    assert made.labels is not None  # two answers that recur


def test_links_are_those_of_counting_every_pair() -> None:
    texts = []
    for i in range(30):
        words = prose(i, 40).split()
        texts += [" ".join([*words[:cut], *prose(900 + i + cut, 40 - cut).split()]) for cut in (40, 39, 37, 34, 30)]
    texts = list(dict.fromkeys(texts))  # of equal ones the first stands for all
    counted = {(j, i) for i, j in combinations(range(len(texts)), 2) if alike(triples_of(texts[i]), triples_of(texts[j])) >= ALIKE}
    assert set(near_links(texts)) == counted and len(counted) > 60


def test_an_instruction_that_all_rows_begin_with_is_no_passage() -> None:
    start = prose(7, 45)
    rows = [Completion(f"{start} {prose(100 + i // 3, 35)} {prose(i, 12)}", "x") for i in range(90)]
    made = split(rows, SHARES)
    assert made.templates == [(45, 90)]
    assert made.groups == [i - i % 3 for i in range(90)]


def test_answers_of_one_input_stay_together_and_so_do_own_keys() -> None:
    rows = [Labelled(f"text {i // 2}", "ab"[i % 2]) for i in range(100)]
    assert split(rows, SHARES).groups == [i - i % 2 for i in range(100)]
    keys = [f"author {i % 10}" if i < 50 else None for i in range(100)]
    parts = part_of(split([Labelled(f"text {i}", "a") for i in range(100)], SHARES, keys=keys))
    assert all(len(set(parts[i:50:10])) == 1 for i in range(10))


def test_what_cannot_be_split_says_why() -> None:
    with pytest.raises(BadConfig, match="largest group that must stay together has 30"):
        split([Labelled("same", str(i)) for i in range(30)], SHARES)
    with pytest.raises(BadConfig, match="it takes more"):
        split([Labelled(str(i), "x") for i in range(3)], SHARES)
    with pytest.raises(BadConfig, match="add up to 1"):
        split([Labelled(str(i), "x") for i in range(30)], {"train": -0.8, "validation": 0.9, "test": 0.9})


def test_the_command_on_real_rows(shared_data: Path, tmp_path: Path, command_line: Callable[..., tuple[int, str]]) -> None:
    lines = (shared_data / "ar_lsat" / "train.jsonl").read_bytes().splitlines(keepends=True)[:400]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    run = partial(command_line, "split")
    code, said = run("a.jsonl", "--out", "s", "--seed", "4")
    assert code == 0 and "by same passage" in said and "asked for" in said
    parts = {name: (tmp_path / "s" / f"{name}.jsonl").read_bytes().splitlines(keepends=True) for name in SHARES}
    assert sorted(sum(parts.values(), [])) == sorted(lines)  # noqa: RUF017
    record: dict[str, Any] = json.loads((tmp_path / "s" / "split.json").read_text())
    assert record["rows"] == {name: len(part) for name, part in parts.items()}
    assert all(abs(by[name] - sum(by.values()) * share) < 8 for by in record["labels"].values() for name, share in SHARES.items())
    for name in ("validation", "test"):
        codes = {fault.code for fault in check(tmp_path / "s" / "train.jsonl", tmp_path / "s" / f"{name}.jsonl").faults}
        assert not codes & {"in_validation_too", "near_in_validation", "passage_in_validation_too"}
    assert json.loads(run("a.jsonl", "--out", "t", "--seed", "4", "--json")[1]) == record
    assert (tmp_path / "t" / "test.jsonl").read_bytes() == (tmp_path / "s" / "test.jsonl").read_bytes()
    assert run("a.jsonl", "--out", "u", "--seed", "5")[0] == 0
    assert (tmp_path / "u" / "test.jsonl").read_bytes() != (tmp_path / "s" / "test.jsonl").read_bytes()
    for words, code in ((["a.jsonl", "--out", "s"], 2), (["a.jsonl", "--out", "v", "--group-by", "gone"], 2), (["gone", "--out", "v"], 3)):
        left, said = run(*words)
        assert (left, "Traceback" in said) == (code, False)
