"""TrainConfig: everything that decides a run, as data.

One frozen class parses YAML, the command line's `--set`, the API's JSON and a checkpoint's own copy.
The text under each field is its documentation everywhere: `--help`, the API schema, form labels.
No torch here, and no reading of files beyond the YAML that is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tunewright.errors import BadConfig

_Config = TypeVar("_Config", bound=BaseModel)


class _Strict(BaseModel):
    """Frozen, and an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


Patterns = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(max_length=100)]


class Full(_Strict):
    """Every weight trains."""

    kind: Literal["full"] = "full"
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Layer-wise rates (Howard & Ruder 2018): each layer below the head learns at this share of the rate of the one above it."""
    freeze: Patterns = ()
    """Weights that stay as they are, by name pattern: "*.bias", "*embed*", "model.layers.0.*"."""


class TopLayers(_Strict):
    """The top layers train, with the norm after them and the head; what is below stays as it is."""

    kind: Literal["top_layers"] = "top_layers"
    layers: int = Field(2, ge=0, le=1000)
    """How many layers. 0: the head alone ("last layer")."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """As in full tuning."""
    freeze: Patterns = ()
    """As in full tuning."""


class Lora(_Strict):
    """Low-rank adapters beside the linear layers (Hu et al. 2021), through peft and in its format."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=1024)
    """Width of the adapters."""
    alpha: float = Field(32.0, gt=0, le=4096)
    """Scale: an adapter's output is multiplied by alpha / rank."""
    targets: str | tuple[str, ...] = Field("all-linear", min_length=1, max_length=256)
    """The modules that get an adapter: names, or "all-linear" for every linear layer but the head."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before the adapter. Above 0 the run is slower and a little less exact."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the base train too."""
    dora: bool = False
    """Weight-decomposed adapters: direction and size apart (Liu et al. 2024)."""
    rslora: bool = False
    """Rank-stabilised scale, alpha / sqrt(rank) (Kalajdzievski 2023)."""
    bits: Literal[4, 8] | None = None
    """Hold the base in so many bits while the adapters train (QLoRA, Dettmers et al. 2023): 4 for NF4 with double quantisation, 8 for int8. Less memory,
    more time. Needs bitsandbytes."""


class Prompt(_Strict):
    """Virtual tokens in front of every row: their embeddings are all that trains (Lester et al. 2021), through peft and in its format."""

    kind: Literal["prompt"] = "prompt"
    virtual_tokens: int = Field(20, ge=1, le=4096)
    """How many. They take their room from the model's context."""
    text: Annotated[str, Field(max_length=10_000, pattern=r"\S")] | None = None
    """A text to begin with, repeated or cut to fit: an instruction in words. Without one they begin as tokens drawn from the vocabulary."""


Tuning = Annotated[Full | TopLayers | Lora | Prompt, Field(discriminator="kind")]


ClassWeights = Annotated[dict[str, Annotated[float, Field(gt=0, le=10_000)]], Field(max_length=10_000)]


class Supervised(_Strict):
    """Learn to write the assistant's turns, or the completion; in classification, to name the label."""

    kind: Literal["supervised"] = "supervised"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target that is spread over the whole vocabulary. Above 0 the training loss is no longer comparable with validation's."""
    class_weights: Literal["none", "balanced"] | ClassWeights = "none"
    """Classification: how much a row of a label weighs. "balanced": in inverse proportion to how many there are, 1 on average; or a weight for
    each label that is not to have 1."""


class Dpo(_Strict):
    """Direct preference optimisation (Rafailov et al. 2023): make the preferred answer of each pair more likely than the other."""

    kind: Literal["dpo"] = "dpo"
    beta: Literal["auto"] | Annotated[float, Field(gt=0, le=100)] = "auto"
    """How closely the model is held to what it was. "auto": 0.1."""


Task = Literal["chat", "classification", "text_to_text"]

Method = Annotated[Supervised | Dpo, Field(discriminator="kind")]


class Optimizer(_Strict):
    """How the gradient becomes a step."""

    kind: Literal["adamw", "adamw8bit", "adafactor", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019); the same with moments of 8 bits, through bitsandbytes (Dettmers et al. 2021); Adafactor, whose second
    moment takes next to no memory (Shazeer & Stern 2018); or stochastic gradient descent with momentum."""
    learning_rate: Literal["auto"] | Annotated[float, Field(gt=0, le=10)] = "auto"
    """Peak rate before the multiplier. "auto": 1e-3 for LoRA, 0.1 for a prompt and 2e-4 for full tuning up to 100M parameters, a fifth of that above; ten times that for SGD."""
    weight_decay: float = Field(0.0, ge=0, le=10)
    """Decoupled weight decay; norms and biases are left out."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment, or SGD's momentum."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """AdamW's second moment."""
    epsilon: float = Field(1e-8, gt=0, le=1)
    """AdamW's denominator term."""


