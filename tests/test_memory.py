"""How many tokens are computed at once: measured, kept for the run, without a say in the gradient; and layers computed again."""

from functools import partial
from pathlib import Path

import pytest
import torch
import transformers as tf

import tiny
from test_tree import assert_equal, family, outcome
from tunewright.config import Lora, Prompt, TrainConfig
from tunewright.errors import BadConfig
from tunewright.models import tuning, virtual
from tunewright.models.forward import branch, collate, score
from tunewright.train import memory
from tunewright.train.folder import sha256
from tunewright.train.loop import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join((tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)[:24]))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"), tiny.gpt2())


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": str(data), "model": base, "out": str(out), "threads": 1, "precision": "fp32"}
    return TrainConfig.parse(record, ["hyperparameters.n_epochs=2", "hyperparameters.batch_size=12", "tuning=full", *assignments])


def test_the_highest_is_what_is_in_use_at_once():
    def work():
        a = torch.empty(1_000_000)
        b = a + 1
        del a
        c = b + 1
        assert c is not b

    assert memory.highest(work, CPU) == pytest.approx(8_000_000, rel=1e-3)
    assert memory.highest(lambda: None, CPU) == 0


@pytest.mark.parametrize("shape", tiny.SHAPES)
@pytest.mark.parametrize("laid_out", [branch, collate])
def test_a_larger_micro_batch_takes_what_two_smaller_ones_foretell(shape, laid_out):
    """Within a quarter, from groups of a few hundred tokens to one five times as large."""
    model, rows = tiny.SHAPES[shape](), family(1, 150)

    def step(n: int) -> tuple[int, int]:
        batch = laid_out(rows[:n] if n <= len(rows) else [row for seed in range(1, 1 + n // len(rows)) for row in family(seed, 150)])

        def work():
            score(model, batch).nll.sum().backward()
            model.zero_grad()

        return batch.ids.numel(), memory.highest(work, CPU)

    fit = memory.fit([step(8), step(4)], 10**12, "cpu")
    tokens, taken = step(40)
    assert fit.needs(tokens) == pytest.approx(taken, rel=0.25)


def test_the_line_and_what_follows_from_it():
    fit = memory.fit([(500, 150_000), (1000, 250_000)], 1_000_000, "cpu")
    assert (fit.each, fit.fixed, fit.tokens) == (200, 50_000, 1024)  # 0.3 of a million less 50,000, by 200: 1,250, and a power of two
    assert fit.needs(fit.tokens) < fit.safe == 300_000
    assert memory.fit([(500, 150_000), (1000, 250_000)], 10**15, "cpu").tokens == 8192
    assert memory.fit([(500, 150_000), (1000, 250_000)], 10**15, "cuda").tokens == 65_536
    assert memory.fit([(500, 150_000), (1000, 250_000)], 0, "cpu").tokens == 16
    # One size, or two that are alike or contradict each other: all that is taken counts as the tokens'.
    for sizes in ([(1000, 250_000)] * 2, [(900, 240_000), (1000, 250_000)], [(500, 260_000), (1000, 250_000)]):
        assert memory.fit(sizes, 10**9, "cpu").each == 250


def test_a_control_groups_limit_counts(tmp_path):
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    for place, names in (("a/b", memory._V2), ("a", memory._V2), ("memory/c", memory._V1)):
        (root / place).mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, ("5000", "3000", ""), strict=True):
            if value:
                (root / place / name).write_text(value)
        (root / place / "memory.stat").write_text(f"anon 7\n{names[2]} 400\n")
    (root / "a" / "memory.max").write_text("max\n")
    groups.write_text("0::/a/b\n")
    assert memory._allowances(groups, root)[1:] == [2400]
    groups.write_text("5:cpuset:/x\n4:memory:/c\n0::/\n")
    assert memory._allowances(groups, root)[1:] == [2400]
    assert len(memory._allowances(tmp_path / "none", root)) == 1
    assert 0 < memory.free(CPU) < 2**50


def test_a_run_keeps_its_number_and_ends_with_the_same_bits(data, base, tmp_path, monkeypatch):
    """Dropout and all: the one that goes on does not ask anew, though little is free by then."""
    few = partial(int, 6_000_000)
    monkeypatch.setattr(memory, "free", lambda device: few())
    events = list(train(config(data, base, tmp_path / "whole")))
    said = next(event for event in events if "bytes_per_token" in event.data)
    tokens = said.data["micro_batch_tokens"]
    assert 16 <= tokens < 512 and tokens.bit_count() == 1 and f"up to {tokens} are computed at once" in said.message
    assert next(event for event in events if "parameters" in event.data).data["micro_batch_tokens"] == tokens
    parts = train(config(data, base, tmp_path / "parts"))
    for event in parts:
        if event.step == 2 and event.kind == "metrics":
            parts.close()
            break
    monkeypatch.setattr(memory, "free", lambda device: 10**12)
    list(train(config(data, base, tmp_path / "parts")))
    assert sha256(tmp_path / "whole/model/model.safetensors") == sha256(tmp_path / "parts/model/model.safetensors")


def test_too_long_a_row_is_said_before_it_is_met(data, base, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 2_400_000)
    events = train(config(data, base, tmp_path / "run"))
    warning = next(event for event in events if event.level == "warn")
    events.close()
    assert "The longest row has" in warning.message and "recompute=true" in warning.message and warning.data["bytes"] > 720_000


TUNED = {
    "full": lambda: tiny.llama().requires_grad_(True),
    "dropout": lambda: tiny.gpt2().train(),
    "lora": lambda: tuning.apply(tiny.qwen2(), Lora(rank=2, dropout=0.2), "x"),
    "prompt": lambda: tuning.apply(tiny.llama(), Prompt(virtual_tokens=6), "x"),
}


@pytest.mark.parametrize("laid_out", [branch, collate])
@pytest.mark.parametrize("kind", TUNED)
def test_layers_computed_again_give_the_same_gradient_and_take_less(kind, laid_out):
    torch.manual_seed(0)
    model = TUNED[kind]()
    model.train()
    batch = laid_out(virtual.in_front(family(2, 150), model))
    found = []
    for again in (False, True):
        if again:
            tuning.recompute(model)
        torch.manual_seed(3)
        results = []
        model.zero_grad()
        taken = memory.highest(lambda results=results: results.append(outcome(model, batch)), CPU)
        found.append((results[0], taken))
    (kept, more), (recomputed, less) = found
    assert_equal(recomputed, kept, 1e-6, 1e-6)
    assert less < 0.75 * more


def test_a_run_that_computes_layers_again_ends_alike(data, base, tmp_path):
    settings = ("tuning=lora", "tuning.rank=2", "dropout=0")
    for name, again in (("kept", "false"), ("again", "true")):
        list(train(config(data, base, tmp_path / name, f"recompute={again}", *settings)))
    from safetensors.torch import load_file

    kept, again = (load_file(tmp_path / name / "model/adapter_model.safetensors") for name in ("kept", "again"))
    assert all(torch.allclose(kept[name], again[name], atol=1e-6) for name in kept)


def test_a_model_that_cannot_says_so():
    model = tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(BadConfig, match="cannot compute its layers again"):
        tuning.recompute(model)
