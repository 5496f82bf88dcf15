"""A frozen trunk computed once: the states that enter the first layer that trains, kept in the run folder while the run lasts.

They are computed before the first step, in an order of their own: their bits do not depend on which steps a run has taken, so a run that is
killed, or whose kept states are lost or damaged, ends with the same weights. trunk/states.bin holds them, trunk/kept.json says of what they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tunewright.data import tree
from tunewright.data.sampler import micro_batches
from tunewright.data.tokens import Item, Row, RowPair, TextRow
from tunewright.event import Event
from tunewright.models.forward import AnyBatch, TreeBatch, alone, batches, places
from tunewright.models.translate import SourceBatch
from tunewright.models.trunk import Below, Top, depth, wrong
from tunewright.models.tuning import stack
from tunewright.train.folder import sha256, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunewright.train.start import Run

SAY_SECONDS = 10.0  # how often the first computation says how far it is, and what a kill there can cost


@dataclass(slots=True)
class Kept:
    """The rest of a model and what it starts from. `states`: (N, size), memory-mapped. `alone`: no layer above the cut looks at other tokens."""

    top: Top
    states: torch.Tensor
    alone: bool

    def batches(self, items: Sequence[Item], budget: int, device: torch.device) -> Iterator[tuple[list[int], TreeBatch]]:
        """As `forward.batches`, for `alone`: within `budget` trained tokens."""
        groups: list[list[int]] = []
        used = budget
        for i, item in enumerate(items):
            size = sum(int(row.trained.sum()) for row in item.rows)
            if not groups or used + size > budget:
                groups.append([])
                used = 0
            groups[-1].append(i)
            used += size
        for group in groups:
            yield group, alone([row for i in group for row in items[i].rows], device)

    def enter(self, batch: AnyBatch, model: PreTrainedModel) -> PreTrainedModel:
        """What to call with the batch in the model's place."""
        states = self.states[_places(batch).clamp_min(0)].to(batch.ids.device)
        self.top.model.train(model.training)
        return self.top.start_from(states[None] if isinstance(batch, TreeBatch) else states)


def keep(run: Run) -> Iterator[Event]:
    """Compute a run's frozen trunk, or take it up where an earlier start left it, and mark its rows; or say why not."""
    wanted, folder = run.config.cache, run.config.out / "trunk"
    if wanted.use == "off" or (wanted.use == "auto" and run.plan.n_epochs == 1):
        return
    cut = depth(run.model)
    try:
        if not cut:
            text = "an encoder-decoder's layers read two texts" if run.task == "text_to_text" else "the layers below those that train are not frozen"
            raise _Not(text if wanted.use == "on" else "")
        yield from _keep(run, cut, folder)
    except _Not as reason:
        shutil.rmtree(folder, ignore_errors=True)
        if str(reason):
            text = f"Every epoch computes the whole model: {reason}"
            yield Event(run.progress.step, text, {"trunk_kept": False, "reason": str(reason)}, "warn" if wanted.use == "on" else "info")


def forget(run: Run) -> None:
    """Give the disk space back."""
    shutil.rmtree(run.config.out / "trunk", ignore_errors=True)


class _Not(Exception):
    """Why nothing is kept."""


def _keep(run: Run, cut: int, folder: Path) -> Iterator[Event]:
    layers, below = len(stack(run.model)), Below(run.model, cut)
    by_itself = run.shared and cut == layers
    items, count = _placed([*run.rows, *run.validation], run.shared, by_itself)
    rows = [row for item in items for row in item.rows]
    first = _lay_out(run, rows[:1])
    with _precision(run):
        if reason := wrong(run.model, cut, first):
            raise _Not(reason)
        probe = below(first)
    size, kind = probe.shape[-1], probe.dtype
    need = count * size * kind.itemsize
    key = _key(run, below, rows, cut)
    record = _record(folder, key, need)
    old = record is None and folder.exists()
    if record is None:
        _reserve(folder, need, run.config.cache.disk_gb)
        record = {"key": key, "groups": 0, "seconds": 0.0, "sha256": None}
    states = torch.from_file(str(folder / "states.bin"), shared=True, size=count * size, dtype=kind).view(count, size)
    again = record["sha256"] is not None
    if not again:
        yield from _compute(run, below, rows, states, record, folder)
    run.rows, run.validation = items[: len(run.rows)], items[len(run.rows) :]
    run.kept = Kept(Top(run.model, cut), states, by_itself)
    where = "leave the last layer" if cut == layers else f"enter layer {cut + 1} of {layers}"
    text = f"The frozen trunk is computed once: the states of {count:,} tokens that {where} are kept ({need / 1e6:,.0f} MB)"
    text += f"; they took {record['seconds']:.1f} s, which each epoch saves at least" + (", and were there already" if again else "")
    text += "; what was kept before was of another model, data or cut, or damaged" if old else ""
    data = {"trunk_kept": True, "layers": cut, "of_layers": layers, "tokens": count, "bytes": need, "seconds": record["seconds"], "reused": again}
    yield Event(run.progress.step, text, data)


