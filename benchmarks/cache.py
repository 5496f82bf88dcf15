"""What keeping a frozen trunk's states saves: the seconds of an epoch with them and without, when only the upper layers train.

    python benchmarks/cache.py --data train.jsonl --model 50m --layers 0 2

Each round is a process with the cache and one without, in turn, on the same rows, batches and start. The first epoch warms up; those after it
count. Prints the medians, the ratio, what the first computation of the states took, how far the losses are apart, and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from shapes import SHAPES, write_base
from training import measured


def one_side(settings: dict) -> None:
    """A run in a process of its own, its steps taken one by one. Prints one JSON line."""
    from tunewright.config import TrainConfig
    from tunewright.data.sampler import steps
    from tunewright.train.loop import take_step
    from tunewright.train.start import start

    events, said = start(TrainConfig.parse(settings)), {}
    try:
        while True:
            said |= {key: value for key, value in next(events).data.items() if key in ("trunk_kept", "seconds", "bytes", "reason")}
    except StopIteration as end:
        run = end.value
    epochs: dict[int, float] = {}
    losses = []
    for _, epoch, chosen in steps(len(run.rows), run.plan.batch_size, run.plan.n_epochs, run.order):
        begun = time.perf_counter()
        losses.append(take_step(run, [run.rows[i] for i in chosen], run.plan.learning_rate).loss)
        epochs[epoch] = epochs.get(epoch, 0.0) + time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"epochs": list(epochs.values()), "losses": losses, "peak_bytes": peak, **said}))


def compare(folder: Path, layers: int, given: argparse.Namespace) -> None:
    """The rounds for one number of upper layers, and what they say."""
    settings = {
        "data": str(given.data),
        "model": str(folder / "base") if given.model in SHAPES else given.model,
        "tuning": {"kind": "top_layers", "layers": layers},
        "hyperparameters": {"n_epochs": given.epochs, "batch_size": given.batch},
        "optimizer": {"learning_rate": 1e-4},
        "shuffle": given.shuffle,
        "threads": given.threads,
        "precision": given.precision,
    } | json.loads(given.more)
    rounds: dict[str, list[dict]] = {"on": [], "off": []}
    for _ in range(given.rounds):
        for use, runs in rounds.items():
            with tempfile.TemporaryDirectory(dir=folder) as out:
                job = json.dumps({**settings, "out": out, "cache": {"use": use}})
                runs.append(measured([sys.executable, __file__, "--one-side", job]))
    if not rounds["on"][0].get("trunk_kept"):
        raise SystemExit(f"The trunk was not kept: {rounds['on'][0].get('reason')}")
    kept, plain = ([statistics.median(one["epochs"][1:]) for one in runs] for runs in rounds.values())
    ratios = [b / a for a, b in zip(kept, plain, strict=True)]
    apart = max(abs(a - b) for a, b in zip(rounds["on"][0]["losses"], rounds["off"][0]["losses"], strict=True))
    peaks = [statistics.median(one["peak_bytes"] for one in runs) / 1e6 for runs in rounds.values()]
    first = statistics.median(one["seconds"] for one in rounds["on"])
    what = "the head" if layers == 0 else f"the top {layers} layers"
    print(f"{given.data}, {what} of {given.model}, batch {given.batch}, {platform.machine()}, torch threads {given.threads}, {given.precision}")
    print(f"  with kept states {statistics.median(kept):.2f} s an epoch, without {statistics.median(plain):.2f} s, {given.rounds} rounds")
    print(f"  ratio of medians {statistics.median(plain) / statistics.median(kept):.2f} (rounds {' '.join(f'{ratio:.2f}' for ratio in ratios)})")
    print(f"  the states took {first:.2f} s once, and {rounds['on'][0]['bytes'] / 1e6:,.1f} MB of disk; losses differ by at most {apart:.1e}")
    print(f"  peak memory {peaks[0]:,.0f} MB with (mapped pages of the states included) and {peaks[1]:,.0f} MB without")


def some_of(data: Path, rows: int, folder: Path) -> Path:
    """The first rows of a JSONL file; of CLINC150's own file, its training rows as labelled text."""
    if data.name == "data_full.json":
        records = [json.dumps({"text": text, "label": label}) for text, label in json.loads(data.read_text())["train"]]
    else:
        records = data.read_text().splitlines()
    chosen = folder / "data.jsonl"
    chosen.write_text("".join(record + "\n" for record in records[: rows or None]))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one-side", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help="training data as JSONL, or CLINC150's data_full.json")
    parser.add_argument("--model", default="50m", help=f"a shape ({', '.join(SHAPES)}) or a model's name")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2], help="how many upper layers train; 0: the head alone")
    parser.add_argument("--rows", type=int, default=0, help="the first so many rows; 0: all")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shuffle", choices=("rows", "by_prefix", "none"), default="by_prefix")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--more", default="{}", help="further settings of the run, as JSON")
    given = parser.parse_args()
    if given.one_side:
        one_side(given.one_side)
        return
    with tempfile.TemporaryDirectory(prefix="cache-") as folder:
        if given.model in SHAPES:
            write_base(Path(folder) / "base", given.model)
        given.data = some_of(given.data, given.rows, Path(folder))
        for layers in given.layers:
            compare(Path(folder), layers, given)


if __name__ == "__main__":
    main()
