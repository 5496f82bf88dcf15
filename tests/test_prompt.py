"""Tuning of virtual tokens: peft's own padded forward pass is the oracle of the tree, and of what is saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

import tiny
from tunewright.config import Prompt, TrainConfig
from tunewright.data import tree
from tunewright.data.tokens import Row
from tunewright.errors import BadConfig, BadModel
from tunewright.models import attention, forward, tuning, virtual
from tunewright.models.forward import branch, collate, score, score_rows
from tunewright.models.generate import answers, stream
from tunewright.models.load import load
from tunewright.train.folder import sha256
from tunewright.train.loop import train

PAIR = '{"input": {"messages": [{"role": "user", "content": "a%d"}]}, "preferred_output": [{"role": "assistant", "content": "yes"}], "non_preferred_output": [{"role": "assistant", "content": "no"}]}'


@pytest.fixture(scope="module", params=sorted(tiny.SHAPES))
def base(request, tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp(request.param), tiny.SHAPES[request.param]())


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": str(data), "model": base, "out": str(out), "threads": 1, "precision": "fp32"}
    sizes = ["tuning=prompt", "tuning.virtual_tokens=5", "hyperparameters.n_epochs=2", "hyperparameters.batch_size=4"]
    return TrainConfig.parse(record, [*sizes, *assignments])


def rows() -> list[Row]:
    """Rows that share beginnings of several lengths, and one that shares none."""
    draw = np.random.default_rng(0)
    stem = draw.integers(3, 500, 12).tolist()
    ids = [stem[:shared] + draw.integers(3, 500, more).tolist() for shared, more in [(12, 4), (12, 0), (12, 7), (5, 6), (5, 6), (0, 9)]]
    return [Row(np.array(each, np.int32), np.r_[False, draw.random(len(each) - 1) < 0.6]) for each in ids]


def prompted(shape: str, name: str = "x") -> PeftModel:
    torch.manual_seed(1)
    return tuning.apply(tiny.SHAPES[shape](), Prompt(virtual_tokens=6), name).eval()


def gradient(model) -> torch.Tensor:
    (mine,) = tuning.trained(model).values()
    found, mine.grad = mine.grad, None
    return found


@pytest.mark.parametrize("shape", tiny.SHAPES)
@pytest.mark.parametrize("parts", [False, True], ids=["whole head", "head in parts"])
def test_the_tree_equals_pefts_padded_rows(shape, parts, monkeypatch):
    """Loss to 1e-6 and gradient to 1e-5 of what plain peft computes row by row from labels."""
    model, some = prompted(shape), rows()
    losses, count = [], 0
    for row in some:
        labels = torch.where(torch.from_numpy(row.trained), torch.from_numpy(row.ids).long(), -100)
        out = model(input_ids=torch.from_numpy(row.ids)[None].long(), labels=labels[None], use_cache=False)
        losses.append(out.loss * int(row.trained.sum()))
        count += int(row.trained.sum())
    theirs = torch.stack(losses).sum()
    theirs.backward()
    wanted = gradient(model)
    assert attention.serves(model, 64) is None
    led = virtual.in_front(some, model)
    if parts:
        monkeypatch.setattr(forward, "MOST_LOGITS", 0)
        monkeypatch.setattr(forward, "LEAST_TOKENS", 7)
    for batch in (branch(led), collate(led)):
        scores = score(model, batch)
        scores.nll.sum().backward()
        assert len(scores.nll) == count
        assert float(scores.nll.detach().sum()) == pytest.approx(float(theirs.detach()), rel=1e-6)
        found = gradient(model)
        assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_virtual_tokens_are_one_shared_beginning():
    model, some = prompted("llama"), rows()
    assert tree.distinct(virtual.in_front(some, model)) == tree.distinct(some) + 6
    assert dict(score_rows(model, some, 64)).keys() == set(range(len(some)))  # scoring puts them in front by itself
    with pytest.raises(IndexError):  # an id beyond the vocabulary never passes for a word
        virtual.base_of(model)(input_ids=torch.tensor([virtual.ids(model)]))


def test_a_run_changes_the_prompt_alone_and_loads_in_plain_peft(data, base, tmp_path):
    events = list(train(config(data, base, tmp_path / "run")))
    assert next(e for e in events if "layout" in e.data).data["layout"] == "tree"
    assert next(e for e in events if "trainable_parameters" in e.data).data["trainable_parameters"] == 5 * 32
    ours = load(str(tmp_path / "run"))
    plain = PeftModel.from_pretrained(load(base).model, str(tmp_path / "run" / "model")).eval()
    row = rows()[0]
    ids = torch.from_numpy(row.ids)[None].long()
    logits = plain(input_ids=ids).logits[0, 5:].detach()
    theirs = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")[torch.from_numpy(row.trained[1:])]
    ((_, found),) = score_rows(ours.model, [row], 64)
    assert torch.allclose(found.nll, theirs, atol=1e-5)
    for name, weight in load(base).model.named_parameters():
        assert torch.equal(virtual.base_of(ours.model).get_parameter(name), weight), name
    assert ours.context == 251
    assert "library_name: peft" in (tmp_path / "run/README.md").read_text()


def test_a_text_begins_as_its_own_tokens(data, llama, tmp_path):
    text = "answer the question"
    torch.manual_seed(0)
    model = tuning.apply(load(llama).model, Prompt(virtual_tokens=30, text=text), llama)
    ids = tiny.tokenizer()(text)["input_ids"]
    words = load(llama).model.get_input_embeddings().weight
    assert torch.equal(model.get_prompt(1)[0], words[(ids * 30)[:30]])
    list(train(config(data, llama, tmp_path / "run", f"tuning.text={text}", "optimizer.learning_rate=1e-9")))
    assert torch.allclose(load(str(tmp_path / "run")).model.get_prompt(1)[0], words[(ids * 5)[:5]], atol=1e-6)


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_answers_do_not_depend_on_their_batch(shape):
    """The oracle is peft's forward pass over the whole answer, without a cache or padding."""
    model = prompted(shape)
    with torch.no_grad():
        for weight in virtual.base_of(model).parameters():
            if weight.dim() > 1:
                weight.mul_(15)
    tokenizer = tiny.tokenizer()
    asked = [[7, 9, 30], [7], [44, 45, 46, 47, 48, 49, 50], [30, 31]]
    together = answers(model, tokenizer, asked, 12)
    assert len({answer.ids for answer in together}) > 1
    for ids, answer in zip(asked, together, strict=True):
        whole = model(input_ids=torch.tensor([ids + list(answer.ids)])).logits[0].argmax(-1).tolist()
        assert whole[6 + len(ids) - 1 : -1] == list(answer.ids)
        assert "".join(stream(model, tokenizer, ids, 12)) == answer.text


