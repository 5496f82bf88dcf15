"""The loop against oracles: transformers' own loss, an uninterrupted run, the same step cut differently."""

import itertools
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny
from tunewright.config import TrainConfig
from tunewright.data import formats
from tunewright.data.sampler import as_given, by_prefix, by_rows, micro_batches, steps
from tunewright.data.tokens import tokenize
from tunewright.errors import BadConfig, BadData, RunFailed
from tunewright.event import Event, read_events
from tunewright.models import tuning
from tunewright.models.forward import collate, score
from tunewright.models.load import load
from tunewright.train import checkpoint, schedule
from tunewright.train.folder import sha256
from tunewright.train.loop import train
from tunewright.train.losses import supervised


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = (tiny.SAMPLE / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:22]))
    (folder / "valid.jsonl").write_text("".join(lines[30:38]))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("base"), tiny.llama())


def config(data: Path, base: str, out: Path, *assignments: str) -> TrainConfig:
    record = {
        "data": str(data / "train.jsonl"),
        "validation": str(data / "valid.jsonl"),
        "model": base,
        "out": str(out),
        "threads": 1,
        "precision": "fp32",
    }
    record["hyperparameters"] = {"n_epochs": 2, "batch_size": 4}
    return TrainConfig.parse(record, ["tuning.rank=4", *assignments])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").is_file() else "model.safetensors"
    return load_file(folder / name)


def rows_of(data: Path):
    return tokenize(formats.load(data / "train.jsonl"), tiny.tokenizer(), 256).rows


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_our_loss_is_transformers_own(data, shape):
    model, batch = tiny.SHAPES[shape](), collate(rows_of(data)[:6])
    labels = torch.full_like(batch.ids, -100)
    labels[:, 1:] = batch.targets[:, :-1]
    theirs = model(input_ids=batch.ids, labels=labels, use_cache=False).loss
    sums = supervised(model, batch)
    assert torch.allclose(sums.loss / sums.count, theirs, rtol=1e-5)
    sums.loss.div(sums.count).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    theirs.backward()
    for name, p in model.named_parameters():
        assert torch.allclose(ours[name], p.grad, atol=1e-5), name


def test_padding_and_company_do_not_change_a_row(data):
    model, rows = tiny.llama(), rows_of(data)[:5]
    together = score(model, collate(rows))
    for i, row in enumerate(rows):
        assert torch.allclose(score(model, collate([row])).nll, together.nll[together.row == i], atol=1e-5)


def changed(data, base, out, *assignments) -> set[str]:
    """Names of the weights that differ from the base after a few steps; new ones count by their own name."""
    list(train(config(data, base, out, "hyperparameters.n_epochs=1", *assignments)))
    before, after = dict(load(base).model.named_parameters()), weights(out / "model")
    return {name for name, value in after.items() if name not in before or not torch.equal(before[name].detach(), value)}


def test_full_tuning_changes_every_weight(data, base, tmp_path):
    assert changed(data, base, tmp_path / "run", "tuning=full") == {name for name, _ in load(base).model.named_parameters()}


def test_lora_changes_its_adapters_alone(data, base, tmp_path):
    names = changed(data, base, tmp_path / "run", 'tuning.targets=["q_proj","down_proj"]')
    wanted = {
        f"base_model.model.model.layers.{i}.{part}.lora_{ab}.weight" for i in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj") for ab in "AB"
    }
    assert names == wanted
    run = load(str(tmp_path / "run"))
    below = {name.replace("base_model.model.", "").replace(".base_layer", ""): p for name, p in run.model.named_parameters() if "lora" not in name}
    for name, value in load(base).model.named_parameters():
        assert torch.equal(value, below[name]), name


