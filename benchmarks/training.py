"""Training speed against TRL's SFTTrainer or DPOTrainer, on the same work in one run.

    python benchmarks/training.py --data train.jsonl --order by_prefix --batch 16 --shape 7m --peer build/peers/bin/python
    python benchmarks/training.py --data gsm8k.jsonl --method dpo --peer build/peers/bin/python

Both sides take the same tokens, batches, LoRA start, optimizer and precision; a round is one process of each, in turn; the first step of each
process warms up and is not counted. Prints the median seconds a step of both, the ratio of the medians and of each round, how far apart the
losses of each step are, and the peak memory. TRL runs in each of its layouts, and the fastest counts. For DPO the file holds questions with
worked answers; the answer that is not preferred is the same one with a number and the result changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shapes import SHAPES, write_base

HERE = Path(__file__).parent
LAYOUTS = {"sft": "padded,padding_free", "dpo": "precomputed,live"}


def prepare(folder: Path, given: argparse.Namespace) -> None:
    """Write the base, the rows in the order of the steps (as our file and, for the peer, as tokens), and the job."""
    from tunewright.data import formats, tree
    from tunewright.data.tokens import tokenize
    from tunewright.models.load import load

    write_base(folder / "base", given.shape)
    source = given.data
    if given.method == "dpo":
        source = folder / "pairs.jsonl"
        source.write_text("".join(pairs(given.data, given.seed)))
    lines = source.read_text().splitlines(keepends=True)
    items = tokenize(formats.load(source), load("nano").tokenizer, 1024).rows
    random.Random(given.seed).shuffle(items)
    steps = [items[i : i + given.batch] for i in range(0, len(items) - given.batch + 1, given.batch)]
    if given.order == "by_prefix":
        ordered = [items[i] for i in tree.order([item.rows[0] for item in items])]
        steps = [ordered[i : i + given.batch] for i in range(0, len(ordered) - given.batch + 1, given.batch)]
        random.Random(given.seed).shuffle(steps)
    chosen = [item for step in steps[: given.steps] for item in step]
    (folder / "data.jsonl").write_text("".join(lines[item.line - 1] for item in chosen))
    with (folder / "rows.jsonl").open("w") as file:
        for item in chosen:
            rows = [{"ids": row.ids.tolist(), "trained": row.trained.tolist()} for row in item.rows]
            file.write(json.dumps(rows) + "\n")
    job = {"method": given.method, "steps": given.steps, "batch": given.batch, "rank": 8, "alpha": 16, "beta": 0.1, "learning_rate": 1e-3, "seed": 0}
    (folder / "job.json").write_text(json.dumps({**job, "threads": given.threads, "precision": given.precision}))


def pairs(path: Path, seed: int) -> list[str]:
    """Preference pairs from questions with worked answers: one of the answer's numbers is changed, and the result."""
    draw, lines = random.Random(seed), []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        work, mark, result = record["answer"].rpartition("#### ")
        numbers = list(re.finditer(r"\d+", work))
        if not mark or not numbers:
            continue
        at = draw.choice(numbers)
        wrong = work[: at.start()] + str(int(at.group()) + draw.randint(1, 9)) + work[at.end() :] + mark + f"{result}{draw.randint(0, 9)}"
        lines.append(json.dumps({"prompt": record["question"], "chosen": record["answer"], "rejected": wrong}) + "\n")
    return lines


def our_side(folder: Path) -> None:
    """Our half, in a process of its own: the run's own start and steps on the same rows. Prints one JSON line."""
    import psutil

    from tunewright.config import TrainConfig
    from tunewright.train.loop import take_step
    from tunewright.train.start import start

    job = json.loads((folder / "job.json").read_text())
    with tempfile.TemporaryDirectory() as out:
        settings = TrainConfig.parse(
            {
                "data": folder / "data.jsonl",
                "model": str(folder / "base"),
                "out": out,
                "method": {"kind": "dpo", "beta": job["beta"]} if job["method"] == "dpo" else {"kind": "supervised"},
                "tuning": {"kind": "lora", "rank": job["rank"], "alpha": job["alpha"]},
                "hyperparameters": {"n_epochs": 1, "batch_size": job["batch"]},
                "optimizer": {"learning_rate": job["learning_rate"]},
                "shuffle": "none",
                "threads": job["threads"],
                "precision": job["precision"],
                "seed": job["seed"],
            }
        )
        begun = time.perf_counter()
        events = start(settings)
        try:
            while True:
                next(events)
        except StopIteration as end:
            run = end.value
        before, held = time.perf_counter() - begun, psutil.Process().memory_info().rss
        seconds, losses = [], []
        for i in range(0, len(run.rows), job["batch"]):
            begun = time.perf_counter()
            losses.append(take_step(run, run.rows[i : i + job["batch"]], job["learning_rate"]).loss)
            seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "losses": losses, "before": before, "held_bytes": held, "peak_bytes": peak}))


