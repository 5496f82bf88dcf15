"""`tunewright doctor`: what this machine is, and what it can train."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "accelerate", "numpy", "pydantic")
# Bytes a weight, beside activations: weight, gradient, AdamW's two moments.
BYTES = {"full, fp32": 16.0, "LoRA, fp32 base": 4.4, "chat only, fp32": 4.0}
ACTIVATIONS = 1.5e9  # a rough share for activations and libraries, so that what "fits" fits


def examine() -> dict[str, Any]:
    """Machine, libraries, memory in bytes, GPU, and the largest model each tuning can hold, as JSON values."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    gpus: list[dict[str, Any]] = [
        {"name": torch.cuda.get_device_name(i), "memory": torch.cuda.get_device_properties(i).total_memory} for i in range(torch.cuda.device_count())
    ]
    free = max([gpu["memory"] for gpu in gpus], default=memory.available)
    room = max(0.0, free - ACTIVATIONS)
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_total": memory.total,
        "memory_free": memory.available,
        "disk_free": shutil.disk_usage(".").free,
        "bf16_on_cpu": bool(native),
        "gpus": gpus,
        "libraries": {name: _version(name) for name in LIBRARIES},
        "fits": {tuning: int(room / each) for tuning, each in BYTES.items()},
        "problems": [f"{name} is not installed; run `make setup` again" for name in LIBRARIES if _version(name) is None],
    }


def render(found: dict[str, Any]) -> str:
    """The findings as text."""
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory'] / 1e9:.0f} GB)" for gpu in found["gpus"]) or "none: training runs on the CPU"
    lines = [
        f"machine    {found['system']}, {found['cores']} cores, Python {found['python']}",
        f"memory     {found['memory_free'] / 1e9:.1f} of {found['memory_total'] / 1e9:.1f} GB free",
        f"disk       {found['disk_free'] / 1e9:.0f} GB free here",
        f"GPU        {gpus}",
        f"bf16       {'the CPU multiplies it natively' if found['bf16_on_cpu'] else 'not native on this CPU, so fp32 is used there'}",
        f"libraries  {', '.join(f'{name} {number}' for name, number in found['libraries'].items())}",
        "",
        "Models that fit, roughly (weights and optimizer within free memory, short rows):",
        *(f"  {tuning:17} up to {_size(count)} weights" for tuning, count in found["fits"].items()),
    ]
    return "\n".join([*lines, *(f"\nproblem: {problem}" for problem in found["problems"])])


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.0f} million"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