def test_the_adapter_loads_in_plain_peft(data, base, tmp_path):
    from peft import PeftModel

    list(train(config(data, base, tmp_path / "run")))
    batch = collate(rows_of(data)[:3])
    plain = PeftModel.from_pretrained(load(base).model, str(tmp_path / "run" / "model")).eval()
    assert torch.equal(score(plain, batch).nll, score(load(str(tmp_path / "run")).model, batch).nll)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_micro_batches_do_not_change_the_gradient(data, base, tmp_path, kind):
    results = []
    for tokens in (16, 10_000):
        out = tmp_path / f"{kind}{tokens}"
        settings_ = ["optimizer.kind=sgd", "optimizer.learning_rate=0.05", "max_grad_norm=0", f"micro_batch_tokens={tokens}"]
        list(train(config(data, base, out, f"tuning={kind}", "hyperparameters.batch_size=11", "hyperparameters.n_epochs=1", *settings_)))
        results.append(weights(out / "model"))
    assert all(torch.allclose(results[0][name], results[1][name], atol=1e-6) for name in results[0])


GOLDEN = [6.2614, 6.2502, 6.2422, 6.2196, 6.2153, 6.1788, 6.158, 6.138, 6.1376, 6.1285, 6.1387, 6.1555]


def test_golden_losses(data, base, tmp_path):
    """A refactoring leaves these numbers as they are; a change of them is a change of what is trained."""
    losses = [e.data["train_loss"] for e in train(config(data, base, tmp_path / "run")) if "train_loss" in e.data]
    assert len(losses) == 12
    assert losses == pytest.approx(GOLDEN, abs=2e-4)


@pytest.mark.parametrize(
    "assignments", [("tuning.dropout=0.1",), ("tuning=full", "schedule.kind=linear"), ("optimizer.kind=sgd", "evaluation.patience=1")]
)
@pytest.mark.parametrize("stops", [(1, 4), (6, 7)])
def test_interrupted_equals_uninterrupted(data, base, tmp_path, assignments, stops):
    list(train(config(data, base, tmp_path / "whole", *assignments)))
    for stop in stops:
        events = train(config(data, base, tmp_path / "parts", *assignments))
        for event in events:
            if event.step == stop and event.kind == "metrics":
                events.close()
                break
    list(train(config(data, base, tmp_path / "parts", *assignments)))
    assert sha256(tmp_path / "whole/model" / tensor_file(assignments)) == sha256(tmp_path / "parts/model" / tensor_file(assignments))


def tensor_file(assignments) -> str:
    return "model.safetensors" if "tuning=full" in assignments else "adapter_model.safetensors"


def killed_after(settings_: TrainConfig, events: int, pause: float) -> bool:
    """Train in a forked process and SIGKILL it a moment after so many events. True where it was still running."""
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        for _ in train(settings_):
            os.write(writes, b".")
        os._exit(0)
    os.close(writes)
    for _ in range(events):
        os.read(reads, 1)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    os.close(reads)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_runs_end_with_the_same_bits(data, base, tmp_path):
    """SIGKILL at seeded moments, some inside a save; the long version of this is benchmarks/kills.py."""
    settings_ = ["checkpoints.every_steps=1", "tuning.dropout=0.1", "hyperparameters.n_epochs=4"]
    list(train(config(data, base, tmp_path / "whole", *settings_)))
    again = config(data, base, tmp_path / "killed", *settings_)
    draw = random.Random(0)
    assert all(killed_after(again, draw.randint(3, 9), draw.uniform(0, 0.03)) for _ in range(6))
    events = list(train(again))
    assert any("Resumed" in e.message for e in events) and events[-1].step == 24
    assert sha256(tmp_path / "whole/model/adapter_model.safetensors") == sha256(tmp_path / "killed/model/adapter_model.safetensors")


def test_a_kill_while_an_old_checkpoint_is_removed(data, base, tmp_path, monkeypatch):
    settings_ = ["checkpoints.every_steps=1", "checkpoints.keep=1"]
    list(train(config(data, base, tmp_path / "whole", *settings_)))
    remove, removed = shutil.rmtree, []

    def die_halfway(place, ignore_errors=False):
        if not list(Path(place).glob("state.json")):
            return remove(place, ignore_errors=ignore_errors)
        (Path(place) / "state.json").unlink()
        removed.append(place)
        raise InterruptedError

    monkeypatch.setattr(shutil, "rmtree", die_halfway)
    with pytest.raises(InterruptedError):
        list(train(config(data, base, tmp_path / "killed", *settings_)))
    monkeypatch.undo()
    assert removed
    list(train(config(data, base, tmp_path / "killed", *settings_)))
    assert sha256(tmp_path / "whole/model/adapter_model.safetensors") == sha256(tmp_path / "killed/model/adapter_model.safetensors")


