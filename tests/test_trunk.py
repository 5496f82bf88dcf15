"""The frozen trunk computed once: the same weights as without it, the same bits after a kill, and never of something else."""

import itertools
import json
import math
import resource
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import test_classification
import tiny
from test_dpo import pairs
from test_train import killed_after
from test_tree import MORE, REFUSED, made
from tunewright.config import Full, Lora, Prompt, TopLayers, TrainConfig
from tunewright.errors import BadConfig
from tunewright.models import tuning
from tunewright.models.load import load
from tunewright.models.trunk import depth
from tunewright.train.folder import sha256
from tunewright.train.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    lines = (tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(lines[:12]))
    return path


ENCODERS = {kind: partial(tiny.encoder, kind) for kind in ("bert", "roberta", "distilbert")}
MODELS = {"llama": tiny.llama, "gpt2": tiny.gpt2, "qwen2": tiny.qwen2, "gemma2": MORE["gemma2"]}
PADDED = {"sliding window": REFUSED["sees 16 tokens back"], "recurrent": REFUSED["recurrent"]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Model folders by the name of their shape, made when asked for."""
    made_ = {}

    def base(name: str) -> str:
        if name not in made_:
            made_[name] = tiny.save(tmp_path_factory.mktemp("base"), made((MODELS | PADDED | ENCODERS)[name]))
        return made_[name]

    return base


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": str(data), "validation": str(data), "model": base, "out": str(out), "threads": 1, "precision": "fp32"}
    settings = ["tuning=top_layers", "tuning.layers=1", "hyperparameters.n_epochs=2", "hyperparameters.batch_size=4", "optimizer.kind=sgd"]
    return TrainConfig.parse(record, [*settings, "optimizer.learning_rate=0.1", *assignments])


def run(settings: TrainConfig) -> tuple[dict[str, torch.Tensor], list]:
    events = list(train(settings))
    return load_file(settings.out / "model" / "model.safetensors"), events


def said(events) -> dict:
    return next(event.data for event in events if "trunk_kept" in event.data)


@pytest.mark.parametrize(("shape", "layers"), [*itertools.product([*MODELS, "sliding window"], (0, 1)), ("recurrent", 0)])
def test_the_same_weights_as_without(data, bases, tmp_path, shape, layers):
    """A state's last bits depend on what it is computed beside, so weights agree to rounding; with one batch for all they are the same."""
    settings = [f"tuning.layers={layers}", *(["dropout=0"] if shape == "gpt2" else [])]
    kept, events = run(config(data, bases(shape), tmp_path / "kept", *settings))
    plain, others = run(config(data, bases(shape), tmp_path / "plain", *settings, "cache.use=off"))
    assert said(events)["trunk_kept"] and not any("trunk_kept" in event.data for event in others)
    assert [e.data["layout"] for e in events if "layout" in e.data] == ["padded" if shape in PADDED else "tree"]
    model = load(bases(shape)).model
    before = {"lm_head.weight": model.get_output_embeddings().weight.detach(), **model.state_dict()}  # tied: the head was the embedding
    moved = max(float((value - before[name]).abs().max()) for name, value in plain.items())
    apart = max(float((kept[name] - value).abs().max()) for name, value in plain.items())
    assert moved > 1e-3
    assert apart < 1e-5 * moved + 1e-7
    losses = [[event.data["train_loss"] for event in each if "train_loss" in event.data] for each in (events, others)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert not (tmp_path / "kept" / "trunk").exists()


@pytest.mark.parametrize("layers", [0, 1])
def test_the_same_bits_where_all_is_computed_at_once(data, bases, tmp_path, layers):
    """One step holds all rows, so that what is computed beside what is the same with the cache and without."""
    whole = [f"tuning.layers={layers}", "hyperparameters.batch_size=12", "micro_batch_tokens=100000", "optimizer.kind=adamw", "validation=null"]
    kept, events = run(config(data, bases("llama"), tmp_path / "kept", *whole))
    plain, _ = run(config(data, bases("llama"), tmp_path / "plain", *whole, "cache.use=off"))
    assert said(events)["trunk_kept"]
    for name, value in plain.items():
        assert torch.equal(kept[name], value) if layers else torch.allclose(kept[name], value, atol=1e-6), name


@pytest.mark.parametrize("layers", [0, 1])
def test_preference_pairs_start_from_kept_states(bases, tmp_path, layers):
    data = tmp_path / "pairs.jsonl"
    data.write_text(pairs(10))
    settings = ["method=dpo", f"tuning.layers={layers}", "tuning.freeze=['*norm*']", "optimizer.learning_rate=1"]
    kept, events = run(config(data, bases("llama"), tmp_path / "kept", *settings))
    plain, others = run(config(data, bases("llama"), tmp_path / "plain", *settings, "cache.use=off"))
    assert said(events)["trunk_kept"]
    assert next(e.data["train_loss"] for e in events if "train_loss" in e.data) == pytest.approx(math.log(2), abs=1e-6)
    assert all(torch.allclose(kept[name], value, atol=1e-5) for name, value in plain.items())
    last = [[e.data["full_valid_loss"] for e in each if "full_valid_loss" in e.data][-1] for each in (events, others)]
    assert last[0] == pytest.approx(last[1], rel=1e-5) and last[0] < 0.69


def stopped(settings: TrainConfig, step: int) -> None:
    events = train(settings)
    for event in events:
        if event.step == step and event.kind == "metrics":
            events.close()
            return


@pytest.mark.parametrize("fault", [None, "lost", "torn", "changed", "half"])
def test_a_resumed_run_ends_with_the_same_bits(data, bases, tmp_path, fault):
    """Whatever became of the kept states in between."""
    one, other = (config(data, bases("llama"), tmp_path / name, "optimizer.kind=adamw", "micro_batch_tokens=200") for name in ("whole", "parts"))
    run(one)
    stopped(other, 4)
    states, record = (tmp_path / "parts" / "trunk" / name for name in ("states.bin", "kept.json"))
    if fault == "lost":
        shutil.rmtree(states.parent)
    if fault == "torn":
        states.write_bytes(states.read_bytes()[:-4])
    if fault == "changed":
        states.write_bytes(states.read_bytes()[:1000] + b"\x00\x00\x80\x3f" + states.read_bytes()[1004:])
    if fault == "half":  # as a kill in the first computation leaves it
        found = json.loads(record.read_text())
        groups = found["groups"] // 2
        assert groups > 1
        record.write_text(json.dumps(found | {"groups": groups, "sha256": None}))
    _, events = run(other)
    found = said(events)
    assert found["reused"] == (fault is None) and ("damaged" in next(e.message for e in events if e.data is found)) == (fault in ("torn", "changed"))
    assert sha256(tmp_path / "whole/model/model.safetensors") == sha256(tmp_path / "parts/model/model.safetensors")


def test_killed_runs_end_with_the_same_bits(data, bases, tmp_path):
    settings = ["checkpoints.every_steps=1", "hyperparameters.n_epochs=4", "tuning.layers=0"]
    one, other = (config(data, bases("llama"), tmp_path / name, *settings) for name in ("whole", "killed"))
    run(one)
    assert all(killed_after(other, events, pause) for events, pause in ((2, 0.0), (3, 0.005), (6, 0.02)))
    run(other)
    assert sha256(tmp_path / "whole/model/model.safetensors") == sha256(tmp_path / "killed/model/model.safetensors")


def test_states_of_something_else_are_never_reused(data, bases, tmp_path):
    """Another model in the same folder, in the middle of a run."""
    base = tmp_path / "base"
    shutil.copytree(bases("llama"), base)
    settings = config(data, str(base), tmp_path / "run", "hyperparameters.n_epochs=4")
    stopped(settings, 4)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] += 0.001
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    _, events = run(settings)
    assert not said(events)["reused"] and any("another model" in event.message for event in events)


REFUSALS = {
    "have dropout (drop drops 0.1)": ("gpt2", ["cache.use=on"], "warn"),
    "have dropout": ("gpt2", [], "info"),
    "GB of disk, and cache.disk_gb allows 1e-05": ("llama", ["cache.disk_gb=0.00001"], "info"),
    "are not frozen": ("llama", ["cache.use=on", "tuning=full"], "warn"),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_what_is_not_kept_says_why_and_the_run_goes_on(data, bases, tmp_path, reason):
    shape, settings, level = REFUSALS[reason]
    _, events = run(config(data, bases(shape), tmp_path / "run", *settings))
    told = next(event for event in events if event.data.get("trunk_kept") is False)
    assert reason in told.message and told.level == level
    assert events[-1].message == "The run has finished"


def test_a_full_disk_costs_the_cache_not_the_run(bases, tmp_path):
    longer = tmp_path / "train.jsonl"
    longer.write_text("".join((tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)[:70]))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    settings = ["cache.use=on", "hyperparameters.n_epochs=1", "hyperparameters.batch_size=16"]
    try:
        _, events = run(config(longer, bases("llama"), tmp_path / "run", *settings))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in next(e.message for e in events if e.data.get("trunk_kept") is False)


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("true", "on")])
def test_the_switch_survives_yaml(data, tmp_path, written, meant):
    assert config(data, "nano", tmp_path, f"cache.use={written}").cache.use == meant
    assert TrainConfig.parse(config(data, "nano", tmp_path, f"cache.use={written}").model_dump(mode="json")).cache.use == meant


