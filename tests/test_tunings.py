"""Which weights each tuning moves, and that every optimizer and tuning goes on with the same bits."""

from pathlib import Path

import pytest
import torch

import tiny
from tunewright.config import Full, TopLayers, TrainConfig
from tunewright.errors import BadConfig
from tunewright.models import tuning
from tunewright.models.forward import collate, score
from tunewright.models.load import load
from tunewright.train.find_rate import find_rate, suggestion
from tunewright.train.folder import sha256
from tunewright.train.loop import train


@pytest.fixture(scope="module", params=sorted(tiny.SHAPES))
def base(request, tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp(request.param), tiny.SHAPES[request.param]())


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": str(data), "model": base, "out": str(out), "threads": 1, "precision": "fp32"}
    return TrainConfig.parse(record, ["hyperparameters.n_epochs=2", "hyperparameters.batch_size=4", *assignments])


def moved(data: Path, base: str, out: Path, *assignments: str) -> set[str]:
    """The names of the weights that differ from the base after a run, as the tuned model has them."""
    list(train(config(data, base, out, *assignments)))
    before, after = dict(load(base).model.named_parameters()), dict(load(str(out)).model.named_parameters())
    head = "lm_head.weight"
    if head not in before:  # tied: the head was the embedding
        before[head] = load(base).model.get_input_embeddings().weight
    return {name for name, value in after.items() if not torch.equal(before[name], value)}


def test_head_only_leaves_even_a_tied_embedding(data, base, tmp_path):
    assert moved(data, base, tmp_path / "run", "tuning=top_layers", "tuning.layers=0") == {"lm_head.weight"}


def test_the_top_layer_with_its_norm_and_head(data, base, tmp_path):
    names = moved(data, base, tmp_path / "run", "tuning=top_layers", "tuning.layers=1")
    last = ("model.layers.1.", "model.norm.", "transformer.h.1.", "transformer.ln_f.", "lm_head.")
    wanted = {name for name, _ in load(str(tmp_path / "run")).model.named_parameters() if name.startswith(last)}
    assert names == wanted and len(names) > 5


def test_frozen_names_stay(data, llama, tmp_path):
    names = moved(data, llama, tmp_path / "run", "tuning=full", 'tuning.freeze=["*embed*", "model.layers.0.*"]')
    assert names == {name for name, _ in load(llama).model.named_parameters() if "embed" not in name and "layers.0." not in name}


@pytest.mark.parametrize("bad", ["tuning.freeze=['nothing*']", "tuning.freeze=['*']"])
def test_patterns_that_freeze_nothing_or_everything_are_refused(data, llama, tmp_path, bad):
    with pytest.raises(BadConfig, match=r"tuning\.freeze"):
        list(train(config(data, llama, tmp_path / "run", "tuning=full", bad)))


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(BadConfig, match="the model has 2 layers"):
        tuning.apply(tiny.llama(), TopLayers(layers=3), "x")


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_layer_decay_falls_from_head_to_embedding(shape):
    model = tuning.apply(tiny.SHAPES[shape](), Full(layer_decay=0.5), "x")
    share = {p: group["share"] for group in tuning.groups(model, 0.1, 0.5) for p in group["params"]}
    assert set(share) == set(model.parameters())
    layers = tuning.stack(model)
    assert {share[p] for p in layers[1].parameters()} == {0.5} and {share[p] for p in layers[0].parameters()} == {0.25}
    assert share[model.get_input_embeddings().weight] == 0.125
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        assert share[model.get_output_embeddings().weight] == 1


