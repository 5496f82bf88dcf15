"""Views: a model some of whose layers are others, sharing every module with it but those. No class is patched, and the model stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch


def view(module: Any, old: torch.nn.ModuleList, new: Sequence[torch.nn.Module]) -> Any:
    """A module in which another list of layers stands in the place of `old`."""
    if module is old:
        return torch.nn.ModuleList(new)
    if not any(child is old for child in module.modules()):
        return module
    return with_children(module, {name: view(child, old, new) for name, child in module.named_children()})


def with_children(module: Any, children: dict[str, torch.nn.Module]) -> Any:
    """A twin of a module with some of its children exchanged."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **children}
    return twin
