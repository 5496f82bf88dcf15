"""Advice: what is chosen for whom, and that what is advised trains as it stands."""

import json
import sys
from pathlib import Path

import pytest
import yaml

import tiny
from tunewright.config import TrainConfig
from tunewright.data.example import Completion, Labelled, Pair
from tunewright.errors import BadModel
from tunewright.train.advice import Base, Data, available, choose, config_of, look
from tunewright.train.loop import train

NANO, LARGE, ENCODER = Base("nano", 8_600_000, False), Base("large", 3_000_000_000, False), Base("minilm", 22_700_000, True)


def recipe(data: Data, bases: list[Base], gigabytes: float, validation: bool = False) -> TrainConfig:
    return TrainConfig.parse(config_of(choose(data, bases, round(gigabytes * 1e9), validation), Path("a.jsonl"), None, Path("run")))


def test_the_task_is_read_off_the_rows():
    assert look([Labelled("good film", "pos"), Labelled("bad", "neg")]) == Data("classification", 2, 2, 6)
    assert look([Completion("a", "b")] * 3).kind == "supervised"
    assert look([Pair(Completion("a", "b"), Completion("a", "c"))]).kind == "preference"


@pytest.mark.parametrize(("rows", "gigabytes", "rank", "bits"), [(200, 64, 8, None), (5000, 64, 16, None), (60_000, 64, 64, None), (5000, 8, 16, 4)])
def test_adapters_by_rows_and_memory(rows, gigabytes, rank, bits):
    tuning = recipe(Data("supervised", rows, 0, 500), [NANO, LARGE], gigabytes).tuning
    assert (tuning.kind, tuning.rank, tuning.alpha, tuning.bits) == ("lora", rank, 2 * rank, bits)


def test_the_base_is_the_largest_that_fits_and_can_do_it():
    answers, labels = Data("supervised", 5000, 0, 500), Data("classification", 5000, 150, 50)
    assert recipe(answers, [NANO, LARGE, ENCODER], 64).model == "large"
    assert recipe(answers, [NANO, LARGE, ENCODER], 3).model == "nano"
    advised = recipe(labels, [NANO, ENCODER], 8)
    assert (advised.model, advised.tuning.kind, advised.optimizer.learning_rate) == ("minilm", "full", 1e-4)
    assert recipe(labels, [NANO], 8).model == "nano"
    with pytest.raises(BadModel, match="does not write"):
        recipe(answers, [ENCODER], 8)
    with pytest.raises(BadModel, match="even in 4 bits"):
        recipe(answers, [LARGE], 2)


def test_pairs_are_learnt_at_a_small_rate():
    advised = recipe(Data("preference", 800, 0, 500), [LARGE], 64)
    assert advised.method.kind == "dpo" and advised.optimizer.learning_rate == pytest.approx(1e-5)


def test_every_choice_has_a_reason_and_a_source():
    for data in (Data("supervised", 50, 0, 9), Data("classification", 10**6, 3, 9), Data("preference", 800, 0, 9)):
        for choice in choose(data, [NANO, ENCODER], 10**11, True):
            assert choice.reason and choice.source and choice.settings


def test_rules_that_are_ours_are_those_of_the_run_itself(tmp_path):
    """Advice and "auto" agree, so that neither drifts from what docs/training.md says of both."""
    from tunewright.train.plan import batch_size_for, epochs_for, learning_rate_for

    free = TrainConfig(data="a.jsonl")
    for rows in (10, 300, 640, 5000, 200_000):
        advised = recipe(Data("supervised", rows, 0, 500), [NANO], 2)
        assert advised.hyperparameters.batch_size == batch_size_for(free, rows)
        assert advised.hyperparameters.n_epochs == epochs_for(free, rows)
        if advised.tuning.kind == "lora":
            assert advised.optimizer.learning_rate == learning_rate_for(free, tiny.llama())


def test_what_is_advised_trains(tmp_path, monkeypatch, capsys):
    from tunewright.cli import main

    base = tiny.save(tmp_path / "base", tiny.llama())
    lines = (tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)[:16]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "valid.jsonl").write_text("".join(lines[:4]))
    monkeypatch.chdir(tmp_path)
    line = f"advise --data train.jsonl --validation valid.jsonl --model {base} --out run.yaml --json"
    monkeypatch.setattr(sys, "argv", ["tunewright", *line.split()])
    with pytest.raises(SystemExit) as left:
        main()
    said = json.loads(capsys.readouterr().out)
    assert not left.value.code and said["config"] == yaml.safe_load((tmp_path / "run.yaml").read_text())
    advised = TrainConfig.from_yaml(tmp_path / "run.yaml", ["hyperparameters.n_epochs=1", "threads=1", "precision=fp32"])
    assert list(train(advised))[-1].message == "The run has finished"
    assert available([base])[0].weights == sum(p.numel() for p in tiny.llama().parameters())
    with pytest.raises(SystemExit) as left:  # the file is there now
        main()
    assert left.value.code == 2
