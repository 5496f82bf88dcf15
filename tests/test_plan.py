"""The estimate before a run and in it: its counts against what training then counts, its place in a run whose bits it must not touch."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from tunewright.config import Hyperparameters, Prices, TrainConfig
from tunewright.event import Event, read_events
from tunewright.train import memory, peak
from tunewright.train.estimate import cost, pace_of
from tunewright.train.fit import changes, nearest
from tunewright.train.folder import sha256
from tunewright.train.forecast import Forecast
from tunewright.train.loop import train
from tunewright.train.measure import MARGIN, in_process
from tunewright.train.plan import soonest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"), tiny.llama())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = (tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:22]))
    (folder / "valid.jsonl").write_text("".join(lines[30:38]))
    return folder


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {"data": data / "train.jsonl", "validation": data / "valid.jsonl", "model": base, "out": out, "threads": 1, "precision": "fp32"}
    record["hyperparameters"] = {"n_epochs": 2, "batch_size": 4}
    return TrainConfig.parse({k: str(v) if isinstance(v, Path) else v for k, v in record.items()}, ["tuning.rank=4", *assignments])


def predicted(events: list[Event]) -> Event:
    return next(event for event in events if "estimated_finish" in event.data)


@pytest.mark.parametrize("assignments", [("tuning.dropout=0.1",), ("tuning=full", "validation=null"), ("tuning={kind: top_layers, layers: 1}",)])
def test_the_estimate_changes_no_bit_of_the_run_nor_of_a_resumed_one(data, base, tmp_path, monkeypatch, assignments):
    with monkeypatch.context() as without:
        without.setattr(Forecast, "over", lambda self, events: events)
        plain = list(train(config(data, base, tmp_path / "plain", *assignments)))
        assert not any("estimated_finish" in event.data for event in plain)
    list(train(config(data, base, tmp_path / "whole", *assignments)))
    # Stopped right where the estimate is said, and a second attempt with an estimate of its own.
    events = train(config(data, base, tmp_path / "parts", *assignments))
    assert predicted(iter(events)).step == 3
    events.close()
    again = list(train(config(data, base, tmp_path / "parts", *assignments)))
    assert predicted(again).data["steps"] == 9 and predicted(again).data["total_steps"] == 12
    name = "adapter_model.safetensors" if len(assignments[0]) == 18 else "model.safetensors"
    assert len({sha256(tmp_path / run / "model" / name) for run in ("plain", "whole", "parts")}) == 1


@pytest.mark.parametrize("assignments", [(), ("shuffle=by_prefix", "tuning=full"), ("micro_batch_tokens=100",)])
def test_what_is_counted_ahead_is_what_training_counts(data, base, tmp_path, assignments):
    before = in_process(config(data, base, tmp_path / "unused", *assignments))
    events = list(train(config(data, base, tmp_path / "run", *assignments)))
    event, metrics = predicted(events), [e.data for e in events if "train_loss" in e.data]
    for found in (before, event.data):
        assert found["steps"] == len(metrics) == 12
        assert found["trained_tokens"] == metrics[-1]["trained_tokens"]
        assert found["tokens"] == 2 * next(e.data["tokens"] for e in events if e.data.get("kept") == 22)
        assert found["computed_tokens"] <= found["tokens"]
    assert before["computed_tokens"] == pytest.approx(event.data["computed_tokens"], rel=0.1)
    assert not (tmp_path / "unused").exists()


def test_prediction_and_outcome_are_events_and_lie_in_the_run_folder(data, base, tmp_path):
    events = list(train(config(data, base, tmp_path / "run", "prices.per_hour=3600", "prices.currency=EUR")))
    said, came = predicted(events), events[-2]
    assert events[-1].message == "The run has finished"
    assert (
        said.data["estimated_finish"] == pytest.approx(events[0].created_at + said.data["estimated_seconds"], abs=5, rel=0)
        and said.data["currency"] == "EUR"
    )
    assert said.data["estimated_cost"] == pytest.approx(said.data["estimated_seconds"], rel=0.01)
    assert came.data["seconds"] == pytest.approx(events[-1].created_at - events[0].created_at, abs=5)
    assert came.data["peak_memory_bytes"] == events[-1].data["peak_memory_bytes"]
    assert came.data["seconds_error"] == pytest.approx(came.data["estimated_seconds"] / came.data["seconds"] - 1, abs=1e-3)
    kept = json.loads((tmp_path / "run/estimate.json").read_text())
    stored = [event.data for event in read_events(tmp_path / "run/events.jsonl")]
    assert kept["prediction"] in stored and kept["outcome"] in stored


def test_the_peak_is_that_since_it_was_forgotten():
    peak.forget(CPU)
    before = peak.in_use(CPU)
    block = np.ones(40_000_000)
    assert peak.highest(CPU) - before == pytest.approx(block.nbytes, rel=0.05)
    del block
    assert peak.highest(CPU) - before > 300_000_000
    peak.forget(CPU)
    assert peak.highest(CPU) - before < 100_000_000
    assert memory.free(CPU) > 0


def test_pace_finds_what_steps_and_tokens_cost():
    step, token = pace_of([(tokens, 0.5 + tokens * 0.01) for tokens in (100, 200, 400, 900)])
    assert (step, token) == pytest.approx((0.5, 0.01))
    assert pace_of([(100, 1.0), (101, 1.02)]) == pytest.approx((0.0, 2.02 / 201))
    # More tokens in less time is noise: no negative price comes of it.
    assert min(pace_of([(100, 3.0), (200, 2.0), (400, 1.0)])) >= 0


def test_bf16_must_be_worth_its_error():
    assert soonest({(1, "fp32"): 1.0, (2, "fp32"): 0.8, (1, "bf16"): 0.9, (2, "bf16"): 0.75}) == (2, "fp32")
    assert soonest({(1, "fp32"): 1.0, (2, "fp32"): 0.8, (1, "bf16"): 0.7, (2, "bf16"): 0.72}) == (1, "bf16")


def test_prices():
    assert cost(Prices(), 3600, 10**6) == 0
    assert cost(Prices(per_hour=2, per_million_tokens=3), 1800, 2 * 10**6) == 7


def test_a_run_that_does_not_fit_is_not_tried_whole(data, base, tmp_path, monkeypatch):
    """The room is taken to be just above what the process holds: only single rows may run."""
    from tunewright.train import loop

    taken, step = [], loop.take_step
    monkeypatch.setattr(loop, "take_step", lambda run, items, *more: taken.append(len(items)) or step(run, items, *more))
    whole = in_process(config(data, base, tmp_path / "run", "hyperparameters.batch_size=22"))
    assert whole["fits"] and max(taken) == 22
    taken.clear()
    found = in_process(config(data, base, tmp_path / "run", "hyperparameters.batch_size=22"), limit=1_000_000)
    assert not found["fits"] and max(taken) == 1
    assert found["estimated_seconds"] > 0


FOUND = {
    "estimated_memory_bytes_by_part": {"libraries_and_weights": 500, "gradients_and_optimizer": 400, "activations": 1000},
    "estimated_peak_memory_bytes": 1900,
    "largest_micro_batch_tokens": 1000,
    "longest_row_tokens": 100,
    "layers": 7,
    "parameters": 100,
}


def test_changes_are_reckoned_from_the_parts(data, base):
    limit = round(1500 * MARGIN / 0.95) + 1
    made = {change.lever: change for change in changes(config(data, base, Path("run")), FOUND, limit)}
    assert made["batch"].settings == ("micro_batch_tokens=600",) and "length" not in made
    made = {change.lever: change for change in changes(config(data, base, Path("run"), "tuning=full"), FOUND, limit)}
    assert made["layers"].settings == ("tuning={kind: top_layers, layers: 4}",) and made["tuning"].settings == ("tuning=lora",)
    made = {change.lever: change for change in changes(config(data, base, Path("run")), FOUND | {"longest_row_tokens": 700}, limit)}
    assert made["length"].settings == ("max_tokens=600", "micro_batch_tokens=600") and "batch" not in made


def test_the_nearest_change_is_measured_to_fit(base, tmp_path):
    """nano over 32 rows at once; as much memory as half of what its activations take."""
    (tmp_path / "train.jsonl").write_text("".join((tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)[:32]))
    asked = TrainConfig.parse({"data": str(tmp_path / "train.jsonl"), "out": str(tmp_path / "run"), "threads": 1, "precision": "fp32"})
    asked = asked.model_copy(update={"hyperparameters": Hyperparameters(n_epochs=1, batch_size=32)})
    found = in_process(asked)
    limit = round(MARGIN * (found["estimated_peak_memory_bytes"] - found["estimated_memory_bytes_by_part"]["activations"] / 2))
    change, tried = next(nearest(asked, found, limit))
    assert change.lever == "batch" and change.settings[0].startswith("micro_batch_tokens=")
    assert tried["fits"] and tried["estimated_peak_memory_bytes"] < found["estimated_peak_memory_bytes"]
    assert tried["steps"] == found["steps"] and tried["tokens"] == found["tokens"]


def test_the_command_says_what_does_not_fit(data, base, tmp_path, monkeypatch, capsys):
    """Measured in a process of its own: what else this one holds does not count."""
    from tunewright.cli import main

    block = np.ones(100_000_000)  # 800 MB
    line = f"plan --data {data / 'train.jsonl'} --model {base} --set threads=1 --set precision=fp32 --memory 0.1 --json"
    monkeypatch.setattr(sys, "argv", ["tunewright", *line.split()])
    with pytest.raises(SystemExit) as left:
        main()
    said = json.loads(capsys.readouterr().out)
    assert left.value.code == 4 and not said["fits"]
    assert said["estimate"]["memory_limit_bytes"] == 100_000_000 and said["would_fit"] == []
    assert said["estimate"]["estimated_peak_memory_bytes"] < 1e9 < peak.in_use(CPU) and block[-1] == 1
