"""A run that is killed again and again ends with the same bits as one that is left alone: shown by hash.

    python benchmarks/kills.py --kills 30 --seed 0 --model nano --tuning lora

Trains once undisturbed, and once with SIGKILLs at seeded places spread over the whole run: a third inside the writing of a
checkpoint, some while the run starts, one while the result is written, the others anywhere between. After each the run goes
on as `tunewright train --resume` does, by `train(config)`. Exit code 1 when the final weights' sha256 differ, or the loss of
any step that was taken, first or again.

Trainers are forked from this process, which has imported torch and has not run a single operation of it: that is safe, and a
kill costs a second instead of ten. Where a kill falls in time is the machine's business; that it hit a live trainer is seen
from its exit status, and that it fell inside a save from the half-written folder that lies there.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import argparse
import itertools
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.utils.tensorboard  # a run imports it late; here once for all forks
from rich.console import Console
from rich.table import Table

from tunewright.config import TrainConfig
from tunewright.event import Event, read_events
from tunewright.train.folder import sha256
from tunewright.train.loop import train

SAMPLE = Path(__file__).parents[1] / "tunewright" / "data" / "sample"
ROWS, HELD_OUT, BATCH, SAVE_EVERY = 120, 16, 8, 3
Place = Literal["inside a save", "while starting", "in the result", "between"]


@dataclass(frozen=True, slots=True)
class Kill:
    """Where one is to fall: at such a place, once the run is past a step, `share` (0 to 1) of the way through what is aimed at."""

    place: Place
    after: int
    share: float


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that a start, a step and a save take when nobody interferes."""

    start: float
    step: float
    save: float


class Trainer:
    """A forked process that trains, or goes on; it tells the step of each of its events through a pipe."""

    def __init__(self, config: TrainConfig) -> None:
        self.pipe, writes = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _train_and_leave(config, writes)
        os.close(writes)
        self.step = 0

    def read(self) -> bool:
        """Wait for the next event. False when there is none, for the process has left."""
        told = os.read(self.pipe, 4)
        self.step = int.from_bytes(told, "little") if told else self.step
        return bool(told)

    def running(self) -> bool:
        """Whether the process still trains; it is not reaped here."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self) -> bool:
        """SIGKILL. True where it hit a process that was still training."""
        os.kill(self.pid, signal.SIGKILL)
        return os.WIFSIGNALED(self.leave())

    def leave(self) -> int:
        """Wait for its end and return its status. Raises SystemExit where it failed by itself."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pipe)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise SystemExit("a trainer failed by itself, see above")
        return status


def _train_and_leave(config: TrainConfig, pipe: int) -> None:
    code = 1
    try:
        warnings.simplefilter("ignore")
        for event in train(config):
            os.write(pipe, event.step.to_bytes(4, "little"))
        code = 0
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    os._exit(code)


