"""A model's name -> what it reads with: `reader` gives its tokenizer and its longest row, without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tunewright.data.profile import Reader
from tunewright.data.tokens import with_template
from tunewright.errors import BadModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_REFUSED = frozenset(
    {
        "template_refused",
        "template_rewrites_content",
        "tool_call_not_rendered",
        "tool_call_not_located",
        "nothing_to_learn",
        "nothing_to_learn_after_cut",
    }
)


def reader(name: str, max_tokens: int | None = None, strict: bool = False) -> Reader:
    """The tokenizer of a model, and the most tokens of a row as training takes it: `max_tokens`, else the context, 4,096 at most.

    `strict`: rows that training with this model would refuse to lose are errors; a cut that was chosen loses none.
    Raises BadModel where there is no such model or its files are damaged.
    """
    try:
        tokenizer, longest = _nano() if name == "nano" else _any(name)
    except BadModel:
        raise
    except Exception as error:  # a damaged file brings out errors of every kind in transformers
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise BadModel(f"{name}: transformers cannot load its tokenizer: {reason}", code="model_rejected", param="model") from None
    errors = _REFUSED - ({"nothing_to_learn_after_cut"} if max_tokens else set()) if strict else frozenset()
    return Reader(name, tokenizer, min(longest, max_tokens or 4096), errors)


def _nano() -> tuple[PreTrainedTokenizerBase, int]:
    """Without torch, which the general way imports."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(__file__).parent / "nano")
    return tokenizer, int(tokenizer.model_max_length)


def _any(name: str) -> tuple[PreTrainedTokenizerBase, int]:
    from transformers import AutoConfig, AutoTokenizer

    from tunewright.models.load import context, find

    folder = base = find(name)
    if (folder / "adapter_config.json").is_file():
        base = find(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])
    own = folder if (folder / "tokenizer_config.json").is_file() else base
    tokenizer = with_template(AutoTokenizer.from_pretrained(own, trust_remote_code=False, local_files_only=True))
    config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    return tokenizer, context(SimpleNamespace(config=config), tokenizer)