def test_interrupted_equals_uninterrupted(data, llama, tmp_path):
    list(train(config(data, llama, tmp_path / "whole")))
    events = train(config(data, llama, tmp_path / "parts"))
    for event in events:
        if event.step == 4 and event.kind == "metrics":
            events.close()
            break
    list(train(config(data, llama, tmp_path / "parts")))
    name = "model/adapter_model.safetensors"
    assert sha256(tmp_path / "whole" / name) == sha256(tmp_path / "parts" / name)


def test_preferences_start_at_log_2(llama, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(PAIR % i for i in range(12)) + "\n")
    events = list(train(config(path, llama, tmp_path / "run", "method=dpo", "optimizer.learning_rate=0.01")))
    losses = [event.data["train_loss"] for event in events if "train_loss" in event.data]
    assert losses[0] == pytest.approx(np.log(2), rel=1e-6) and losses[-1] < losses[0]


def test_no_room_left_for_rows_is_refused(data, llama, tmp_path):
    with pytest.raises(BadConfig, match="leaves none for a row"):
        list(train(config(data, llama, tmp_path / "run", "tuning.virtual_tokens=255")))


def test_a_prompt_of_another_width_is_refused(data, llama, tmp_path):
    import json

    list(train(config(data, llama, tmp_path / "run")))
    place = tmp_path / "run/model/adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"num_virtual_tokens": 7}))
    with pytest.raises(BadModel, match="does not fit its base"):
        load(str(tmp_path / "run"))
