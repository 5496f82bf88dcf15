"""Labelling: suggestions are the model's own probabilities, corrections land on their rows, and kappa is scikit-learn's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from transformers import BertConfig, BertForSequenceClassification

import tiny
from tunewright.data.labels import fill, label_of, labelled, matched, questions, suggestion, write_suggestions
from tunewright.data.tokens import render
from tunewright.errors import BadConfig, BadData
from tunewright.evaluate.labelling import agreement, disagreements, log_chances, normalised, suggest
from tunewright.evaluate.verdict import bootstrap
from tunewright.models.load import Loaded

LABELS = ["complaint", "a question", "praise"]


@pytest.fixture(scope="module")
def model() -> Loaded:
    made = tiny.llama()
    with torch.no_grad():  # larger weights, or all labels would be alike
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.mul_(8)
    return Loaded(made, tiny.tokenizer(), "tiny", Path())


def jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def text(value: str, label: Any = None) -> dict[str, Any]:
    return {"text": value, "label": label}


def test_probabilities_are_those_of_the_plain_model(model: Loaded, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Label it"}, {"role": "user", "content": "My kettle leaks"}]
    for at, record in enumerate(({"text": "My kettle leaks"}, {"prompt": "Kettle: "}, {"messages": turns})):
        asked = questions(jsonl(tmp_path / f"{at}.jsonl", record))
        assert asked[0].label is None
        (found,) = log_chances(model, [asked[0].example], LABELS)
        for label, chance in zip(LABELS, found if found is not None else [], strict=True):
            row = render(asked[0].example(label), model.tokenizer)
            with torch.no_grad():
                logits = model.model(torch.tensor(row.ids[None].astype(np.int64))).logits[0].double().log_softmax(-1)
            expected = sum(float(logits[i - 1, row.ids[i]]) for i in row.trained.nonzero()[0])
            assert chance == pytest.approx(expected, abs=1e-3)
        shares, mass = normalised(np.asarray(found))
        assert shares.sum() == pytest.approx(1) and mass == pytest.approx(np.exp(np.asarray(found)).sum())
        assert shares == pytest.approx(np.exp(found) / np.exp(found).sum())  # type: ignore[arg-type]


def test_many_rows_and_few_at_once_give_the_same(model: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions(jsonl(tmp_path / "a.jsonl", *(text(f"row {i} " * (i + 1)) for i in range(9)), text("long " * 300)))
    whole = list(log_chances(model, [one.example for one in asked], LABELS))
    monkeypatch.setattr("tunewright.evaluate.labelling._AT_ONCE", 6)
    parts = list(log_chances(model, [one.example for one in asked], LABELS, budget=64))
    assert whole[9] is None and parts[9] is None
    assert np.stack(whole[:9]) == pytest.approx(np.stack(parts[:9]), abs=1e-3)  # type: ignore[arg-type]


def test_suggestions_the_least_sure_first_and_the_labelled_rows_as_evidence(model: Loaded, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *(text(f"row {i}") for i in range(12)), text("known", "praise"), text("long " * 300), text("number", 3))
    made = suggest(model, questions(path), LABELS)
    assert made.left_out == [14] and [label for label, *_ in made.known] == ["praise", "3"] and len(made.masses) == 12
    write_suggestions(tmp_path / "s.jsonl", made.rows)
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in rows) == list(range(1, 13))
    assert [row["confidence"] for row in rows] == sorted(row["confidence"] for row in rows)
    for row in rows:
        assert row["label"] is None and row["text"] == f"row {row['line'] - 1}"
        assert max(row["probabilities"].values()) == pytest.approx(row["confidence"], abs=1e-4) and row["suggestion"] in LABELS


def test_a_classifiers_suggestions_are_those_of_its_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    names = {0: "complaint", 1: "praise", 2: "question"}
    shape = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "pad_token_id": 0}
    bert = BertForSequenceClassification(BertConfig(**shape, id2label=names, label2id={v: k for k, v in names.items()})).eval()
    with torch.no_grad():
        bert.classifier.weight.mul_(200)
    loaded = Loaded(bert, tiny.tokenizer(), "tiny", Path())
    texts = ["My kettle leaks", "thank you", "when does it ship"] * 4
    asked = questions(jsonl(tmp_path / "a.jsonl", *(text(f"{one} {i}") for i, one in enumerate(texts)), text("it is good", "praise")))
    found = suggest(loaded, asked, list(loaded.labels))
    assert found.masses == pytest.approx([1.0] * 12) and [label for label, *_ in found.known] == ["praise"]
    for row in found.rows:
        with torch.no_grad():
            chances = bert(**loaded.tokenizer(row["text"], return_tensors="pt")).logits[0].softmax(-1)
        assert row["suggestion"] == names[int(chances.argmax())] and row["confidence"] == pytest.approx(float(chances.max()), abs=1e-5)
    assert len({row["confidence"] for row in found.rows}) > 3


@pytest.mark.parametrize(
    ("record", "label"),
    [
        (text("a", "x"), "x"), (text("a"), None), (text("a", " "), None), (text("a", True), "true"), (text("a", 2), "2"), ({"text": "a"}, None), ({"premise": "a", "hypothesis": "b", "label": "x"}, "x"), ({"sentence1": "a", "sentence2": "b"}, None),
        ({"prompt": "a", "completion": " x"}, " x"), ({"prompt": "a"}, None),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]}, "x"),
        ({"messages": [{"role": "user", "content": "a"}]}, None),
    ],
)  # fmt: skip
def test_a_label_is_found_where_it_is_written(record: dict[str, Any], label: str | None) -> None:
    assert label_of(record) == label
    assert label_of(labelled(record, "new")) == "new"
    assert {**labelled(record, "new"), "messages": 0, "label": 0, "completion": 0} == {**record, "messages": 0, "label": 0, "completion": 0}


def made(path: Path, *given: tuple[str, float, str | None]) -> Path:
    asked = questions(path)
    rows = [suggestion(one, name, sure, {name: sure}) | {"label": label} for one, (name, sure, label) in zip(asked, given, strict=True)]
    write_suggestions(path.with_name("s.jsonl"), rows)
    return path.with_name("s.jsonl")


def test_corrections_go_over_suggestions_and_labels_stay(tmp_path: Path) -> None:
    first = '{"label": "was",  "text": "kept \\u00e9"}'
    path = jsonl(tmp_path / "a.jsonl", *(text(f"row {i}") for i in range(4)))
    path.write_text(first + "\n" + path.read_text())
    given = made(path, ("x", 1.0, "never"), ("x", 0.99, None), ("x", 0.6, "y"), ("x", 0.8, None), ("x", 0.2, None))
    filled = fill(path, given, 0.8)
    assert filled.rows[0].decode() == first
    assert [json.loads(row) for row in filled.rows[1:]] == [text("row 0", "x"), text("row 1", "y"), text("row 2", "x")]
    assert (filled.before, filled.corrected, filled.accepted, filled.left_out) == (1, 1, 2, [5])
    assert [json.loads(row)["label"] for row in fill(path, given, None).rows] == ["was", "y"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"line": 99}, "no_such_line"), ({"line": 2}, "line_twice"), ({"text": "other"}, "another_row"), ({"label": 3}, "label_not_text"),
        ({"label": " "}, "label_not_text"), ({"confidence": True}, "not_a_suggestion"), ({"suggestion": None}, "not_a_suggestion"),
    ],
)  # fmt: skip
def test_corrections_of_another_file_are_refused(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", text("row 0"), text("row 1"))
    given = made(path, ("x", 0.1, None), ("x", 0.2, None))
    rows = [json.loads(line) for line in given.read_text().splitlines()]
    jsonl(given, rows[1], rows[0] | change)
    with pytest.raises(BadData) as bad:
        fill(path, given, 0.0)
    assert [(fault.code, fault.line) for fault in bad.value.faults] == [(code, 2)]


@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_scikit_learns(seed: int) -> None:
    rng = random.Random(seed)
    one = rng.choices("abcd", weights=[5, 3, 1, 1], k=80)
    other = [a if rng.random() < 0.7 else rng.choice("abc") for a in one]
    found = agreement(one, other, seed)
    assert found["kappa"].value == pytest.approx(cohen_kappa_score(one, other))
    assert found["agreement"].value == pytest.approx(np.mean(np.array(one) == np.array(other)))
    # The interval: the same resamples, each given to scikit-learn.
    drawn = bootstrap(
        lambda weights: np.array([cohen_kappa_score(one, other, sample_weight=w) for w in weights]), 80, seed, 2000 if seed == 0 else 20
    )
    if seed == 0:
        assert (found["kappa"].low, found["kappa"].high) == (pytest.approx(drawn.low), pytest.approx(drawn.high))
    assert found["kappa"].low < found["kappa"].value < found["kappa"].high


def test_kappa_of_those_who_guess_is_nothing_and_of_one_label_is_not_said() -> None:
    rng = random.Random(1)
    found = agreement(rng.choices("ab", k=400), rng.choices("ab", k=400))
    assert found["kappa"].low < 0 < found["kappa"].high
    assert "kappa" not in agreement(["a"] * 9, ["a"] * 9)
    assert agreement(list("abab"), list("abab"))["kappa"].value == 1
    assert disagreements(list("aabbc"), list("bbbac")) == [("a", "b", 2), ("b", "a", 1)]


def test_two_files_are_matched_by_their_inputs(tmp_path: Path) -> None:
    one = jsonl(tmp_path / "a.jsonl", text("p", "x"), text("q", "y"), text("p", "z"), text("only", "x"), text("r"))
    other = jsonl(tmp_path / "b.jsonl", text("q", "y"), text("p", "y"), text("r", "x"), text("p", "z"))
    assert matched(one, other) == (["x", "y", "z"], ["y", "y", "z"], 2)
    with pytest.raises(BadConfig, match="0 labelled rows in common"):
        matched(one, jsonl(tmp_path / "c.jsonl", text("s", "x")))


def test_the_commands(tmp_path: Path, command_line: Callable[..., tuple[int, str]], model: Loaded) -> None:
    run = partial(command_line, "label")

    def change(path: Path, how: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        jsonl(path, *(how(json.loads(line)) for line in path.read_text().splitlines()))

    tiny.save(tmp_path / "base", model.model)
    jsonl(tmp_path / "a.jsonl", *(text(f"row {i}") for i in range(6)), text("one", "x"), text("two", "y"))
    code, said = run("a.jsonl", "--model", "base", "--out", "s.jsonl")
    assert code == 0 and "6 suggestions" in said and "hardly tuned" in said and "Cohen's kappa" in said
    record = json.loads(run("a.jsonl", "--model", "base", "--out", "t.jsonl", "--labels", "x, y,z", "--json")[1])
    assert (record["labels"], record["suggested"], record["labelled_already"]) == (["x", "y", "z"], 6, 2)
    change(tmp_path / "s.jsonl", lambda row: row | {"label": "y" if row["text"] == "row 3" else None})
    code, said = run("a.jsonl", "--corrections", "s.jsonl", "--out", "l.jsonl")
    assert code == 0 and "2 labelled before, 1 corrected, 0 suggestions taken" in said and "5 rows left out" in said
    assert [json.loads(line)["label"] for line in (tmp_path / "l.jsonl").read_text().splitlines()] == ["y", "x", "y"]
    assert json.loads(run("a.jsonl", "--corrections", "s.jsonl", "--out", "m.jsonl", "--at-least", "0", "--json")[1])["accepted"] == 5
    code, said = run("l.jsonl", "--agreement", "m.jsonl")
    assert code == 0 and "3 rows that both labelled (5 only one did)" in said
    bad = (["a.jsonl"], ["a.jsonl", "--model", "base"], ["a.jsonl", "--model", "base", "--out", "s.jsonl"])
    for words in (*bad, ["a.jsonl", "--model", "base", "--out", "n", "--labels", "x"], ["s.jsonl", "--corrections", "a.jsonl", "--out", "a.jsonl"]):
        code, said = run(*words)
        assert code in (2, 3) and "Traceback" not in said
