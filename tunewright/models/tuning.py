"""(model, Tuning) -> the same model with just those weights trainable."""

from __future__ import annotations

import copy
import re
from fnmatch import fnmatchcase
from typing import Any, assert_never

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel

from tunewright.config import Full, Lora, Prompt, TopLayers, Tuning
from tunewright.errors import BadConfig
from tunewright.models import tasks
from tunewright.models.further import unfreeze
from tunewright.models.load import find
from tunewright.models.virtual import base_of


def apply(model: PreTrainedModel, tuning: Tuning, base: str) -> PreTrainedModel:
    """Mark what trains. `base` is the name that an adapter's config gives for its base.

    New adapter weights are drawn from torch's global generator: seed it first. Raises BadConfig when no
    module or weight has one of the wanted names. A model that has its adapter already trains that one further.
    """
    if isinstance(model, PeftModel):
        return unfreeze(model)
    match tuning:
        case Full():
            return _freeze(model.requires_grad_(True), tuning.freeze)
        case TopLayers():
            return _freeze(_top_layers(model, tuning.layers), tuning.freeze)
        case Lora():
            return _lora(model, tuning, base)
        case Prompt():
            return _prompt(model, tuning, base)
        case _:
            assert_never(tuning)


def _top_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """The last `count` layers, everything behind them (the final norm), and the head."""
    layers = stack(model)
    if count > len(layers):
        raise BadConfig(f"tuning.layers: the model has {len(layers)} layers, not {count}", code="too_many_layers", param="tuning.layers")
    untie(model)
    model.requires_grad_(False)
    for module in (*layers[len(layers) - count :], *_behind(model, layers), *tasks.head(model)):
        module.requires_grad_(True)
    if count == 0:
        for module in _behind(model, layers):
            module.requires_grad_(False)
    return model


def stack(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The model's layers, from the input up: the longest list of modules of one class; of an encoder-decoder, the decoder's."""
    if model.config.is_encoder_decoder:
        model = model.get_decoder()
    return _longest(model)


def _longest(model: torch.nn.Module) -> torch.nn.ModuleList:
    # One class, those counted that stand for one (`trunk.Pass`).
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len({type(vars(each).get("stands_for", each)) for each in m}) == 1]
    return max(lists, key=len)


def _behind(model: PreTrainedModel, layers: torch.nn.ModuleList) -> list[torch.nn.Module]:
    """What the module that holds the layers has after them: the final norm."""
    holder = next(m for m in model.modules() if any(child is layers for child in m.children()))
    names, children = zip(*holder.named_children(), strict=True)
    after = range(children.index(layers) + 1, len(children))
    # BART names the norm of its embeddings after its layers, but it stands before them.
    return [children[i] for i in after if "embedding" not in names[i] and any(True for _ in children[i].parameters())]


def untie(model: PreTrainedModel) -> bool:
    """Give a head that shares the input embedding's weights a copy of its own. True where it shared them.

    Training a shared matrix as "the head" would train the input embedding too, and with it the first layer's input.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    # Encoder-decoders share it three ways, and a config that does not tie the head does not tie the two sides' embeddings either.
    sides = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not embedding and m.weight is embedding.weight]
    for module in (head, *sides):
        module.weight = torch.nn.Parameter(copy.deepcopy(embedding.weight.detach()))
    model.config.get_text_config().tie_word_embeddings = False
    return True


def _freeze(model: PreTrainedModel, patterns: tuple[str, ...]) -> PreTrainedModel:
    names = dict(model.named_parameters())
    for pattern in patterns:
        found = [parameter for name, parameter in names.items() if fnmatchcase(name, pattern)]
        if not found:
            raise BadConfig(f"tuning.freeze: no weight is named like {pattern!r}", code="no_such_weight", param="tuning.freeze")
        for parameter in found:
            parameter.requires_grad_(False)
    if not trained(model):
        raise BadConfig("tuning.freeze: nothing is left that trains", code="nothing_trains", param="tuning.freeze")
    return model


