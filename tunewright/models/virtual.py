"""Virtual tokens: embeddings that are tuned in place of weights and stand in front of every row (Lester et al. 2021).

A row carries them as ids beyond the vocabulary, so they are counted, cut and shared like any other tokens; in a prefix tree
they are the one beginning of all rows. Only where ids become embeddings does it matter what they are: `inputs`. An id
beyond the vocabulary that reaches a model in another way is an error there, never a wrong number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from tunewright.data.tokens import Row, RowPair

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from tunewright.data.tokens import Item

    Some = TypeVar("Some", bound=Item)

# Of peft's kinds of prompt learning, those that put embeddings in front of the text and do nothing else.
_IN_FRONT = {"PROMPT_TUNING", "P_TUNING"}


def base_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model inside peft's wrapping, if there is one."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def count(model: PreTrainedModel) -> int:
    """How many virtual tokens stand in front of each row."""
    config = getattr(model, "active_peft_config", None) if hasattr(model, "peft_config") else None
    return int(config.num_virtual_tokens) if config is not None and config.peft_type in _IN_FRONT else 0


def ids(model: PreTrainedModel) -> list[int]:
    """The virtual tokens' ids: those that follow the vocabulary."""
    if not (size := count(model)):
        return []
    first = _vocabulary(model)
    return list(range(first, first + size))


def in_front(items: Sequence[Some], model: PreTrainedModel) -> list[Some]:
    """Items whose rows begin with the model's virtual tokens, none of them learnt as a token; the same items where it has none."""
    front = np.array(ids(model), np.int32)
    return [_led(item, front) for item in items] if len(front) else list(items)


def _led(item: Any, front: np.ndarray) -> Any:
    if isinstance(item, RowPair):
        return replace(item, chosen=_led(item.chosen, front), rejected=_led(item.rejected, front))
    assert isinstance(item, Row)
    return replace(item, ids=np.concatenate([front, item.ids]), trained=np.concatenate([np.zeros(len(front), bool), item.trained]))


def inputs(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `base_of(model)` is called with for ids (any shape): the ids, or where virtual tokens can be among them, their embeddings."""
    if not count(model):
        return {"input_ids": ids}
    first = _vocabulary(model)
    mine = ids >= first
    words = base_of(model).get_input_embeddings()(ids.masked_fill(mine, 0))
    tuned = F.embedding((ids - first).clamp(min=0), model.get_prompt(1)[0]).to(words.dtype)
    return {"inputs_embeds": torch.where(mine[..., None], tuned, words)}


def _vocabulary(model: PreTrainedModel) -> int:
    return int(base_of(model).get_input_embeddings().weight.shape[0])
