"""The prefix tree against its oracles: padded rows, a set of prefixes, the same rows cut differently."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

import tiny
from tunewright.data import tree
from tunewright.data.tokens import Row
from tunewright.models import attention, forward
from tunewright.models.forward import batches, branch, collate, score, score_rows

# A machine that is busy elsewhere is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FEW = st.integers(3, 5)  # so few different tokens that rows often begin alike


@st.composite
def some_rows(draw) -> list[Row]:
    """Rows that share beginnings at any depth, with equal ones and prefixes among them, and any tokens but the first trained."""
    known = [draw(st.lists(FEW, min_size=2, max_size=12))]
    for _ in range(draw(st.integers(0, 7))):
        old = draw(st.sampled_from(known))
        ids = old[: draw(st.integers(0, len(old)))] + draw(st.lists(FEW, max_size=6))
        known.append(ids if len(ids) > 1 else draw(st.lists(FEW, min_size=2, max_size=9)))
    return [row(ids, [bool(chosen >> i & 1) for i in range(len(ids) - 1)]) for ids, chosen in zip(known, draw(bits(len(known))), strict=True)]


def bits(rows: int) -> st.SearchStrategy:
    """For each row a number whose bits say which tokens are trained."""
    return st.lists(st.integers(0, 2**20), min_size=rows, max_size=rows)


def row(ids: list[int], trained: list[bool] | None = None) -> Row:
    trained = trained if trained and any(trained) else [True] * (len(ids) - 1)
    return Row(np.array(ids, np.int32), np.array([False, *trained]))


def family(seed: int = 0, length: int = 30) -> list[Row]:
    """Longer rows: two depths of sharing, one beginning that is a row itself, one row twice, one that shares nothing."""
    draw = np.random.default_rng(seed)
    base = draw.integers(3, 500, length).tolist()
    ends = [(length // 3, 9), (length // 3, 4), (length // 2, 12), (length // 2 + 1, 3), (length, 0), (length, 5), (0, 20)]
    rows = [base[:shared] + draw.integers(3, 500, more).tolist() for shared, more in ends]
    return [row(ids, (draw.random(len(ids) - 1) < 0.5).tolist()) for ids in [*rows, rows[2]]]


def outcome(model, *laid_out) -> tuple[float, torch.Tensor, list[torch.Tensor]]:
    """Summed loss, each trained token's loss in the rows' order, and the gradients, over one or more batches."""
    model.zero_grad()
    scores = [score(model, batch) for batch in laid_out]
    for each in scores:
        each.nll.sum().backward()
    return (
        sum(float(each.nll.detach().double().sum()) for each in scores),
        torch.cat([each.nll.detach() for each in scores]),
        [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters() if p.requires_grad],
    )


def assert_equal(one, other, loss=1e-6, gradient=1e-5) -> None:
    assert one[0] == pytest.approx(other[0], rel=loss)
    scale = max(float(g.abs().max()) for g in other[2])
    assert max(float((a - b).abs().max()) for a, b in zip(one[2], other[2], strict=True)) <= gradient * scale


MODELS = {shape: make() for shape, make in tiny.SHAPES.items()}


@pytest.mark.parametrize("shape", tiny.SHAPES)
@settings(CALM, max_examples=20)
@given(rows=some_rows())
def test_the_tree_equals_padded_rows(shape, rows):
    model = MODELS[shape]
    shared, padded = outcome(model, branch(rows)), outcome(model, collate(rows))
    assert_equal(shared, padded)
    assert torch.allclose(shared[1], padded[1], rtol=1e-5)
    assert len(shared[1]) == sum(int(r.trained.sum()) for r in rows)


@settings(CALM, max_examples=60)
@given(rows=some_rows())
def test_a_tree_holds_each_prefix_once_and_each_row_whole(rows):
    planned = tree.plan(rows)
    prefixes = {tuple(r.ids[: i + 1].tolist()) for r in rows for i in range(len(r.ids))}
    assert len(planned.ids) == len(prefixes) == tree.distinct(rows) == sum(s.own for s in planned.segments)
    assert planned.longest == max(len(r.ids) for r in rows)
    before = (np.arange(len(planned.ids)) <= np.arange(len(planned.ids))[:, None]) & (np.arange(len(planned.ids))[:, None] < planned.end)
    for r, path in zip(rows, planned.paths, strict=True):
        assert np.array_equal(planned.ids[path], r.ids)
        assert np.array_equal(planned.positions[path], np.arange(len(r.ids)))
        assert all(np.array_equal(before[token].nonzero()[0], path[: i + 1]) for i, token in enumerate(path))
    wanted = [(i, path[j - 1], r.ids[j]) for i, (r, path) in enumerate(zip(rows, planned.paths, strict=True)) for j in r.trained.nonzero()[0]]
    assert list(zip(planned.row, planned.state, planned.target, strict=True)) == wanted


@settings(CALM, max_examples=50)
@given(rows=some_rows(), budget=st.integers(1, 60), pairs=st.booleans())
def test_micro_batches_hold_each_row_once_within_the_budget(rows, budget, pairs):
    bundles = [rows[i : i + 2] for i in range(0, len(rows), 2)] if pairs else [[r] for r in rows]
    groups = tree.micro(bundles, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(bundles)))
    assert all(len(group) == 1 or tree.distinct([r for i in group for r in bundles[i]]) <= budget for group in groups)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_rounded_sizes_change_nothing(shape):
    for length in range(30, 60, 7):
        rows = family(length, length)
        as_it_is, rounded = branch(rows), branch(rows, rounded=True)
        assert len(rounded.needed) % 32 == 0 or len(rounded.needed) == rounded.ids.shape[1]
        assert len(set(rounded.needed.tolist())) == len(rounded.needed)
        one, other = outcome(MODELS[shape], as_it_is), outcome(MODELS[shape], rounded)
        assert_equal(one, other)
        assert torch.allclose(one[1], other[1], rtol=1e-5)


def test_rounded_trees_have_few_sizes():
    planned = [tree.plan([row(list(range(3, 3 + length)))]) for length in range(40, 1200)]
    sizes = [(len(each.ids), len(tree.rounded(each).ids)) for each in planned]
    assert all(size <= rounded <= size * 17 / 16 for size, rounded in sizes)
    assert len({rounded for size, rounded in sizes if size >= 512}) <= 21


@settings(CALM, max_examples=10)
@given(rows=some_rows(), budget=st.integers(4, 40))
def test_cutting_a_tree_changes_no_gradient(rows, budget):
    model = MODELS["llama"]
    whole = outcome(model, branch(rows))
    assert_equal(outcome(model, *(batch for _, batch in batches(rows, budget, shared=True))), whole)
    assert_equal(outcome(model, *(batch for _, batch in batches(rows, budget, shared=False))), whole)


SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 256, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 0}
GROUPED = SIZES | {"num_key_value_heads": 2}
HEADS = GROUPED | {"head_dim": 8}
MORE = {
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**HEADS)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**HEADS)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**GROUPED)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**GROUPED)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**HEADS)),
    # Caps so narrow that they matter at random weights.
    "gemma2": lambda: tf.Gemma2ForCausalLM(
        tf.Gemma2Config(**HEADS, query_pre_attn_scalar=2, attn_logit_softcapping=0.1, final_logit_softcapping=0.2)
    ),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**HEADS, sliding_window=64)),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**HEADS, num_local_experts=4)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES)),
    "granite": lambda: tf.GraniteForCausalLM(tf.GraniteConfig(**GROUPED, logits_scaling=4.0, attention_multiplier=3.0)),
}


def made(make) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("shape", MORE)
@pytest.mark.parametrize("parts", [False, True], ids=["whole head", "head in parts"])
def test_more_shapes(shape, parts, monkeypatch):
    model, rows = made(MORE[shape]), family()
    assert attention.serves(model, 40) is None
    padded = outcome(model, collate(rows))
    if parts:
        monkeypatch.setattr(forward, "MOST_LOGITS", 0)
        monkeypatch.setattr(forward, "LEAST_TOKENS", 7)
        assert (forward.plain_head(model) is None) == (shape in ("gemma2", "granite"))
    assert_equal(outcome(model, branch(rows)), padded)


def t5():
    return tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=512, d_model=32, d_ff=64, num_layers=1, num_heads=4))


REFUSED = {
    "encoder-decoder": t5,
    "logits_to_keep": lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZES)),
    "recurrent": lambda: tf.MambaForCausalLM(tf.MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, state_size=4)),
    "sees 16 tokens back": lambda: tf.MistralForCausalLM(tf.MistralConfig(**HEADS, sliding_window=16)),
    "sees 17 tokens back": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**HEADS, sliding_window=17)),
    "position_ids": lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=512, hidden_size=32, n_layer=1, n_head=4)),
    "attention interface": lambda: tf.GPTJForCausalLM(tf.GPTJConfig(vocab_size=512, n_embd=32, n_layer=1, n_head=4, rotary_dim=4)),
    "hand the tree on": lambda: tf.StableLmForCausalLM(tf.StableLmConfig(**GROUPED)),
    "takes s_aux": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(**HEADS, num_local_experts=4)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_a_tree_cannot_serve_says_why_and_takes_padded_rows(reason):
    model, rows = made(REFUSED[reason]), family()
    before = model.config._attn_implementation
    assert reason in (attention.serves(model, max(len(r.ids) for r in rows)) or "")
    assert model.config._attn_implementation == before
    if reason != "encoder-decoder":
        assert len(dict(score_rows(model, rows, 64))) == len(rows)


def test_a_leak_is_noticed(monkeypatch):
    """Should a new kind of model mix rows in a way that its config does not tell, its own numbers tell."""
    monkeypatch.setattr(attention, "_by_config", lambda base, model: None)
    model = made(REFUSED["recurrent"])
    monkeypatch.setattr(attention, "attach", lambda model: None)
    monkeypatch.setattr(model, "forward", lambda tree=None, position_ids=None, f=model.forward, **named: f(**named))
    assert "its logits change" in (attention.serves(model, 8) or "")


def test_rows_do_not_leak_into_each_other():
    """A changed token changes no bit of any other row's loss."""
    rows = family()
    rows[3].trained[-1] = True
    for shape, model in MODELS.items():
        first = dict(score_rows(model, rows, 1000))
        other = [Row(r.ids.copy(), r.trained, 0) for r in rows]
        other[3].ids[-1] += 1
        second = dict(score_rows(model, other, 1000))
        changed = [i for i in range(len(rows)) if not torch.equal(first[i].nll, second[i].nll)]
        assert changed == [3], shape