def measured(command: list[str]) -> dict:
    """The JSON line that a side prints. Raises SystemExit with what it said where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, given: argparse.Namespace) -> None:
    """The rounds, and what they say."""
    ours = [sys.executable, __file__, "--our-side", str(folder)]
    layouts = (given.layouts or LAYOUTS[given.method]).split(",")
    trl = {f"TRL {layout}": [given.peer, str(HERE / "trl_side.py"), str(folder), layout] for layout in layouts}
    rounds: dict[str, list[dict]] = {"tunewright": [], **{name: [] for name in trl}}
    for _ in range(given.rounds):
        rounds["tunewright"].append(measured(ours))
        for name, command in trl.items():
            rounds[name].append(measured(command))
    where = f"{platform.machine()}, torch threads {given.threads}, {given.precision}"
    work = f"{given.data}, {given.method}, {given.order}, batch {given.batch}, {given.shape} Llama shape, LoRA rank 8"
    print(f"{work}, {where}, {given.rounds} rounds of {given.steps} steps")
    for name, runs in rounds.items():
        print(f"  {name}: {statistics.median(map(step, runs)):.3f} s a step (rounds {' '.join(f'{step(one):.3f}' for one in runs)}), {memory(runs)}")
    mine = rounds.pop("tunewright")
    for name, theirs in rounds.items():
        ratio = statistics.median(map(step, theirs)) / statistics.median(map(step, mine))
        each = [step(b) / step(a) for a, b in zip(mine, theirs, strict=True)]
        apart = [abs(a - b) for a, b in zip(mine[0]["losses"], theirs[0]["losses"], strict=True)]
        print(f"  against {name}: ratio of medians {ratio:.2f} (rounds {' '.join(f'{one:.2f}' for one in each)})")
        print(f"    losses differ step by step by {' '.join(f'{one:.1e}' for one in apart)}")
        print(
            f"    peak memory {peak(mine) / peak(theirs):.2f} of theirs, what training added {added(mine) / added(theirs):.2f}; "
            f"before the first step {mine[0]['before']:.1f} s and {theirs[0]['before']:.1f} s"
        )
    fastest = min(rounds, key=lambda name: statistics.median(map(step, rounds[name])))
    print(f"  TRL's fastest layout: {fastest}")


def step(one: dict) -> float:
    """Median seconds of a process's steps but the first."""
    return statistics.median(one["seconds"][1:])


def peak(runs: list[dict]) -> float:
    return statistics.median(one["peak_bytes"] for one in runs)


def added(runs: list[dict]) -> float:
    return statistics.median(one["peak_bytes"] - one["held_bytes"] for one in runs)


def memory(runs: list[dict]) -> str:
    return f"peak memory {peak(runs) / 1e6:,.0f} MB, {added(runs) / 1e6:,.0f} of them since the first step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--our-side", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help="chat JSONL; for dpo lines of question and answer, as GSM8K has them")
    parser.add_argument("--method", choices=("sft", "dpo"), default="sft")
    parser.add_argument("--order", choices=("by_prefix", "shuffled"), default="by_prefix")
    parser.add_argument("--shape", choices=[*SHAPES, "nano"], default="7m")
    parser.add_argument("--batch", type=int, default=16, help="rows, or pairs, a step")
    parser.add_argument("--steps", type=int, default=4, help="steps a process; the first is not counted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layouts", help=f"how TRL lays the work out: {LAYOUTS['sft']} for sft, {LAYOUTS['dpo']} reference log-probs for dpo")
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
