"""One text into another, by an encoder-decoder: a batch of sources and targets, what the model makes of it, and texts of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunewright.data.sampler import micro_batches
from tunewright.data.tokens import SourceRow
from tunewright.models.floats import flushed
from tunewright.models.virtual import base_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Sources and targets, each padded on the right to one length.

    `ids`, `mask`: (rows, source length), the mask 1 where a token stands. `targets`: (rows, target length), -100 where none stands.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor


def collate_sources(rows: Sequence[SourceRow], device: torch.device | str = "cpu") -> SourceBatch:
    """Pad sources and targets on the right."""
    ids, mask = (np.zeros((len(rows), max(len(row.ids) for row in rows)), np.int64) for _ in range(2))
    targets = np.full((len(rows), max(len(row.target) for row in rows)), -100, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)], mask[i, : len(row.ids)], targets[i, : len(row.target)] = row.ids, 1, row.target
    return SourceBatch(*(torch.from_numpy(x).to(device) for x in (ids, mask, targets)))


def target_logits(model: PreTrainedModel | PeftModel, batch: SourceBatch) -> torch.Tensor:
    """(rows, target length, vocabulary): each target token is predicted from the source and the target tokens before it (teacher forcing)."""
    before = base_of(model).prepare_decoder_input_ids_from_labels(labels=batch.targets)
    # transformers would build what the decoder reads from the labels too, but only together with a loss over all of them.
    logits: torch.Tensor = model(input_ids=_padded(model, batch), attention_mask=batch.mask, decoder_input_ids=before, use_cache=False).logits
    return logits


def _padded(model: PreTrainedModel | PeftModel, batch: SourceBatch) -> torch.Tensor:
    pad = model.config.pad_token_id
    return batch.ids if pad is None else batch.ids.masked_fill(batch.mask == 0, pad)


def translate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[np.ndarray],
    max_new_tokens: int,
    beams: int = 1,
    budget: int = 8192,
) -> list[tuple[str, bool]]:
    """What the model makes of each source, and whether that came to an end by itself: greedily, or by a search with so many beams.

    Where an answer begins, and what must stand there, is the model's own config's; its penalties are not used.
    """
    found: list[tuple[str, bool]] = [("", False)] * len(sources)
    device, training = next(model.parameters()).device, model.training
    config = _generation(base_of(model), max_new_tokens, beams)
    model.eval()
    try:
        with flushed(), torch.inference_mode():
            for group in micro_batches([beams * (len(ids) + max_new_tokens) for ids in sources], budget):
                batch = collate_sources([SourceRow(sources[i], sources[i][:1]) for i in group], device)
                out = model.generate(input_ids=_padded(model, batch), attention_mask=batch.mask, generation_config=config)
                for i, ids in zip(group, out[:, 1:].tolist(), strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                    found[i] = (str(text), tokenizer.eos_token_id in ids)
    finally:
        model.train(training)
    return found


def _generation(base: Any, max_new_tokens: int, beams: int) -> Any:
    config = copy.deepcopy(base.generation_config)
    neutral = {
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "length_penalty": 1.0,
        "early_stopping": False,
        "min_length": 0,
        "max_length": None,
    }
    config.update(**neutral, do_sample=False, num_beams=beams, max_new_tokens=max_new_tokens, use_cache=True)
    return config
