"""Text to text: our loss against transformers', our scores against sacrebleu's, what each tuning trains, and the same run whole or in two parts."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import torch
from safetensors.torch import load_file

import tiny
from tunewright.cli import main
from tunewright.config import TrainConfig
from tunewright.data import formats, sources
from tunewright.data.example import Chat, Completion, Labelled, Message
from tunewright.errors import BadConfig
from tunewright.evaluate import texts
from tunewright.evaluate.overlap import overlap
from tunewright.models import tuning
from tunewright.models.load import load, purpose
from tunewright.models.translate import collate_sources, translate
from tunewright.train.loop import train
from tunewright.train.losses import supervised

KINDS = ("t5", "bart", "marian")
WORDS = ["please", "send", "my", "order", "back", "today", "and", "thank", "you"]


def rows(n: int, seed: int = 0) -> list[dict]:
    """A target says the source's words backwards."""
    draw = random.Random(seed)
    picked = [draw.choices(WORDS, k=draw.randint(2, 6)) for _ in range(n)]
    return [{"source": " ".join(words), "target": " ".join(words[::-1])} for words in picked]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for kind in KINDS:
        tiny.save(folder / kind, tiny.encoder_decoder(kind), None)
    for name, seed in (("train", 0), ("test", 1)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(24, seed)))
    return folder


