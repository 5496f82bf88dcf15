"""The estimate before a run against its outcome, over a grid of models, tunings, batches and data.

    python benchmarks/plan.py

Each configuration is planned in a process of its own and then trained in another; both peaks are the system's own high-water marks (VmHWM). Prints each
prediction beside its outcome, and the largest and the median error. Six minutes on two quiet cores; `--only 3` takes one configuration,
`--threads`, `--precision` go to all of them. `--runs 3` trains each three times: the outcome is their median, and the spread of one and the same run is
printed, for no estimate can be more exact than that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tunewright.config import TrainConfig
from tunewright.train.measure import apart

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "tunewright" / "data" / "sample"
SHARED = ROOT.parent / "shared" / "data"
SHAPES = {  # Llama shapes: hidden, feed-forward, layers, heads, key-value heads
    "2m": (128, 352, 4, 4, 2),
    "7m": (288, 816, 6, 6, 3),
    "50m": (640, 1792, 10, 10, 5),
}
GRID = [  # model, tuning, rows a step, data, rows
    ("nano", "tuning=lora", 4, "sample", 320),
    ("nano", "tuning.rank=64", 16, "sample", 480),
    ("nano", "tuning=full", 8, "sample", 320),
    ("nano", "tuning={kind: top_layers, layers: 2}", 16, "sample", 480),
    ("nano", "tuning=lora", 8, "long", 48),
    ("nano", "tuning=full", 4, "long", 32),
    ("2m", "tuning=full", 32, "sample", 480),
    ("2m", "tuning=lora", 16, "long", 128),
    ("7m", "tuning=lora", 32, "sample", 480),
    ("7m", "tuning=full", 8, "long", 48),
    ("7m", "tuning={kind: top_layers, layers: 0}", 8, "sample", 480),
    ("50m", "tuning.rank=8", 4, "sample", 64),
    ("50m", "tuning=full", 8, "sample", 64),
    ("50m", "tuning={kind: top_layers, layers: 3}", 4, "long", 32),
]


def shape(name: str, folder: Path) -> str:
    """A base of random weights, written once; nano by its name."""
    place = folder / name
    if name == "nano" or place.is_dir():
        return name if name == "nano" else str(place)
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunewright.models.load import load

    tokenizer = load("nano").tokenizer
    hidden, inner, layers, heads, kv_heads = SHAPES[name]
    torch.manual_seed(0)
    settings = {"vocab_size": len(tokenizer), "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    settings |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 1024, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(**settings, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def data(kind: str, rows: int, folder: Path) -> Path:
    """The first rows of a file: the built-in sample, or AR-LSAT (rows of about 360 tokens); where that is missing, long rows are made up."""
    place = folder / f"{kind}-{rows}.jsonl"
    source = SAMPLE / "train.jsonl" if kind == "sample" else SHARED / "ar_lsat" / "train.jsonl"
    if source.is_file():
        lines = source.read_text().splitlines(keepends=True)[:rows]
    else:
        draw, words = random.Random(0), SAMPLE.joinpath("train.jsonl").read_text().split()
        lines = [json.dumps({"prompt": " ".join(draw.choices(words, k=draw.randint(60, 160))), "completion": "yes"}) + "\n" for _ in range(rows)]
    place.write_text("".join(lines))
    return place


def outcome(config: TrainConfig, run: int) -> dict[str, Any]:
    """Train in a process of its own; what its estimate.json says of the prediction made in it and of what came."""
    config = config.model_copy(update={"out": config.out.with_name(f"{config.out.name}-{run}")})
    program = "import json, sys; from tunewright.config import TrainConfig; from tunewright.train.loop import train; "
    program += "[None for _ in train(TrainConfig.parse(json.load(sys.stdin)))]"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    job = config.model_dump(mode="json")
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], input=json.dumps(job), env={**os.environ, "PYTHONPATH": path}, text=True, capture_output=True
    )
    if done.returncode:
        raise SystemExit(f"training failed:\n{done.stderr[-3000:]}")
    return json.loads((config.out / "estimate.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int, action="append", help="configurations by number")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--runs", type=int, default=1, help="trainings of each configuration")
    given = parser.parse_args()
    begun, errors = time.monotonic(), []
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {given.threads} threads, {given.precision}; predicted / outcome (error), and the error of the run's own forecast"
    )
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name)
        for i, (model, tuning, batch, kind, rows) in enumerate(GRID):
            if given.only and i not in given.only:
                continue
            settings = [
                tuning,
                f"hyperparameters.batch_size={batch}",
                "hyperparameters.n_epochs=1",
                f"threads={given.threads}",
                f"precision={given.precision}",
            ]
            files = {"data": str(data(kind, rows, folder)), "validation": str(SAMPLE / "validation.jsonl")}
            config = TrainConfig.parse({**files, "model": shape(model, folder), "out": str(folder / f"run-{i}")}, settings)
            planned, came = apart(config), [outcome(config, run) for run in range(given.runs)]
            done, own, row = {}, {}, []
            for which in ("seconds", "peak_memory_bytes"):
                all_of_them = [each["outcome"][which] for each in came]
                done[which] = statistics.median(all_of_them)
                own[which] = statistics.median(each["prediction"][f"estimated_{which}"] for each in came)
                row += [planned[f"estimated_{which}"] / done[which] - 1, own[which] / done[which] - 1, max(all_of_them) / min(all_of_them) - 1]
            errors.append(row)
            memory = f"{planned['estimated_peak_memory_bytes'] / 1e6:5.0f} / {done['peak_memory_bytes'] / 1e6:5.0f} MB"
            seconds = f"{planned['estimated_seconds']:5.1f} / {done['seconds']:5.1f} s"
            what = f"{i:2} {model:4} {tuning:36} batch {batch:2}, {rows:3} {kind:6}"
            print(f"{what} | {seconds} ({row[0]:+5.0%}), own {row[1]:+5.0%} | {memory} ({row[3]:+5.1%}), own {row[4]:+5.1%}", flush=True)
    columns = [("plan, time", 0), ("plan, memory", 3), ("forecast, time", 1), ("forecast, memory", 4)]
    spreads = [("from the shortest to the longest of the same runs", 2), ("from the least to the most memory of the same runs", 5)]
    for name, column in [*columns, *(spreads if given.runs > 1 else [])]:
        absolute = [abs(row[column]) for row in errors]
        print(f"{name}: median {statistics.median(absolute):.1%}, largest {max(absolute):.1%}")
    print(f"{time.monotonic() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