@pytest.mark.parametrize("bad", ["cache.use=maybe", "cache.disk_gb=0", "cache.disk_gb=-1", "cache.where=x"])
def test_wrong_settings_are_named(data, tmp_path, bad):
    with pytest.raises(BadConfig, match=r"cache\."):
        config(data, "nano", tmp_path, bad)


def test_where_training_begins():
    """Autograd's answer for every way to freeze."""
    config_ = TrainConfig.parse({"data": "x"})
    assert depth(tuning.apply(tiny.llama(), TopLayers(layers=1), "x")) == 1
    assert depth(tuning.apply(tiny.llama(), TopLayers(layers=0), "x")) == 2
    assert depth(tuning.apply(tiny.llama(), TopLayers(layers=2, freeze=("model.layers.0.*",)), "x")) == 1
    assert depth(tuning.apply(tiny.llama(), Full(freeze=("model.layers.*",)), "x")) == 0
    assert depth(tuning.apply(tiny.llama(tie=False), Full(freeze=("*embed*", "model.layers.0.*")), "x")) == 1
    assert depth(tuning.apply(tiny.llama(), Prompt(virtual_tokens=3), "x")) == 0
    assert depth(tuning.apply(tiny.llama(), config_.tuning, "x")) == 0
    assert depth(tuning.apply(tiny.llama(), Lora(targets=r".*layers\.1\..*proj"), "x")) == 1


@pytest.mark.parametrize(("shape", "layers"), [("bert", 0), ("bert", 1), ("roberta", 1), ("distilbert", 1), ("llama", 0), ("llama", 1)])
def test_classifiers_start_from_kept_states(bases, tmp_path, shape, layers):
    data = test_classification.write(tmp_path / "texts.jsonl", test_classification.rows(24, pair=shape == "bert"))
    base = bases(shape)
    settings = [f"tuning.layers={layers}", "task=classification", "dropout=0"][: 2 if shape == "llama" else 3]
    kept, events = run(config(data, base, tmp_path / "kept", *settings))
    plain, others = run(config(data, base, tmp_path / "plain", *settings, "cache.use=off"))
    assert said(events)["trunk_kept"] and said(events)["layers"] == 2 - layers
    assert max(float((kept[name] - value).abs().max()) for name, value in plain.items()) < 1e-6
    losses = [[event.data["train_loss"] for event in each if "train_loss" in event.data] for each in (events, others)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][0] > losses[0][-1]