class Schedule(_Strict):
    """The learning rate over the run."""

    kind: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after warm-up; linear and cosine end at `final`."""
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the steps over which the rate rises from 0."""
    final: float = Field(0.0, ge=0, le=1)
    """Share of the peak rate at the last step."""


class Hyperparameters(_Strict):
    """The three that OpenAI's API has, each a number or "auto"."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] = "auto"
    """Passes over the data. "auto": 3; for under 500 rows as many as make 1,500, 10 at most; 1 from 100,000 rows."""
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=65536)] = "auto"
    """Rows per optimizer step. "auto": about 1/50 of the rows, between 4 and 32."""
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=100)] = "auto"
    """Multiplies the optimizer's learning rate. "auto": 1."""


class Evaluation(_Strict):
    """What is measured while training."""

    every_steps: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    """A validation batch every so many steps. "auto": ten times an epoch. The full set follows each epoch."""
    patience: int = Field(0, ge=0, le=1000)
    """Stop after so many epochs without a better full validation loss, and keep the best. 0: never."""


class Checkpoints(_Strict):
    """What is saved while training."""

    every_steps: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = "auto"
    """Save every so many steps, beside each epoch's end. "auto": when a minute has passed since the last."""
    keep: int = Field(3, ge=1, le=1000)
    """Epoch checkpoints kept besides the newest and the best."""


def _switch(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class Cache(_Strict):
    """A frozen trunk, computed once: where only upper layers train, the states that enter them are kept on disk and every epoch starts there."""

    use: Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)] = "auto"
    """"auto": where the lower layers are frozen and the data are seen more than once; "on": in a run of one epoch too; "off": never. It changes
    speed and memory, and the last bits of a sum."""
    disk_gb: float = Field(20.0, gt=0, le=100_000)
    """The most that it may take in the run folder, in gigabytes, until the run is finished. Where the states need more, the run goes on without."""


class Prices(_Strict):
    """What a run costs, for the estimate before it. Nothing, unless you say so."""

    currency: str = Field("USD", min_length=1, max_length=8)
    """Name of the money."""
    per_hour: float = Field(0.0, ge=0, le=1e6)
    """Of this machine."""
    per_million_tokens: float = Field(0.0, ge=0, le=1e6)
    """Of a million tokens in training rows, each epoch counted."""


class TrainConfig(_Strict):
    """A run, complete. `tunewright train run.yaml` reads one; a run folder holds its own as config.json."""

    data: Path
    """Training file: chat, prompt/completion or labelled text as JSONL; labelled text also as CSV."""
    validation: Path | None = None
    """Validation file of the same kind."""
    model: str = Field("nano", min_length=1, max_length=1024)
    """The base: `nano`, `minilm`, a folder, or a Hugging Face Hub id."""
    task: Literal["auto"] | Task = "auto"
    """What the model is to do: answer (chats and completions), name a text's label, or turn one text into another with an encoder-decoder.
    "auto": what the model is for; an encoder classifies where the data is text + label."""
    out: Path = Path("runs/latest")
    """The run folder."""
    tuning: Tuning = Lora()
    """Which weights train."""
    method: Method = Supervised()
    """What they learn from."""
    hyperparameters: Hyperparameters = Hyperparameters()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    evaluation: Evaluation = Evaluation()
    checkpoints: Checkpoints = Checkpoints()
    cache: Cache = Cache()
    dropout: Literal["keep"] | Annotated[float, Field(ge=0, lt=1)] = "keep"
    """Dropout of the base, in every place where it has one, attention included. "keep": each as the base has it. LoRA has its own."""
    max_grad_norm: float = Field(1.0, ge=0, le=1e6)
    """Gradients are scaled down to this global norm. 0: never."""
    shuffle: Literal["rows", "by_prefix", "none"] = "rows"
    """Order of the rows. "rows": any; "by_prefix": rows that begin alike share a step, which is faster where much is shared, and the steps are
    shuffled; "none": the file's own order."""
    max_tokens: Literal["auto"] | Annotated[int, Field(ge=2, le=1_000_000)] = "auto"
    """Longer rows are cut at the end, counted and said. "auto": the model's context, 4,096 at most."""
    max_lost: float = Field(0.0, ge=0, le=1)
    """Share of a file's rows that may be lost to reasons that are not your choice: an error in a row, a chat template that refuses it, nothing left
    to learn after a cut that you did not set with max_tokens. Where more would be lost the run refuses, and names them."""
    micro_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=16, le=10_000_000)] = "auto"
    """Tokens computed at once, padding included; a step's rows are cut into as many micro-batches as that takes. It changes memory and speed, never the
    gradient. "auto": what the free memory allows, measured before the first step; 8,192 at most on a CPU, 65,536 on a GPU."""
    recompute: bool = False
    """Compute each layer again in the backward pass in place of keeping what it computed (Chen et al. 2016): less memory, more time, the same gradient."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products. "auto": bf16 where this machine's processor or GPU computes it faster."""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """CPU threads. "auto": measured at the start, since one can beat two on tiny models."""
    prices: Prices = Prices()
    seed: int = Field(0, ge=0, lt=2**63)
    """Order of the rows, dropout, and the adapters' first values."""

    @classmethod
    def parse(cls, record: dict[str, Any], assignments: list[str] | None = None) -> TrainConfig:
        """A config from a mapping and `a.b=c` assignments, all problems at once. Raises BadConfig."""
        return parse(cls, record, assignments)

    @classmethod
    def from_yaml(cls, path: Path, assignments: list[str] | None = None) -> TrainConfig:
        """Parse a YAML file. Raises BadConfig when it cannot be read or does not fit."""
        return cls.parse(read_yaml(path), assignments)


