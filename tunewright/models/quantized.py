"""A base whose linear layers are held in 4 or 8 bits by bitsandbytes (QLoRA, Dettmers et al. 2023; LLM.int8, Dettmers et al. 2022).

An adapter fits the base it was learnt on, rounding included, so its folder records the bits, and it is loaded on a base
that is rounded alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig

from tunewright.errors import BadConfig, BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "quantization.json"


def arguments(bits: int | None, device: str) -> dict[str, Any]:
    """What `from_pretrained` takes for a base in so many bits: NF4 with its scales quantised again, or int8; nothing for None.

    Raises BadConfig where bitsandbytes is not installed.
    """
    if bits is None:
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        text = f"tuning.bits: {bits} bits need bitsandbytes; install the extra tunewright[quantized]"
        raise BadConfig(text, code="not_installed", param="tuning.bits") from None
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    config = BitsAndBytesConfig(**four) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "device_map": {"": device}}


def settle(model: PreTrainedModel) -> PreTrainedModel:
    """Have a model in 4 bits compute the same in evaluation as in training, and in the precision that is asked for.

    On a processor that multiplies bfloat16, bitsandbytes repacks a layer when it is first called in evaluation: its scales are
    rounded for good, and what it computes from then on has no gradient, so a run would go on wrongly after its first validation.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if module.bias is None:  # a bias would be rounded to bfloat16 in place
                module.register_forward_pre_hook(_follow_autocast)
    return model


def _follow_autocast(module: Any, inputs: Any) -> None:
    device = inputs[0].device.type
    module.compute_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


def bits_of(model: PreTrainedModel) -> int | None:
    """In how many bits a model's linear layers are held; None where they are numbers as usual."""
    config = getattr(model.config, "quantization_config", None)
    return 4 if getattr(config, "load_in_4bit", False) else 8 if getattr(config, "load_in_8bit", False) else None


def weights(model: PreTrainedModel) -> int:
    """How many weights a model has. Of those in 4 bits two share a byte."""
    return sum(p.quant_state.shape.numel() if getattr(p, "quant_state", None) is not None else p.numel() for p in model.parameters())


def weight_bytes(model: PreTrainedModel) -> int:
    """What a model's weights and the scales of its quantised layers take in memory."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        tensors += [x for x in _scales(module) if isinstance(x, torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in {id(x): x for x in tensors}.values())


def _scales(module: torch.nn.Module) -> list[Any]:
    weight: Any = getattr(module, "weight", None)
    state: Any = getattr(weight, "quant_state", None)
    if state is not None:
        second = getattr(state, "state2", None)
        return [state.absmax, state.offset, *([second.absmax] if second else [])]
    return [getattr(weight, "SCB", None), getattr(getattr(module, "state", None), "SCB", None)]


def record(model: PreTrainedModel, folder: Path) -> None:
    """Write beside an adapter how its base was held, where that matters."""
    if bits := bits_of(model):
        config = model.config.quantization_config.to_dict()
        (folder / FILE).write_text(json.dumps({"bits": bits, "quantization_config": config}, indent=1, default=str))


def recorded(folder: Path, name: str) -> int | None:
    """The bits that the base of the adapter in a folder is held in. Raises BadModel where what is written there makes no sense."""
    place = folder / FILE
    if not place.is_file():
        return None
    try:
        bits = json.loads(place.read_text(encoding="utf-8"))["bits"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        bits = None
    if bits not in (4, 8):
        raise BadModel(f"{name}: {FILE} does not say in 4 or 8 bits its base is held", code="model_rejected", param="model")
    return int(bits)
