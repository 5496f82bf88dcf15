"""Loading: real shapes with their own numbers, and everything that must be refused, by its code."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import tiny
from tunewright.config import Full, Lora
from tunewright.data.tokens import end_ids
from tunewright.errors import BadConfig, BadModel
from tunewright.models import tuning
from tunewright.models.load import NANO, find, load

Edit = Callable[[Path], Any]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny.save(tmp_path_factory.mktemp("base"), tiny.llama(tie=False)))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A LoRA adapter whose weights are not the zeros it begins with."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    model = tuning.apply(load(str(base)).model, Lora(rank=4), str(base))
    with torch.no_grad():
        for parameter in tuning.trained(model).values():
            parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 512, (3, 40), generator=torch.Generator().manual_seed(0))


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_a_loaded_model_is_the_one_that_was_saved(tmp_path: Path, ids: torch.Tensor, shape: str) -> None:
    model: PreTrainedModel = tiny.SHAPES[shape]()
    loaded = load(tiny.save(tmp_path, model))
    assert torch.equal(logits(loaded.model, ids), logits(model, ids))
    assert not loaded.model.training and loaded.context == 256 and loaded.base == str(tmp_path)
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())
    half = load(str(tmp_path), dtype="bf16")
    assert all(p.dtype == torch.bfloat16 for p in half.model.parameters())


def test_numbers_too_small_to_be_computed_fast_are_zero_inside_and_not_outside(tmp_path: Path) -> None:
    """In torch's own threads too, in a process that begins with loading a model."""
    code = (
        "import sys, torch; from tunewright.models.load import load; from tunewright.models.floats import flushed\n"
        "torch.set_num_threads(2); load(sys.argv[1]); small = torch.full((2**20,), 1e-30)\n"
        "with flushed():\n"
        "    with flushed(): pass\n"
        "    print(int((small * 1e-10).count_nonzero()), sys.float_info.min / 2)\n"
        "print(sys.float_info.min / 2 > 0)"
    )
    found = subprocess.run([sys.executable, "-c", code, tiny.save(tmp_path, tiny.llama())], capture_output=True, text=True, check=True)
    assert found.stdout == "0 0.0\nTrue\n"


def test_a_model_in_several_files(tmp_path: Path, ids: torch.Tensor) -> None:
    model = tiny.llama()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    tiny.tokenizer().save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load(str(tmp_path)).model, ids), logits(model, ids))


def test_a_tokenizer_without_a_template_gets_the_plain_one(tmp_path: Path) -> None:
    tokenizer = load(tiny.save(tmp_path, tiny.gpt2(), template=None)).tokenizer
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello there"}], tokenize=False, add_generation_prompt=True)
    assert "Hello there" in text and tokenizer.eos_token_id in end_ids(tokenizer)


def test_an_adapter_lies_on_its_base(base: Path, adapter: Path, ids: torch.Tensor) -> None:
    """The oracle is the formula: W + B A alpha / rank, written into plain weights."""
    expected = load(str(base)).model
    tensors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name in {key.rpartition(".lora_")[0] for key in tensors}:
            a, b = (tensors[f"{name}.lora_{part}.weight"] for part in "AB")
            expected.get_submodule(name.removeprefix("base_model.model.")).weight.add_(b @ a * 32 / 4)
    loaded = load(str(adapter))
    assert torch.allclose(logits(loaded.model, ids), logits(expected, ids), atol=1e-4)
    assert not torch.allclose(logits(loaded.model, ids), logits(load(str(base)).model, ids), atol=1e-2)
    assert loaded.folder == adapter


def test_the_built_in_model() -> None:
    loaded = load("nano")
    assert find("nano") == NANO and loaded.context == 1024
    assert 8e6 <= sum(p.numel() for p in loaded.model.parameters()) <= 12e6
    assert loaded.tokenizer.chat_template and (NANO / "model.safetensors").stat().st_size <= 24e6


def test_a_run_stands_for_its_model(tmp_path: Path, base: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadModel, match="no model yet; finish it: tunewright train --resume"):
        find(str(tmp_path))
    shutil.copytree(base, tmp_path / "model")
    assert find(str(tmp_path)) == tmp_path / "model" == find(str(tmp_path / "model"))
    assert load(str(tmp_path)).folder == tmp_path / "model"


