"""Pretrain nano on the generated corpus, on a CPU, within a time budget; or export a checkpoint to a model folder.

    python recipes/nano/pretrain.py --minutes 95 --work build/nano
    python recipes/nano/pretrain.py --work build/nano --export tunewright/models/nano
    python recipes/nano/pretrain.py --work build/more --steps 1700 --start build/first --peak 0.6 --bf16

A run that was stopped goes on from its last checkpoint. Creating the file `decay` in the work folder begins the final decay at once.
"""

import argparse
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from corpus import FAMILIES, Document, document, documents
from muon import Muon
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tunewright.models.attention import attach
from tunewright.models.floats import flushed

UNLEARNT_SHARE = 0.25  # of what users and systems say, this share of tokens is predicted too: it is language, but mostly names drawn by chance
WARM_UP, DECAY = 40, 0.25
LONG_FROM = 0.93  # from this share of the budget on, sequences fill the whole context
LEARNING_RATE, MUON_RATE = 3e-3, 0.02


@dataclass(frozen=True)
class Batch:
    """Token ids of shape (rows, length) and a mask, of the same shape, of the tokens that are predicted."""

    ids: Tensor
    learnt: Tensor


def build(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """An untrained nano: the Llama shape in fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=288,
        intermediate_size=816,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
        use_cache=True,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerBase, made: Document, rng: random.Random) -> tuple[list[int], list[bool]]:
    """Token ids of a document and which of them are predicted; a document separator ends it."""
    ids: list[int] = []
    learnt: list[bool] = []
    for part, all_of_it in made.parts:
        new = tokenizer.encode(part, add_special_tokens=False)
        ids += new
        learnt += [all_of_it or rng.random() < UNLEARNT_SHARE for _ in new]
    return [*ids, tokenizer.pad_token_id], [*learnt, True]


def rows(tokenizer: PreTrainedTokenizerBase, stream: Iterator[Document], length: int, rng: random.Random) -> Iterator[tuple[list[int], list[bool]]]:
    """Rows of `length` tokens. Each starts with a new document, as the model's later users do; the last one of a row is cut off."""
    while True:
        ids: list[int] = []
        learnt: list[bool] = []
        while len(ids) < length:
            new_ids, new_learnt = encode(tokenizer, next(stream), rng)
            ids += new_ids
            learnt += new_learnt
        yield ids[:length], learnt[:length]


def batches(tokenizer: PreTrainedTokenizerBase, seed: int, length: int, tokens: int) -> Iterator[Batch]:
    """Batches of `tokens` tokens in rows of `length`."""
    rng = random.Random(seed)
    made = rows(tokenizer, documents(seed), length, rng)
    while True:
        pairs = [next(made) for _ in range(tokens // length)]
        learnt = torch.tensor([learnt for _, learnt in pairs])
        # Whole hundreds of predicted tokens, nearly: bf16 products are compiled anew for each new size. (A row's first token is never predicted.)
        at, places = learnt[:, 1:].nonzero(as_tuple=True)
        kept = len(places) // 128 * 128
        learnt[at[kept:], places[kept:] + 1] = False
        yield Batch(torch.tensor([ids for ids, _ in pairs]), learnt)


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean cross-entropy of the predicted tokens; the head runs at their positions only, which saves about a third of its work."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    wanted = batch.learnt[:, 1:]
    return F.cross_entropy(model.lm_head(hidden[wanted]), batch.ids[:, 1:][wanted])


@torch.no_grad()
def held_out_losses(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, documents_each: int) -> dict[str, float]:
    """Loss per family on documents of seeds that training never uses; in chats, on what the assistant says."""
    model.eval()
    losses = {}
    for family in FAMILIES:
        rng, total, count = random.Random(f"held out {family}"), 0.0, 0
        for _ in range(documents_each):
            made = document(rng, family)
            ids: list[int] = []
            learnt: list[bool] = []
            for part, all_of_it in made.parts:
                new = tokenizer.encode(part, add_special_tokens=False)
                ids, learnt = ids + new, learnt + [all_of_it] * len(new)
            row = Batch(torch.tensor([ids[:1024]]), torch.tensor([learnt[:1024]]))
            predicted = int(row.learnt[:, 1:].sum())
            if predicted:
                total, count = total + float(loss_of(model, row)) * predicted, count + predicted
        losses[family] = round(total / count, 3)
    model.train()
    return losses


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    return [
        Muon(matrices, lr=MUON_RATE, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True),
    ]


def rate(step: int, done: float, decay_from: float) -> float:
    """Warm-up, constant, linear decay to zero: the factor on the learning rates when the share `done` of the budget is used."""
    if done < decay_from:
        return min(1.0, (step + 1) / WARM_UP)
    return max(0.0, (1.0 - done) / (1.0 - decay_from))


def save(path: Path, state: dict) -> None:
    """Write a checkpoint so that a kill leaves the old or the new one, never half of one."""
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


@flushed()
def train(args: argparse.Namespace) -> None:
    """The run: step until the minutes are used, checkpoint every few, log as JSON lines."""
    torch.set_num_threads(args.threads)
    if args.start:  # a further stage of a finished model
        args.work.mkdir(parents=True, exist_ok=True)
        names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        shutil.copytree(args.start, args.work / "tokenizer", dirs_exist_ok=True, ignore=lambda _, found: [n for n in found if n not in names])
    tokenizer = AutoTokenizer.from_pretrained(args.work / "tokenizer")
    model, checkpoint = build(tokenizer), args.work / "ckpt" / "last.pt"
    attach(model)  # with --bf16, attention stays in fp32, which is several times faster backward
    if args.start:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.start, dtype=torch.float32).state_dict())
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    opts = optimizers(model)
    base_rates = [group["lr"] for opt in opts for group in opt.param_groups]
    step, tokens, used, decay_from = 0, 0, 0.0, 1.0 - DECAY
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        step, tokens, used, decay_from = state["step"], state["tokens"], state["used"], state["decay_from"]
    budget, started = args.minutes * 60, time.monotonic() - used
    saved_at = evaluated_at = used
    length, stream = 0, iter(())
    while True:
        used = time.monotonic() - started
        done = step / args.steps if args.steps else used / budget
        if (args.work / "decay").exists() and done < decay_from:  # end early: what is left is the decay, as long as planned
            done, decay_from = 1.0 - DECAY, 1.0 - DECAY
            args.steps = round(step / done) if args.steps else 0
            started = time.monotonic() - done * budget
            used = done * budget
            (args.work / "decay").unlink()
        wanted = 1024 if done >= LONG_FROM else 512
        if wanted != length:
            length, stream = wanted, batches(tokenizer, args.seed * 1_000_000 + step, wanted, args.batch)
        factor = rate(step, done, decay_from)
        for group, base in zip((group for opt in opts for group in opt.param_groups), base_rates, strict=True):
            group["lr"] = base * factor * args.peak
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = loss_of(model, next(stream))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + args.batch
        used = time.monotonic() - started
        last = step == args.steps if args.steps else used >= budget
        if step % 10 == 0 or last:
            log(args.work, {"step": step, "tokens": tokens, "seconds": round(used), "loss": round(loss.item(), 4), "factor": round(factor, 3)})
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss became {loss.item()} at step {step}")
        if used - evaluated_at > args.evaluate_minutes * 60 or last:
            evaluated_at = used
            log(args.work, {"step": step, "tokens": tokens, "held_out": held_out_losses(model, tokenizer, 60 if last else 12)})
        if used - saved_at > args.save_minutes * 60 or last:
            saved_at = used
            save(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "optimizers": [opt.state_dict() for opt in opts],
                    "step": step,
                    "tokens": tokens,
                    "used": used,
                    "decay_from": decay_from,
                },
            )
        if last:
            return


