"""Tuning a tuned model further: it begins where the first tuning ended, whatever shape the second one has."""

from pathlib import Path

import pytest
from peft import PeftModel

import tiny
from tunewright.config import TrainConfig
from tunewright.data.formats import load as read
from tunewright.errors import BadConfig
from tunewright.models.load import load
from tunewright.train.loop import train

ROWS = tiny.SAMPLE / "validation.jsonl"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LoRA, rank 4, on a small Llama."""
    folder = tmp_path_factory.mktemp("further")
    base = tiny.save(folder / "base", tiny.llama())
    rows = (ROWS.read_text().splitlines(True))[:12]
    (folder / "rows.jsonl").write_text("".join(rows))
    config = {
        "data": folder / "rows.jsonl",
        "validation": folder / "rows.jsonl",
        "model": base,
        "out": folder / "run",
        "threads": 1,
        "precision": "fp32",
    }
    settings = {"tuning": {"kind": "lora", "rank": 4}, "hyperparameters": {"n_epochs": 2, "batch_size": 4}, "optimizer": {"learning_rate": 0.02}}
    list(train(TrainConfig.parse({**config, **settings})))
    return folder


@pytest.mark.parametrize(
    ("tuning", "how", "result"),
    [
        ({"kind": "lora", "rank": 4}, "goes_on", "base"),
        ({"kind": "lora", "rank": 2}, "merged", "second"),
        ({"kind": "full"}, "merged", None),
    ],
)
def test_a_second_tuning_begins_where_the_first_ended(first: Path, tmp_path: Path, tuning: dict[str, object], how: str, result: str | None) -> None:
    before = next(event for event in reversed(list(_events(first / "run"))) if "full_valid_loss" in event)["full_valid_loss"]
    config = {"data": first / "rows.jsonl", "validation": first / "rows.jsonl", "model": str(first / "run" / "model"), "out": tmp_path / "second"}
    settings = {
        "threads": 1,
        "precision": "fp32",
        "tuning": tuning,
        "hyperparameters": {"n_epochs": 1, "batch_size": len(read(first / "rows.jsonl"))},
    }
    events = list(train(TrainConfig.parse({**config, **settings})))
    assert [event.data["adapter"] for event in events if "adapter" in event.data] == [how]
    begun = next(event.data["train_loss"] for event in events if "train_loss" in event.data)
    assert begun == pytest.approx(before, rel=1e-5)
    model = load(str(tmp_path / "second")).model
    named = model.peft_config["default"].base_model_name_or_path if isinstance(model, PeftModel) else None
    assert named == {"base": str(first / "base"), "second": str(tmp_path / "second" / "base"), None: None}[result]


def _events(run: Path) -> list[dict[str, object]]:
    from tunewright.event import read_events

    return [event.data for event in read_events(run / "events.jsonl")]


def test_a_tuned_prompt_is_trained_further_by_a_prompt_alone(first: Path, tmp_path: Path) -> None:
    config = {"data": first / "rows.jsonl", "model": str(first / "base"), "out": tmp_path / "one", "threads": 1, "precision": "fp32"}
    prompt = {"tuning": {"kind": "prompt", "virtual_tokens": 4}, "hyperparameters": {"n_epochs": 1, "batch_size": 6}}
    list(train(TrainConfig.parse({**config, **prompt})))
    again = {**config, "model": str(tmp_path / "one" / "model")}
    events = list(train(TrainConfig.parse({**again, **prompt, "out": tmp_path / "two"})))
    assert events[-1].message == "The run has finished"
    one, two = (load(str(tmp_path / name)).model.prompt_encoder["default"].embedding.weight for name in ("one", "two"))
    assert not one.equal(two)
    with pytest.raises(BadConfig, match="only be tuned further by a prompt"):
        list(train(TrainConfig.parse({**again, "out": tmp_path / "three"})))