def test_adapters_with_activation_checkpointing():
    """Layers computed again in the backward pass follow the tree too, though the call is over by then."""
    torch.manual_seed(1)
    model = get_peft_model(tiny.llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))
    assert attention.serves(model, 256) is None
    padded = outcome(model, collate(family()))
    assert_equal(outcome(model, branch(family())), padded)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_equal(outcome(model, branch(family())), padded)


def test_dropout_and_bf16_run_along_the_tree():
    model, rows = tiny.gpt2(), family()
    calm = outcome(model, branch(rows))
    model.train()
    assert outcome(model, branch(rows))[0] == pytest.approx(calm[0], rel=0.05)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(outcome(model, branch(rows)), outcome(model, collate(rows)), 1e-2, 5e-2)


@pytest.mark.parametrize("planned", [True, False])
def test_on_a_cpu_attention_is_in_float32_where_the_rest_is_in_bf16(planned):
    model = tiny.llama()
    attention.attach(model)
    query, key, value = (torch.randn(1, heads, 10, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2))
    layout = attention.Layout.of(tree.plan([row(list(range(3, 13)))])) if planned else None
    call = partial(attention.attend, model.model.layers[0].self_attn, query, key, value, None, instead="sdpa", tree=layout)
    expected = call()[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = call()[0]
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_a_model_that_follows_trees_still_generates_and_saves_as_before(tmp_path):
    asked = torch.tensor([[0, 0, 7, 8, 9], [4, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    for make in (tiny.llama, MORE["gemma2"]):
        model = made(make)
        before = model.generate(asked, attention_mask=mask, max_new_tokens=6, do_sample=False)
        assert attention.serves(model, 64) is None
        score(model, branch(family()))
        assert torch.equal(model.generate(asked, attention_mask=mask, max_new_tokens=6, do_sample=False), before)
        model.save_pretrained(tmp_path)
        assert "tunewright" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_real_data_shrinks_more_than_threefold(shared_data):
    """Six questions share a passage and all rows a system prompt."""
    tokenizer = tiny.tokenizer()
    chats = [json.loads(line)["messages"] for line in (shared_data / "ar_lsat" / "train.jsonl").read_text().splitlines()]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    rows = [row(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert sum(len(r.ids) for r in rows) > 3 * tree.distinct(rows)
