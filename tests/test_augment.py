"""Augmentation: what each method may change, that answers and held-out rows stay out of it, and that the same seed gives the same rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from tunewright.cli import augment as command
from tunewright.data.augment import Augmented, augment, loses, methods, read, varied
from tunewright.data.check import check
from tunewright.data.variants import METHODS, kept_words, words_of
from tunewright.errors import BadConfig, BadData
from tunewright.models.load import Loaded
from tunewright.models.neighbours import neighbours
from tunewright.models.paraphrase import paraphrases

SENTENCE = "Please send the kettle to my sister in Berlin, it isn't broken and cost 30 euros"
EACH = ["characters", "drop", "swap", "entities:lists={city: [Berlin, Paris, Rome]}"]


def jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def rows(count: int, *labels: str) -> list[dict[str, Any]]:
    rng = random.Random(5)
    words = [a + b for a in ("ba", "ke", "li", "mo", "nu") for b in ("da", "fego", "gilo", "hopi", "xaru")]
    return [{"text": " ".join(rng.choices(words, k=12)), "label": labels[i % len(labels)]} for i in range(count)]


def made(folder: Path, given: list[str], *records: dict[str, Any], **options: Any) -> Augmented:
    return augment(read(jsonl(folder / "a.jsonl", *records))[0], methods(given), **options)


@pytest.mark.parametrize("method", EACH)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(SENTENCE.split()), max_size=12).map(" ".join), seed=st.integers(0, 2**32))
def test_a_variant_keeps_what_must_stay(method: str, text: str, seed: int) -> None:
    (chosen,) = methods([method])
    kept = kept_words("send it", ["kettle"])
    one, same = (varied(text, random.Random(seed), kept, chosen, {}, {}) for _ in range(2))
    assert one == same
    before, after = [word for word in words_of(text) if kept(word)], [word for word in words_of(one) if kept(word)]
    assert Counter(before) <= Counter(after) or method == "characters"
    assert [c for c in one if c.isdigit()] == [c for c in text if c.isdigit()]
    if method == "swap":
        assert sorted(words_of(one)) == sorted(words_of(text)) and sorted(one) == sorted(text)
    if method == "drop":
        assert Counter(one.split()) <= Counter(text.split()) and bool(one.split()) == bool(text.split())
    if method == "characters":
        assert one.count(" ") == text.count(" ") and abs(len(one) - len(text)) <= max(1, round(0.1 * len(words_of(text))))


def test_each_method_changes_about_its_share() -> None:
    text = " ".join(f"{'abcdefghij'[i % 10]}word{'xyz'[i % 3]}" for i in range(200))
    for name, share in (("characters", 0.2), ("drop", 0.2), ("swap", 0.2)):
        (method,) = methods([f"{name}:rate=0.2"])
        one = varied(text, random.Random(1), kept_words(""), method, {}, {})
        differs = len(text.split()) - len(one.split()) if name == "drop" else sum(a != b for a, b in zip(text.split(), one.split(), strict=True))
        assert 0.5 * share * 200 < differs < (2.1 if name == "swap" else 1.05) * share * 200


def test_names_change_together_and_those_in_the_answer_stay() -> None:
    (method,) = methods(["entities:lists={city: [Berlin, Paris, Rome, New York], who: [Ada, Bob]}"])
    text = "From Berlin to New York, Berlin! Bob and Ada; Romeo"
    for seed in range(20):
        one = varied(text, random.Random(seed), kept_words("Paris"), method, {}, {})
        assert one.endswith("Ada and Bob; Romeo")
        first, second = one.removeprefix("From ").split("!")[0].split(" to ")
        assert (first == "Rome" and second == "Paris, Rome") or (first, second) == ("Paris", "Rome, Paris")
    assert varied(text, random.Random(1), kept_words("in Berlin and New York, Ada"), method, {}, {}) == text


def test_only_what_is_asked_changes(tmp_path: Path) -> None:
    turns = [
        ("system", "Be brief, please"),
        ("user", "first question here"),
        ("assistant", "well"),
        ("user", SENTENCE),
        ("assistant", "the sister gets it"),
    ]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns], "note": "my own"}
    out = made(tmp_path, ["drop:rate=0.5", "swap:rate=0.5"], chat, copies=5)
    assert len(out.made) > 6
    for one in out.made:
        messages = one.fields["messages"]
        assert messages[:3] + messages[4:] == chat["messages"][:3] + chat["messages"][4:] and one.fields["note"] == "my own"
        assert {"the", "sister", "it", "isn't", "30"} <= set(words_of(messages[3]["content"])) | {
            w for w in messages[3]["content"].split() if w == "30"
        }
    alpaca = {"instruction": "Do it", "input": SENTENCE, "output": "yes"}
    assert all(one.fields["instruction"] == "Do it" and one.fields["output"] == "yes" for one in made(tmp_path, ["drop"], alpaca).made)


def test_rows_are_as_they_were_and_the_ledger_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"label": "x",  "text": "same words here twice \\u00e9"}\n{"label": "y", "text": "no"}\n')
    sources, _ = read(path)
    out = augment(sources, methods(["swap", "drop"]), copies=3, seed=2)
    lines = list(out.lines())
    assert [line for line in lines if line in path.read_bytes().splitlines()] == path.read_bytes().splitlines()
    assert len(lines) == 2 + len(out.made) and len(out.made) + sum(out.dropped.values()) == 2 * 2 * 3
    assert len({json.loads(line)["text"] for line in lines}) == len(lines)
    assert list(augment(sources, methods(["swap", "drop"]), copies=3, seed=2).lines()) == lines
    assert list(augment(sources, methods(["swap", "drop"]), copies=3, seed=3).lines()) != lines
    # What is asked of one row changes nothing of another's.
    assert set(augment(sources[:1], methods(["swap", "drop"]), copies=3, seed=2).lines()) <= set(lines)


@pytest.mark.parametrize("given", [[], ["swap", "drop"]])
def test_rare_labels_are_brought_up(tmp_path: Path, given: list[str]) -> None:
    records = rows(12, "often") + [row | {"text": row["text"] + " end"} for row in rows(3, "rare")]
    out = made(tmp_path, given, *records, copies=0, balance=0.75)
    labels = Counter(json.loads(line)["label"] for line in out.lines())
    assert labels == {"often": 12, "rare": 9}
    assert {one.method for one in out.made} == (set(given) or {"copy"})
    with pytest.raises(BadConfig, match="as many answers as rows"):
        made(tmp_path, [], *({"prompt": f"q {i}", "completion": f"a {i}"} for i in range(9)), balance=1.0)


def test_held_out_rows_are_refused_and_nothing_becomes_one(tmp_path: Path) -> None:
    records = rows(12, "x", "y")
    train = jsonl(tmp_path / "t.jsonl", *records)
    near = records[3]["text"].rsplit(" ", 1)[0] + " other"
    with pytest.raises(BadData) as bad:
        read(train, [jsonl(tmp_path / "h.jsonl", records[1] | {"label": "y"}, {"text": near, "label": "x"})])
    assert [(fault.line, fault.code) for fault in bad.value.faults] == [(2, "in_held_out_too"), (4, "near_held_out")]
    sources, _ = read(jsonl(tmp_path / "s.jsonl", {"text": "one two", "label": "x"}))
    assert augment(sources, methods(["swap"]), held_out=["two one"]).dropped == {"a_row_already": 1}
    long = " ".join(a + b for a in "abcdef" for b in ("fego", "gilo", "hopi", "xaru", "dano", "lika", "musu", "nore", "tipa", "welo"))
    sources, _ = read(jsonl(tmp_path / "l.jsonl", {"text": long, "label": "x"}))
    assert augment(sources, methods(["swap:rate=0.01"])).made
    assert augment(sources, methods(["swap:rate=0.01"]), held_out=[long + " end"]).dropped == {"near_held_out": 1}


def test_what_cannot_be_augmented_says_so(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for record in (pair, {"text": "a document alone"}, {"messages": [{"role": "assistant", "content": "hi"}]}):
        with pytest.raises(BadData) as bad:
            read(jsonl(tmp_path / "a.jsonl", record))
        assert bad.value.faults[0].code == "not_augmentable"
    for wrong, said in ((["nope"], "choose among characters"), (["drop:rate=0.9"], "less than or equal to 0.5"), (["entities"], "lists: is needed")):
        with pytest.raises(BadConfig, match=said):
            methods(wrong)
    assert set(METHODS) == {"characters", "drop", "swap", "synonyms", "entities", "paraphrase"}


@pytest.fixture(scope="module")
def model() -> Loaded:
    return Loaded(tiny.llama(), tiny.tokenizer(), "tiny", Path())


def test_neighbours_are_those_of_the_embedding(model: Loaded) -> None:
    table = model.model.get_input_embeddings().weight
    words = {model.tokenizer.decode([i]).strip(): i for i in range(table.shape[0]) if model.tokenizer.decode([i]).startswith(" ")}
    words = {word: i for word, i in words.items() if word.isalpha() and word.islower() and len(word) >= 3}
    one, other, third = [word for word in words if word[0] not in "tw"][:3]
    with torch.no_grad():
        table[words[other]] = table[words[one]] + 0.001
        table[words[third]] = -table[words[one]]
    centred = table - table[list(words.values())].mean(0)
    found = neighbours(model, [one.upper(), "nosuchword"], 0.5)
    assert list(found) == [one] and found[one][0] == other and third not in found[one]
    cosines = torch.cosine_similarity(centred[words[one]][None], centred)
    assert all(cosines[words[word]] >= 0.5 for word in found[one])
    (method,) = methods(["synonyms:rate=0.5"])
    said = varied(f"{one.capitalize()} kettle", random.Random(1), kept_words(""), method, {one: [other]}, {})
    assert said == f"{other.capitalize()} kettle"


def test_a_paraphrase_that_loses_what_must_stay_is_refused(model: Loaded) -> None:
    kept = kept_words("Berlin")
    assert not loses("I pay 30 in Berlin, not more", "In Berlin, I do not pay more than 30.", kept)
    for said in ("I pay 31 in Berlin, not more", "I pay 30 in Berlin", "I pay 30 there, not more"):
        assert loses("I pay 30 in Berlin, not more", said, kept)
    assert set(paraphrases(model, ["a", "b" * 400], "English", "German")) <= {"a"}


def test_the_command_and_its_evidence(tmp_path: Path, command_line: Callable[..., tuple[int, str]], model: Loaded) -> None:
    run = partial(command_line, "augment")
    tiny.save(tmp_path / "base", model.model)
    records = rows(16, "x", "y")
    jsonl(tmp_path / "t.jsonl", *records[:12])
    jsonl(tmp_path / "h.jsonl", *records[12:])
    threads = torch.get_num_threads()
    fast = ["--set", "threads=1", "--set", "precision=fp32", "--set", "tuning.rank=2", "--set", "hyperparameters.n_epochs=1"]
    code, said = run("t.jsonl", "--out", "o.jsonl", "--method", "drop", "--method", "synonyms:least=0", "--held-out", "h.jsonl", "--model", "base", "--measure", *fast)  # fmt: skip
    torch.set_num_threads(threads)
    assert code == 0, said
    assert "12 as they were" in said and "2 epochs of 12 rows" in said and "accuracy" in said
    assert check(tmp_path / "o.jsonl").ok and len((tmp_path / "o.jsonl").read_text().splitlines()) > 20
    assert (tmp_path / "o.jsonl.measure" / "plain" / "model").is_dir()
    jsonl(tmp_path / "one.jsonl", *({"text": f"pay {i}" * (i + 1), "label": "x"} for i in range(2)))
    assert "paraphrase" in run("one.jsonl", "--out", "r.jsonl", "--method", "paraphrase:model=base")[1]
    record = json.loads(run("t.jsonl", "--out", "p.jsonl", "--balance", "1", "--method", "swap", "--json")[1])
    assert record == json.loads((tmp_path / "p.jsonl.augment.json").read_text()) and record["rows_out"] == 12 + sum(record["made"].values())
    for words in (["t.jsonl", "--out", "q"], ["t.jsonl", "--out", "o.jsonl", "--method", "drop"], ["t.jsonl", "--out", "q", "--method", "drop", "--measure"],
                  ["t.jsonl", "--out", "q", "--method", "drop", "--held-out", "t.jsonl"]):  # fmt: skip
        code, said = run(*words)
        assert code in (2, 3) and "Traceback" not in said and not (tmp_path / "q").exists()
    assert command.augment.__doc__