@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("how", ["bit", "cut", "missing"])
def test_damaged_checkpoints_are_set_aside(data, base, tmp_path, damaged, how):
    list(train(config(data, base, tmp_path / "whole", "checkpoints.every_steps=2")))
    again = config(data, base, tmp_path / "run", "checkpoints.every_steps=2")
    events = train(again)
    for event in events:
        if event.step == 5:
            events.close()
            break
    for place in checkpoint.saved(tmp_path / "run/checkpoints")[-damaged:]:
        path = place / "trainer.safetensors"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content if how == "bit" else content[:100])
        if how == "missing":
            path.unlink()
    said = [e.message for e in train(again)]
    assert sum("damaged" in message for message in said) == damaged
    assert any("Resumed from checkpoint step-00000004" if damaged == 1 else "No sound checkpoint" in message for message in said)
    assert sha256(tmp_path / "whole/model/adapter_model.safetensors") == sha256(tmp_path / "run/model/adapter_model.safetensors")


def test_non_finite_losses_end_the_run_with_the_last_good_checkpoint(data, base, tmp_path):
    wild = ["tuning=full", "optimizer.kind=sgd", "optimizer.learning_rate=10", "hyperparameters.learning_rate_multiplier=100", "max_grad_norm=0"]
    run = tmp_path / "run"
    seen: list[Event] = []
    events = train(config(data, base, run, *wild, "schedule.kind=constant", "hyperparameters.n_epochs=40"))
    with pytest.raises(RunFailed, match="not finite for 3 steps") as caught:
        seen.extend(events)
    assert caught.value.code == "non_finite_loss"
    assert sum("was not applied" in e.message for e in seen) == 3
    for place in checkpoint.saved(run / "checkpoints"):
        assert all(value.isfinite().all() for value in weights(place).values())


def test_a_full_disk_keeps_the_checkpoint_before_and_says_so(data, base, tmp_path):
    events, limits, said = train(config(data, base, tmp_path / "run", "checkpoints.every_steps=2")), resource.getrlimit(resource.RLIMIT_FSIZE), []
    try:
        for event in events:
            said.append(event)
            if "Checkpoint created at step 2" in event.message:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            if event.step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    full = [e for e in said if e.data.get("code") == "disk_full"]
    assert [e.step for e in full] == [4] and "untouched" in full[0].message
    assert not list((tmp_path / "run/checkpoints").glob(".tmp-*"))
    list(train(config(data, base, tmp_path / "whole")))
    assert sha256(tmp_path / "whole/model/adapter_model.safetensors") == sha256(tmp_path / "run/model/adapter_model.safetensors")


def test_early_stopping_keeps_the_best(data, base, tmp_path):
    wild = ["evaluation.patience=1", "hyperparameters.n_epochs=30", "tuning=full", "optimizer.learning_rate=0.03", "schedule.kind=constant"]
    events = list(train(config(data, base, tmp_path / "run", *wild)))
    valid = [e.data["full_valid_loss"] for e in events if "full_valid_loss" in e.data]
    assert len(valid) < 30 and valid[-1] > min(valid)
    best = next(e.data["best_step"] for e in events if "best_step" in e.data)
    assert sha256(tmp_path / f"run/checkpoints/step-{best:08d}/model.safetensors") == sha256(tmp_path / "run/model/model.safetensors")


def test_a_folder_with_another_run_is_refused(data, base, tmp_path):
    next(train(config(data, base, tmp_path / "run")))
    with pytest.raises(BadConfig, match="another tuning"):
        next(train(config(data, base, tmp_path / "run", "tuning.rank=2")))


