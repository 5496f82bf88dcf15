"""The engine: answers are those that `evaluate` gets, whoever else is asked, whichever adapters share the pass."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

import tiny
from test_generate import make
from tunewright.errors import Problem
from tunewright.models.generate import answers
from tunewright.models.load import load
from tunewright.models.slots import Memory, NotServed
from tunewright.serve import runner
from tunewright.serve.ask import Ask, Piece, Resolved
from tunewright.serve.engine import Engine, Limits, Opened
from tunewright.train import checkpoint

LINEAR = {"llama": "all-linear", "qwen2": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


def kinds(shape: str) -> dict[str, Any]:
    """Adapters of every kind that is laid on a base, and some that need a model of their own."""
    targets: Any = LINEAR[shape]
    return {
        "lora": LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"),
        "wide": LoraConfig(r=9, lora_alpha=5, use_rslora=True, target_modules=targets, task_type="CAUSAL_LM"),
        "few": LoraConfig(r=2, target_modules=targets if shape == "gpt2" else ["q_proj"], layers_to_transform=[1], task_type="CAUSAL_LM"),
        "prompt": PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        "dora": LoraConfig(r=3, use_dora=True, target_modules=targets, task_type="CAUSAL_LM"),
        "head": LoraConfig(r=3, target_modules=["lm_head"], task_type="CAUSAL_LM"),
        "ia3": IA3Config(target_modules=targets, feedforward_modules=[], task_type="CAUSAL_LM", fan_in_fan_out=shape == "gpt2"),
    }


def save_all(root: Path, shape: str, names: list[str] | None = None) -> dict[str, Resolved]:
    """A base and its adapters on disk, every weight of the adapters drawn anew so that each says something else."""
    found = {"base": Resolved("base", Path(tiny.save(root / "base", make(shape))))}
    for seed, (name, config) in enumerate(kinds(shape).items()):
        if names is not None and name not in names:
            continue
        torch.manual_seed(seed)
        model = get_peft_model(make(shape), config)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_B" in key:
                    weight.normal_(std=0.5)
                elif "ia3" in key:
                    weight.uniform_(0.5, 1.5)
                elif "prompt" in key:
                    weight.normal_()
        model.save_pretrained(root / name)
        found[name] = Resolved(name, root / name, str(root / "base"))
    return found


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(Limits(chunk=16))
    yield made
    made.close()


def prompts(count: int) -> list[list[int]]:
    draws = torch.Generator().manual_seed(1)
    return [torch.randint(3, 512, (3 + 7 * i % 60,), generator=draws).tolist() for i in range(count)]


def together(engine: Engine, asked: list[tuple[Opened, Ask]]) -> list[Piece]:
    queues: list[SimpleQueue[Piece]] = [SimpleQueue() for _ in asked]
    for (opened, ask), queue in zip(asked, queues, strict=True):
        engine.submit(opened, ask, queue.put)
    return [queue.get(timeout=60) for queue in queues]


def greedy(ids: list[int], tokens: int = 24, **settings: Any) -> Ask:
    return Ask(tuple(ids), tokens, temperature=0.0, pieces=False, **settings)


def test_a_model_without_exchangeable_attention_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attach(model: Any) -> int:
        raise NotServed("it has none")

    models = save_all(tmp_path, "llama", ["lora", "prompt"])
    found = []
    for fallback in (False, True):
        if fallback:
            monkeypatch.setattr(runner, "attach", attach)
        engine = Engine(Limits(slots=3))
        opened = [engine.open(models[name]) for name in ("lora", "prompt", "base")]
        found.append([piece.text for piece in together(engine, [(opened[i % 3], greedy(ids)) for i, ids in enumerate(prompts(9))])])
        engine.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_answers_over_many_adapters_at_once_are_those_of_each_alone(tmp_path: Path, engine: Engine, shape: str) -> None:
    models = save_all(tmp_path, shape)
    opened = {name: engine.open(resolved) for name, resolved in models.items()}
    assert len({id(opened[name].runner) for name in ("base", "lora", "wide", "few", "prompt")}) == 2  # by path, and by name as a base
    asked = [(list(models)[i % len(models)], ids) for i, ids in enumerate(prompts(32))]
    found = together(engine, [(opened[name], greedy(ids)) for name, ids in asked])
    alone = [together(engine, [(opened[name], greedy(ids))])[0] for name, ids in asked]
    assert [piece.text for piece in found] == [piece.text for piece in alone]
    for name, resolved in models.items():
        loaded = load(str(resolved.folder), base=resolved.base)
        mine = [i for i, (other, _) in enumerate(asked) if other == name]
        want = answers(loaded.model, loaded.tokenizer, [asked[i][1] for i in mine], 24)
        assert [found[i].text for i in mine] == [answer.text for answer in want], name
        assert [found[i].finish for i in mine] == ["stop" if answer.finished else "length" for answer in want]
    assert len({piece.text for piece in found}) > 20


def test_little_memory_is_shared_in_turns_and_changes_no_answer(tmp_path: Path, engine: Engine) -> None:
    base = save_all(tmp_path, "llama", [])["base"]
    tight = Engine(Limits(memory=600 * 256))  # 600 tokens of this model, whose context is 256
    asked = [(i, greedy(ids[:9], 150, logit_bias={2: -100.0})) for i, ids in enumerate(prompts(10))]
    want = together(engine, [(engine.open(base), ask) for _, ask in asked])
    opened = tight.open(base)
    queues: list[SimpleQueue[Piece]] = [SimpleQueue() for _ in asked]
    sizes, most = [], opened.runner._tokens_at_most
    assert most == 600
    original = opened.runner._pass

    def watched() -> None:
        original()
        memory = opened.runner._memory
        assert isinstance(memory, Memory)
        sizes.append((memory.slots * memory.length, len(opened.runner._active)))

    opened.runner._pass = watched  # type: ignore[method-assign]
    for (_, ask), queue in zip(asked, queues, strict=True):
        tight.submit(opened, ask, queue.put)
    assert [queue.get(timeout=60).text for queue in queues] == [piece.text for piece in want]
    tight.close()
    assert max(size for size, _ in sizes) <= most * 1.3  # lengths are rounded up
    joined = [active for _, active in sizes]
    assert max(joined) == 4 and any(b < a for a, b in pairwise(joined))


def test_a_near_tie_is_decided_as_if_alone(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = engine.open(save_all(tmp_path, "llama", [])["base"])
    asked = [(opened, greedy(ids)) for ids in prompts(6)]
    before = together(engine, asked)
    counted: list[int] = []
    original = runner.Runner._alone
    monkeypatch.setattr(runner.Runner, "_alone", lambda self, request: counted.append(1) or original(self, request))
    monkeypatch.setattr(runner, "_NEAR", 10.0)  # as if every choice were near: all are computed again from the tokens alone
    settings: dict[str, Any] = {"logit_bias": {5: -1.0}}
    assert [piece.text for piece in together(engine, asked)] == [piece.text for piece in before]
    together(engine, [(opened, greedy(prompts(1)[0], **settings))])
    assert len(counted) == sum(piece.tokens for piece in before) + 24 or len(counted) > sum(piece.tokens for piece in before)


def test_a_long_prompt_does_not_hold_up_the_others(tmp_path: Path, engine: Engine) -> None:
    opened = engine.open(save_all(tmp_path, "llama", [])["base"])
    order: SimpleQueue[str] = SimpleQueue()

    def named(name: str) -> Callable[[Piece], None]:
        return lambda piece: order.put(name)

    engine.submit(opened, Ask(tuple(prompts(1)[0]), 60, 0.0), named("talks"))
    assert order.get(timeout=30) == "talks"
    engine.submit(opened, Ask((7,) * 200, 2, 0.0, pieces=False), named("long"))  # 13 pieces of 16
    seen = []
    while "long" not in seen:
        seen.append(order.get(timeout=30))
    assert seen.count("talks") >= 8


def test_who_leaves_makes_room_at_once_and_leaves_the_others_alone(tmp_path: Path) -> None:
    engine = Engine(Limits(slots=2))
    opened = engine.open(save_all(tmp_path, "llama", [])["base"])
    ids = prompts(4)
    want = [together(engine, [(opened, greedy(each, 40))])[0].text for each in ids[2:]]
    counted: list[Piece] = []
    first = engine.submit(opened, Ask(tuple(ids[0]), 200, 0.0, logit_bias={2: -100.0}), counted.append)
    while not counted:
        sleep(0.001)
    second = engine.submit(opened, Ask(tuple(ids[1]), 200, 0.0, logit_bias={2: -100.0}), lambda piece: None)
    third = [SimpleQueue[Piece]() for _ in range(2)]
    for each, out in zip(ids[2:], third, strict=True):
        engine.submit(opened, greedy(each, 40), out.put)
    first.cancel()
    said = len(counted)
    second.cancel()
    assert [out.get(timeout=30).text for out in third] == want
    assert len(counted) <= said + 1
    engine.close()


def test_bad_asks_do_not_touch_good_ones(tmp_path: Path, engine: Engine) -> None:
    opened = engine.open(save_all(tmp_path, "llama", [])["base"])
    good = [(opened, greedy(ids)) for ids in prompts(12)]
    want = [piece.text for piece in together(engine, good)]

    def bad(piece: Piece) -> None:
        raise RuntimeError("its reader is gone")

    with pytest.raises(Problem):
        engine.submit(opened, greedy([5], grammar="start: nosuch"), bad)
    queues: list[SimpleQueue[Piece]] = [SimpleQueue() for _ in good]
    for (model, ask), queue in zip(good, queues, strict=True):
        engine.submit(model, ask, queue.put)
        engine.submit(opened, Ask((3, 4), 50, 0.0), bad)
    assert [queue.get(timeout=30).text for queue in queues] == want


def test_a_pass_that_fails_is_told_and_the_next_is_served(tmp_path: Path, engine: Engine) -> None:
    opened = engine.open(save_all(tmp_path, "llama", [])["base"])
    ask = greedy(prompts(1)[0])
    want = together(engine, [(opened, ask)])[0]
    (failed,) = together(engine, [(opened, greedy([10**6]))])  # an id that no check let through
    assert failed.problem is not None and failed.problem.code == "engine_failed"
    assert together(engine, [(opened, ask)])[0] == want


def test_the_queue_has_an_end_and_time_runs_out(tmp_path: Path) -> None:
    models = save_all(tmp_path, "llama", [])
    engine = Engine(Limits(slots=1, waiting=2))
    opened = engine.open(models["base"])
    queues: list[SimpleQueue[Piece]] = [SimpleQueue() for _ in range(9)]
    endless = greedy([3], 250, logit_bias={2: -100.0})
    for queue in queues[:2]:
        engine.submit(opened, endless, queue.put)
    with pytest.raises(Problem) as caught:
        [engine.submit(opened, endless, queue.put) for queue in queues[2:]]
    assert caught.value.code == "queue_full"
    assert [queues[i].get(timeout=30).finish for i in range(2)] == ["length"] * 2
    opened.runner._timeout = 0.0
    engine.submit(opened, endless, queues[8].put)
    late = queues[8].get(timeout=30).problem
    assert late is not None and late.code == "timeout"
    engine.close()
    with pytest.raises(Problem) as caught:
        engine.submit(opened, greedy([3]), queues[0].put)
    assert caught.value.code == "server_stopping"


def test_models_leave_when_there_are_too_many(tmp_path: Path) -> None:
    models = save_all(tmp_path, "llama", ["lora", "wide", "few"])
    other = Resolved("other", Path(tiny.save(tmp_path / "other", make("qwen2"))))
    engine = Engine(Limits(adapters=2, models=200_000))
    opened = [engine.open(models[name]) for name in ("lora", "wide", "few", "lora")]
    assert opened[3] is not opened[0] and engine.open(models["few"]) is opened[2]
    want = together(engine, [(opened[0], greedy([5, 6]))])[0]  # one that has left still answers whoever holds it
    assert want.problem is None
    engine.open(other)
    assert [each.loaded.base for each in engine._runners.values()] == [str(other.folder)]
    assert together(engine, [(engine.open(models["lora"]), greedy([5, 6]))])[0].text == want.text
    engine.close()


def test_a_folder_that_changes_is_read_again(tmp_path: Path, engine: Engine) -> None:
    models = save_all(tmp_path, "llama", ["lora", "wide"])
    first = engine.open(models["lora"])
    shutil.copytree(models["wide"].folder, models["lora"].folder, dirs_exist_ok=True)
    assert engine.open(models["lora"]) is not first
    shutil.rmtree(models["lora"].folder)
    with pytest.raises(Problem) as caught:
        engine.open(models["lora"])
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        ("shape", "adapter_mismatch"),
        ("stranger", "adapter_mismatch"),
        ("nan", "model_rejected"),
        ("header", "model_rejected"),
        ("half", "adapter_mismatch"),
        ("prefix", "adapter_unsupported"),
    ],
)
def test_hostile_adapters_are_refused(tmp_path: Path, engine: Engine, harm: str, code: str) -> None:
    import json

    from safetensors.torch import load_file, save_file

    resolved = save_all(tmp_path, "llama", ["lora"])["lora"]
    file = resolved.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(name for name in tensors if "lora_A" in name)
    match harm:
        case "shape":
            tensors[key] = torch.zeros(4, 33)
        case "stranger":
            tensors["base_model.model.model.nosuch.lora_A.weight"] = torch.zeros(4, 32)
        case "nan":
            tensors[key][0, 0] = torch.nan
        case "half":
            del tensors[key.replace("lora_A", "lora_B")]
        case "prefix":
            config = json.loads((resolved.folder / "adapter_config.json").read_text())
            (resolved.folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "PREFIX_TUNING"}))
    save_file(tensors, file)
    if harm == "header":
        file.write_bytes((2**63).to_bytes(8, "little") + file.read_bytes()[8:])
    start = monotonic()
    with pytest.raises(Problem) as caught:
        engine.open(resolved)
    assert caught.value.code == code and monotonic() - start < 5


def test_a_checkpoint_answers_and_a_damaged_one_is_refused(tmp_path: Path, engine: Engine) -> None:
    base = tiny.save(tmp_path / "base", make("llama"))
    torch.manual_seed(0)
    model = get_peft_model(make("llama"), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    place = checkpoint.save(tmp_path / "checkpoints", 4, model, tiny.tokenizer(), optimizer, {"epoch": 1})
    resolved = Resolved("ckpt", place, base)
    ids = prompts(1)[0]
    loaded = load(str(place), base=base)
    assert together(engine, [(engine.open(resolved), greedy(ids))])[0].text == answers(loaded.model, loaded.tokenizer, [ids], 24)[0].text
    file = place / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1  # a bit of a weight: still a sound file, and another model
    file.write_bytes(content)
    with pytest.raises(Problem) as caught:
        engine.open(resolved)
    assert caught.value.code == "model_rejected" and "has changed" in caught.value.message
