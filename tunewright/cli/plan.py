"""`tunewright plan`: what a run will take, from a few measured steps, and what to change where it does not fit."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console

from tunewright.cli.display import hanging
from tunewright.config import TrainConfig
from tunewright.event import duration


def plan(config: TrainConfig, memory_gb: float | None, as_json: bool) -> int:
    """Measure, show, and look for what fits where the run does not. Returns the exit code: 4 where it does not fit."""
    from tunewright.errors import Problem
    from tunewright.train.fit import nearest
    from tunewright.train.measure import apart

    console = Console(highlight=False)
    limit = None if memory_gb is None else int(memory_gb * 1e9)
    with console.status("measuring a few steps"):
        found: dict[str, Any] | None
        try:
            found, reason = apart(config, limit), None
        except Problem as problem:
            if problem.code != "out_of_memory":
                raise
            found, reason = None, problem.message
    fits = found is not None and found["fits"]
    if not as_json:
        said = hanging(render(found), 9, console.width) if found else f"It does not fit: {reason}"
        console.print(said, markup=False, soft_wrap=found is not None)
    others = []
    if not fits:
        with console.status("trying what would fit"):
            for change, tried in nearest(config, found, limit or _room(found)):
                others.append({"settings": change.settings, "changes": change.lever, "price": change.price, "estimate": tried})
    if as_json:
        print(json.dumps({"fits": fits, "estimate": found, "reason": reason, "would_fit": others}))
    elif not fits:
        _show(console, others)
    return 0 if fits else 4


def _room(found: dict[str, Any] | None) -> int:
    """The memory that the estimate was made for; where none could be made, what is free."""
    import psutil

    return found["memory_limit_bytes"] if found else int(psutil.virtual_memory().available)


def _show(console: Console, others: list[dict[str, Any]]) -> None:
    if not others:
        console.print("\nNo single change was found that fits. Choose a smaller model, or shorter rows and an adapter together.")
        return
    console.print("\nMeasured to fit, the nearest first:")
    for other in others:
        tried, settings = other["estimate"], " ".join(f"--set '{each}'" if " " in each else f"--set {each}" for each in other["settings"])
        takes = f"{_size(tried['estimated_peak_memory_bytes'])}, {duration(tried['estimated_seconds'])}"
        console.print(f"\n{settings}", markup=False, soft_wrap=True)  # whole lines: they are there to be copied
        console.print(hanging(f"    {other['changes']}: {takes}; {other['price']}", 4, console.width), markup=False, soft_wrap=True)


def render(found: dict[str, Any]) -> str:
    """An estimate as text."""
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in found["estimated_seconds_by_part"].items())
    memory = ", ".join(f"{name.replace('_', ' ')} {_size(size)}" for name, size in found["estimated_memory_bytes_by_part"].items())
    finish = time.strftime("%a %H:%M", time.localtime(found["estimated_finish"]))
    distinct = found["computed_tokens"] / max(1, found["tokens"])
    lines = [
        f"model    {found['model']}: {found['trainable_parameters']:,} of {found['parameters']:,} weights train",
        f"work     {found['rows']:,} rows, {found['epochs']} epochs, {found['steps']:,} steps of {found['batch_size']} rows",
        f"tokens   {found['tokens']:,} read, {found['computed_tokens']:,} of them computed ({distinct:.0%}), {found['trained_tokens']:,} learnt; "
        f"{found['distinct_tokens']:,} distinct in the data",
        f"time     {duration(found['estimated_seconds'])}: {parts}; begun now, done {finish}",
        f"memory   {_size(found['estimated_peak_memory_bytes'])} at the peak, of {_size(found['memory_limit_bytes'])}: {memory}",
        f"disk     {_size(found['estimated_disk_bytes'])}, of {_size(found['disk_free_bytes'])} free"
        + (f"; while it runs {_size(found['estimated_cache_bytes'])} more for the frozen layers' states" if found["estimated_cache_bytes"] else ""),
        f"cost     {found['estimated_cost']:,.2f} {found['currency']}"
        if found["estimated_cost"]
        else "cost     nothing: no prices are set (prices.per_hour)",
        f"fits     {'yes' if found['fits'] else 'no: the peak and a tenth more are wanted'}",
        f"from     {found['measured_steps']} measured steps, {found['precision']} on {found['threads']} threads, rows as {found['layout']}",
    ]
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