def config(folder: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": str(folder / "train.jsonl"), "model": str(folder / base), "out": str(out), "threads": 1, "precision": "fp32"}
    return TrainConfig.parse(record, ["hyperparameters.n_epochs=1", "hyperparameters.batch_size=4", *assignments])


def opened(folder: Path, base: str):
    loaded = load(str(folder / base))
    return loaded, sources.tokenize(formats.load(folder / "train.jsonl"), loaded.tokenizer, 64).rows


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_learns_what_fp32_does(folder, tmp_path, kind):
    losses = [
        [
            event.data["train_loss"]
            for event in train(config(folder, kind, tmp_path / precision, f"precision={precision}", "tuning=full"))
            if event.kind == "metrics"
        ]
        for precision in ("fp32", "bf16")
    ]
    assert np.allclose(*losses, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_our_loss_and_gradients_are_transformers_own(folder, kind):
    loaded, found = opened(folder, kind)
    assert loaded.task == purpose(str(folder / kind)) == "text_to_text"
    model = loaded.model
    sums = supervised(model, collate_sources(found[:6]))
    assert sums.count == sum(len(row.target) for row in found[:6])
    sums.loss.div(sums.count).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    # Their way: the tokenizer's own padding, labels in place of targets.
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()[:6]]
    read = loaded.tokenizer([r["source"] + "<|im_end|>" for r in records], padding=True, return_tensors="pt")
    wanted = loaded.tokenizer([r["target"] + "<|im_end|>" for r in records], padding=True, return_tensors="pt")
    labels = wanted["input_ids"].masked_fill(wanted["attention_mask"] == 0, -100)
    out = model(input_ids=read["input_ids"], attention_mask=read["attention_mask"], labels=labels)
    assert torch.allclose(sums.loss / sums.count, out.loss, rtol=1e-5)
    out.loss.backward()
    for name, value in ours.items():
        assert torch.allclose(value, dict(model.named_parameters())[name].grad, atol=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_those_of_generate_one_by_one(folder, kind, beams):
    loaded, found = opened(folder, kind)
    together = translate(loaded.model, loaded.tokenizer, [row.ids for row in found[:5]], 8, beams, budget=120)
    for row, (text, finished) in zip(found[:5], together, strict=True):
        out = loaded.model.generate(torch.from_numpy(row.ids).long()[None], max_new_tokens=8, num_beams=beams, do_sample=False)[0, 1:]
        assert text == loaded.tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert finished == (loaded.tokenizer.eos_token_id in out.tolist())


def test_scores_are_sacrebleus():
    wanted = [row["target"] for row in rows(40)]
    draw = random.Random(1)
    given = [" ".join(word for word in text.split() if draw.random() > 0.3) for text in wanted]
    ones = np.ones((1, 40))
    found = overlap(wanted, given)
    assert found["bleu"].statistic(ones)[0] == pytest.approx(sacrebleu.corpus_bleu(given, [wanted]).score)
    assert found["chrf"].statistic(ones)[0] == pytest.approx(sacrebleu.corpus_chrf(given, [wanted]).score)
    # A resample is a file in which rows stand as often as they were drawn.
    drawn = np.random.default_rng(0).integers(40, size=40)
    some = np.bincount(drawn, minlength=40)[None].astype(float)
    again = sacrebleu.corpus_bleu([given[i] for i in drawn], [[wanted[i] for i in drawn]])
    assert found["bleu"].statistic(some)[0] == pytest.approx(again.score)


def test_each_tuning_trains_what_it_says(folder, tmp_path):
    for kind in KINDS:
        loaded, found = opened(folder, kind)
        before = supervised(loaded.model, collate_sources(found)).loss.detach()
        model = tuning.apply(loaded.model, TrainConfig.parse({"data": "x"}, ["tuning=top_layers", "tuning.layers=1"]).tuning, kind)
        names = set(tuning.trained(model))
        layer = "decoder.block.1." if kind == "t5" else "model.decoder.layers.1."
        behind = {"t5": {"decoder.final_layer_norm.weight"}}.get(kind, set())
        assert {name for name in names if not name.startswith(layer)} == {"lm_head.weight"} | behind
        # A head of its own, here and read back, says what the shared one said.
        assert torch.allclose(before, supervised(model, collate_sources(found)).loss.detach(), rtol=1e-6)
        model.save_pretrained(tmp_path / kind)
        loaded.tokenizer.save_pretrained(tmp_path / kind)
        assert torch.allclose(before, supervised(load(str(tmp_path / kind)).model, collate_sources(found)).loss.detach(), rtol=1e-6)
        shares = tuning.groups(opened(folder, kind)[0].model, 0.0, 0.5)
        assert {group["share"] for group in shares} >= {0.5**n for n in (1, 2, 3, 4, 5)}


@pytest.mark.parametrize(("kind", "how"), [("t5", "tuning=full"), ("bart", "tuning.rank=4"), ("t5", "tuning={kind: top_layers, layers: 1}")])
def test_a_run_in_two_parts_ends_like_one_whole(folder, tmp_path, kind, how):
    settings = [how, "checkpoints.every_steps=2"]
    events = list(train(config(folder, kind, tmp_path / "whole", *settings)))
    assert "train_mean_token_accuracy" in next(event for event in events if event.kind == "metrics").data
    stopped = train(config(folder, kind, tmp_path / "parts", *settings))
    for event in stopped:
        if event.kind == "metrics" and event.step == 3:
            stopped.close()
    list(train(config(folder, kind, tmp_path / "parts", *settings)))
    name = "adapter_model.safetensors" if "rank" in how else "model.safetensors"
    whole, parts = (load_file(tmp_path / run / "model" / name) for run in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    # What is read back does what was trained: its loss is no other than the last weights'.
    loaded = load(str(tmp_path / "whole"))
    base = load(str(folder / kind))
    if "top_layers" in how:
        state = base.model.state_dict()
        changed = {name for name, value in loaded.model.state_dict().items() if name in state and not torch.equal(value, state[name])}
        assert changed and not any(name.startswith(("shared", "encoder", "decoder.block.0", "decoder.embed")) for name in changed)


def test_a_copying_model_is_measured_as_such(folder, tmp_path):
    list(train(config(folder, "t5", tmp_path / "run", "tuning=full")))
    loaded, examples = load(str(tmp_path / "run")), formats.load(folder / "test.jsonl")
    found = texts.measure(loaded, examples, 64, beams=2)
    object.__setattr__(found, "answers", tuple(found.expected))
    summary = found.summary(resamples=50)
    assert set(summary) == {"loss", "perplexity", "token_accuracy", "bleu", "chrf"}
    assert summary["bleu"].value == pytest.approx(100) and summary["chrf"].high == pytest.approx(100)
    assert set(texts.measure(loaded, examples, 64, generate=False).metrics()) == {"loss", "perplexity", "token_accuracy"}


def test_what_is_a_source(folder):
    assert sources.texts(Completion("a", " b")) == ("a", " b")
    assert sources.texts(Labelled("a", "b", pair="c")) == ("a\n\nc", "b")
    assert sources.texts(Chat((Message("system", "s"), Message("user", "u"), Message("assistant", "a")))) == ("s\n\nu", "a")
    tokenizer = load(str(folder / "t5")).tokenizer
    end = tokenizer.eos_token_id
    found = sources.tokenize([Completion("send " * 30, "back " * 30, 1), Completion(" ", "b", 2), Completion("a <|im_end|>", "b", 3)], tokenizer, 20)
    assert found.cut == found.unended == [1] and found.dropped == {"no_text": [2]}
    long, short = found.rows
    assert len(long.ids) == len(long.target) == 20 and long.ids[-1] == end and end not in long.target.tolist()
    assert short.ids.tolist().count(end) == 1 and short.target[-1] == end


def test_what_is_said_of_an_encoder_decoder(folder, tmp_path, monkeypatch, capsys):
    list(train(config(folder, "marian", tmp_path / "run", "tuning=full")))
    for line, wanted in (
        (f"evaluate --model {tmp_path}/run --data {folder}/test.jsonl --beams 2", ["bleu", "chrf", "difference"]),
        (f"chat {tmp_path}/run -m send", ["\n"]),
    ):
        monkeypatch.setattr("sys.argv", ["tunewright", *line.split()])
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr().out
        assert not left.value.code and all(text in said for text in wanted), said
    with pytest.raises(BadConfig) as error:
        list(train(config(folder, "t5", tmp_path / "no", "task=classification")))
    assert error.value.code == "task_needs_another_model"
