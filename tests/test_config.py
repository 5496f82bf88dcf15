"""The config as data: bounds, messages that name the setting, the same from YAML, `--set` and JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tunewright.config import TrainConfig, read_yaml
from tunewright.errors import BadConfig
from tunewright.train.folder import open_run, read_config

SCHEMA = TrainConfig.model_json_schema()
CLASSES = {"TrainConfig": SCHEMA, **SCHEMA["$defs"]}
EVERYTHING = {
    "data": "some/train.jsonl",
    "validation": "some/valid.jsonl",
    "model": "org/name",
    "out": "some/run",
    "tuning": {"kind": "lora", "rank": 8, "alpha": 12.5, "targets": ["q_proj", "v_proj"], "dropout": 0.1},
    "method": {"kind": "supervised"},
    "hyperparameters": {"n_epochs": 2, "batch_size": 64, "learning_rate_multiplier": 0.5},
    "optimizer": {"kind": "sgd", "learning_rate": 0.25, "weight_decay": 0.01, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6},
    "schedule": {"kind": "linear", "warmup": 0.1, "final": 0.2},
    "evaluation": {"every_steps": 7, "patience": 2},
    "checkpoints": {"every_steps": 9, "keep": 1},
    "max_grad_norm": 0.5,
    "max_tokens": 128,
    "micro_batch_tokens": 4096,
    "precision": "fp32",
    "threads": 2,
    "seed": 2**63 - 1,
}


def parse(*assignments: str, **record: Any) -> TrainConfig:
    return TrainConfig.parse({"data": "train.jsonl", **record}, list(assignments))


def refused(*assignments: str, **record: Any) -> BadConfig:
    with pytest.raises(BadConfig) as caught:
        parse(*assignments, **record)
    assert caught.value.exit_code == 2 and "\n" not in caught.value.message
    return caught.value


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting of every config class, with its JSON schema."""
    for name, schema in CLASSES.items():
        for field, definition in schema["properties"].items():
            yield f"{name}.{field}", definition


def numbers(definition: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The numeric branches of a field's schema."""
    if definition.get("type") in ("integer", "number") and "enum" not in definition:
        yield definition
    for inner in (*definition.get("anyOf", ()), *definition.get("oneOf", ())):
        yield from numbers(inner)
    if "items" in definition:
        yield from numbers(definition["items"])


def test_every_number_has_a_lower_and_an_upper_bound() -> None:
    found = [(name, number) for name, definition in fields() for number in numbers(definition)]
    assert len(found) >= 20
    for name, number in found:
        assert number.keys() & {"minimum", "exclusiveMinimum"} and number.keys() & {"maximum", "exclusiveMaximum"}, name


def test_every_setting_is_described() -> None:
    for name, definition in fields():
        branches = [definition, *definition.get("anyOf", ()), *definition.get("oneOf", ())]
        classes = [SCHEMA["$defs"][branch["$ref"].rpartition("/")[2]] for branch in branches if "$ref" in branch]
        # A tag that can have one value, and a part that is a class with a text of its own, need no more words.
        assert definition.get("description") or "const" in definition or (classes and all(each.get("description") for each in classes)), name
    assert all(schema.get("description") for schema in CLASSES.values())


def test_every_class_is_frozen_and_refuses_unknown_keys() -> None:
    assert all(schema["additionalProperties"] is False for schema in CLASSES.values())
    config = parse()
    for part in (
        config,
        config.tuning,
        config.method,
        *(getattr(config, name) for name in ("hyperparameters", "optimizer", "schedule", "evaluation")),
    ):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, next(iter(type(part).model_fields)), "other")
    hash(config)


def test_defaults_are_within_their_own_bounds() -> None:
    config = parse()
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("tuning.rank=0", "tuning.rank: should be greater than or equal to 1"),
        ("tuning.rank=1025", "tuning.rank: should be less than or equal to 1024"),
        ("tuning.rank=eight", "tuning.rank: should be a valid integer"),
        ("tuning.rank=8.5", "tuning.rank: should be a valid integer"),
        ("tuning.alpha=0", "tuning.alpha: should be greater than 0"),
        ("tuning.dropout=1", "tuning.dropout: should be less than 1"),
        ("tuning.dropout=.nan", "tuning.dropout: should be"),
        ("tuning.alpha=.inf", "tuning.alpha: should be"),
        ("tuning.targets=", "tuning.targets"),
        ("tuning.rnk=8", "tuning.rnk: there is no such setting"),
        ("tuning=magic", "tuning: tag 'magic'"),
        ("tuning=[lora]", "tuning"),
        ("method=magic", "method: tag 'magic'"),
        ("hyperparameters.n_epochs=0", "hyperparameters.n_epochs: should be greater than or equal to 1"),
        ("hyperparameters.n_epochs=many", "hyperparameters.n_epochs"),
        ("hyperparameters.batch_size=65537", "hyperparameters.batch_size: should be less than or equal to 65536"),
        ("hyperparameters=3", "hyperparameters: should be"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate: should be greater than 0"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: should be"),
        ("optimizer.kind=adam", "optimizer.kind: should be 'adamw', "),
        ("schedule.warmup=1.5", "schedule.warmup: should be less than or equal to 1"),
        ("micro_batch_tokens=15", "micro_batch_tokens: should be greater than or equal to 16"),
        ("seed=9223372036854775808", "seed: should be less than 9223372036854775808"),
        ("seed=-1", "seed: should be greater than or equal to 0"),
        ("model=", "model: should be a valid string"),
        ("data=null", "data: "),
        ("lerning_rate=1", "lerning_rate: there is no such setting"),
        ("tuning.rank", "--set 'tuning.rank': write it as tuning.rank=8"),
        ("=8", "--set '=8'"),
        ("tuning..rank=8", "--set 'tuning..rank=8'"),
        ("seed.low=8", "seed"),
    ],
)
def test_a_wrong_setting_is_named(assignment: str, part: str) -> None:
    assert part in refused(assignment).message


