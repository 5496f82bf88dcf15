"""Training speed against TRL's SFTTrainer, on the same work in one run.

    python benchmarks/training.py --data train.jsonl --order by_prefix --batch 16 --shape 7m --peer build/peers/bin/python

Both sides take the same tokens, batches, LoRA start, optimizer and precision; a round is one process of each, in turn; the first step of each
process warms up and is not counted. Prints the median seconds a step of both, the ratio round by round, the largest difference of
a step's loss, and the peak memory. TRL runs padded and padding-free, and the faster counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SHAPES = {  # Llama shapes: hidden, feed-forward, layers, heads, key-value heads
    "7m": (288, 816, 6, 6, 3),
    "50m": (640, 1792, 10, 10, 5),
}


def prepare(folder: Path, given: argparse.Namespace) -> None:
    """Write the base, the rows in the order of the steps, and the job."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunewright.data import formats, tree
    from tunewright.data.tokens import tokenize
    from tunewright.models.load import load

    tokenizer = load("nano").tokenizer
    hidden, inner, layers, heads, kv_heads = SHAPES[given.shape]
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
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    examples = formats.load(given.data)
    rows = [row for item in tokenize(examples, tokenizer, 1024).rows for row in item.rows]
    random.Random(given.seed).shuffle(rows)
    steps = [rows[i : i + given.batch] for i in range(0, len(rows) - given.batch + 1, given.batch)]
    if given.order == "by_prefix":
        ordered = [rows[i] for i in tree.order(rows)]
        steps = [ordered[i : i + given.batch] for i in range(0, len(ordered) - given.batch + 1, given.batch)]
        random.Random(given.seed).shuffle(steps)
    with (folder / "rows.jsonl").open("w") as file:
        for row in (row for step in steps[: given.steps] for row in step):
            labels = [int(token) if trained else -100 for token, trained in zip(row.ids, row.trained, strict=True)]
            file.write(json.dumps({"ids": row.ids.tolist(), "labels": labels}) + "\n")
    job = {"steps": given.steps, "batch": given.batch, "rank": 8, "alpha": 16, "learning_rate": 1e-3, "seed": 0}
    (folder / "job.json").write_text(json.dumps({**job, "threads": given.threads, "precision": given.precision}))


def our_side(folder: Path) -> None:
    """Our half, in a process of its own: the loop's own step on the same rows. Prints one JSON line."""
    import time

    import numpy as np
    import torch

    from tunewright.config import Lora, Optimizer, Supervised, TrainConfig
    from tunewright.data.tokens import Row
    from tunewright.models import tuning
    from tunewright.models.attention import serves
    from tunewright.models.load import load
    from tunewright.train import plan, schedule
    from tunewright.train.loop import take_step
    from tunewright.train.losses import loss_for
    from tunewright.train.start import Run

    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    loaded = load(str(folder / "base"))
    torch.manual_seed(job["seed"])
    model = tuning.apply(loaded.model, Lora(rank=job["rank"], alpha=job["alpha"]), loaded.base)
    rows = []
    for line in (folder / "rows.jsonl").read_text().splitlines():
        record = json.loads(line)
        rows.append(Row(np.array(record["ids"], np.int32), np.array(record["labels"]) != -100))
    settings = TrainConfig(data=folder / "rows.jsonl", model=loaded.base, optimizer=Optimizer(learning_rate=job["learning_rate"]))
    resolved = plan.Plan(1, job["batch"], job["learning_rate"], job["steps"], 1, job["threads"], job["precision"])
    optimizer = schedule.optimizer(settings.optimizer, tuning.groups(model, 0.0, 1.0), job["learning_rate"])
    shared = serves(model, max(len(row.ids) for row in rows)) is None
    run = Run(settings, resolved, model, loaded.tokenizer, loaded.base, rows, [], shared, loss_for(Supervised()), optimizer)
    seconds, losses = [], []
    for i in range(0, len(rows), job["batch"]):
        begun = time.perf_counter()
        losses.append(take_step(run, rows[i : i + job["batch"]], job["learning_rate"]).loss)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def measured(command: list[str]) -> dict:
    """The JSON line that a side prints. Raises SystemExit with what it said where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, given: argparse.Namespace) -> None:
    """The rounds, and what they say."""
    ours = [sys.executable, __file__, "--our-side", str(folder)]
    trl = {layout: [given.peer, str(HERE / "trl_side.py"), str(folder), layout] for layout in given.layouts.split(",")}
    rounds: dict[str, list[dict]] = {"tunewright": [], **{f"TRL {layout}": [] for layout in trl}}
    for _ in range(given.rounds):
        rounds["tunewright"].append(measured(ours))
        for layout, command in trl.items():
            rounds[f"TRL {layout}"].append(measured(command))
    mine = rounds.pop("tunewright")
    step = [statistics.median(one["seconds"][1:]) for one in mine]
    where = f"{platform.machine()}, torch threads {given.threads}, {given.precision}"
    print(
        f"{given.data}, {given.order}, batch {given.batch}, {given.shape} Llama shape, LoRA rank 8, {where}, {given.rounds} rounds of {given.steps} steps"
    )
    print(f"  tunewright: {statistics.median(step):.3f} s a step, peak {max(one['peak_bytes'] for one in mine) / 1e6:,.0f} MB")
    for name, theirs in rounds.items():
        their_step = [statistics.median(one["seconds"][1:]) for one in theirs]
        ratios = [b / a for a, b in zip(step, their_step, strict=True)]
        apart = max(abs(a - b) for one, other in zip(mine, theirs, strict=True) for a, b in zip(one["losses"], other["losses"], strict=True))
        print(
            f"  {name}: {statistics.median(their_step):.3f} s a step, peak {max(one['peak_bytes'] for one in theirs) / 1e6:,.0f} MB; "
            f"ratio {statistics.median(ratios):.2f} (rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)}); losses differ by at most {apart:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--our-side", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help="chat JSONL")
    parser.add_argument("--order", choices=("by_prefix", "shuffled"), default="by_prefix")
    parser.add_argument("--shape", choices=list(SHAPES), default="7m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="steps a process; the first is not counted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layouts", default="padded,padding_free", help="how TRL lays rows out")
    parser.add_argument("--peer", default="build/peers/bin/python", help="the peers' Python; see peers.txt")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.our_side:
        our_side(given.our_side)
        return
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        prepare(Path(folder), given)
        compare(Path(folder), given)


if __name__ == "__main__":
    main()