def _lora(model: PreTrainedModel, tuning: Lora, base: str) -> PreTrainedModel:
    targets = tuning.targets if isinstance(tuning.targets, str) else list(tuning.targets)
    task = tasks.of_model(model)
    # The head of a classifier is new, so all of it trains, beside the adapters and saved with them.
    whole = [name for name, module in model.named_modules() if module in tasks.head(model)] if task == "classification" else None
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=tuning.alpha,
        lora_dropout=tuning.dropout,
        bias=tuning.bias,
        use_dora=tuning.dora,
        use_rslora=tuning.rslora,
        target_modules=targets,
        task_type=tasks.PEFT_TYPES[task],
        modules_to_save=whole,
        exclude_modules="|".join(rf"{re.escape(name)}(\..*)?" for name in whole) if whole else None,
    )
    try:
        return _adapted(model, config, base)
    except ValueError as error:
        raise BadConfig(f"tuning.targets: {error}", code="no_such_module", param="tuning.targets") from None


def _prompt(model: PreTrainedModel, tuning: Prompt, base: str) -> PreTrainedModel:
    if (task := tasks.of_model(model)) != "chat":
        raise BadConfig(f"tuning: a prompt is tuned for models that chat, and the task is {task}", code="tuning_needs_chat", param="tuning")
    config = PromptTuningConfig(
        num_virtual_tokens=tuning.virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB" if tuning.text is None else "TEXT",
        prompt_tuning_init_text=tuning.text,
        tokenizer_name_or_path=str(find(base)) if tuning.text else None,
        task_type="CAUSAL_LM",
    )
    tuned = _adapted(model, config, base)
    config.tokenizer_name_or_path = base if tuning.text else None
    return tuned


def _adapted(model: PreTrainedModel, config: PeftConfig, base: str) -> PreTrainedModel:
    tuned = get_peft_model(model, config)
    for each in tuned.peft_config.values():
        each.base_model_name_or_path = base  # peft would put the path here that the model was read from
    return tuned


def recompute(model: PreTrainedModel) -> None:
    """Have each layer keep only its input while it trains, and compute the rest again in the backward pass. Raises BadConfig
    where the model cannot."""
    base = base_of(model)
    if not base.supports_gradient_checkpointing:
        text = f"recompute: {type(base).__name__} cannot compute its layers again; leave it at false"
        raise BadConfig(text, code="recompute_unsupported", param="recompute")
    base.gradient_checkpointing_enable({"use_reentrant": False})


def trained(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that train, by name, in the model's order; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def groups(model: PreTrainedModel, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, each with the `share` of the learning rate it takes.

    Matrices are decayed, vectors (norms, biases) are not. With a `layer_decay` under 1 the rate falls from the head
    (share 1) by that factor a layer, down to the embeddings.
    """
    depth = _depths(model) if layer_decay < 1 else {}
    found: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for parameter in trained(model).values():
        decay = weight_decay if parameter.dim() >= 2 else 0.0
        found.setdefault((layer_decay ** depth.get(parameter, 0), decay), []).append(parameter)
    return [{"params": parameters, "share": share, "weight_decay": decay} for (share, decay), parameters in found.items()]


def _depths(model: PreTrainedModel) -> dict[torch.nn.Parameter, int]:
    """How many layers lie above each weight: 0 for the head and the final norm, one more a layer, most for the embeddings.

    An encoder lies below its decoder.
    """
    layers = [*(_longest(model.get_encoder()) if model.config.is_encoder_decoder else ()), *stack(model)]
    depth = {p: len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    above = {p for module in (*_behind(model, stack(model)), *tasks.head(model)) for p in module.parameters()}
    embeddings = set(model.get_input_embeddings().parameters())
    return {p: depth.get(p, 0 if p in above and p not in embeddings else len(layers) + 1) for p in model.parameters()}
