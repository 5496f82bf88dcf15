"""A frozen trunk: how many of a model's first layers do not train, and the model cut in two there.

`depth` says where training begins, `Below` computes the hidden states that enter that layer, `Top` is the rest, which starts from such states.
Both are views of the model: they share every module with it but for the layers that they leave out. No class is patched.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from tunewright.models import dropout
from tunewright.models.attention import follow
from tunewright.models.classify import TextBatch, class_logits, inputs
from tunewright.models.floats import flushed
from tunewright.models.forward import AnyBatch, TreeBatch, plain_head
from tunewright.models.last import shortened
from tunewright.models.tuning import stack
from tunewright.models.view import view
from tunewright.models.virtual import base_of


class Pass(torch.nn.Module):
    """Stands in for a layer: hands on `states` where there are some, else what came in, in the form in which the layer returns it."""

    def __init__(self, layer: torch.nn.Module, form: int | None) -> None:
        super().__init__()
        # Not as a submodule: its weights are not this module's. What the model asks of a layer beside calling it, the layer answers.
        self.__dict__["stands_for"], self.form = layer, form
        self.states: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["stands_for"], name)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """The stored states, or its input."""
        out = hidden_states if self.states is None else self.states
        return out if self.form is None else (out, *[None] * (self.form - 1))


class Below:
    """The model up to layer `cut`."""

    def __init__(self, model: PreTrainedModel, cut: int) -> None:
        layers, form = stack(model), _form(model)
        self.last = layers[cut - 1]
        self.model = view(base_of(model), layers, [*layers[:cut], *(Pass(layer, form) for layer in layers[cut:])]).base_model

    def __call__(self, batch: AnyBatch) -> torch.Tensor:
        """The states that enter layer `cut`, without gradient: (1, T, size) of a tree, (rows, length, size) of padded rows or texts."""
        found: list[torch.Tensor] = []
        handle = self.last.register_forward_hook(lambda _, __, out: found.append(_states(out)))
        try:
            with flushed(), torch.no_grad():
                _call(self.model, batch)
        finally:
            handle.remove()
        return found[0]


class Top:
    """The model from layer `cut` on."""

    def __init__(self, model: PreTrainedModel, cut: int) -> None:
        layers, form = stack(model), _form(model)
        self.passes = [Pass(layer, form) for layer in layers[:cut]]
        self.model = view(base_of(model), layers, [*self.passes, *layers[cut:]])
        # Both are found out with tokens of their own, so now, while no states stand in the way.
        plain_head(self.model)
        shortened(self.model)

    def start_from(self, states: torch.Tensor | None) -> PreTrainedModel:
        """The view, whose next call begins with `states` in place of what it would compute from ids; None: with its embeddings."""
        for each in self.passes:
            each.states = states
        return self.model


def depth(model: PreTrainedModel) -> int:
    """How many of the first layers, and all that stands before them, have nothing that trains. Autograd says it, however it came about."""
    if base_of(model).config.is_encoder_decoder:
        return 0
    outs = _outputs(model)
    return next((i for i, out in enumerate(outs) if _states(out).requires_grad), len(outs))


@torch.no_grad()
def wrong(model: PreTrainedModel, cut: int, batch: AnyBatch) -> str | None:
    """Why a model cannot start from kept states at a cut, tried with a batch; None where the two halves make the whole. Draws random numbers
    where the trunk does."""
    below, top, training = Below(model, cut), Top(model, cut), model.training
    if found := dropout.active(below.model):
        return f"the frozen layers have dropout ({found}), so their states change with every step; dropout=0 turns it off"
    try:
        model.eval()
        states = below(batch)
        whole, halves = (_outcome(each, batch) for each in (base_of(model), top.start_from(states)))
        if whole.shape != halves.shape or not torch.allclose(whole, halves, rtol=1e-4, atol=1e-5 * float(whole.abs().max())):
            return "this model's upper layers need more than the states that the lower ones hand them"
        below.model.train()
        if not torch.equal(below(batch), states):
            return "the frozen layers compute something else when training"
    finally:
        model.train(training)
        top.start_from(None)
    return None


def _call(base: torch.nn.Module, batch: AnyBatch) -> Any:
    """What a model without its head makes of a batch."""
    match batch:
        case TreeBatch():
            return follow(base, batch.layout)
        case TextBatch():
            return base(**inputs(base, batch))
        case _:
            return base(input_ids=batch.ids, use_cache=False)


def _outcome(base: PreTrainedModel, batch: AnyBatch) -> torch.Tensor:
    """What the loss sees: what the head is given, or labels' logits."""
    return class_logits(base, batch).float() if isinstance(batch, TextBatch) else _call(base.base_model, batch).last_hidden_state.float()


def _outputs(model: PreTrainedModel) -> list[Any]:
    """What each layer returns for a few tokens."""
    found: list[Any] = []
    handles = [layer.register_forward_hook(lambda _, __, out: found.append(out)) for layer in stack(model)]
    training, ids = model.training, torch.arange(2, device=next(model.parameters()).device)[None]
    try:
        with torch.enable_grad():
            model.eval()(input_ids=ids)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


def _form(model: PreTrainedModel) -> int | None:
    out = _outputs(model)[0]
    return len(out) if isinstance(out, tuple) else None


def _states(out: Any) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out