def test_all_problems_are_said_at_once() -> None:
    problem = refused("tuning.rank=0", "seed=-1", "nosuch=1", "schedule.kind=wavy", "threads=0")
    for name in ("tuning.rank: ", "seed: ", "nosuch: ", "schedule.kind: ", "threads: "):
        assert problem.message.count(name) == 1 or name == "threads: ", problem.message
    assert (problem.code, problem.param) == ("invalid_config", "tuning.rank")
    with pytest.raises(BadConfig, match="data: is needed"):
        TrainConfig.parse({})


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("tuning.rank=8", "tuning.rank", 8),
        ("tuning=full", "tuning.kind", "full"),
        ("tuning=lora", "tuning.rank", 16),
        ("tuning.targets=[q_proj, v_proj]", "tuning.targets", ("q_proj", "v_proj")),
        ("tuning.targets=q_proj", "tuning.targets", "q_proj"),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate", 0.001),  # text to YAML 1.1, a number to us
        ("optimizer.learning_rate=auto", "optimizer.learning_rate", "auto"),
        ("hyperparameters.n_epochs=auto", "hyperparameters.n_epochs", "auto"),
        ("validation=null", "validation", None),
        ("validation=a=b.jsonl", "validation", Path("a=b.jsonl")),
        ("model=some/folder", "model", "some/folder"),
        ("threads=auto", "threads", "auto"),
        ("max_tokens=512", "max_tokens", 512),
    ],
)
def test_assignments_say_what_they_look_like(assignment: str, path: str, value: object) -> None:
    found: Any = parse(assignment, validation="valid.jsonl")
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


def test_assignments_go_one_after_another_over_the_record() -> None:
    config = parse("tuning.rank=8", "tuning.rank=9", "tuning.dropout=0.5", tuning={"kind": "lora", "alpha": 7})
    assert config.tuning == parse(tuning={"kind": "lora", "rank": 9, "alpha": 7, "dropout": 0.5}).tuning
    record: dict[str, Any] = {"data": "x", "tuning": {"kind": "lora"}}
    TrainConfig.parse(record, ["tuning.rank=8"])
    assert record == {"data": "x", "tuning": {"kind": "lora"}}, "the caller's record was changed"


def test_yaml_there_and_back(tmp_path: Path) -> None:
    whole = TrainConfig.parse(EVERYTHING)
    assert not [
        name for name in TrainConfig.model_fields if name in EVERYTHING and getattr(whole, name) == getattr(parse(), name) and name != "method"
    ]
    for i, config in enumerate((whole, parse(), parse("tuning=full"))):
        place = tmp_path / f"{i}.yaml"
        place.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        assert TrainConfig.from_yaml(place) == config
        assert TrainConfig.from_yaml(place, ["seed=5"]) == config.model_copy(update={"seed": 5})
        assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@settings(max_examples=50, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**63 - 1),
            "max_grad_norm": st.floats(0, 1e6),
            "schedule": st.fixed_dictionaries({"warmup": st.floats(0, 1), "final": st.floats(0, 1)}),
            "optimizer": st.fixed_dictionaries(
                {"learning_rate": st.floats(0, 10, exclude_min=True) | st.just("auto"), "epsilon": st.floats(1e-300, 1)}
            ),
        }
    )
)
def test_numbers_survive_yaml_and_json_to_the_last_bit(record: dict[str, Any]) -> None:
    config = parse(**record)
    dumped = config.model_dump(mode="json")
    assert TrainConfig.parse(yaml.safe_load(yaml.safe_dump(dumped))) == config == TrainConfig.parse(json.loads(json.dumps(dumped)))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "config_not_a_mapping"),
        (b"just text", "config_not_a_mapping"),
        (b"- data: x", "config_not_a_mapping"),
        (b"data: [1", "config_not_yaml"),
        (b"data: x\n\ttuning: lora", "config_not_yaml"),
        (b"data: \xff", "config_not_yaml"),
        (b"data: \x00", "config_not_yaml"),
        (b"data: !!python/object/apply:os.mkdir [it_ran]", "config_not_yaml"),
        (b"a: &a x\ndata: *a", "config_alias"),
        (b"data: " + b"x" * 1_000_001, "config_too_large"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, code: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(BadConfig) as caught:
        read_yaml(tmp_path / "run.yaml")
    assert caught.value.code == code and "run.yaml" in caught.value.message and not (tmp_path / "it_ran").exists()


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.yaml"):
        with pytest.raises(BadConfig, match="cannot be read"):
            read_yaml(path)


def test_a_runs_own_copy_parses_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig.parse({**EVERYTHING, "out": "run"})
    (tmp_path / "run").mkdir()
    resolved = open_run(config)
    assert read_config(tmp_path / "run") == resolved == open_run(resolved)
    assert resolved == config.model_copy(
        update={name: tmp_path / str(getattr(config, name)) for name in ("data", "validation", "out")},
    )
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert read_config(moved) == resolved.model_copy(update={"out": moved}), "a run folder may be moved"