def test_changed_data_is_refused_on_resume(data, base, tmp_path):
    copy = tmp_path / "data"
    copy.mkdir()
    for path in data.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    events = train(config(copy, base, tmp_path / "run"))
    while next(events).step < 2:
        pass
    events.close()
    (copy / "train.jsonl").write_text("".join((copy / "train.jsonl").read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RunFailed, match="has changed"):
        list(train(config(copy, base, tmp_path / "run")))


def test_one_process_a_run_folder(data, base, tmp_path):
    events = train(config(data, base, tmp_path / "run"))
    next(events)
    with pytest.raises(RunFailed, match=f"process {os.getpid()}"):
        next(train(config(data, base, tmp_path / "run")))
    events.close()


def test_data_that_leaves_nothing_to_learn_is_refused(data, base, tmp_path):
    with pytest.raises(BadData, match="no row is left to learn from"):
        list(train(config(data, base, tmp_path / "run", "max_tokens=8")))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_shared_dropout_is_said(data, base, tmp_path, dropout):
    events = train(config(data, base, tmp_path / "run", f"tuning.dropout={dropout}"))
    said = next(event.message for event in events if "layout" in event.data)
    events.close()
    assert ("drop out alike" in said) == (dropout > 0)


def test_a_finished_run_is_a_folder_that_explains_itself(data, base, tmp_path):
    events = list(train(config(data, base, tmp_path / "run")))
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} >= {
        "config.json",
        "plan.json",
        "events.jsonl",
        "tensorboard",
        "checkpoints",
        "model",
        "README.md",
        "exit.json",
    }
    assert [e.message for e in read_events(run / "events.jsonl")] == [e.message for e in events]
    assert "22 of 22 rows" in (run / "README.md").read_text()
    assert not [p for p in run.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert next(iter(train(config(data, base, run)))).message.startswith("This run is finished")


def test_a_torn_event_line_is_skipped(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(Event(1, "a", {"x": float("nan")}).to_json() + "\n" + Event(2, "b").to_json()[:20])
    assert [(e.message, e.data) for e in read_events(path)] == [("a", {"x": None})]


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(1, 60),
    size=st.integers(1, 20),
    epochs=st.integers(1, 5),
    start=st.integers(0, 100),
    seed=st.integers(0, 2**63 - 1),
    kind=st.sampled_from(["rows", "by_prefix", "none"]),
)
def test_resuming_meets_the_same_rows_in_the_same_order(n, size, epochs, start, seed, kind):
    order = {"rows": by_rows(n, seed), "by_prefix": by_prefix(range(n)[::-1], size, seed), "none": as_given(n)}[kind]
    whole = [(step, epoch, rows.tolist()) for step, epoch, rows in steps(n, size, epochs, order)]
    rest = [(step, epoch, rows.tolist()) for step, epoch, rows in steps(n, size, epochs, order, start)]
    assert rest == whole[start:]
    for epoch in range(epochs):
        assert sorted(i for _, e, rows in whole for i in rows if e == epoch + 1) == list(range(n))
    if kind == "by_prefix" and n > size:  # neighbours in the tree stay neighbours: a step holds at most one seam, where the end meets the start
        for _, _, rows in whole:
            assert sum(abs(a - b) != 1 for a, b in itertools.pairwise(rows)) <= 1


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), budget=st.integers(1, 2000))
def test_micro_batches_hold_each_row_once_within_the_budget(lengths, budget):
    groups = micro_batches(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in groups)


def test_schedules():
    for kind, last in (("constant", 1.0), ("linear", 0.1), ("cosine", 0.1)):
        shape = TrainConfig.parse({"data": "x"}, [f"schedule.kind={kind}", "schedule.warmup=0.1", "schedule.final=0.1"]).schedule
        values = [schedule.factor(shape, step, 100) for step in range(1, 101)]
        assert values[:10] == pytest.approx([i / 10 for i in range(1, 11)])
        assert values[-1] == pytest.approx(last) and values[9:] == sorted(values[9:], reverse=True)


def test_vectors_are_not_decayed():
    groups = tuning.groups(tiny.gpt2(), 0.1)
    assert {(group["weight_decay"], min(p.dim() for p in group["params"]) >= 2) for group in groups} == {(0.1, True), (0.0, False)}
