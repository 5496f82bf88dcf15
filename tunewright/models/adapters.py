"""Adapters that share one base in memory: `read` one from its folder, and `SideBySide`, which computes several in one pass.

For every linear module the A matrices of a pass's adapters stand side by side as one, and so do the B matrices. Between the
two products, what belongs to another adapter than a token's own is set to zero. So a batch over many adapters costs two
thin products a module, however its tokens are mixed. (The idea of S-LoRA and Punica, without their kernels.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunewright.errors import BadModel
from tunewright.models.load import read_json

_PREFIX = "base_model.model."
_STACKS = 8
# Saved as embeddings that stand in front of the text.
_IN_FRONT = {"PROMPT_TUNING", "P_TUNING"}
# These change the modules themselves.
_OWN = {"IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA", "ADALORA"}


@dataclass(frozen=True, slots=True, eq=False)
class LoraAdapter:
    """For each module that it changes: A (rank, in) and B (out, rank), the latter with the adapter's scale in it."""

    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class PromptAdapter:
    """A tuned prompt: (tokens, hidden), read before the first real token."""

    embeddings: torch.Tensor


Adapter = LoraAdapter | PromptAdapter


def read(folder: Path, name: str, model: PreTrainedModel) -> Adapter | None:
    """The adapter in a folder, for a base that is loaded, in the bits that the adapter was learnt on; None where it is of a kind
    that needs a model of its own.

    The name of the base that stands in the folder is not followed: who calls knows the base.
    Raises BadModel `adapter_mismatch` when it does not fit the base, `model_rejected` when a file is damaged.
    """
    config = read_json(folder / "adapter_config.json", name)
    if not (folder / "adapter_model.safetensors").is_file():
        raise BadModel(f"{name}: the adapter has no adapter_model.safetensors", code="not_safetensors", param="model")
    kind = config.get("peft_type")
    if kind in _OWN or (kind == "LORA" and not _is_plain(config)):
        return None
    if kind not in _IN_FRONT and kind != "LORA":
        text = f"{name}: adapters of the kind {str(kind)[:40]!r} cannot be served; those that can: LORA, {', '.join(sorted(_IN_FRONT | _OWN))}"
        raise BadModel(text, code="adapter_unsupported", param="model")
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise BadModel(f"{name}: adapter_model.safetensors is damaged: {error}"[:300], code="model_rejected", param="model") from None
    if bad := [key for key, tensor in tensors.items() if not tensor.is_floating_point() or not bool(tensor.isfinite().all())]:
        raise BadModel(f"{name}: the adapter's {bad[0]} holds values that are not finite numbers", code="model_rejected", param="model")
    return _prompt(tensors, name, model) if kind in _IN_FRONT else _lora(tensors, config, name, model)


def _is_plain(config: dict[str, Any]) -> bool:
    """A LoRA without anything beside A, B and one scale."""
    beside = ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "layer_replication", "alpha_pattern")
    others = (
        "target_parameters",
        "alora_invocation_tokens",
        "use_qalora",
        "use_bdlora",
        "arrow_config",
        "corda_config",
        "eva_config",
        "lora_ga_config",
    )
    return config.get("bias", "none") == "none" and not any(config.get(key) for key in (*beside, *others))


def _prompt(tensors: dict[str, torch.Tensor], name: str, model: PreTrainedModel) -> PromptAdapter:
    weight = model.get_input_embeddings().weight
    found = tensors.get("prompt_embeddings")
    if len(tensors) != 1 or found is None or found.dim() != 2 or found.shape[1] != weight.shape[1] or not 0 < found.shape[0] <= 4096:
        text = f"{name}: the tuned prompt does not fit its base, whose embeddings are {weight.shape[1]} wide"
        raise BadModel(text, code="adapter_mismatch", param="model")
    return PromptAdapter(found.to(weight))


