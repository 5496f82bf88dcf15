"""The last layer, computed where it is read. Of its states only those that predict a trained token are used, and what stands behind its attention
(the feed-forward part, most of its products) makes each from itself alone; in data with long questions and short answers those are few."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from tunewright.models.tuning import stack
from tunewright.models.view import view, with_children


class Only(torch.nn.Module):
    """A part of a layer that computes the `needed` tokens alone and gives zeros for the others."""

    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.part = part
        self.needed: torch.Tensor | None = None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(1, T, size) -> (1, T, size)"""
        assert self.needed is not None
        out: torch.Tensor = self.part(states.index_select(1, self.needed))
        return out.new_zeros(*states.shape[:2], out.shape[2]).index_copy(1, self.needed, out)


class Short:
    """A view of a model whose last layer has such parts."""

    def __init__(self, base: PreTrainedModel, names: list[str]) -> None:
        layers = stack(base)
        self.parts = {name: Only(layers[-1].get_submodule(name)) for name in names}
        self.model = view(base, layers, [*layers[:-1], with_children(layers[-1], dict(self.parts))])

    def reading(self, needed: torch.Tensor, training: bool) -> PreTrainedModel:
        """The view, whose next call computes the tokens `needed`, (S,), in its last layer."""
        for part in self.parts.values():
            part.needed = needed
        if self.model.training != training:
            self.model.train(training)
        return self.model


def short(base: PreTrainedModel, needed: torch.Tensor, tokens: int) -> PreTrainedModel:
    """What to call in a model's place (without peft's wrapping) where of T tokens' last states only S are read: the model itself where that saves
    nothing, or where its last layer has no part that can be left out."""
    if 2 * len(needed) > tokens:
        return base
    found = shortened(base)
    return base if found is None else found.reading(needed, base.training)


def shortened(base: PreTrainedModel) -> Short | None:
    """The view of a model, made once; None where nothing of its last layer can be left out."""
    if base not in _shorts:
        names = _by_themselves(base)
        _shorts[base] = Short(base, names) if names else None
    return _shorts[base]


_shorts: WeakKeyDictionary[torch.nn.Module, Short | None] = WeakKeyDictionary()


@torch.no_grad()
def _by_themselves(base: PreTrainedModel) -> list[str]:
    """The last layer's children with weights that make each token's state from that state alone, tried with tokens in another order."""
    layer, training = stack(base)[-1], base.training
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = {}

    def note(name: str) -> Any:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
            calls.setdefault(name, []).append((args, named, out))

        return hook

    large = [name for name, child in layer.named_children() if any(p.dim() > 1 for p in child.parameters())]
    handles = [layer.get_submodule(name).register_forward_hook(note(name), with_kwargs=True) for name in large]
    base.eval()
    try:
        base.base_model(input_ids=torch.arange(5, device=next(base.parameters()).device)[None])
    finally:
        for handle in handles:
            handle.remove()
    found = [name for name in large if len(calls.get(name, ())) == 1 and _by_itself(layer.get_submodule(name), *calls[name][0])]
    base.train(training)
    return found


def _by_itself(part: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any], out: Any) -> bool:
    if len(args) != 1 or named or not isinstance(out, torch.Tensor) or args[0].dim() != 3 or out.shape != args[0].shape:
        return False
    draws = torch.randn(args[0].shape, generator=torch.Generator().manual_seed(0)).to(args[0])
    with torch.autocast(draws.device.type, enabled=False):
        whole, turned = part(draws).float(), part(draws.flip(1)).flip(1).float()
    near = 1e-4 if draws.dtype == torch.float32 else 5e-2  # what looks at other tokens is as far off as it is large
    return bool((whole - turned).abs().max() <= near * whole.abs().max())
