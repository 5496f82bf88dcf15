"""(model, Tuning) -> the same model with just those weights trainable."""

from __future__ import annotations

from typing import assert_never

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from tunewright.config import Full, Lora, Tuning
from tunewright.errors import BadConfig


def apply(model: PreTrainedModel, tuning: Tuning, base: str) -> PreTrainedModel:
    """Mark what trains. `base` is the name that an adapter's config gives for its base.

    New adapter weights are drawn from torch's global generator: seed it first. Raises BadConfig when no
    module has one of the wanted names.
    """
    match tuning:
        case Full():
            return model.requires_grad_(True)
        case Lora():
            return _lora(model, tuning, base)
        case _:
            assert_never(tuning)


def _lora(model: PreTrainedModel, tuning: Lora, base: str) -> PreTrainedModel:
    targets = tuning.targets if isinstance(tuning.targets, str) else list(tuning.targets)
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    try:
        tuned = get_peft_model(model, config)
    except ValueError as error:
        raise BadConfig(f"tuning.targets: {error}", code="no_such_module", param="tuning.targets") from None
    for each in tuned.peft_config.values():
        each.base_model_name_or_path = base
    return tuned


def trained(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, in the model's order; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups for an optimizer: matrices are decayed, vectors (norms, biases) are not."""
    parameters = list(trained(model).values())
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    chosen = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in chosen if group["params"]]