def log(work: Path, line: dict) -> None:
    """Print a line and append it to the run's log."""
    print(json.dumps(line), flush=True)
    with (work / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def export(work: Path, folder: Path) -> None:
    """Write the last checkpoint as a model folder that transformers loads: bf16 weights, config, tokenizer, generation config."""
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    state = torch.load(work / "ckpt" / "last.pt")
    model = build(tokenizer)
    model.load_state_dict(state["model"])
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=128, do_sample=False
    )
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    for file in (work / "tokenizer").iterdir():  # as it was made: saving a loaded tokenizer adds notes on how it was loaded
        shutil.copy(file, folder)
    print(f"step {state['step']}, {state['tokens']} tokens -> {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/nano"), help="tokenizer, checkpoints and log live here")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the last checkpoint to FOLDER and stop")
    parser.add_argument("--minutes", type=float, default=95.0, help="time budget, over all starts of the run")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the weights and the tokenizer of this model, and fresh optimizers")
    parser.add_argument("--peak", type=float, default=1.0, help="the rates' highest, as a share of the usual one")
    parser.add_argument("--steps", type=int, default=0, help="so many steps, however long they take, in place of --minutes")
    parser.add_argument("--batch", type=int, default=4096, help="tokens a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="multiply matrices in bf16; for processors with instructions for it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--evaluate-minutes", type=float, default=8.0)
    args = parser.parse_args()
    if args.export:
        export(args.work, args.export)
    else:
        train(args)


if __name__ == "__main__":
    main()
