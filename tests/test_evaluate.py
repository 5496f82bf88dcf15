"""Measurements against transformers, scikit-learn and hand counts; intervals against distributions that are known."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import tiny
from test_generate import chain
from tunewright.data.example import Chat, Completion, Labelled, Message
from tunewright.data.tokens import tokenize
from tunewright.errors import Problem
from tunewright.evaluate.metrics import Measurement, measure
from tunewright.evaluate.verdict import bootstrap, difference, wilson

torch.set_num_threads(1)


def chats(n: int = 12) -> list[Chat]:
    lines = (tiny.SAMPLE / "train.jsonl").read_text().splitlines()[:n]
    turns = [json.loads(line)["messages"] for line in lines]
    return [Chat(tuple(Message(m["role"], m["content"], m["role"] == "assistant") for m in messages), line=i + 1) for i, messages in enumerate(turns)]


def measured(wanted: list[str], given: list[str], seed: int = 0) -> Measurement:
    """A measurement whose answers are given, with some token scores."""
    draws, n = np.random.default_rng(seed), len(wanted)
    tokens = np.random.default_rng(99).integers(1, 30, n).astype(float)
    correct = np.minimum(tokens, draws.integers(0, 30, n))
    return Measurement(
        lines=tuple(range(1, n + 1)),
        nll=draws.gamma(2.0, 1.0, n) * tokens,
        tokens=tokens,
        correct=correct,
        expected=tuple(wanted),
        answers=tuple(given),
        finished=(True,) * n,
        labelled=False,
        max_new_tokens=9,
    )


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_loss_is_transformers_own(shape: str) -> None:
    model, tokenizer = tiny.SHAPES[shape](), tiny.tokenizer()
    found = measure(model, tokenizer, chats(), 256, generate=False, budget=600)
    for i, row in enumerate(tokenize(chats(), tokenizer, 256).rows):
        ids, trained = torch.from_numpy(row.ids).long()[None], torch.from_numpy(row.trained)[None]
        with torch.no_grad():
            out = model(input_ids=ids, labels=torch.where(trained, ids, -100))
        likeliest = out.logits[0, :-1].argmax(-1).tolist()
        right = sum(guess == int(row.ids[j + 1]) for j, guess in enumerate(likeliest) if row.trained[j + 1])
        assert found.tokens[i] == row.trained.sum()
        assert found.correct[i] == right
        assert abs(found.nll[i] / found.tokens[i] - out.loss.item()) < 1e-5
    summary = found.summary()
    assert summary["loss"].value == pytest.approx(found.nll.sum() / found.tokens.sum(), rel=1e-12)
    assert summary["perplexity"].value == pytest.approx(np.exp(summary["loss"].value), rel=1e-12)
    assert summary["perplexity"].low == pytest.approx(np.exp(summary["loss"].low), rel=1e-12)
    assert set(summary) == {"loss", "perplexity", "token_accuracy"}


def test_known_answers_are_counted_by_hand() -> None:
    tokenizer = tiny.tokenizer(None)
    model = chain(tokenizer, ["ab", "cd", "e{"])
    pairs = [("a", "b"), ("xa", " b"), ("c", "d"), ("c", "b"), ("e", "d"), ("f", "b")]
    examples = [Completion(p, c, i + 1) for i, (p, c) in enumerate(pairs)]
    found = measure(model, tokenizer, examples, 64)
    assert found.answers == ("b", "b", "d", "d", "{", "")
    assert all(found.finished)
    summary = found.summary()
    # White space around an answer is set aside; "{" and "" are no labels, hence wrong.
    assert summary["exact_match"].value == summary["accuracy"].value == 3 / 6
    # b: 2 right, 4 expected, 2 answered; d: 1 right, 2 expected, 2 answered.
    assert summary["macro_f1"].value == pytest.approx((2 * 2 / 6 + 2 * 1 / 4) / 2)
    assert (summary["exact_match"].low, summary["exact_match"].high) == wilson(3, 6)
    assert "only 6 rows" in summary["loss"].note
    # Completion + end: the chain knows b, end | d, end | end after the wrong "b" | end | end; row 2 is " b" and end.
    assert found.correct[[0, 2, 3, 4, 5]].tolist() == [2, 2, 1, 1, 1]


def test_what_is_not_measured_is_named() -> None:
    calls = "{% for call in m['tool_calls'] or [] %}{{ call['function']['name'] }}{% endfor %}"
    tokenizer = tiny.tokenizer(tiny.CHATML.replace("<|im_end|>", calls + "<|im_end|>", 1))
    said = Message("assistant", "yes", True)
    call = Message("assistant", "", True, {"tool_calls": [{"function": {"name": "switch", "arguments": "{}"}}]})
    examples = [
        Chat((Message("user", "hi"), said), 1),
        Chat((Message("user", "word " * 80), said), 2),
        Chat((Message("user", "hi"), said, Message("user", "word " * 80), said), 3),
        Chat((Message("user", "hi"),), 4),
        Chat((Message("user", "hi"), call), 5),
        Chat((Message("user", "hi"), said), 6),
    ]
    found = measure(tiny.llama(), tokenizer, examples, 60)
    assert found.lines == (1, 3, 5, 6)
    assert found.dropped == {"nothing_to_learn_after_cut": [2], "nothing_to_learn": [4]}
    assert found.not_asked == {"prompt_too_long": [3], "tool_call": [5]}
    assert found.cut == [3]
    assert [answer is None for answer in found.answers] == [False, True, True, False]
    assert found.summary()["exact_match"].n == 2
    with pytest.raises(Problem) as caught:
        measure(tiny.llama(), tokenizer, examples[1:2], 60)
    assert caught.value.code == "no_rows"
    assert "nothing_to_learn_after_cut 1" in caught.value.message


def test_macro_f1_of_any_resample_is_scikit_learns() -> None:
    draws = np.random.default_rng(3)
    wanted = draws.choice(["red", "blue", "green"], 80, p=[0.7, 0.25, 0.05]).tolist()
    given = [w if draws.random() < 0.6 else str(draws.choice(["red", "blue", "mauve"])) for w in wanted]
    metric = measured(wanted, given).metrics()["macro_f1"]
    for drawn in [np.arange(80), *draws.integers(80, size=(50, 80))]:
        truth, guess = np.array(wanted)[drawn], np.array(given)[drawn]
        own = metric.statistic(np.bincount(drawn, minlength=80)[None].astype(float))[0]
        assert own == pytest.approx(f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0), abs=1e-12)


def test_json_answers_are_compared_field_by_field() -> None:
    wanted = ['{"a": 1, "b": "x"}', '{"a": 1, "b": "y"}', '{"a": 2, "b": "z", "c": 0}', '{"a": 3, "b": "z"}']
    given = ['{"a": 1, "b": "x"}', '{"b": "y", "a": true}', "[" * 5000, '{"a": 3, "b": "q"']
    values = {name: estimate.value for name, estimate in measured(wanted, given).summary().items()}
    assert {name: values[name] for name in ("exact_match", "json_valid", "field_a", "field_b")} == {
        "exact_match": 0.25,
        "json_valid": 0.5,
        "field_a": 0.25,
        "field_b": 0.5,
    }
    assert "field_c" not in values  # not every answer has it
    assert "macro_f1" not in values  # four rows, four answers: no set of labels


def test_intervals_cover_what_they_should() -> None:
    draws, covered, paired = np.random.default_rng(11), 0, 0
    for trial in range(300):
        tokens = draws.integers(5, 40, 40).astype(float)
        # Rows of their own difficulty, and the true ratio is 2: rows matter, not tokens.
        nll = draws.gamma(4.0, 0.5, 40) * tokens
        found = bootstrap(lambda w, a=nll, b=tokens: (w @ a) / (w @ b), 40, seed=trial, resamples=1000)
        covered += found.low <= 2 <= found.high
        gains = draws.normal(0.3, 1.0, 12)
        found = bootstrap(lambda w, g=gains: (w @ g) / w.sum(axis=1), 12, seed=trial, resamples=1000)
        paired += found.low <= 0.3 <= found.high
    # 0.95 plus or minus two standard deviations of 300 trials, 0.025.
    assert 0.925 <= covered / 300 <= 0.975
    assert 0.925 <= paired / 300 <= 0.975


def test_a_model_does_not_differ_from_itself() -> None:
    tokenizer = tiny.tokenizer()
    model = tiny.llama()
    twice = [measure(model, tokenizer, chats(), 256, max_new_tokens=4, budget=budget) for budget in (8192, 8192)]
    found = difference(*twice)
    assert {"loss", "exact_match", "json_valid", "field_intent"} <= set(found)
    for item in found.values():
        assert (item.difference, item.low, item.high) == (0, 0, 0)
        assert item.verdict == "no measurable difference"
        assert item.before == item.after


def test_swapping_before_and_after_turns_every_sign() -> None:
    wanted = ["x", "y"] * 40
    first, second = measured(wanted, ["x"] * 80, 1), measured(wanted, ["y", "y", "x", "y"] * 20, 2)
    turned = {"better": "worse", "worse": "better", "no measurable difference": "no measurable difference"}
    back = difference(second, first)
    for name, item in difference(first, second).items():
        assert (back[name].difference, back[name].low, back[name].high) == (-item.difference, -item.high, -item.low)
        assert back[name].verdict == turned[item.verdict]
        assert (back[name].before, back[name].after) == (item.after, item.before)


def test_a_planted_improvement_is_found_and_no_other() -> None:
    tokenizer = tiny.tokenizer(None)
    examples = [Completion("q" * (i % 5) + p, c, i + 1) for i, (p, c) in enumerate([("a", "b"), ("c", "d"), ("a", "b")] * 12)]
    base, tuned = (measure(chain(tokenizer, texts), tokenizer, examples, 64) for texts in (["ab", "cb"], ["ab", "cd"]))
    found = difference(base, tuned)
    assert found["exact_match"].difference == pytest.approx(1 / 3)
    assert found["exact_match"].low > 0
    assert {name: found[name].verdict for name in ("exact_match", "macro_f1", "token_accuracy", "loss")} == {
        "exact_match": "better", "macro_f1": "better", "token_accuracy": "better", "loss": "better",
    }  # fmt: skip
    assert found["loss"].difference < 0  # lower is better, and the verdict knows
    noise = replace(base, nll=base.nll + np.tile([0.01, -0.01], 18))
    assert difference(base, noise)["loss"].verdict == "no measurable difference"


def test_pairing_sees_what_two_intervals_hide() -> None:
    before = measured(["x", "y"] * 50, ["x"] * 100)
    after = replace(before, nll=before.nll - 0.02 * before.tokens * np.random.default_rng(5).random(100))
    found = difference(before, after)["loss"]
    assert found.before.low < found.after.value < found.before.high
    assert found.verdict == "better"
    assert found.high - found.low < 0.1 * (found.before.high - found.before.low)


def test_shares_of_all_and_none_keep_an_interval() -> None:
    # Wilson's interval of 10 of 10 is [0.7225, 1], of 0 of 10 its mirror; of 1 of 10 [0.0179, 0.4042].
    assert wilson(10, 10) == pytest.approx((0.72246, 1), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0, 0.27754), abs=1e-5)
    assert wilson(1, 10) == pytest.approx((0.01788, 0.40415), abs=1e-5)
    wanted = ["x", "y"] * 50
    all_right = replace(measured(wanted, wanted), correct=measured(wanted, wanted).tokens)
    none_right = replace(all_right, answers=("z",) * 100, correct=np.zeros(100))
    for name in ("exact_match", "accuracy", "macro_f1", "token_accuracy"):
        best, worst = all_right.summary()[name], none_right.summary()[name]
        assert (best.value, best.low, best.high) == (1, wilson(100, 100)[0], 1)
        assert (worst.value, worst.low, worst.high) == (0, 0, wilson(0, 100)[1])
        change = difference(none_right, all_right)[name]
        assert (change.difference, change.low, change.high, change.verdict) == (1, wilson(100, 100)[0], 1, "better")


def test_what_cannot_be_compared_is_refused() -> None:
    found = measured(["x", "y"] * 5, ["x"] * 10)
    for other in (
        replace(found, lines=tuple(range(2, 12))),
        replace(found, expected=("y",) * 10),
        replace(found, tokens=found.tokens + 1),
        replace(found, answers=(None,) * 10),
    ):
        with pytest.raises(Problem) as caught:
            difference(found, other)
        assert caught.value.code == "rows_differ"
    with pytest.raises(Problem) as caught:
        measured(["x"], ["x"]).summary()
    assert caught.value.code == "too_few_rows"


def test_a_damaged_model_is_not_measured() -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(Problem) as caught:
        measure(model, tiny.tokenizer(), chats(2), 256, generate=False)
    assert caught.value.code == "non_finite_loss"


def test_labels_are_labels_however_many() -> None:
    tokenizer = tiny.tokenizer()
    found = measure(tiny.llama(), tokenizer, [Labelled("abc"[i], "xyz"[i], i + 1) for i in range(3)], 128)
    assert found.labelled
    assert "macro_f1" in found.summary()


def test_two_thousand_rows_take_no_time() -> None:
    draws = np.random.default_rng(0)
    wanted = draws.choice([f"label {i}" for i in range(50)], 2000).tolist()
    found = measured(wanted, draws.permutation(wanted).tolist())
    start = time.process_time()
    found.summary()
    assert time.process_time() - start < 5  # about 1 s: a loop over resamples would take minutes
