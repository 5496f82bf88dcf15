"""The dropouts of a model (Srivastava et al. 2014), wherever its code keeps them: `override` them, or ask which is `active`."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def override(model: torch.nn.Module, share: float) -> int:
    """Set every dropout of a model, attention's among them, to a share (0: none). Returns how many there are.

    Whole layers and paths that are left out at random are another thing and stay as they are, and so does an adapter's own dropout.
    """
    found = [place for place in _places(model) if "lora_dropout" not in place[0] and not any(other in place[2] for other in ("layer", "path"))]
    for _, module, attribute in found:
        setattr(module, attribute, share)
    return len(found)


def active(model: torch.nn.Module) -> str | None:
    """The first part of a model that leaves something out at random while it trains, with its share; None where nothing does."""
    for name, module, attribute in _places(model):
        if (share := getattr(module, attribute)) > 0:
            return f"{name or type(module).__name__} drops {share:g}"
    return None


def _places(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """Name, module and attribute: the `p` of a dropout module, or a number by which a module's own code drops out."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            yield name, module, "p"
            continue
        for attribute, value in vars(module).items():
            if "drop" in attribute and _is_share(value):
                yield name, module, attribute


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