@pytest.mark.parametrize(
    "name", ["nosuch", "no/such", "no/such@main", "no such/model", "./nosuch", "~nosuch/model", "../..//etc/passwd", "x" * 500, "a\0b", ""]
)
def test_a_name_that_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(BadModel) as caught:
        load(name)
    assert caught.value.code == "model_not_found"


def config(**values: Any) -> Edit:
    return lambda folder: edit_json(folder / "config.json", values)


def tokenizer(**values: Any) -> Edit:
    return lambda folder: edit_json(folder / "tokenizer_config.json", values)


def edit_json(path: Path, values: dict[str, Any]) -> None:
    record = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, size: int) -> Edit:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def rename(name: str, other: str) -> Edit:
    return lambda folder: (folder / name).rename(folder / other)


def header(record: Any) -> bytes:
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    return struct.pack("<Q", len(text)) + text


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], name: str = "model.safetensors") -> Edit:
    return lambda folder: save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})


def without_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if name != min(weights)}


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": value for name, value in weights.items()}


TEN_TERABYTES = header({"w": {"dtype": "F32", "shape": [2_500_000, 1_000_000], "data_offsets": [0, 10**13]}})

MODELS: dict[str, tuple[Edit, str, str]] = {
    # what is done to a model folder, the code, a part of what is said
    "no config": (remove("config.json"), "model_not_found", "has no config.json"),
    "config empty": (write("config.json", b""), "model_rejected", "config.json cannot be read"),
    "config not JSON": (write("config.json", b"{'a': 1}"), "model_rejected", "config.json cannot be read"),
    "config a list": (write("config.json", b"[]"), "model_rejected", "config.json is not a JSON object"),
    "config not UTF-8": (write("config.json", b'{"a": "\xe9"}'), "model_rejected", "config.json cannot be read"),
    "config too deep": (write("config.json", b"[" * 100_000), "model_rejected", "config.json cannot be read"),
    "no model_type": (config(model_type=None), "model_rejected", "which architecture"),
    "unknown model_type": (config(model_type="nosuch"), "model_rejected", "nosuch"),
    "model_type no text": (config(model_type=["llama"]), "model_rejected", "cannot load this model"),
    "another architecture": (config(model_type="gpt2"), "model_rejected", "not in the files"),
    "wrong type": (config(hidden_size="wide"), "model_rejected", "expected int"),
    "no heads": (config(num_attention_heads=0), "model_rejected", "ZeroDivisionError"),
    "other shapes": (config(hidden_size=64), "model_rejected", "of another shape, the first lm_head.weight"),
    "more layers": (config(num_hidden_layers=3), "model_rejected", "9 weights that config.json asks for are not in the files"),
    "code of its own": (config(model_type="evil", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}), "remote_code", "never run"),
    "code, no type": (config(model_type=None, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}), "remote_code", "never run"),
    "attention from the Hub": (config(_attn_implementation_internal="evil/kernel"), "model_rejected", "_attn_implementation_internal"),
    "weights elsewhere": (config(transformers_weights="pytorch_model.bin"), "model_rejected", "neither a safetensors file"),
    "quantized": (config(quantization_config={"quant_method": "gptq"}), "model_rejected", "GPTQ"),
    "only pickles": (rename("model.safetensors", "pytorch_model.bin"), "not_safetensors", "pytorch_model.bin can run code"),
    "no weights": (remove("model.safetensors"), "not_safetensors", "no safetensors weights"),
    "weights of another name": (rename("model.safetensors", "other.safetensors"), "model_rejected", "model.safetensors"),
    "weights empty": (write("model.safetensors", b""), "model_rejected", "its header is 0 bytes long"),
    "header cut": (cut("model.safetensors", 100), "model_rejected", "model.safetensors is damaged"),
    "header no JSON": (write("model.safetensors", header(b"tensors!")), "model_rejected", "its header cannot be read"),
    "header a list": (write("model.safetensors", header([])), "model_rejected", "its header cannot be read"),
    "header too long": (write("model.safetensors", b"\xff" * 64), "model_rejected", "model.safetensors is damaged"),
    "body cut": (cut("model.safetensors", 20_000), "model_rejected", "SafetensorError"),
    "a weight missing": (tensors(without_one), "model_rejected", "the first lm_head.weight"),
    "other names": (tensors(renamed), "model_rejected", "not in the files"),
    "too large": (write("model.safetensors", TEN_TERABYTES), "out_of_memory", "needs 10000.0 GB for its weights"),
    "no tokenizer": (remove("tokenizer.json"), "model_rejected", "cannot load its tokenizer"),
    "tokenizer cut": (cut("tokenizer.json", 1000), "model_rejected", "cannot load its tokenizer"),
    "tokenizer a list": (write("tokenizer.json", b"[]"), "model_rejected", "cannot load its tokenizer"),
    "tokenizer's code": (
        tokenizer(auto_map={"AutoTokenizer": ["tok.Evil", None]}, tokenizer_class="Evil"),
        "model_rejected",
        "cannot load its tokenizer",
    ),
    "length no number": (tokenizer(model_max_length="long"), "model_rejected", "cannot load its tokenizer"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_used_is_refused(tmp_path: Path, base: Path, case: str) -> None:
    edit, code, part = MODELS[case]
    folder = shutil.copytree(base, tmp_path / "model")
    edit(folder)
    with pytest.raises(BadModel) as caught:
        load(str(folder))
    assert caught.value.code == code and part in caught.value.message and caught.value.param == "model"
    assert "\n" not in caught.value.message and str(folder) in caught.value.message


def other_base(folder: Path) -> None:
    wide = tiny.llama().config
    wide.hidden_size, wide.head_dim = 64, 16
    model = type(tiny.llama())(wide)
    edit_json(folder / "adapter_config.json", {"base_model_name_or_path": tiny.save(folder / "wide", model)})


def peft_config(**values: Any) -> Edit:
    return lambda folder: edit_json(folder / "adapter_config.json", values)


def on_itself(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", {"base_model_name_or_path": str(folder)})


ADAPTERS: dict[str, tuple[Edit, str, str]] = {
    "no base named": (peft_config(base_model_name_or_path=None), "adapter_without_base", "does not name its base"),
    "base no text": (peft_config(base_model_name_or_path=3), "adapter_without_base", "does not name its base"),
    "base gone": (peft_config(base_model_name_or_path="/nosuch/base"), "model_not_found", "/nosuch/base"),
    "base on itself": (on_itself, "adapter_without_base", "is itself an adapter"),
    "base of another size": (other_base, "adapter_mismatch", "size mismatch"),
    "another rank": (peft_config(r=8), "adapter_mismatch", "size mismatch"),
    "rank no number": (peft_config(r="wide"), "adapter_mismatch", "TypeError"),
    "unknown kind": (peft_config(peft_type="MAGIC"), "adapter_mismatch", "MAGIC"),
    "another kind": (peft_config(peft_type="IA3"), "adapter_mismatch", "weights are missing"),
    "no such modules": (peft_config(target_modules=["nothing"]), "adapter_mismatch", "nothing"),
    "code by name": (peft_config(megatron_config={"a": 1}, megatron_core="evil"), "adapter_mismatch", "megatron_core='evil'"),
    "config no JSON": (write("adapter_config.json", b"{"), "model_rejected", "adapter_config.json cannot be read"),
    "weights gone": (remove("adapter_model.safetensors"), "not_safetensors", "no adapter_model.safetensors"),
    "a pickle": (rename("adapter_model.safetensors", "adapter_model.bin"), "not_safetensors", "no adapter_model.safetensors"),
    "weights empty": (write("adapter_model.safetensors", b""), "adapter_mismatch", "SafetensorError"),
    "a weight missing": (tensors(without_one, "adapter_model.safetensors"), "adapter_mismatch", "1 of its weights are missing"),
    "a layer missing": (
        tensors(lambda w: {k: v for k, v in w.items() if ".layers.1." not in k}, "adapter_model.safetensors"), "adapter_mismatch", "14 of its weights"
    ),
    "a layer too many": (
        tensors(lambda w: w | {k.replace(".1.", ".7."): v.clone() for k, v in w.items() if ".layers.1." in k}, "adapter_model.safetensors"),
        "adapter_mismatch",
        "14 of its weights have no place there",
    ),
    "other names": (tensors(renamed, "adapter_model.safetensors"), "adapter_mismatch", "weights are missing"),
    "tokenizer cut": (write("tokenizer_config.json", b"{"), "model_rejected", "cannot load its tokenizer"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Unexpected keyword:UserWarning", "ignore:Found missing adapter keys:UserWarning")
@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_cannot_be_used_is_refused(tmp_path: Path, adapter: Path, case: str) -> None:
    edit, code, part = ADAPTERS[case]
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    edit(folder)
    with pytest.raises(BadModel) as caught:
        load(str(folder))
    assert caught.value.code == code and part in caught.value.message and "\n" not in caught.value.message


def test_too_little_memory_is_said_before_loading(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights' file is damaged behind its header, so that a load that was tried would say something else."""
    folder = shutil.copytree(base, tmp_path / "model")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: 8 + int.from_bytes(content[:8], "little")])
    count = sum(p.numel() for p in tiny.llama(tie=False).parameters())
    for dtype, size in (("fp32", 4), ("bf16", 2)):
        for free, code in ((count * size - 1, "out_of_memory"), (count * size, "model_rejected")):
            monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
            with pytest.raises(BadModel) as caught:
                load(str(folder), dtype=dtype, device="cpu")  # type: ignore[arg-type]
            assert caught.value.code == code


class Touch:
    """What a pickle may hold: opening it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


OPENED: list[str] = []


@pytest.fixture(scope="module")
def watched() -> list[str]:
    """Pickled names that are looked up, and pickle files that are opened, from now on."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class" or (event == "open" and str(arguments[0]).endswith((".bin", ".pt", ".pkl"))):
            OPENED.append(f"{event} {arguments[:2]}")

    sys.addaudithook(note)
    return OPENED


def test_nothing_that_came_with_a_model_runs(tmp_path: Path, base: Path, adapter: Path, watched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and pickles lie beside sound files, named in every config that can name them."""
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "it_ran"
    code = f"import os\nos.mkdir({str(canary)!r})\nfrom transformers import LlamaForCausalLM as Evil, LlamaConfig as EvilConfig\n"
    folder, lora = shutil.copytree(base, tmp_path / "model"), shutil.copytree(adapter, tmp_path / "adapter")
    for place in (folder, lora, tmp_path):
        for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "evil.py", "__init__.py", "sitecustomize.py"):
            (place / name).write_text(code)
        for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "model.pkl"):
            (place / name).write_bytes(pickle.dumps(Touch(canary)))
    names = {"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit_json(folder / "config.json", {"auto_map": names})
    edit_json(
        lora / "adapter_config.json", {"base_model_name_or_path": str(folder), "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}}
    )
    watched.clear()
    assert type(load(str(folder)).model).__module__.startswith("transformers.")
    assert isinstance(load(str(lora)).model, peft.PeftModel)
    for edit in (config(model_type="evil"), remove("model.safetensors")):
        edit(folder)
        with pytest.raises(BadModel):
            load(str(folder))
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(BadModel):
        load(str(lora))
    assert not canary.exists() and watched == []
    assert not [name for name in sys.modules if "evil" in name]
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.exists() and len(watched) == 2, "the canary would not have sung"


@pytest.mark.filterwarnings("ignore:The PEFT config:UserWarning")
def test_tuning_marks_what_trains(base: Path) -> None:
    whole = tuning.apply(load(str(base)).model, Full(), str(base))
    assert tuning.trained(whole).keys() == dict(whole.named_parameters()).keys()
    adapted = tuning.apply(load(str(base)).model, Lora(rank=4, targets=("q_proj", "down_proj")), "the base")
    assert len(tuning.trained(adapted)) == 2 * 2 * 2 and all(".lora_" in name for name in tuning.trained(adapted))
    assert adapted.peft_config["default"].base_model_name_or_path == "the base"
    with pytest.raises(BadConfig, match=r"tuning\.targets"):
        tuning.apply(load(str(base)).model, Lora(targets=("nothing",)), str(base))
