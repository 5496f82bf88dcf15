"""Train nano's tokenizer: byte-level BPE of 8192 entries, digits one by one, three special tokens and a chat template.

    python recipes/nano/tokenizer.py build/nano/tokenizer

The template writes each message as `<|im_start|>role`, a newline, the content, `<|im_end|>` and a newline. Every role, developer
included, is written under its own name, and no default system prompt is added.
"""

import argparse
from pathlib import Path

from corpus import documents
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 8192
CONTEXT = 1024
# Words with their leading space, single digits, runs of marks, line ends: so that JSON's quotes and braces stand apart from words.
SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train(documents_read: int, seed: int) -> PreTrainedTokenizerFast:
    """A tokenizer trained on a sample of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    stream = documents(seed)
    texts = ("".join(part for part, _ in next(stream).parts).replace("<|im_start|>", "").replace("<|im_end|>", "\n") for _ in range(documents_read))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    tokenizer = train(args.documents, args.seed)
    tokenizer.save_pretrained(args.folder)
    print(f"{len(tokenizer)} entries in {args.folder}")


if __name__ == "__main__":
    main()
