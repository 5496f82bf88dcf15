"""The base's dropout set from outside is the one that transformers builds from a config."""

from pathlib import Path

import pytest
import torch
import transformers as tf

import tiny
from tunewright.config import TrainConfig
from tunewright.errors import BadConfig
from tunewright.models import dropout
from tunewright.models.load import load
from tunewright.train.folder import sha256
from tunewright.train.loop import train

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def opt(p: float) -> tf.PreTrainedModel:
    return tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            ffn_dim=32,
            num_attention_heads=2,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            dropout=p,
            attention_dropout=p,
        )
    )


BUILT = {
    "llama": lambda p: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, attention_dropout=p)),
    "gpt2": lambda p: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=p, embd_pdrop=p, attn_pdrop=p)
    ),
    "bert": lambda p: tf.BertForMaskedLM(tf.BertConfig(**SIZES, hidden_dropout_prob=p, attention_probs_dropout_prob=p)),
    "opt": opt,
    "phi3": lambda p: tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES, pad_token_id=0, resid_pdrop=p, embd_pdrop=p, attention_dropout=p)),
}


def logits(model: tf.PreTrainedModel) -> torch.Tensor:
    model.train()
    torch.manual_seed(7)
    return model(input_ids=torch.arange(3, 30)[None]).logits.detach()


@pytest.mark.parametrize("shape", BUILT)
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_an_override_equals_a_model_that_was_built_so(shape, share):
    torch.manual_seed(0)
    wanted = BUILT[shape](share)
    torch.manual_seed(0)
    model = BUILT[shape](0.1)
    assert not torch.equal(logits(model), logits(wanted))
    assert dropout.override(model, share) > 0
    assert torch.equal(logits(model), logits(wanted))
    assert (dropout.active(model) is None) == (share == 0)


def test_layers_left_out_at_random_stay_and_are_seen():
    model = opt(0.0)
    model.model.decoder.layerdrop = 0.5
    dropout.override(model, 0.0)
    assert model.model.decoder.layerdrop == 0.5 and "drops 0.5" in (dropout.active(model) or "")


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": str(data), "model": base, "out": str(out), "threads": 1, "precision": "fp32"}
    return TrainConfig.parse(record, ["hyperparameters.n_epochs=2", "hyperparameters.batch_size=4", *assignments])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join((tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)[:12]))
    return path


def test_a_run_says_it_goes_on_with_it_and_leaves_the_bases_own_in_the_result(data, tmp_path):
    base = tiny.save(tmp_path / "base", tiny.gpt2())
    settings = ("tuning=full", "dropout=0.3")
    events = list(train(config(data, base, tmp_path / "whole", *settings)))
    said = next(event for event in events if "places" in event.data)
    assert said.message == "Dropout of the base is 0.3 in 7 places" and said.data == {"dropout": 0.3, "places": 7}
    losses = [event.data["train_loss"] for event in events if "train_loss" in event.data]
    kept = [event.data["train_loss"] for event in train(config(data, base, tmp_path / "kept", "tuning=full")) if "train_loss" in event.data]
    none = [
        event.data["train_loss"] for event in train(config(data, base, tmp_path / "none", "tuning=full", "dropout=0")) if "train_loss" in event.data
    ]
    assert len({tuple(each) for each in (losses, kept, none)}) == 3

    events = train(config(data, base, tmp_path / "parts", *settings))
    for event in events:
        if event.step == 4 and event.kind == "metrics":
            events.close()
            break
    list(train(config(data, base, tmp_path / "parts", *settings)))
    assert sha256(tmp_path / "whole/model/model.safetensors") == sha256(tmp_path / "parts/model/model.safetensors")
    assert load(str(tmp_path / "whole")).model.config.resid_pdrop == 0.1


def test_a_base_without_dropout_is_refused(data, tmp_path, monkeypatch):
    base = tiny.save(tmp_path / "base", tiny.llama())
    monkeypatch.setattr(dropout, "_places", lambda model: iter(()))
    with pytest.raises(BadConfig, match="no dropout that could be set"):
        list(train(config(data, base, tmp_path / "run", "dropout=0.1")))


def test_an_adapters_own_dropout_stays():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny.llama(), LoraConfig(r=2, lora_dropout=0.4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert dropout.override(model, 0.0) == 2  # one attention a layer
    assert "lora_dropout" in (dropout.active(model) or "")
