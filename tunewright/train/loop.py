"""The loop: an iterator of events. Nothing is called back; who reads the events decides what to do with them."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tunewright.config import TrainConfig
from tunewright.data.sampler import steps, steps_per_epoch
from tunewright.data.tokens import Item
from tunewright.errors import RunFailed
from tunewright.event import Event
from tunewright.models.floats import flushed
from tunewright.models.forward import AnyBatch
from tunewright.models.tuning import trained
from tunewright.train import checkpoint, peak, schedule, trunk
from tunewright.train.ahead import ahead, in_turn
from tunewright.train.card import write_card
from tunewright.train.estimate import device_of
from tunewright.train.folder import hold, open_run, recorded, write_json
from tunewright.train.forecast import Forecast
from tunewright.train.start import Run, start

MicroBatches = Iterable[tuple[list[int], AnyBatch]]

BAD_STEPS = 3  # non-finite steps in a row before a run gives up
AUTOSAVE_SECONDS = 60.0


def train(config: TrainConfig) -> Generator[Event, None, None]:
    """Tune a model and yield what happens: decisions, metrics of each step, checkpoints, the end.

    Goes on by itself where `config.out` holds a begun run with the same settings. Closing the iterator stops the run
    with a checkpoint; it can be resumed to bit-identical weights. The result lies in `config.out / "model"`.
    Raises BadConfig, BadData, BadModel, or RunFailed.
    """
    with hold(config.out):
        config = open_run(config)
        yield from recorded(_events(config), config.out)


def _events(config: TrainConfig) -> Generator[Event, None, None]:
    if (config.out / "exit.json").is_file():
        yield Event(0, f"This run is finished; its model lies in {config.out / 'model'}")
        return
    begun = time.time()
    peak.forget(torch.device("cpu"))
    run = yield from start(config)
    forecast = Forecast(run, begun, validate)
    try:
        yield from forecast.over(_steps(run))
    except GeneratorExit:
        # Closed between two events: the weights are those of the last whole step.
        if run.progress.step:
            _save(run)
        raise
    yield from _finish(run, forecast)


def _steps(run: Run) -> Iterator[Event]:
    """Every step that is still to do, with validation, checkpoints and the end of each epoch."""
    plan, progress = run.plan, run.progress
    each = steps_per_epoch(len(run.rows), plan.batch_size)
    bad, saved_at, every = 0, time.monotonic(), run.config.checkpoints.every_steps
    todo = steps(len(run.rows), plan.batch_size, plan.n_epochs, run.order, progress.step)
    # Where the step computes on the CPU too, a second thread of Python holds it up for longer than it saves: 2 to 14 % of a step were measured.
    ready = ahead if device_of(run).type == "cuda" else in_turn
    for (step, epoch, chosen), laid_out in ready(todo, lambda one: list(run.batches([run.rows[i] for i in one[2]]))):
        if progress.stopped_early:
            return
        rate = plan.learning_rate * schedule.factor(run.config.schedule, step, plan.total_steps)
        result = take_step(run, [run.rows[i] for i in chosen], rate, laid_out)
        progress.step = step
        progress.trained_tokens += result.count
        bad = 0 if result.applied else bad + 1
        # One event holds all numbers of a step, and an epoch is counted before anything is said: a run can be closed at any event.
        metrics, ends = _metrics(run, step, epoch, rate, result), step % each == 0
        if ends:
            metrics = _with_full_validation(run, metrics)
        if not result.applied:
            yield Event(step, f"Step {step}: the loss or its gradient is not finite; the step was not applied", level="warn")
        if bad == BAD_STEPS:
            raise _diverged(run, step)
        yield metrics
        if ends:
            yield from _end_epoch(run)
            saved_at = time.monotonic()
        elif step % every == 0 if every != "auto" else time.monotonic() - saved_at > AUTOSAVE_SECONDS:
            yield from _checkpoint(run)
            saved_at = time.monotonic()


@dataclass(slots=True)
class StepResult:
    """One optimizer step: mean loss in nats (a trained token, or a pair), share predicted or ranked right, mean reward margin,
    gradient norm, seconds, tokens of its rows, what the loss was divided by, and whether the weights were moved."""

    loss: float
    accuracy: float
    margin: float
    grad_norm: float
    seconds: float
    tokens: int
    count: int
    applied: bool


@flushed()
def take_step(run: Run, items: list[Item], rate: float, laid_out: MicroBatches | None = None) -> StepResult:
    """Add up the gradients of the items' micro-batches (`laid_out`, if they are so already), divide once, clip, and move the weights at a learning rate.

    A loss or gradient that is not finite leaves weights and optimizer as they were.
    """
    begun = time.perf_counter()
    parameters = list(trained(run.model).values())
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    run.model.train()
    loss, count, correct, margin = add_up(run, items, True, laid_out)
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_div_(gradients, float(count))
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, run.config.max_grad_norm or math.inf))
    applied = math.isfinite(loss) and math.isfinite(norm)
    if applied:
        run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    tokens = sum(len(row) for item in items for row in item.rows)
    return StepResult(loss / count, correct / count, margin / count, norm, time.perf_counter() - begun, tokens, count, applied)


def add_up(run: Run, items: list[Item], backward: bool, laid_out: MicroBatches | None = None) -> tuple[float, int, int, float]:
    """The summed loss of items, what to divide it by, how many of those are right, and the summed reward margin."""
    loss, count, correct, margin = 0.0, 0, 0, 0.0
    for group, batch in run.batches(items, backward) if laid_out is None else laid_out:
        with _precision(run), torch.set_grad_enabled(backward):
            sums = run.loss(run.called(batch), batch, [items[i] for i in group])
        if backward:
            sums.loss.backward()
        loss, count, correct = loss + float(sums.loss.detach()), count + sums.count, correct + sums.correct
        margin += sums.margin
    return loss, count, correct, margin


@flushed()
def validate(run: Run, items: list[Item], name: str) -> dict[str, float]:
    """The run's loss and accuracy on items, as `name`_loss and so on. Draws no random numbers and leaves the mode as it was."""
    was_training = run.model.training
    run.model.eval()
    loss, count, correct, margin = add_up(run, items, False)
    run.model.train(was_training)
    return _named(run, name, loss / count, correct / count, margin / count)