def _placed(items: Sequence[Item], shared: bool, by_itself: bool) -> tuple[list[Item], int]:
    """The items with `kept` in their rows, and how many states that makes: one for each distinct token of all rows where these are computed
    as trees, and of those only the ones that predict a trained token where each is read by itself; else one for each token of each row."""
    rows = [row for item in items for row in item.rows]
    if shared:
        planned = tree.plan(rows)
        places, count = planned.paths, len(planned.ids)
        if by_itself:
            needed = np.unique(planned.state)
            index = np.full(count, -1)
            index[needed] = np.arange(len(needed))
            places, count = [index[path] for path in places], len(needed)
    else:
        ends = np.cumsum([len(row.ids) for row in rows])
        places, count = [np.arange(end - len(row.ids), end) for end, row in zip(ends, rows, strict=True)], int(ends[-1])
    found = iter([replace(row, kept=place.astype(np.int32)) for row, place in zip(rows, places, strict=True)])
    marked: list[Item] = []
    for item in items:
        marked.append(replace(item, chosen=next(found), rejected=next(found)) if isinstance(item, RowPair) else next(found))
    return marked, count


def _lay_out(run: Run, rows: Sequence[Row | TextRow]) -> AnyBatch:
    """All of them as one batch."""
    return next(batches(rows, sum(len(row) for row in rows) * len(rows), run.shared, next(run.model.parameters()).device))[1]


def _places(batch: AnyBatch) -> torch.Tensor:
    assert not isinstance(batch, SourceBatch) and batch.kept is not None
    return batch.kept


def _precision(run: Run) -> torch.autocast:
    return torch.autocast(next(run.model.parameters()).device.type, torch.bfloat16, enabled=run.plan.precision == "bf16")


def _compute(run: Run, below: Below, rows: list[Row | TextRow], states: torch.Tensor, record: dict[str, Any], folder: Path) -> Iterator[Event]:
    """Fill `states`, group by group. Progress is written down only after what it speaks of has reached the disk."""
    budget = run.plan.micro_batch_tokens
    groups = (
        tree.micro([[row] for row in rows if isinstance(row, Row)], budget) if run.shared else micro_batches([len(row.ids) for row in rows], budget)
    )
    training, said = run.model.training, time.monotonic()
    run.model.eval()
    for done, group in enumerate(groups[record["groups"] :], record["groups"] + 1):
        begun = time.perf_counter()
        batch = _lay_out(run, [rows[i] for i in group])
        with _precision(run):
            found = below(batch)
        at = _places(batch).reshape(-1)
        states[at[at >= 0]] = found.reshape(len(at), -1).cpu()[at >= 0]
        record |= {"groups": done, "seconds": record["seconds"] + time.perf_counter() - begun}
        if time.monotonic() - said > SAY_SECONDS and done < len(groups):
            _flush(folder / "states.bin")
            write_json(folder / "kept.json", record)
            said = time.monotonic()
            yield Event(run.progress.step, f"The frozen trunk: {done / len(groups):.0%} is computed", {"groups": done, "of_groups": len(groups)})
    run.model.train(training)
    _flush(folder / "states.bin")
    write_json(folder / "kept.json", record | {"sha256": sha256(folder / "states.bin")})


def _flush(path: Path) -> None:
    """Mapped pages reach the disk with the file that they are of."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _record(folder: Path, key: str, need: int) -> dict[str, Any] | None:
    """What kept.json says of states that can be used; None where they are of something else, or damaged."""
    try:
        record: dict[str, Any] = json.loads((folder / "kept.json").read_text())
        if record["key"] != key or (folder / "states.bin").stat().st_size != need:
            return None
        if record["sha256"] is not None and record["sha256"] != sha256(folder / "states.bin"):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def _reserve(folder: Path, need: int, limit_gb: float) -> None:
    """Make states.bin with all its blocks: a mapped file that runs out of disk later would end the process. Raises _Not."""
    shutil.rmtree(folder, ignore_errors=True)
    if need > limit_gb * 1e9:
        raise _Not(f"the states of its frozen layers need {need / 1e9:,.2f} GB of disk, and cache.disk_gb allows {limit_gb:g}")
    free = shutil.disk_usage(folder.parent).free
    if need > 0.9 * free:
        raise _Not(f"the states of its frozen layers need {need / 1e9:,.2f} GB of disk, and {free / 1e9:,.2f} are free; checkpoints need room too")
    try:
        folder.mkdir()
        with (folder / "states.bin").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, need)
    except OSError as error:
        raise _Not(f"the states of its frozen layers cannot be written to {folder}: {error.strerror}") from None


def _key(run: Run, below: Below, rows: Sequence[Row | TextRow], cut: int) -> str:
    """The hash of all that the states are a function of."""
    digest = hashlib.sha256()
    how = [run.shared, cut, run.plan.precision, run.plan.threads, run.plan.micro_batch_tokens, torch.__version__]
    digest.update(json.dumps([*how, str(next(run.model.parameters()).device)]).encode())
    digest.update(json.dumps(below.model.config.to_dict(), sort_keys=True, default=str).encode())
    for name, value in (*below.model.named_parameters(), *below.model.named_buffers()):
        if not value.requires_grad:
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    for row in rows:
        digest.update(len(row.ids).to_bytes(4, "little") + np.ascontiguousarray(row.ids).tobytes())
        digest.update(np.ascontiguousarray(places(row)).tobytes())
        if isinstance(row, TextRow) and row.types is not None:
            digest.update(np.ascontiguousarray(row.types).tobytes())
    return digest.hexdigest()
