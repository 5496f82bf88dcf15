"""Tuning on a base in 4 or 8 bits: what it is rounded to, that it takes less memory, that its gradients are right, and that it goes on and is served alike."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

import tiny
from tunewright.cli.evaluate import rounded
from tunewright.config import Lora, TrainConfig
from tunewright.data.tokens import Row
from tunewright.errors import BadConfig, BadModel
from tunewright.models import attention, quantized, tuning
from tunewright.models.forward import branch, collate, score
from tunewright.models.generate import answers
from tunewright.models.load import load
from tunewright.train.folder import sha256
from tunewright.train.loop import train

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra [quantized] is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    lines = (tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(lines[:12]))
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, str]:
    return {shape: tiny.save(tmp_path_factory.mktemp(shape), make()) for shape, make in tiny.SHAPES.items()}


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": str(data), "validation": str(data), "model": base, "out": str(out), "threads": 1, "precision": "fp32"}
    return TrainConfig.parse(record, ["tuning.rank=2", "hyperparameters.n_epochs=2", "hyperparameters.batch_size=4", *assignments])


def rows() -> list[Row]:
    draw = np.random.default_rng(0)
    stem = draw.integers(3, 500, 12).tolist()
    ids = [stem[:shared] + draw.integers(3, 500, more).tolist() for shared, more in [(12, 4), (12, 0), (12, 7), (5, 6), (0, 9)]]
    return [Row(np.array(each, np.int32), np.r_[False, draw.random(len(each) - 1) < 0.6]) for each in ids]


def tuned(base: str, bits: int | None, **more) -> PeftModel:
    """Adapters that are not zero, on a base in so many bits."""
    loaded = load(base, bits=bits)
    model = tuning.apply(loaded.model, Lora(rank=2, **more), base).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tuning.trained(model).values():
            parameter.normal_(std=0.1)
    return model


def outcome(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    nll = score(model, batch).nll
    nll.sum().backward()
    return nll.detach(), {name: p.grad.clone() for name, p in tuning.trained(model).items()}


def unpacked(model) -> torch.nn.Module:
    """The same model, its 4-bit layers replaced by plain ones that hold the numbers the bits stand for."""
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        inner = getattr(layer, "base_layer", None)
        if isinstance(inner, bitsandbytes.nn.Linear4bit):
            made = torch.nn.Linear(inner.in_features, inner.out_features, bias=inner.bias is not None)
            made.weight.data = bitsandbytes.functional.dequantize_4bit(inner.weight.data, inner.weight.quant_state)
            if inner.bias is not None:
                made.bias.data = inner.bias.data.float()
            layer.base_layer = made.requires_grad_(False)
    return plain


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_losses_and_gradients_are_those_of_the_numbers_that_4_bits_stand_for(bases, shape):
    model, batch = tuned(bases[shape], 4), branch(rows())
    assert attention.serves(model, 64) is None
    loss, gradients = outcome(model, batch)
    plain = unpacked(model)
    # Plain layers, padded rows.
    wanted, theirs = outcome(plain, collate(rows()))
    assert not any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in plain.modules())
    assert float(loss.sum()) == pytest.approx(float(wanted.sum()), rel=1e-6)
    scale = max(float(g.abs().max()) for g in theirs.values())
    assert max(float((gradients[name] - g).abs().max()) for name, g in theirs.items()) <= 1e-5 * scale
    # It is a rounding, and a real one: each weight is one of 16 numbers times its block's scale.
    full = tuned(bases[shape], None)
    assert 1e-6 < abs(float(loss.sum()) / float(outcome(full, batch)[0].sum()) - 1) < 0.05
    inner = next(m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit))
    blocks = bitsandbytes.functional.dequantize_4bit(inner.weight.data, inner.weight.quant_state).reshape(-1, 64)
    shares = (blocks / blocks.abs().amax(dim=1, keepdim=True)).unique()
    assert len({round(share, 4) for share in shares.tolist()}) <= 2 * 16


@pytest.mark.parametrize("shape", ["llama", "qwen2"])
def test_8_bits_train_along_the_tree_as_in_plain_peft(bases, shape):
    """int8 rounds what goes into each layer too, so the last digits of tree and padded rows may differ."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model, batch = tuned(bases[shape], 8), branch(rows())
    assert attention.serves(model, 64) is None
    loss, gradients = outcome(model, batch)
    how = BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(bases[shape], dtype=torch.float32, quantization_config=how, device_map={"": "cpu"})
    plain = tuning.apply(base, Lora(rank=2), bases[shape]).eval()
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if "lora" in name}, strict=False)
    wanted = []
    for row in rows():
        ids = torch.from_numpy(row.ids)[None].long()
        wanted.append(torch.nn.functional.cross_entropy(plain(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")[row.trained[1:]])
    torch.cat(wanted).sum().backward()
    theirs = {name: p.grad for name, p in tuning.trained(plain).items()}
    assert float(loss.sum()) == pytest.approx(float(torch.cat(wanted).detach().sum()), rel=1e-4)
    scale = max(float(g.abs().max()) for g in theirs.values())
    assert max(float((gradients[name] - g).abs().max()) for name, g in theirs.items()) <= 1e-2 * scale


@pytest.mark.parametrize(("bits", "most"), [(4, 0.6), (8, 1.2)])
def test_the_weights_take_that_many_bits(bases, bits, most):
    """Bytes a weight of the linear layers, scales included: half a byte and a little, or one and a little."""
    plain, held = load(bases["llama"]).model, load(bases["llama"], bits=bits).model
    linear = sum(m.weight.numel() for name, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head")
    rest = quantized.weight_bytes(plain) - 4 * linear
    assert bits / 8 * linear < quantized.weight_bytes(held) - rest < most * linear
    assert quantized.weights(held) == quantized.weights(plain) == sum(p.numel() for p in plain.parameters())
    layer = held.model.layers[0].mlp.up_proj.weight
    assert layer.element_size() == 1 and layer.numel() == 32 * 64 * bits // 8


def test_evaluation_in_between_changes_nothing(bases):
    """bitsandbytes would repack a layer at its first call in evaluation, and lose its gradient and some of its digits."""
    model, batch = tuned(bases["llama"], 4), branch(rows())
    model.train()
    before = outcome(model, batch)
    model.eval()
    with torch.no_grad():
        evaluated = score(model, batch).nll
    assert torch.allclose(evaluated, before[0], atol=1e-6)
    model.train()
    after = outcome(model, batch)
    assert torch.equal(before[0], after[0]) and all(torch.equal(g, after[1][name]) for name, g in before[1].items())


def test_bf16_is_computed_in_bf16_and_leaves_fp32_as_it_was(bases):
    model, batch = tuned(bases["llama"], 4), branch(rows())
    exact = outcome(model, batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = outcome(model, batch)[0]
    assert 0 < float((rough - exact).abs().max()) < 0.1
    assert torch.equal(outcome(model, batch)[0], exact)


@pytest.mark.parametrize("bits", [4, 8])
def test_interrupted_equals_uninterrupted_and_is_served_alike(data, bases, tmp_path, bits):
    base = bases["qwen2"]
    said = list(train(config(data, base, tmp_path / "whole", f"tuning.bits={bits}")))
    assert any(f"held in {bits} bits" in event.message for event in said)
    events = train(config(data, base, tmp_path / "parts", f"tuning.bits={bits}"))
    for event in events:
        if event.step == 4 and event.kind == "metrics":
            events.close()
            break
    list(train(config(data, base, tmp_path / "parts", f"tuning.bits={bits}")))
    name = "model/adapter_model.safetensors"
    assert sha256(tmp_path / "whole" / name) == sha256(tmp_path / "parts" / name)

    served = load(str(tmp_path / "whole"))
    assert quantized.bits_of(served.model) == bits
    valid = [event.data["full_valid_loss"] for event in said if "full_valid_loss" in event.data][-1]
    from tunewright.data import formats
    from tunewright.data.tokens import tokenize

    found = score(served.model, branch(tokenize(formats.load(data), served.tokenizer, 256).rows)).nll
    assert float(found.mean()) == pytest.approx(valid, rel=1e-5 if bits == 4 else 1e-3)
    assert len(answers(served.model, served.tokenizer, [[5, 6, 7], [8]], 4)) == 2
    assert f"held in {bits} bits" in (tmp_path / "whole/README.md").read_text()
    whole = str(tmp_path / "whole")
    assert f"Before: the base in full; after: the base in {bits} bits" in (rounded(base, whole) or "")
    assert rounded(whole, whole) is rounded(base, base) is None
    # peft's own format: plain peft lays it on the base in full, which is another rounding.
    plain = PeftModel.from_pretrained(load(base).model, str(tmp_path / "whole" / "model")).eval()
    assert torch.equal(plain.get_parameter(LORA), served.model.get_parameter(LORA))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_server_holds_the_base_in_the_adapters_bits(data, bases, tmp_path, bits):
    from test_chat_api import HELLO, app_for, ask
    from tunewright.data.example import Chat, Message
    from tunewright.data.tokens import prompt
    from tunewright.serve.ask import Resolved
    from tunewright.serve.engine import Engine

    list(train(config(data, bases["llama"], tmp_path / "run", f"tuning.bits={bits}", "optimizer.learning_rate=0.05")))
    engine = Engine()
    said = ask(app_for(engine, {"tuned": Resolved("tuned", tmp_path / "run/model", bases["llama"])}), model="tuned")
    held = [quantized.bits_of(runner.loaded.model) for runner in engine._runners.values()]
    engine.close()
    assert bits in held
    alone = load(str(tmp_path / "run"))
    asked = prompt(Chat((Message("user", HELLO[0]["content"]),)), alone.tokenizer)
    assert said.choices[0].message.content == answers(alone.model, alone.tokenizer, [asked], 12)[0].text


LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"


def test_dora_and_biases_train_on_4_bits(data, bases, tmp_path):
    list(train(config(data, bases["qwen2"], tmp_path / "run", "tuning.bits=4", "tuning.dora=true", "tuning.bias=all")))
    assert quantized.bits_of(load(str(tmp_path / "run")).model) == 4


def test_without_bitsandbytes_it_says_what_to_install(data, bases, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BadConfig, match=r"install the extra tunewright\[quantized\]"):
        list(train(config(data, bases["llama"], tmp_path / "run", "tuning.bits=4")))


def test_a_damaged_record_is_refused(data, bases, tmp_path):
    list(train(config(data, bases["llama"], tmp_path / "run", "tuning.bits=8", "hyperparameters.n_epochs=1")))
    (tmp_path / "run/model" / quantized.FILE).write_text(json.dumps({"bits": 3}))
    with pytest.raises(BadModel, match="does not say in 4 or 8 bits"):
        load(str(tmp_path / "run"))
