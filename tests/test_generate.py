"""Answers: the same one by one and together, greedy whatever the model's folder says, whole characters in a stream."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import tiny
from tunewright.errors import Problem
from tunewright.models.generate import answers, choose, stream

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


def make(shape: str) -> PreTrainedModel:
    """A model of few words would hide much: larger weights give it varied ones."""
    model = tiny.SHAPES[shape]()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(15)
    return model


def chain(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> LlamaForCausalLM:
    """A model that knows for each token the one that follows: each text's bytes, then the end."""
    size = len(tokenizer)
    follows = [tokenizer.eos_token_id] * size
    for text in texts:
        ids = [tokenizer.convert_tokens_to_ids(BYTES[byte]) for byte in text.encode()]
        for here, after in pairwise(ids):
            follows[here] = after
    config = LlamaConfig(vocab_size=size, hidden_size=size, num_hidden_layers=1, intermediate_size=8, num_attention_heads=1)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(torch.eye(size)[follows].T)
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
    return model


def _bytes() -> dict[int, str]:
    """GPT-2's printable name of each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTES = _bytes()


def prompts(tokenizer: PreTrainedTokenizerFast, n: int = 16) -> list[list[int]]:
    words = ["the lamp", "a café", "kettle and", "日本 🙂", "Käse", "x", "1234567 is long"]
    return [tokenizer(" ".join(words[(i * 3 + j) % 7] for j in range(1 + i % 5)))["input_ids"] for i in range(n)]


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_batches_change_nothing(shape: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = make(shape), prompts(tokenizer)
    alone = [answers(model, tokenizer, [ids], 30)[0] for ids in asked]
    assert len({answer.ids for answer in alone}) > len(asked) // 2  # the model has more than one thing to say
    assert answers(model, tokenizer, asked, 30) == alone
    assert answers(model, tokenizer, asked, 30, budget=200) == alone


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_the_stream_is_the_answer(shape: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = make(shape), prompts(tokenizer)[:8]
    for ids, answer in zip(asked, answers(model, tokenizer, asked, 40), strict=True):
        assert "".join(stream(model, tokenizer, ids, 40)) == answer.text


def test_greedy_is_the_argmax_of_a_plain_forward_pass(tokenizer: PreTrainedTokenizerFast) -> None:
    model, ids = make("llama"), prompts(tokenizer)[3]
    answer = answers(model, tokenizer, [ids, [7]], 25)[0]
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([ids + list(answer.ids)])).logits[0].argmax(-1).tolist()
    assert whole[len(ids) - 1 : -1] == list(answer.ids)
    assert answer.finished == (whole[-1] == tokenizer.eos_token_id and len(answer.ids) < 25)


def test_the_models_own_generation_settings_are_ignored_and_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    model, asked = make("gpt2"), prompts(tokenizer)[:6]
    before = answers(model, tokenizer, asked, 20)
    likely = before[0].ids[0]
    own = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=5.0, suppress_tokens=[likely], max_length=3)
    model.generation_config = own
    model.config.use_cache = False
    model.train()
    assert answers(model, tokenizer, asked, 20) == before
    assert model.generation_config is own
    assert model.training


def test_an_answer_ends_at_its_end_token_or_at_the_limit(tokenizer: PreTrainedTokenizerFast) -> None:
    model = chain(tokenizer, ["abc"])
    a, b = (tokenizer.convert_tokens_to_ids(c) for c in "ab")
    first, second, cut = answers(model, tokenizer, [[a], [9, 9, b]], 10) + answers(model, tokenizer, [[a]], 2)
    assert (first.text, first.finished) == ("bc", True)
    assert (second.text, second.finished) == ("c", True)
    assert (cut.text, cut.finished, len(cut.ids)) == ("bc", False, 2)
    assert answers(model, tokenizer, [[tokenizer.convert_tokens_to_ids("c")]], 5)[0].ids == ()


def test_an_adapter_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    from peft import LoraConfig, get_peft_model

    base, asked = make("llama"), prompts(tokenizer)[:6]
    plain = answers(base, tokenizer, asked, 20)
    tuned = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert answers(tuned, tokenizer, asked, 20) == plain  # a fresh adapter adds 0
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    after = answers(tuned, tokenizer, asked, 20)
    assert after != plain
    assert answers(tuned.merge_and_unload(), tokenizer, asked, 20) == after


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_answers_stop_where_the_context_is_full(shape: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, long, short = make(shape), [5] * 253, [6] * 20
    together = answers(model, tokenizer, [long, short, [5] * 248], 30)
    assert [len(answer.ids) <= room for answer, room in zip(together, (3, 30, 8), strict=True)] == [True] * 3
    assert together[1] == answers(model, tokenizer, [short], 30)[0]
    for call in (lambda ids: answers(model, tokenizer, [short, ids], 5), lambda ids: stream(model, tokenizer, ids, 5)):
        with pytest.raises(Problem) as caught:
            call([5] * 256)
        assert caught.value.code == "context_length_exceeded"


def test_a_stream_yields_whole_characters(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "日é🙂z"  # each byte occurs once, so the chain says them in this order
    model = chain(tokenizer, ["a" + text])
    pieces = list(stream(model, tokenizer, [tokenizer.convert_tokens_to_ids("a")], 50))
    assert pieces == list(text)
    half = list(stream(model, tokenizer, [tokenizer.convert_tokens_to_ids("a")], 4))
    assert half == ["日", "\ufffd"]


def test_a_stream_leaves_its_reader_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make("llama").train()
    for _ in stream(model, tokenizer, [5, 6], 4):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert model.training


def test_sampling_follows_its_seed_and_the_models_chances(tokenizer: PreTrainedTokenizerFast) -> None:
    model, ids = make("llama"), [40, 50]

    def sample(**settings: Any) -> str:
        return "".join(stream(model, tokenizer, ids, 25, **settings))

    assert sample(temperature=1.5, seed=1) == sample(temperature=1.5, seed=1)
    assert len({sample(temperature=1.5, seed=s) for s in range(4)}) > 2
    assert sample(temperature=1.0, top_p=1e-9, seed=3) == sample() == sample(temperature=1e-6, seed=3)


def test_draws_match_the_softmax_within_the_nucleus() -> None:
    chances = torch.tensor([0.1, 0.5, 0.25, 0.15])
    draws = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.stack([choose(chances.log(), 1.0, 0.7, draws) for _ in range(4000)]), minlength=4)
    # 0.5 alone is under 0.7, 0.5 + 0.25 is over it: those two remain, 2 to 1; five standard deviations are 0.037.
    assert counts[0] == counts[3] == 0
    assert abs(counts[1] / 4000 - 2 / 3) < 0.037
