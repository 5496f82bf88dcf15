"""What nano can do: greedy answers to fresh documents of every chat family, and how many are exactly right.

    python recipes/nano/probe.py tunewright/models/nano --each 50 --show 1

Families in which many answers are right (naming six foods, saying a thing in another way, small talk) count as wrong what merely differs.
"""

import argparse
import random
from pathlib import Path

import torch
from corpus import FAMILIES, document
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase


def first_turn(text: str) -> tuple[str, str] | None:
    """A chat up to its first assistant turn, and what the assistant says there; None for a text that is no chat."""
    head, mark, rest = text.partition("<|im_start|>assistant\n")
    return (head + mark, rest.split("<|im_end|>")[0]) if mark else None


@torch.no_grad()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The greedy answer to a rendered prompt."""
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=96, do_sample=False)
    return tokenizer.decode(out[0, ids.size(1) :], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--each", type=int, default=50, help="documents a family")
    parser.add_argument("--show", type=int, default=0, help="wrong answers printed per family")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    for family in FAMILIES:
        rng, asked, right, shown = random.Random(f"probe {family}"), 0, 0, 0
        for _ in range(args.each):
            turn = first_turn(document(rng, family).text) if family != "docstrings" else None
            if turn is None:
                continue
            prompt, wanted = turn
            got = answer(model, tokenizer, prompt)
            asked, right = asked + 1, right + (got == wanted)
            if got != wanted and shown < args.show:
                shown += 1
                print(f"  {prompt!r}\n  wanted {wanted!r}\n  got    {got!r}")
        if asked:
            print(f"{family:16} {right / asked:6.1%} of {asked}")


if __name__ == "__main__":
    main()