def test_a_layer_learns_at_its_share_of_the_rate(data, llama, tmp_path):
    """One step of plain gradient descent: what a layer moves is in proportion to its share."""
    plain = ["tuning=full", "optimizer.kind=sgd", "optimizer.learning_rate=0.01", "hyperparameters.n_epochs=1", "hyperparameters.batch_size=12"]
    plain += ["schedule.kind=constant", "schedule.warmup=0", "max_grad_norm=0"]
    list(train(config(data, llama, tmp_path / "a", *plain)))
    list(train(config(data, llama, tmp_path / "b", *plain, "tuning.layer_decay=0.5")))
    base, one, other = (dict(load(str(x)).model.named_parameters()) for x in (llama, tmp_path / "a", tmp_path / "b"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(other[name] - base[name], 0.25 * (one[name] - base[name]), atol=1e-7)


@pytest.mark.parametrize("more", [{"dora": True}, {"rslora": True}, {"bias": "all"}, {"bias": "lora_only"}])
def test_kinds_of_lora_train_and_load_in_plain_peft(data, base, tmp_path, more):
    from peft import PeftModel

    list(train(config(data, base, tmp_path / "run", "tuning.rank=2", *(f"tuning.{key}={value}" for key, value in more.items()))))
    batch = collate([_row()])
    ours = load(str(tmp_path / "run")).model
    plain = PeftModel.from_pretrained(load(base).model, str(tmp_path / "run" / "model")).eval()
    assert torch.equal(score(ours, batch).nll, score(plain, batch).nll)
    assert not torch.equal(score(ours, batch).nll, score(load(base).model, batch).nll)


def _row():
    from tunewright.data import formats
    from tunewright.data.tokens import render

    return render(formats.load(tiny.SAMPLE / "test.jsonl")[0], tiny.tokenizer())


@pytest.mark.parametrize(
    "assignments",
    [
        ("tuning=top_layers", "tuning.layers=1"),
        ("tuning=full", "tuning.layer_decay=0.7", "optimizer.kind=adafactor"),
        ("tuning.dora=true", "shuffle=by_prefix"),
        ("optimizer.kind=sgd", "method.label_smoothing=0.1", "shuffle=none"),
    ],
)
def test_interrupted_equals_uninterrupted(data, llama, tmp_path, assignments):
    list(train(config(data, llama, tmp_path / "whole", *assignments)))
    events = train(config(data, llama, tmp_path / "parts", *assignments))
    for event in events:
        if event.step == 4 and event.kind == "metrics":
            events.close()
            break
    list(train(config(data, llama, tmp_path / "parts", *assignments)))
    name = next((tmp_path / "whole/model").glob("*model.safetensors")).name
    assert sha256(tmp_path / "whole/model" / name) == sha256(tmp_path / "parts/model" / name)


def test_8_bit_adamw_trains_or_says_what_to_install(data, llama, tmp_path):
    run = train(config(data, llama, tmp_path / "run", "optimizer.kind=adamw8bit"))
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        with pytest.raises(BadConfig, match="install the extra"):
            list(run)
    else:
        assert list(run)[-1].message == "The run has finished"


def test_label_smoothing_is_torchs_own():
    model, row = tiny.llama(), _row()
    batch = collate([row])
    logits = model(input_ids=batch.ids).logits[batch.targets != -100]
    theirs = torch.nn.functional.cross_entropy(logits, batch.targets[batch.targets != -100], label_smoothing=0.2, reduction="none")
    assert torch.allclose(score(model, batch, 0.2).nll, theirs, atol=1e-5)


def test_the_range_test_suggests_a_rate_below_the_edge_and_leaves_nothing(data, llama, tmp_path):
    events = list(find_rate(config(data, llama, tmp_path / "run", "tuning=full"), n_steps=30))
    found = events[-1].data
    assert 1e-6 <= found["suggestion"] < found["rates"][found["losses"].index(min(found["losses"]))]
    assert not (tmp_path / "run").exists()


def test_the_suggestion_is_the_steepest_fall():
    rates = [10.0**k for k in range(-6, 1)]
    assert suggestion(rates, [5.0, 5.0, 4.8, 4.0, 3.0, 2.9, 6.0]) == pytest.approx(1e-3)
    assert suggestion(rates, [5.0, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6]) == 1e-6
