"""Small real models and tokenizers for tests: random weights, real architectures, built in milliseconds."""

from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

SAMPLE = Path(__file__).parents[1] / "tunewright" / "data" / "sample"

# The shapes of templates in the wild, in our own words: what they emit is what matters here.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (  # as Qwen2 does it
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
)
TRIMMING = (  # as Llama 3 and Gemma do it
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
INSTRUCT = (  # as Llama 2 and Mistral do it: turns alternate, the answer ends with a space and the end token
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
REWRITING = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}")


@lru_cache(maxsize=1)
def _vocabulary() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((SAMPLE / "train.jsonl").read_text().splitlines()[:100], trainer)
    return str(tokenizer.to_str())


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens with the given chat template."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_vocabulary()),
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=256,
    )
    made.chat_template = template
    return made


def llama(seed: int = 0, tie: bool = True, positions: int = 256) -> PreTrainedModel:
    """Two layers, grouped-query attention, tied head."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tie, max_position_embeddings=positions, eos_token_id=2, pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0) -> PreTrainedModel:
    """Learned positions, fused projections, dropout 0.1."""
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=256, eos_token_id=2, bos_token_id=0, pad_token_id=0)
    return GPT2LMHeadModel(config).eval()


def qwen2(seed: int = 0) -> PreTrainedModel:
    """Biases in the attention projections, untied head."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=2, pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def encoder(kind: str = "bert", seed: int = 0) -> PreTrainedModel:
    """Two layers without a head: a BERT (pooler, two segments), a RoBERTa (positions from the padding token) or a DistilBERT."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4}
    if kind == "bert":
        return BertModel(BertConfig(**sizes, max_position_embeddings=256, pad_token_id=0)).eval()
    if kind == "roberta":
        return RobertaModel(RobertaConfig(**sizes, max_position_embeddings=258, pad_token_id=0, type_vocab_size=1), add_pooling_layer=False).eval()
    return DistilBertModel(
        DistilBertConfig(vocab_size=512, dim=32, n_layers=2, hidden_dim=64, n_heads=4, max_position_embeddings=256, pad_token_id=0)
    ).eval()


def encoder_decoder(kind: str = "t5", seed: int = 0) -> PreTrainedModel:
    """Two layers on each side: a T5 (relative positions, no biases), a BART (learned positions) or a Marian (sinusoids, a bias on the logits)."""
    torch.manual_seed(seed)
    if kind == "t5":
        return T5ForConditionalGeneration(
            T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
        ).eval()
    shape, made = (BartConfig, BartForConditionalGeneration) if kind == "bart" else (MarianConfig, MarianMTModel)
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2 if kind == "bart" else 0, "forced_eos_token_id": None}
    return made(shape(vocab_size=512, d_model=32, max_position_embeddings=256, **sizes, **ids)).eval()


SHAPES = {"llama": llama, "gpt2": gpt2, "qwen2": qwen2}


def save(folder: Path, model: PreTrainedModel, template: str | None = CHATML) -> str:
    """A model folder with its tokenizer, as a user would have it on disk."""
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return str(folder)
