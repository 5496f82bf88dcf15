"""A config -> its estimate, from a few real steps on this machine. `in_process` takes them here, `apart` in a process of its own.

Apart is what a plan wants: the peak of memory is then that of a run and of nothing else, and a run too large for the machine takes no one with it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.config import TrainConfig
from tunewright.errors import BadModel, Problem

if TYPE_CHECKING:
    from tunewright.data.tokens import Item
    from tunewright.train.estimate import Work
    from tunewright.train.start import Run

MARGIN = 1.1  # a run fits where its predicted peak and a tenth more do
SAMPLES = 24  # steps that may be measured
CHECKS = 3  # batches of validation that are measured
SECONDS = 8.0  # of measured steps; the first two and the largest are taken all the same
_SAVED_AT_MOST = 2e9  # larger checkpoints are reckoned, not written
_DISK_SPEED = 3e8  # bytes a second, then


def apart(config: TrainConfig, limit: int | None = None) -> dict[str, Any]:
    """The estimate, taken in a process of its own. `limit`: bytes of memory to plan for, in place of this machine's.

    Raises the Problem that the run would raise, or BadModel where the system ended the process for want of memory.
    """
    import tunewright

    root = str(Path(tunewright.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    job = {"config": _absolute(config).model_dump(mode="json"), "limit": limit}
    command = [sys.executable, "-P", "-m", "tunewright.train.measure"]
    done = subprocess.run(command, input=json.dumps(job), env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL:
        raise BadModel(f"{config.model}: measuring was ended by the system, most likely for want of memory", code="out_of_memory", param="model")
    if done.returncode:
        raise RuntimeError(f"measuring failed:\n{done.stderr[-3000:]}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "problem" in record:
        problem = Problem(record["problem"]["message"], code=record["problem"]["code"], param=record["problem"]["param"])
        problem.exit_code = record["problem"]["exit_code"]
        raise problem
    return record


def _absolute(config: TrainConfig) -> TrainConfig:
    return config.model_copy(update={"data": config.data.absolute(), "validation": config.validation and config.validation.absolute()})


def in_process(config: TrainConfig, limit: int | None = None) -> dict[str, Any]:
    """The estimate, taken in this process; nothing of it is kept. Raises what `start` raises."""
    import torch

    from tunewright.train import peak as peaks
    from tunewright.train.start import start

    peaks.forget(torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        begun = time.perf_counter()
        starting = start(config.model_copy(update={"out": Path(folder)}), trial=True)
        distinct = 0
        while True:
            try:
                distinct = next(starting).data.get("distinct_tokens", distinct)
            except StopIteration as stop:
                run: Run = stop.value
                break
        found = _measured(run, time.perf_counter() - begun, limit)
        return {**found, "distinct_tokens": distinct}


def _measured(run: Run, start: float, limit: int | None) -> dict[str, Any]:
    from tunewright.models import quantized
    from tunewright.train import peak as peaks
    from tunewright.train.estimate import Pace, device_of, estimate, left, limit_of, pace_of, sizes, state_bytes, weight_bytes

    device = device_of(run)
    room = limit if limit is not None else limit_of(run)
    held, before = peaks.in_use(device), peaks.highest(device)
    peaks.forget(device)
    work = left(run, 0, 0, SAMPLES)
    whole, counted = run, sum(sum(sizes(run, items)) for items in work.sample)
    run, sample, filling, cache = _with_trunk(run, work)
    start += filling
    steps, peak, warming = _steps(run, sample, room)
    # From a kept trunk on, other tokens may be computed than those that `left` counted.
    share = sum(sum(sizes(run, items)) for items in sample) / counted
    step, token = pace_of(steps) if steps else (0.0, 0.0)
    forward, check, cold = _validation(run)
    start, forward = start + warming + cold, forward * share
    size, save = _checkpoint(run)
    fixed = weight_bytes(run) + state_bytes(run)
    # The states of all rows are mapped where those of the sample are now.
    more = max(0, cache - (run.kept.states.nbytes if run.kept else 0)) if device.type == "cpu" else 0
    peak = max(before, peak, peaks.highest(device)) + more
    if run.config.method.kind == "dpo":
        start += forward * (work.computed + work.validation) / run.plan.n_epochs
    pace = Pace(step, token * share, forward, check, save)
    found = estimate(whole, work, pace, start, time.time(), peak, room, size, cache, len(steps))
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    return {
        **found,
        "estimated_memory_bytes_by_part": {
            "libraries_and_weights": held,
            "gradients_and_optimizer": fixed,
            "activations": max(0, peak - held - fixed),
        },
        "model": run.base,
        "tuning": run.config.tuning.model_dump(mode="json"),
        "parameters": quantized.weights(run.model),
        "trainable_parameters": trained,
        "layers": _layers(run),
        "longest_row_tokens": max(len(row.ids) for item in whole.rows for row in item.rows),
        "micro_batch_tokens": run.plan.micro_batch_tokens,
        "layout": "tree" if run.shared else "padded",
        "precision": run.plan.precision,
        "threads": run.plan.threads,
    }


def _layers(run: Run) -> int:
    from tunewright.models.tuning import stack
    from tunewright.models.virtual import base_of

    return len(stack(base_of(run.model)))


def _steps(run: Run, sample: list[list[Item]], room: int) -> tuple[list[tuple[int, float]], int, float]:
    """(computed tokens, seconds) of some of the sampled steps, the peak of memory, and the seconds that the first step took for being the first.

    A few from the smallest to the largest first: what would not fit into `room` is not tried, and its peak drawn out from those before it, in proportion
    to the tokens computed at once. Then the others in a mixed order, as training meets them, while time is left.
    """
    from tunewright.train import peak as peaks
    from tunewright.train.estimate import device_of, largest_micro_batch, sizes, state_bytes, weight_bytes
    from tunewright.train.loop import take_step

    rate, device = run.plan.learning_rate, device_of(run)
    found: list[tuple[int, float]] = []
    held = peaks.in_use(device)
    probe = sample[0][:1]
    first_time, again = (take_step(run, probe, rate).seconds for _ in range(2))  # the first makes the optimizer's state, and warms up
    warming = max(0.0, first_time - again)
    fixed, most = held + weight_bytes(run) + state_bytes(run), max(sizes(run, probe))
    largest = max(max(sizes(run, items)) for items in sample)
    first = sorted({0, len(sample) // 3, 2 * len(sample) // 3, len(sample) - 1})
    others = random.Random(0).sample([i for i in range(len(sample)) if i not in first], len(sample) - len(first))
    begun = time.perf_counter()
    for i in [*first, *others]:
        late = time.perf_counter() - begun > SECONDS
        if late and i != first[-1]:
            continue
        # Of the largest step, at least what is computed at once: memory is judged by it.
        some = largest_micro_batch(run, sample[i]) if late else sample[i]
        laid_out = list(run.batches(some))  # training has it ready, too
        cut = [batch.ids.numel() for _, batch in laid_out]
        reached = fixed + max(0, peaks.highest(device) - fixed) * max(1.0, max(cut) / most)
        if reached > room * 1.25:
            return found, round(fixed + max(0, peaks.highest(device) - fixed) * largest / most), warming
        found.append((sum(cut), take_step(run, some, rate, laid_out).seconds))
        most = max(most, *cut)
    return found[1:] if len(found) > 2 else found, peaks.highest(device), warming


def _with_trunk(run: Run, work: Work) -> tuple[Run, list[list[Item]], float, int]:
    """Where the run would keep its frozen trunk's states: a run of the sampled rows that does, the sample in it, and the seconds and bytes that all
    rows will take. Else the run as it is."""
    from tunewright.train import trunk
    from tunewright.train.estimate import VALIDATED

    rows = list({id(item): item for items in work.sample for item in items}.values())
    validation = run.validation[:VALIDATED]
    small, begun = replace(run, rows=rows, validation=validation), time.perf_counter()
    for _ in trunk.keep(small):
        pass
    if small.kept is None:
        return run, work.sample, 0.0, 0
    now = dict(zip(map(id, rows), small.rows, strict=True))
    more = _tokens([*run.rows, *run.validation]) / _tokens([*rows, *validation])
    sample = [[now[id(item)] for item in items] for items in work.sample]
    return small, sample, (time.perf_counter() - begun) * more, round(small.kept.states.nbytes * more)


def _tokens(items: list[Item]) -> int:
    from tunewright.data import tree

    return tree.distinct([row for item in items for row in item.rows])


def _validation(run: Run) -> tuple[float, float, float]:
    """Seconds of a computed token without gradients (of validation rows, or of training rows where there are none), of one batch's validation, and
    what the first full validation takes more for being the first."""
    from tunewright.train.estimate import VALIDATED, largest_micro_batch, sizes
    from tunewright.train.loop import validate

    def timed(items: list[Item]) -> float:
        begun = time.perf_counter()
        validate(run, items, "valid")
        return time.perf_counter() - begun

    size, begun, checks = run.plan.batch_size, time.perf_counter(), list[float]()
    while len(checks) < CHECKS and time.perf_counter() - begun < SECONDS / 4 and (batch := run.validation[len(checks) * size :][:size]):
        checks.append(timed(batch))  # each once: in training, too, most are of a size that was not computed before
    some = largest_micro_batch(run, run.validation[:VALIDATED] or run.rows[:size], False)
    cold = timed(some)
    warm = min(cold, timed(some)) if cold < SECONDS / 4 else cold
    return warm / sum(sizes(run, some, False)), sum(checks) / max(1, len(checks)), cold - warm


def _checkpoint(run: Run) -> tuple[int, float]:
    """Bytes and seconds of a checkpoint: of a real one, unless that is large."""
    from tunewright.train import checkpoint
    from tunewright.train.estimate import checkpoint_bytes

    if (size := checkpoint_bytes(run)) > _SAVED_AT_MOST:
        return size, size / _DISK_SPEED
    begun = time.perf_counter()
    place = checkpoint.save(run.checkpoints, 1, run.model, run.tokenizer, run.optimizer, {})
    return sum(path.stat().st_size for path in place.iterdir()), time.perf_counter() - begun


def _main() -> None:
    job = json.loads(sys.stdin.read())
    try:
        found = in_process(TrainConfig.parse(job["config"]), job["limit"])
    except Problem as problem:
        found = {"problem": {"message": problem.message, "code": problem.code, "param": problem.param, "exit_code": problem.exit_code}}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    _main()
