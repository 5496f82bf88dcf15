"""Texts -> labels: a batch of texts, what a classifier makes of it, and the chances of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tunewright.data.classes import encode
from tunewright.data.example import Labelled
from tunewright.data.sampler import micro_batches
from tunewright.data.tokens import Row, TextRow
from tunewright.models.floats import flushed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from tunewright.models.load import Loaded


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Texts padded on the right to one length.

    `ids`, `mask`: (rows, length), the mask 1 where a token stands. `types`: (rows, length) or None. `labels`: (rows,).
    `kept`: (rows, length), the rows' `TextRow.kept`, if they have one; padding is -1.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor | None
    labels: torch.Tensor
    kept: torch.Tensor | None = None


def collate_texts(rows: Sequence[TextRow], device: torch.device | str = "cpu") -> TextBatch:
    """Pad texts on the right."""
    length = max(len(row) for row in rows)
    ids, mask, types = (np.zeros((len(rows), length), np.int64) for _ in range(3))
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row.ids, 1
        if row.types is not None:
            types[i, : len(row)] = row.types
    tensors = [torch.from_numpy(x).to(device) for x in (ids, mask, types)]
    labels = torch.tensor([row.label for row in rows], device=device)
    return TextBatch(tensors[0], tensors[1], None if rows[0].types is None else tensors[2], labels, kept_of(rows, length))


def kept_of(rows: Sequence[Row | TextRow], length: int) -> torch.Tensor | None:
    """(rows, length) where the rows' states are kept, -1 for padding; None where none are."""
    if any(row.kept is None for row in rows):
        return None
    kept = np.full((len(rows), length), -1)
    for i, row in enumerate(rows):
        kept[i, : len(row)] = row.kept
    return torch.from_numpy(kept)


def inputs(model: PreTrainedModel | PeftModel, batch: TextBatch) -> dict[str, torch.Tensor]:
    """What a classifier, or the part of it below the head, is called with."""
    # RoBERTa counts positions, and a causal classifier finds a text's last token, by the padding token.
    named = {"input_ids": batch.ids.masked_fill(batch.mask == 0, model.config.pad_token_id), "attention_mask": batch.mask}
    return named if batch.types is None else {**named, "token_type_ids": batch.types}


def class_logits(model: PreTrainedModel | PeftModel, batch: TextBatch) -> torch.Tensor:
    """(rows, labels) what a classifier makes of a batch."""
    logits: torch.Tensor = model(**inputs(model, batch)).logits
    return logits


def log_chances(model: PreTrainedModel | PeftModel, rows: Sequence[TextRow], budget: int = 8192) -> np.ndarray:
    """(rows, labels) the logarithm of each label's probability, in batches of `budget` padded tokens. Leaves the model's mode as it was."""
    device, training = next(model.parameters()).device, model.training
    found = np.zeros((len(rows), model.config.num_labels))
    model.eval()
    try:
        with flushed(), torch.inference_mode():
            for group in micro_batches([len(row) for row in rows], budget):
                logits = class_logits(model, collate_texts([rows[i] for i in group], device))
                found[group] = logits.double().log_softmax(dim=-1).cpu().numpy()
    finally:
        model.train(training)
    return found


def classify(loaded: Loaded, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, float]]:
    """Each text's (or pair of texts') labels with their probabilities, the likeliest first. A text beyond the model's context is cut."""
    rows = []
    for text in texts:
        first, second = (text, None) if isinstance(text, str) else text
        ids, types, _ = encode(Labelled(first, "", pair=second), loaded.tokenizer, loaded.context)
        rows.append(TextRow(ids, 0, types))
    chances = np.exp(log_chances(loaded.model, rows))
    return [{loaded.labels[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in chances]