def _named(run: Run, name: str, loss: float, accuracy: float, margin: float) -> dict[str, float]:
    """Metrics by the hosted service's names; preference pairs have rewards in place of tokens, texts labels."""
    if run.config.method.kind == "dpo":
        return {f"{name}_loss": loss, f"{name}_reward_accuracy": accuracy, f"{name}_reward_margin": margin}
    if run.task == "classification":
        return {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
    return {f"{name}_loss": loss, f"{name}_mean_token_accuracy": accuracy}


def _precision(run: Run) -> torch.autocast:
    return torch.autocast(device_of(run).type, torch.bfloat16, enabled=run.plan.precision == "bf16")


def _metrics(run: Run, step: int, epoch: int, rate: float, result: StepResult) -> Event:
    data = {
        "epoch": epoch,
        "total_steps": run.plan.total_steps,
        **_named(run, "train", result.loss, result.accuracy, result.margin),
        "learning_rate": rate,
        "grad_norm": result.grad_norm,
        "tokens_per_second": result.tokens / result.seconds,
        "trained_tokens": run.progress.trained_tokens,
    }
    if run.validation and step % run.plan.evaluate_every == 0:
        size = min(run.plan.batch_size, len(run.validation))
        first = (step // run.plan.evaluate_every - 1) * size
        data |= validate(run, [run.validation[i % len(run.validation)] for i in range(first, first + size)], "valid")
    text = f"Step {step}/{run.plan.total_steps}: training loss={result.loss:.2f}"
    if "valid_loss" in data:
        text += f", validation loss={data['valid_loss']:.2f}"
    return Event(step, text, data, kind="metrics")


def _with_full_validation(run: Run, metrics: Event) -> Event:
    """The metrics of an epoch's last step, with those of the full validation set; notes how the epoch did."""
    progress = run.progress
    progress.epochs += 1
    if not run.validation:
        return metrics
    found = validate(run, run.validation, "full_valid")
    loss = found["full_valid_loss"]
    if math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss):
        progress.best_loss, progress.best_step, progress.epochs_without_gain = loss, progress.step, 0
    else:
        progress.epochs_without_gain += 1
    progress.stopped_early = 0 < run.config.evaluation.patience <= progress.epochs_without_gain
    return replace(metrics, message=f"{metrics.message}, full validation loss={loss:.2f}", data={**metrics.data, **found})


def _end_epoch(run: Run) -> Iterator[Event]:
    """The checkpoint of the epoch, and whether to go on."""
    progress = run.progress
    yield from _checkpoint(run)
    if progress.stopped_early:
        text = f"Stopped early: {progress.epochs_without_gain} epochs without a better validation loss than {progress.best_loss:.3f}"
        yield Event(progress.step, text, {"best_step": progress.best_step, "best_loss": progress.best_loss})


def _checkpoint(run: Run) -> Iterator[Event]:
    """Save, or say why not: a full disk costs the newest checkpoint, not the run."""
    try:
        place = _save(run)
    except checkpoint.DiskFull as problem:
        yield Event(run.progress.step, problem.message, {"code": problem.code}, "warn")
        return
    data = {"checkpoint": place.name, "epoch": checkpoint.state_of(place)["epoch"]}
    yield Event(run.progress.step, f"Checkpoint created at step {run.progress.step}", data)


def _save(run: Run) -> Path:
    ends = run.progress.step == run.progress.epochs * steps_per_epoch(len(run.rows), run.plan.batch_size)
    state = {"progress": asdict(run.progress), "epoch": run.progress.epochs if ends else None}
    place = checkpoint.save(run.checkpoints, run.progress.step, run.model, run.tokenizer, run.optimizer, state)
    _prune(run)
    return place


def _prune(run: Run) -> None:
    """Keep the two newest (should the last one be damaged), the best, and the last few epochs' checkpoints."""
    saved = checkpoint.saved(run.checkpoints)
    epochs = [place for place in saved if checkpoint.ends_epoch(place)]
    kept = {*saved[-2:], *epochs[-run.config.checkpoints.keep :]}
    for place in saved:
        if place not in kept and int(place.name[5:]) != run.progress.best_step:
            checkpoint.remove(place)


def _diverged(run: Run, step: int) -> RunFailed:
    good = checkpoint.saved(run.checkpoints)
    kept = f"The last good checkpoint is {good[-1]}" if good else "There is no checkpoint before that"
    return RunFailed(
        f"The loss was not finite for {BAD_STEPS} steps in a row, up to step {step}. {kept}. Lower the learning rate",
        code="non_finite_loss",
        param="optimizer.learning_rate",
    )


def _finish(run: Run, forecast: Forecast) -> Iterator[Event]:
    """Write the result: the last weights, or the best ones where early stopping was asked for."""
    progress = run.progress
    best = run.checkpoints / f"step-{progress.best_step:08d}"
    if run.config.evaluation.patience and progress.best_step != progress.step and best.is_dir():
        checkpoint.restore_weights(best, run.model)
        yield Event(progress.step, f"The result is the best checkpoint, step {progress.best_step}", {"checkpoint": best.name})
    result = run.config.out / "model"
    checkpoint.write_folder(result, lambda folder: checkpoint.save_model(run.model, run.tokenizer, folder))
    write_card(run)
    trunk.forget(run)
    outcome = forecast.outcome()
    yield outcome
    data = {
        "model": str(result),
        "trained_tokens": progress.trained_tokens,
        "peak_memory_bytes": outcome.data["peak_memory_bytes"],
        "best_loss": progress.best_loss,
    }
    yield Event(progress.step, "The run has finished", data)
    write_json(run.config.out / "exit.json", {"status": "succeeded", "step": progress.step})