def planned(draw: random.Random, kills: int, steps: int) -> list[Kill]:
    """Kills spread evenly over the run at seeded steps, the places shuffled; of many the last falls into the result."""
    places: list[Place] = []
    places += ["inside a save"] * -(-kills // 3)
    places += ["while starting"] * (kills // 6)
    places += ["between"] * (kills - len(places))
    draw.shuffle(places)
    last = steps - 2 * SAVE_EVERY  # so that the run is not over before the kill
    chosen = [Kill(place, int((i + draw.random()) / kills * last), draw.random()) for i, place in enumerate(places)]
    return [*chosen[:-1], Kill("in the result", steps, draw.random())] if kills >= 10 else chosen


def half_written(config: TrainConfig, place: Place) -> bool:
    """Whether a save of this kind is going on, or was when its process died."""
    folder, pattern = (config.out, ".tmp-model") if place == "in the result" else (config.out / "checkpoints", ".tmp-step-*")
    return any(folder.glob(pattern))


def strike(trainer: Trainer, config: TrainConfig, kill: Kill, pace: Pace) -> tuple[bool, bool]:
    """Kill the trainer at the place. Returns (it was alive, it was writing a checkpoint or the result)."""
    if kill.place == "while starting":
        time.sleep(kill.share * pace.start)
        return trainer.kill(), False
    # Past its first event of a step, a run that goes on has cleared away what a save before left half-written.
    while trainer.step < max(1, kill.after) and trainer.read():
        pass
    if kill.place == "between":
        time.sleep(kill.share * pace.step * SAVE_EVERY)
    else:
        pause = kill.share * pace.save * (0.3 if kill.place == "in the result" else 1)  # weights alone are written sooner
        while trainer.running():
            if half_written(config, kill.place):
                time.sleep(pause)
                if half_written(config, kill.place):
                    break
                pause /= 2  # it was over sooner than that; the next one is waited for
            time.sleep(0.0002)
    alive = trainer.kill()
    writing = half_written(config, "inside a save") or half_written(config, "in the result")
    return alive, alive and writing


def undisturbed(config: TrainConfig) -> Pace:
    """Train from beginning to end, and see how long each part takes."""
    begun, trainer, start = time.monotonic(), Trainer(config), 0.0
    while trainer.read():
        start = start or (time.monotonic() - begun if trainer.step else 0.0)
    trainer.leave()
    events = list(read_events(config.out / "events.jsonl"))
    pairs = list(itertools.pairwise(events))
    saves = [b.created_at - a.created_at for a, b in pairs if b.message.startswith("Checkpoint created")]
    each = [b.created_at - a.created_at for a, b in pairs if "train_loss" in a.data and "train_loss" in b.data]
    return Pace(start, statistics.median(each), statistics.median(saves))


def disturbed(config: TrainConfig, kills: list[Kill], pace: Pace) -> Counter[str]:
    """Train with kills, then to the end. Returns how many hit a live trainer, by where they fell."""
    hits: Counter[str] = Counter()
    for kill in kills:
        alive, writing = strike(Trainer(config), config, kill, pace)
        # A kill between steps may well have met a save, and one aimed at a save have come too late: what counts is what lies there.
        fell = kill.place if kill.place in ("while starting", "in the result") else "inside a save" if writing else "between"
        if alive and (writing or kill.place != "in the result"):
            hits[fell] += 1
    last = Trainer(config)
    while last.read():
        pass
    last.leave()
    return hits


def steps_of(config: TrainConfig) -> list[Event]:
    """The events of all steps, those taken again as often as they were."""
    return [event for event in read_events(config.out / "events.jsonl") if "train_loss" in event.data]


def digest(config: TrainConfig) -> str:
    """The hash of the final weights."""
    name = "adapter_model.safetensors" if config.tuning.kind == "lora" else "model.safetensors"
    return sha256(config.out / "model" / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="nano", help="nano, or a model's folder")
    parser.add_argument("--tuning", choices=("lora", "full"), default="lora")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        sys.exit(compare(Path(folder), given.kills, given.seed, given.model, given.tuning))


def compare(folder: Path, kills: int, seed: int, model: str, tuning: str) -> int:
    """Both runs, the table and the line to quote. Returns the exit code."""
    for name, rows in (("train", ROWS), ("validation", HELD_OUT)):
        lines = (SAMPLE / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:rows]))
    epochs = max(2, -(-3 * kills * BATCH // ROWS))  # three steps a kill
    record = {
        "data": folder / "train.jsonl",
        "validation": folder / "validation.jsonl",
        "model": model,
        "out": folder / "whole",
        # Dropout, so that the random state has to be right as well.
        "tuning": {"kind": "lora", "dropout": 0.1} if tuning == "lora" else {"kind": "full"},
        "hyperparameters": {"n_epochs": epochs, "batch_size": BATCH},
        "checkpoints": {"every_steps": SAVE_EVERY, "keep": 1},
        "threads": 1,
        "precision": "fp32",
        "seed": seed,
    }
    whole, draw, begun = TrainConfig.parse(record), random.Random(seed), time.monotonic()
    pace = undisturbed(whole)
    losses = {event.step: event.data["train_loss"] for event in steps_of(whole)}
    hits: Counter[str] = Counter()
    same, redone, runs = True, 0, 0
    while hits.total() < kills:  # on a busy machine a kill may come too late; the rest then falls into another run
        runs += 1
        config = whole.model_copy(update={"out": folder / f"killed-{runs}"})
        hits += disturbed(config, planned(draw, kills - hits.total(), len(losses)), pace)
        taken = steps_of(config)
        redone += len(taken) - len(losses)
        same &= digest(config) == digest(whole) and all(event.data["train_loss"] == losses[event.step] for event in taken)
    said(whole, config, hits, same, runs, len(losses), redone, time.monotonic() - begun, seed)
    return 0 if same else 1


def said(
    whole: TrainConfig, killed: TrainConfig, hits: Counter[str], same: bool, runs: int, steps: int, redone: int, seconds: float, seed: int
) -> None:
    """The table, and the line to quote."""
    table = Table(show_header=False, box=None)
    table.add_row("model, tuning", f"{whole.model}, {whole.tuning.kind}")
    table.add_row("machine", f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, fp32, 1 thread")
    table.add_row("steps", f"{steps} in each run, a checkpoint every {SAVE_EVERY}")
    table.add_row("SIGKILLs that hit", f"{hits.total()}: " + ", ".join(f"{count} {place}" for place, count in hits.most_common()))
    table.add_row("steps redone", f"{redone}, in {runs} killed run{'s' if runs > 1 else ''}")
    table.add_row("time", f"{seconds:.0f} s")
    table.add_row("sha256 undisturbed", digest(whole))
    table.add_row("sha256 killed", digest(killed))
    console = Console(highlight=False, width=140)
    console.print(table)
    verdict = "bit-identical final weights" if same else "DIFFERENT weights or losses"
    inside = hits["inside a save"] + hits["in the result"]
    console.print(
        f"{hits.total()} SIGKILLs (seed {seed}), {inside} of them while a save was half written, {redone} steps redone: "
        f"{verdict}, sha256 {digest(whole)[:16]}… and {digest(killed)[:16]}…",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
