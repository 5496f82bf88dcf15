"""What a run was, on one page: the README.md of a run folder and of its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from tunewright.event import Event, read_events
from tunewright.models import quantized

if TYPE_CHECKING:
    from tunewright.train.start import Run


def write_card(run: Run) -> None:
    """Write the model card beside the events and into the model's folder."""
    events = list(read_events(run.config.out / "events.jsonl"))
    text = _card(run, events)
    for folder in (run.config.out, run.config.out / "model"):
        (folder / "README.md").write_text(text, encoding="utf-8")


def _card(run: Run, events: list[Event]) -> str:
    ledgers = [event for event in events if "kept" in event.data]
    data = "\n".join(f"- {event.message}" for event in {e.message: e for e in ledgers}.values())
    dropped = sorted({event.message for event in events if event.level == "warn" and "lines" in event.data})
    epochs = {e.step: e.data for e in events if "full_valid_loss" in e.data}
    names = [name for name in next(iter(epochs.values()), {}) if name.startswith("full_valid_")]
    heading = " | ".join(["epoch", "step", *(name.removeprefix("full_valid_").replace("_", " ") for name in names)])
    rows = [" | ".join([str(data["epoch"]), str(step), *(f"{data[name]:.4f}" for name in names)]) for step, data in epochs.items()]
    table = "\n".join(f"| {line} |" for line in [heading, "|".join("---" for _ in (*names, 1, 2)), *rows])
    library = "peft" if run.config.tuning.kind in ("lora", "prompt") else "transformers"
    bits = quantized.bits_of(run.model)
    alike = f"\nThe base was held in {bits} bits ({quantized.FILE} says how); lay the adapter on a base that is held alike." if bits else ""
    config = run.config.model_dump(mode="json", exclude={"out"})
    return f"""---
base_model: {run.base}
library_name: {library}
tags: [tunewright, {run.config.tuning.kind}, {run.config.method.kind}]
---

# A {run.config.tuning.kind} tuning of {run.base}

Trained by Tunewright in {run.progress.step} steps; {run.progress.trained_tokens:,} trained tokens were learnt from, epochs counted.

## Data

{data}
{chr(10).join(f"- {line}" for line in dropped)}

## Validation

{table if epochs else "No validation file was given: nothing here says how well the model does on rows it has not seen."}

## Settings

```yaml
{yaml.safe_dump(config, sort_keys=False).strip()}
```

As resolved on this machine: {", ".join(f"{key} {value}" for key, value in run.plan.to_dict().items())}.

## Use

`tunewright chat MODEL_FOLDER`, `tunewright evaluate --data FILE --model MODEL_FOLDER`, or plain {library}.{alike}
"""
