"""The last layer where it is read: the same losses and gradients, from fewer tokens."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from test_tree import MORE, assert_equal, family, made, outcome
from tunewright.data.tokens import Row
from tunewright.models import last
from tunewright.models.forward import branch, collate

SHAPES = tiny.SHAPES | {name: MORE[name] for name in ("phi", "gemma2", "mixtral", "gpt_neox")}


def few(seed: int = 0) -> list[Row]:
    """Rows of which two tokens are trained."""
    rows = family(seed)
    for row in rows:
        row.trained[:-2] = False
        row.trained[-2:] = True
    return rows


def seen_by(model, name: str, batch) -> list[int]:
    """How many tokens reach a part of the last layer."""
    sizes: list[int] = []
    part = last.stack(model)[-1].get_submodule(name)
    handle = part.register_forward_hook(lambda _, args, out: sizes.append(args[0].shape[1]))
    outcome(model, batch)
    handle.remove()
    return sizes


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_from_fewer_tokens(shape):
    model, rows = made(SHAPES[shape]), few()
    batch = branch(rows)
    assert_equal(outcome(model, batch), outcome(model, collate(rows)))
    assert 2 * len(batch.needed) < batch.ids.shape[1] and "mlp" in last.shortened(model).parts
    assert seen_by(model, "mlp", batch) == [len(batch.needed)]


def test_rounded_sizes_count_nothing_twice():
    model, rows = tiny.llama(), few()
    batch = branch(rows, rounded=True)
    assert last.short(model, batch.needed, batch.ids.shape[1]) is not model
    assert_equal(outcome(model, batch), outcome(model, collate(rows)))


def test_adapters_and_activation_checkpointing():
    torch.manual_seed(1)
    model = get_peft_model(tiny.llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))
    padded = outcome(model, collate(few()))
    assert_equal(outcome(model, branch(few())), padded)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_equal(outcome(model, branch(few())), padded)


def test_where_most_is_read_nothing_changes():
    model, rows = tiny.llama(), family()
    for row in rows:
        row.trained[1:] = True
    batch = branch(rows)
    assert last.short(model, batch.needed, batch.ids.shape[1]) is model


class Mixes(torch.nn.Module):
    """Each token takes a tenth of the one before it."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states + 0.1 * states.roll(1, dims=1)


def test_a_part_that_looks_at_other_tokens_is_left_whole():
    states = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 5, 8))).float()
    linear = torch.nn.Linear(8, 8)
    assert last._by_itself(linear, (states,), {}, linear(states))
    assert not last._by_itself(Mixes(), (states,), {}, states)
    layer = last.stack(tiny.llama())[-1]
    assert last._by_themselves(tiny.llama()) == ["mlp"] and "self_attn" in dict(layer.named_children())
