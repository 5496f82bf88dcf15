"""DPO against its formula, its starting point, and the gate for pairs."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import tiny
from tunewright.config import TrainConfig
from tunewright.data import formats
from tunewright.data.check import check
from tunewright.data.tokens import RowPair, tokenize
from tunewright.errors import BadConfig, BadData
from tunewright.models.forward import batches
from tunewright.train.folder import sha256
from tunewright.train.loop import train
from tunewright.train.losses import dpo


def pairs(count: int, openai: bool = True) -> str:
    """Sums with a right and a wrong answer."""
    lines = []
    for i in range(count):
        ask, right, wrong = f"What is {i} plus 2?", f"It is {i + 2}.", f"It is {i + 3}, I think."
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ask me."}, {"role": "user", "content": ask}]
        answers = [[{"role": "assistant", "content": text}] for text in (right, wrong)]
        if openai:
            lines.append({"input": {"messages": turns}, "preferred_output": answers[0], "non_preferred_output": answers[1]})
        elif i % 2:
            lines.append({"prompt": turns, "chosen": answers[0], "rejected": answers[1]})
        else:
            lines.append({"prompt": ask, "chosen": right, "rejected": wrong})
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text(pairs(14))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"), tiny.llama())


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": str(data), "validation": str(data), "model": base, "out": str(out), "threads": 1, "precision": "fp32"}
    return TrainConfig.parse(record, ["method=dpo", "hyperparameters.n_epochs=2", "hyperparameters.batch_size=4", *assignments])


def log_prob(model, row) -> torch.Tensor:
    """An answer's log-probability, token by token, from the model's plain logits."""
    ids = torch.from_numpy(row.ids).long()
    logits = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return sum(logits[j - 1, ids[j]] for j in range(1, len(ids)) if row.trained[j])


@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_and_its_gradient_are_the_papers(data, shared):
    items = tokenize(formats.load(data), tiny.tokenizer(), 256).rows
    model, reference, beta = tiny.llama(seed=1), tiny.llama(seed=0), 0.3
    with torch.no_grad():
        items = [RowPair(i.chosen, i.rejected, (float(log_prob(reference, i.chosen)), float(log_prob(reference, i.rejected)))) for i in items]
    theirs = sum(-F.logsigmoid(beta * ((log_prob(model, i.chosen) - i.reference[0]) - (log_prob(model, i.rejected) - i.reference[1]))) for i in items)
    theirs.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = count = 0
    for group, batch in batches(items, 200, shared):
        sums = dpo(model, batch, [items[i] for i in group], beta)
        sums.loss.backward()
        total, count = total + float(sums.loss.detach()), count + sums.count
    assert count == len(items) and total == pytest.approx(float(theirs.detach()), rel=1e-5)
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, wanted[name], atol=1e-5), name


@pytest.mark.parametrize("kind", ["lora", "full", "top_layers"])
def test_it_starts_at_log_2(data, base, tmp_path, kind):
    events = list(train(config(data, base, tmp_path / kind, f"tuning.kind={kind}")))
    first = next(e.data for e in events if "train_loss" in e.data)
    assert first["train_loss"] == pytest.approx(math.log(2), abs=1e-6) and first["train_reward_margin"] == pytest.approx(0, abs=1e-6)
    assert "full_valid_reward_accuracy" in next(e.data for e in events if "full_valid_loss" in e.data)


def test_the_preferred_answers_gain(data, base, tmp_path):
    events = list(train(config(data, base, tmp_path / "run", "hyperparameters.n_epochs=6", "optimizer.learning_rate=0.01")))
    last = [e.data for e in events if "full_valid_loss" in e.data][-1]
    assert last["full_valid_loss"] < 0.5 and last["full_valid_reward_accuracy"] == 1 and last["full_valid_reward_margin"] > 0


def test_interrupted_equals_uninterrupted(data, base, tmp_path):
    list(train(config(data, base, tmp_path / "whole")))
    events = train(config(data, base, tmp_path / "parts"))
    for event in events:
        if event.step == 5:
            events.close()
            break
    list(train(config(data, base, tmp_path / "parts")))
    assert sha256(tmp_path / "whole/model/adapter_model.safetensors") == sha256(tmp_path / "parts/model/adapter_model.safetensors")


def test_the_spellings_of_a_pair(tmp_path):
    path = tmp_path / "common.jsonl"
    path.write_text(pairs(12, openai=False))
    rows = tokenize(formats.load(path), tiny.tokenizer(), 256).rows
    tokenizer = tiny.tokenizer()
    assert tokenizer.decode(rows[1].chosen.ids[rows[1].chosen.trained]) == "It is 3.<|im_end|>"
    assert tokenizer.decode(rows[2].rejected.ids[rows[2].rejected.trained]) == "It is 5, I think.<|im_end|>"
    assert check(path).ok and check(path).format == "pair"


WRONG = [
    ({"prompt": "a", "chosen": "b"}, "missing_key"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "same_answers"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "empty_rejected"),
    ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, "chosen_not_text"),
    ({"input": {"messages": "x"}, "preferred_output": [], "non_preferred_output": []}, "messages_not_a_list"),
    ({"input": {"messages": []}, "preferred_output": "x", "non_preferred_output": "y"}, "messages_not_a_list"),
    ({"input": {"messages": [{"role": "user", "content": "a"}]}, "preferred_output": [], "non_preferred_output": []}, "no_assistant_turn"),
]


@pytest.mark.parametrize(("record", "code"), WRONG)
def test_wrong_pairs_are_named(tmp_path, record, code):
    path = tmp_path / "pairs.jsonl"
    path.write_text(pairs(12) + json.dumps(record) + "\n")
    with pytest.raises(BadData) as caught:
        formats.load(path)
    assert [(fault.line, fault.code) for fault in caught.value.faults] == [(13, code)]


def test_method_and_data_must_fit(data, base, tmp_path):
    with pytest.raises(BadConfig, match="set method=dpo"):
        next(train(config(data, base, tmp_path / "a", "method=supervised")))
    chats = tiny.SAMPLE / "test.jsonl"
    with pytest.raises(BadConfig, match="dpo learns from pairs"):
        next(train(config(chats, base, tmp_path / "b")))
