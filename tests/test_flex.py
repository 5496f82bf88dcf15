"""FlexAttention's forward pass, which a CPU has, against gathered paths: the mask is the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from test_tree import CALM, MORE, family, made, some_rows
from tunewright.data import tree
from tunewright.models import attention, flex
from tunewright.models.forward import branch, score

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@settings(CALM, max_examples=30)
@given(rows=some_rows(), heads=st.sampled_from([(1, 1), (4, 2)]), softcap=st.sampled_from([None, 0.5]), scaling=st.sampled_from([None, 0.3]))
def test_it_equals_gathered_paths(rows, heads, softcap, scaling):
    planned = tree.plan(rows)
    draws = torch.Generator().manual_seed(len(planned.ids))
    query, key, value = (torch.randn(1, n, len(planned.ids), 8, generator=draws) for n in (heads[0], heads[1], heads[1]))
    wanted = attention._along(attention.Layout.of(planned), query, key, value, scaling, 0.0, softcap)
    found = flex.attend(query, key, value, flex.blocks(planned.end, "cpu"), scaling, softcap)
    assert found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, MORE["gemma2"]])
def test_a_whole_model_over_more_than_one_block(make):
    model, rows = made(make), family(length=200)
    batch = branch(rows)
    assert len(batch.layout.ids[0]) > flex.BLOCK and batch.layout.blocks is None
    one_call = replace(batch, layout=replace(batch.layout, blocks=flex.blocks(tree.plan(rows).end, "cpu")))
    with torch.no_grad():
        assert torch.allclose(score(model, one_call).nll, score(model, batch).nll, atol=1e-5)


def test_padding_is_seen_by_nobody():
    """And dense: every pair of tokens, against the definition."""
    planned = tree.plan(family(length=90))
    mask = flex.blocks(planned.end, "cpu")
    length, tokens = mask.shape[-1], len(planned.ids)
    assert length % flex.BLOCK == 0 and length > tokens
    b, a = np.meshgrid(np.arange(length), np.arange(length), indexing="ij")
    seen = mask.mask_mod(0, 0, torch.from_numpy(b), torch.from_numpy(a)).numpy()
    wanted = np.eye(length, dtype=bool)
    for path in planned.paths:
        for i, token in enumerate(path):
            wanted[token, path[: i + 1]] = True
    assert np.array_equal(seen, wanted)


def test_a_cpu_gathers():
    assert not flex.usable("cpu") and attention.Layout.of(tree.plan(family())).blocks is None