def _lora(tensors: dict[str, torch.Tensor], config: dict[str, Any], name: str, model: PreTrainedModel) -> LoraAdapter | None:
    modules = dict(model.named_modules())
    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    like = model.get_input_embeddings().weight  # a layer's own may be packed into bytes
    alpha, rank_stable = config.get("lora_alpha"), bool(config.get("use_rslora"))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise BadModel(f"{name}: adapter_config.json has no lora_alpha", code="model_rejected", param="model")
    for key, a in tensors.items():
        place, _, kind = key.removeprefix(_PREFIX).rpartition(".lora_")
        # The head is not shown every token, and embeddings are no product.
        if "embedding" in kind or ".base_layer." in key or (place in modules and modules[place] is model.get_output_embeddings()):
            return None
        if kind == "B.weight" and f"{_PREFIX}{place}.lora_A.weight" in tensors:
            continue
        module, b = modules.get(place), tensors.get(f"{_PREFIX}{place}.lora_B.weight")
        if kind != "A.weight" or b is None or not isinstance(module, torch.nn.Linear | Conv1D):
            raise BadModel(f"{name}: the adapter does not fit its base: {key} has no place there", code="adapter_mismatch", param="model")
        inner, outer = (module.in_features, module.out_features) if isinstance(module, torch.nn.Linear) else module.weight.shape
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != inner or b.shape[0] != outer or a.shape[0] != b.shape[1] or not a.shape[0]:
            text = f"{name}: the adapter does not fit its base: {key} is {tuple(a.shape)}, for a module of {inner} to {outer}"
            raise BadModel(text, code="adapter_mismatch", param="model")
        rank = a.shape[0]
        matrices[place] = (a.to(like), (b * (alpha / (rank**0.5 if rank_stable else rank))).to(like))
    if not matrices:
        raise BadModel(f"{name}: the adapter holds no matrices", code="adapter_mismatch", param="model")
    return LoraAdapter(matrices)


@dataclass(frozen=True, slots=True)
class _Stack:
    """One module's matrices: A (ranks, in), B transposed (ranks, out), and which adapter each rank belongs to."""

    a: torch.Tensor
    b: torch.Tensor
    owners: tuple[int, ...]


class SideBySide:
    """The adapters of the pass at hand, laid on a base's modules by forward hooks. One thread at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules = dict(model.named_modules())
        self._hooked: set[str] = set()
        self._stacks: OrderedDict[tuple[int, ...], tuple[tuple[LoraAdapter, ...], dict[str, _Stack]]] = OrderedDict()
        self._now: dict[str, _Stack] = {}
        self._of_token: torch.Tensor | None = None
        self._foreign: dict[tuple[int, ...], torch.Tensor] = {}

    def lay(self, spans: Sequence[tuple[LoraAdapter | None, int]]) -> None:
        """Say which adapter computes each of the coming pass's tokens: (adapter, tokens), in their order; None is the base alone."""
        used = {id(adapter): adapter for adapter, _ in spans if adapter is not None}
        self._foreign = {}
        if not used:
            self._now = {}
            return
        key = tuple(sorted(used))
        if key not in self._stacks:
            adapters = tuple(used[i] for i in key)
            self._stacks[key] = (adapters, self._stacked(adapters))  # holding the adapters keeps their ids their own
            while len(self._stacks) > _STACKS:
                self._stacks.popitem(last=False)
        self._stacks.move_to_end(key)
        self._now = self._stacks[key][1]
        place = {i: n for n, i in enumerate(key)}
        which = torch.tensor([-1 if adapter is None else place[id(adapter)] for adapter, _ in spans])
        self._of_token = which.repeat_interleave(torch.tensor([count for _, count in spans]))

    def _stacked(self, adapters: tuple[LoraAdapter, ...]) -> dict[str, _Stack]:
        found = {}
        for name in {name for adapter in adapters for name in adapter.matrices}:
            mine = [(n, adapter.matrices[name]) for n, adapter in enumerate(adapters) if name in adapter.matrices]
            a, b = torch.cat([a for _, (a, _) in mine]), torch.cat([b for _, (_, b) in mine], dim=1)
            found[name] = _Stack(a, b.T.contiguous(), tuple(n for n, (a, _) in mine for _ in range(len(a))))
            if name not in self._hooked:
                self._modules[name].register_forward_hook(self._hook(name))
                self._hooked.add(name)
        return found

    def _hook(self, name: str) -> Any:
        def add(module: torch.nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor | None:
            stack = self._now.get(name)
            if stack is None:
                return None
            x = given[0].flatten(0, -2)
            thin = F.linear(x, stack.a).masked_fill_(self._not_own(stack.owners, x), 0.0)
            return torch.addmm(out.flatten(0, -2), thin, stack.b).view_as(out)

        return add

    def _not_own(self, owners: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
        """(tokens, ranks): True where a rank belongs to another adapter than the token's."""
        key = (*owners, -1 - len(x))
        if key not in self._foreign:
            assert self._of_token is not None
            which = self._of_token
            assert len(which) == len(x), "an adapter on a module that does not see every token"
            self._foreign[key] = (which[:, None] != torch.tensor(owners)[None]).to(x.device)
        return self._foreign[key]
