"""Checkpoints: a folder that one can resume from, or serve. It is there whole or not at all.

Written beside its place, flushed to disk, listed in a manifest with sha256 sums, then renamed. What is read back is
compared with the manifest first. safetensors and JSON only: nothing in a checkpoint can run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunewright.errors import RunFailed
from tunewright.models import quantized
from tunewright.models.tasks import of_model
from tunewright.models.tuning import trained

FORMAT = 1


class DiskFull(RunFailed):
    """No room for a checkpoint; the ones before it are untouched."""


def save(
    folder: Path, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write `folder/step-NNNNNNNN` and return it. Raises DiskFull, or RunFailed when a weight is not finite."""
    parameters = trained(model)
    if not all(bool(p.isfinite().all()) for p in parameters.values()):
        raise RunFailed(f"A weight is not finite at step {step}; it was not saved", code="non_finite_weights")

    def write(temporary: Path) -> None:
        save_model(model, tokenizer, temporary)
        save_file(_optimizer_tensors(optimizer, parameters) | _random_state(), temporary / "trainer.safetensors")
        (temporary / "state.json").write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))

    return write_folder(folder / f"step-{step:08d}", write)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The model as transformers or peft saves it, with its tokenizer."""
    if isinstance(model, PeftModel):
        # No tuning changes the vocabulary. Left to find that out by itself, peft asks the Hub for a base whose name is not a folder.
        model.save_pretrained(folder, save_embedding_layers=False)
        if of_model(model) == "classification":
            model.get_base_model().config.save_pretrained(folder)  # it names the labels
    else:
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; ours stands in the run folder
    quantized.record(model, folder)
    tokenizer.save_pretrained(folder)


def write_folder(place: Path, write: Callable[[Path], None]) -> Path:
    """Fill a folder with `write(temporary)` so that `place` appears complete or not at all. Raises DiskFull.

    An older folder of the same name is replaced; it is moved aside first, never half overwritten.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".tmp-{place.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {str(path.relative_to(temporary)): [path.stat().st_size, _sha256(path)] for path in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in [*files, temporary / "manifest.json", temporary]:
            _flush(path)
    except Exception as error:  # tokenizers and safetensors have errors of their own for a full disk, without a number
        shutil.rmtree(temporary, ignore_errors=True)
        if not _is_full(error, place.parent):
            raise
        raise DiskFull(
            f"The disk is full: {place.name} could not be saved. What was saved before is untouched; make room and resume",
            code="disk_full",
        ) from None
    if place.exists():
        old = place.with_name(f".old-{place.name}")
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        temporary.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(place)
    _flush(place.parent)
    return place


def verify(checkpoint: Path) -> str | None:
    """None where every file is just what the manifest says, else what is wrong."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        for name, (size, digest) in manifest.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _sha256(path) != digest:
                return f"{name} has changed since it was saved"
        state = json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"its manifest cannot be read ({type(error).__name__})"
    if state.get("format") != FORMAT or checkpoint.name != f"step-{state.get('step'):08d}":
        return "it is of another format or step"
    return None


def newest(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Checkpoints from the newest, each with what is wrong with it, up to and including the first sound one."""
    for checkpoint in reversed(saved(folder)):
        wrong = verify(checkpoint)
        yield checkpoint, wrong
        if wrong is None:
            return


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; unfinished ones are not among them."""
    return sorted(path for path in folder.glob("step-????????") if path.is_dir())


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in [*folder.glob(".tmp-*"), *folder.glob(".old-*")]:
        shutil.rmtree(path, ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint, which leaves its place at once: a kill in the middle leaves no half of it there."""
    aside = checkpoint.with_name(f".old-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def ends_epoch(checkpoint: Path) -> bool:
    """Whether a checkpoint is one of an epoch's end; False also where its state cannot be read."""
    try:
        return state_of(checkpoint)["epoch"] is not None
    except (OSError, ValueError, KeyError):
        return False


def state_of(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's state.json."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    return state


def restore(checkpoint: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, optimizer and random generators back to where the checkpoint was made."""
    restore_weights(checkpoint, model)
    tensors = load_file(checkpoint / "trainer.safetensors")
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    state = optimizer.state
    for name, parameter in trained(model).items():
        prefix = f"optimizer.{name}."
        mine = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        # The step counter stays where and what the optimizer itself keeps: a tensor on the CPU, or an int.
        state[parameter] = {
            key: value.to(parameter.device) if key != "step" else value if value.is_floating_point() else int(value) for key, value in mine.items()
        }


def restore_weights(checkpoint: Path, model: PreTrainedModel) -> None:
    """Put the trained weights back, bit by bit, from the files that also serve."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))
    else:
        source = type(model).from_pretrained(checkpoint, dtype=torch.float32, use_safetensors=True, local_files_only=True)
        model.load_state_dict(source.state_dict())


def _optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            # Some optimizers count their steps in a plain int.
            tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value).detach().contiguous()
    return tensors


def _random_state() -> dict[str, torch.Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """fsync a file or a folder: only then does a rename after it promise anything."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether the disk, a quota or a file-size limit stands behind an error."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers
    return any(f"os error {number})" in str(error) for number in numbers) or shutil.disk_usage(folder).free < 1_000_000
