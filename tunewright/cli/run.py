"""Events -> the terminal: a live bar where someone watches, plain lines where not, JSON where a program reads."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tunewright.config import TrainConfig
from tunewright.event import Event

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 75}  # 75, EX_TEMPFAIL: run me again


def run_to_end(config: TrainConfig, as_json: bool = False, console: Console | None = None) -> int:
    """Train, show the events, and return the exit code. Ctrl-C and SIGTERM stop after the step, with a checkpoint."""
    from tunewright.train.loop import train

    console = console or Console()
    with stopping() as stopped, shown(config, as_json, console) as show:
        events = train(config)
        for event in events:
            show(event)
            if stopped:
                events.close()
                break
    if stopped and event.message != "The run has finished":
        if not as_json:
            console.print(f"Stopped at step {event.step}. Go on with:  tunewright train --resume {config.out}", highlight=False)
        return STOPPED[stopped[0]]
    return 0


def show_rates(config: TrainConfig, as_json: bool = False) -> int:
    """Run the learning-rate range test and draw its curve. Returns the exit code."""
    from tunewright.train.find_rate import find_rate

    console = Console()
    with shown(config, as_json, console) as show:
        for event in find_rate(config):
            show(event)
    if not as_json:
        rates, losses = event.data["rates"], event.data["losses"]
        lowest, highest = min(losses), max(losses)
        for rate, loss in list(zip(rates, losses, strict=True))[:: max(1, len(rates) // 24)]:
            bar = "█" * round(1 + 40 * (loss - lowest) / max(1e-9, highest - lowest))
            console.print(f"{rate:8.1e}  {loss:6.3f}  {bar}", highlight=False)
        console.print(f"Suggested:  --set optimizer.learning_rate={event.data['suggestion']:.1e}", highlight=False)
    return 0


@contextmanager
def stopping() -> Iterator[list[signal.Signals]]:
    """The signals that asked to stop. A second Ctrl-C no longer waits for the step."""
    stopped: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in STOPPED}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shown(config: TrainConfig, as_json: bool, console: Console) -> Iterator[Callable[[Event], None]]:
    """A function that shows an event, in the way that suits who reads."""
    if as_json:
        yield lambda event: print(event.to_json(), flush=True)
    elif console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task("", total=None, loss="", speed="")
            yield lambda event: _on_bar(progress, task, event)
    else:
        yield lambda event: _line(event)


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def _on_bar(progress: Progress, task: int, event: Event) -> None:
    data = event.data
    if "total_steps" in data:
        progress.update(progress.task_ids[task], total=data["total_steps"], completed=event.step)
    if "train_loss" in data:
        speed = f"{data['tokens_per_second']:,.0f} tokens/s"
        progress.update(progress.task_ids[task], loss=f"loss {data['train_loss']:.3f}", speed=speed)
        if text := _epoch(event):
            progress.console.print(text, highlight=False)
    else:
        style = {"warn": "yellow", "error": "red"}.get(event.level, "dim")
        progress.console.print(event.message, style=style, highlight=False, markup=False)


def _line(event: Event) -> None:
    """Every event but most of the steps: the first, and then each tenth of the run."""
    total = event.data.get("total_steps", 0)
    if "train_loss" in event.data:
        data = event.data
        if text := _epoch(event):
            print(text, flush=True)
        if event.step != 1 and event.step % max(1, total // 10):
            return
        print(f"step {event.step}/{total}  loss {data['train_loss']:.3f}  {data['tokens_per_second']:,.0f} tokens/s", flush=True)
    else:
        print(event.message, file=sys.stderr if event.level != "info" else sys.stdout, flush=True)


def _epoch(event: Event) -> str:
    """How the full validation set did, where an event says it."""
    found = {name.removeprefix("full_valid_").replace("_", " "): value for name, value in event.data.items() if name.startswith("full_valid_")}
    return f"Epoch {event.data['epoch']}: full validation " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()) if found else ""