def parse(cls: type[_Config], record: dict[str, Any], assignments: list[str] | None = None) -> _Config:
    """A config of any class from a mapping and `a.b=c` assignments, all problems at once. Raises BadConfig."""
    for assignment in assignments or ():
        record = _assign(record, assignment)
    try:
        return cls.model_validate(record)
    except ValidationError as error:
        raise BadConfig(_explain(error), code="invalid_config", param=_first(error)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises BadConfig: missing, too large, not YAML, not a mapping."""
    try:
        if path.stat().st_size > 1_000_000:
            raise BadConfig(f"{path} is over 1 MB; a config is a page of YAML", code="config_too_large")
        text = path.read_text(encoding="utf-8")
        if "&" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise BadConfig(f"{path} uses YAML aliases; write the values out", code="config_alias")
        record = yaml.safe_load(text)
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}", code="config_unreadable") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise BadConfig(f"{path} is not YAML: {first}", code="config_not_yaml") from None
    if not isinstance(record, dict):
        raise BadConfig(f"{path} must hold `key: value` lines, such as `data: train.jsonl`", code="config_not_a_mapping")
    return record


def _assign(record: dict[str, Any], assignment: str) -> dict[str, Any]:
    """`record` with `a.b=c` set; the value is read as YAML, so 8, true and auto mean what they look like."""
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise BadConfig(f"--set {assignment!r}: write it as tuning.rank=8", code="invalid_assignment", param="--set")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    head, _, rest = key.partition(".")
    if not rest:
        # `tuning=lora` is what one types for a choice that has a kind.
        tagged = head in ("tuning", "method") and isinstance(value, str)
        return {**record, head: {"kind": value} if tagged else value}
    inner = record.get(head) or {}
    if not isinstance(inner, dict):
        raise BadConfig(f"--set {assignment!r}: {head} has no parts", code="invalid_assignment", param=head)
    inner = _assign(inner, f"{rest}={text}")
    if head in ("tuning", "method"):
        inner = {"kind": "lora" if head == "tuning" else "supervised"} | inner
    return {**record, head: inner}


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"] if not _is_type(part)) or "config"
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: there is no such setting")
        elif item["type"] == "missing":
            lines.append(f"{where}: is needed")
        elif item["type"] == "literal_error" and where.endswith(("'auto'", "auto")):
            continue
        else:
            lines.append(f"{where}: {item['msg'].removeprefix('Input ').removeprefix('Value error, ')}")
    return "; ".join(dict.fromkeys(lines))


def _first(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"] if not _is_type(part))


def _is_type(part: int | str) -> bool:
    """Whether a part of an error's location is pydantic's name for a branch of a union, not a key of the config."""
    return isinstance(part, str) and (part in _KINDS or "[" in part)


_KINDS = {"full", "top_layers", "lora", "prompt", "supervised", "dpo", "float", "int", "str", "constrained-int", "constrained-float"}
