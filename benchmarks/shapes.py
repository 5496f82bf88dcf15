"""Bases of a known shape with random weights, for timings, and `nano`, whose weights have learnt something: attention that has learnt to look at few
tokens has chances below 1e-38, with which CPUs compute slowly unless told to take them for zero."""

from pathlib import Path

SHAPES = {  # Llama shapes: hidden, feed-forward, layers, heads, key-value heads
    "1m": (96, 256, 4, 4, 2),
    "7m": (288, 816, 6, 6, 3),
    "50m": (640, 1792, 10, 10, 5),
}


def write_base(folder: Path, shape: str) -> None:
    """A model folder of a Llama shape, seeded, with the tokenizer of `nano`; or `nano` itself."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunewright.models.load import load

    nano = load("nano")
    tokenizer = nano.tokenizer
    if shape == "nano":
        nano.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    hidden, inner, layers, heads, kv_heads = SHAPES[shape]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
