"""(a tuned model, Tuning) -> what a further tuning of it begins from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from peft import LoraConfig, PeftModel, PromptTuningConfig

from tunewright.config import Lora, Prompt, Tuning
from tunewright.errors import BadConfig
from tunewright.models import quantized
from tunewright.models.load import Loaded, load


def goes_on(model: PeftModel, tuning: Tuning) -> bool:
    """Whether an adapter has the shape that a tuning asks for, so that it can be trained on as it is."""
    adapter = model.peft_config[model.active_adapter]
    match tuning, adapter:
        case Lora(), LoraConfig():
            same = (adapter.r, adapter.lora_alpha, adapter.lora_dropout, adapter.bias, adapter.use_dora, adapter.use_rslora)
            asked = (tuning.rank, tuning.alpha, tuning.dropout, tuning.bias, tuning.dora, tuning.rslora)
            there = {adapter.target_modules} if isinstance(adapter.target_modules, str) else set(adapter.target_modules or ())
            wanted = {tuning.targets} if isinstance(tuning.targets, str) else set(tuning.targets)
            return same == asked and wanted in ({"all-linear"}, there)
        case Prompt(), PromptTuningConfig():
            return bool(adapter.num_virtual_tokens == tuning.virtual_tokens)
    return False


def unfreeze(model: PeftModel) -> PeftModel:
    """An adapter as it was loaded, with its weights trainable."""
    adapter = model.peft_config[model.active_adapter]
    adapter.inference_mode = False
    model.set_adapter(model.active_adapter)
    if isinstance(adapter, PromptTuningConfig):
        model.prompt_encoder.requires_grad_(True)
    return model


def merged(loaded: Loaded, keep: Path | None) -> Loaded:
    """A tuned model as one plain model: its adapter added to its base's weights.

    It is written to `keep` and read from there, so that a new adapter on it can name its base; None: it stays in memory.
    Raises BadConfig where the adapter is a prompt, which is no weight of the base, or where the base's weights are rounded to few bits.
    """
    assert isinstance(loaded.model, PeftModel), type(loaded.model)
    if isinstance(loaded.model.peft_config[loaded.model.active_adapter], PromptTuningConfig):
        text = "A model with a tuned prompt can only be tuned further by a prompt of as many virtual tokens"
        raise BadConfig(text, code="prompt_cannot_be_merged", param="tuning")
    if quantized.bits_of(loaded.model) is not None:
        text = "A model that was tuned on a base in 4 or 8 bits can only be tuned further by an adapter of the same shape"
        raise BadConfig(text, code="quantized_cannot_be_merged", param="tuning")
    if keep is not None and (keep / "config.json").is_file():
        return load(str(keep))
    plain = loaded.model.merge_and_unload()
    if keep is None:
        return replace(loaded, model=plain)
    plain.save_pretrained(keep.with_name(f".tmp-{keep.name}"))
    loaded.tokenizer.save_pretrained(keep.with_name(f".tmp-{keep.name}"))
    keep.with_name(f".tmp-{keep.name}").rename(keep)
    return load(str(keep))
