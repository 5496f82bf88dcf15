"""Checkpoints that were damaged on disk: each of 500 is seen, and the run goes on from the one before."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

import tiny
from tunewright.config import TrainConfig
from tunewright.train import checkpoint
from tunewright.train.loop import train


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a short run, of which the last two stay."""
    folder = tmp_path_factory.mktemp("mutants")
    (folder / "rows.jsonl").write_text("".join((tiny.SAMPLE / "train.jsonl").read_text().splitlines(True)[:12]))
    base = tiny.save(folder / "base", tiny.llama())
    config = {"data": folder / "rows.jsonl", "model": base, "out": folder / "run", "threads": 1, "precision": "fp32"}
    list(train(TrainConfig.parse({**config, "hyperparameters": {"n_epochs": 2, "batch_size": 6}, "tuning": {"kind": "lora", "rank": 2}})))
    return folder / "run" / "checkpoints"


def bit(path: Path, other: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def truncated(path: Path, other: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def longer(path: Path, other: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(draw.randrange(1, 100)))


def zeroed(path: Path, other: Path, draw: random.Random) -> None:
    """A block that never reached the disk."""
    content = bytearray(path.read_bytes())
    start = draw.randrange(len(content))
    block = bytes(min(4096, len(content) - start))
    content[start : start + len(block)] = block
    path.write_bytes(content)


def missing(path: Path, other: Path, draw: random.Random) -> None:
    path.unlink()


def swapped(path: Path, other: Path, draw: random.Random) -> None:
    """The same file of another checkpoint: sound in itself, and of the same length."""
    shutil.copy(other, path)


DAMAGE = (bit, truncated, longer, zeroed, missing, swapped)


def test_500_damaged_checkpoints_are_all_seen(saved: Path, tmp_path: Path) -> None:
    older, newest = checkpoint.saved(saved)
    files = sorted(path.name for path in newest.iterdir())
    assert "manifest.json" in files and checkpoint.verify(newest) is None
    draw, counts = random.Random(0), Counter[str]()
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    place = folder / newest.name
    while counts.total() < 500:
        damage, name = draw.choice(DAMAGE), draw.choice(files)
        before = (newest / name).read_bytes()
        damage(place / name, older / name, draw)
        changed = not (place / name).exists() or (place / name).read_bytes() != before
        if changed:  # a block of zeros may have been one before, and a tokenizer is the same in each
            found = list(checkpoint.newest(folder))
            assert [path.name for path, wrong in found] == [newest.name, older.name], (damage.__name__, name)
            assert found[0][1] and found[1][1] is None
            counts[damage.__name__] += 1
        (place / name).write_bytes(before)
    assert checkpoint.verify(place) is None
    assert len(counts) == len(DAMAGE) and min(counts.values()) >= 40, counts


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(saved: Path) -> None:
    run = saved.parent
    weights = (run / "model" / "adapter_model.safetensors").read_bytes()
    for name in ("exit.json", "model"):
        (shutil.rmtree if (run / name).is_dir() else Path.unlink)(run / name)
    newest = checkpoint.saved(saved)[-1]
    bit(newest / "trainer.safetensors", newest, random.Random(0))
    config = json.loads((run / "config.json").read_text())
    events = list(train(TrainConfig.parse(config)))
    assert any("damaged and was set aside" in event.message for event in events)
    assert (run / "model" / "adapter_model.safetensors").read_bytes() == weights
