"""`tunewright demo`: the whole road on the built-in model and data, with the numbers before and after."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tunewright.cli.display import printable
from tunewright.cli.evaluate import compared, measured
from tunewright.cli.run import run_to_end
from tunewright.config import TrainConfig
from tunewright.data import formats
from tunewright.data.check import check, render
from tunewright.errors import BadConfig

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
# Three passes are what the built-in model needs to tell the intents apart. `settings` is also what the built-in model's card measures its worth with.
SETTINGS = {
    "tuning": {"kind": "lora", "rank": 16, "alpha": 32},
    "hyperparameters": {"n_epochs": 3, "batch_size": 8},
    "optimizer": {"learning_rate": 3e-3},
    "schedule": {"kind": "linear", "warmup": 0.05},
    "precision": "fp32",  # the same on every machine, or nearly
}


def settings(model: str, out: Path) -> TrainConfig:
    """The demo's recipe for a model and a run folder."""
    data = {"data": str(SAMPLE / "train.jsonl"), "validation": str(SAMPLE / "validation.jsonl")}
    return TrainConfig.parse({**data, "model": model, "out": str(out), **SETTINGS})


def demo(out: Path, model: str = "nano", console: Console | None = None) -> None:
    """Check, measure, tune, measure again, show. Raises BadConfig where `out` holds something else than a demo."""
    begun = time.monotonic()
    console = console or Console()
    config = settings(model, out)
    _make_room(out, config)
    console.print("Support messages -> JSON with intent, product and urgency.\n", style="bold", highlight=False)
    console.print("1. Check the data", style="bold")
    console.print(render(check(config.data, config.validation)).replace(f"{SAMPLE}/", ""), highlight=False, markup=False)
    test = formats.load(SAMPLE / "test.jsonl", minimum=1)
    console.print(f"\n2. Measure {model} on {len(test)} held-out rows", style="bold")
    with console.status("answering"):
        before = measured(model, test, generate=True)
    console.print(f"\n3. Tune it, into {out}", style="bold")
    if code := run_to_end(config, console=console):
        raise SystemExit(code)
    console.print("\n4. Measure again, on the same rows", style="bold")
    with console.status("answering"):
        after = measured(str(out), test, generate=True)

    from tunewright.evaluate.verdict import difference

    console.print(compared(difference(before, after)))
    answers = Table("message", "before", "after", "", title="Three of the held-out rows", title_justify="left", show_lines=True)
    for i in (0, len(test) // 2, len(test) - 1):
        right = "[green]right[/]" if after.answers[i] == after.expected[i] else "[red]wrong[/]"
        message = test[i].messages[-2].content  # type: ignore[union-attr]
        answers.add_row(message, _short(before.answers[i]), _short(after.answers[i]), right)
    console.print(answers)
    console.print(f"The tuned model lies in {out / 'model'}; all of it took {time.monotonic() - begun:.0f} s.", highlight=False)
    console.print(f"Talk to it:  .venv/bin/tunewright chat {out}", highlight=False)


def _short(answer: str | None, limit: int = 90) -> str:
    text = " ".join(printable(answer or "").split())
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("[", "\\[")


def _make_room(out: Path, config: TrainConfig) -> None:
    """Remove an earlier demo. Raises BadConfig where anything else lies there."""
    if out.exists() and not out.is_dir():
        raise BadConfig(f"{out} is a file; choose another place with --out", code="folder_unwritable", param="--out")
    if not out.exists() or not any(out.iterdir()):
        return
    from tunewright.train.folder import read_config

    # The whole recipe, not the data alone: a run of one's own on the sample is not ours to remove.
    if read_config(out).model_copy(update={"out": config.out, "model": config.model}) != config:
        raise BadConfig(f"{out} holds another run than a demo; choose another place with --out", code="folder_holds_another_run", param="--out")
    shutil.rmtree(out)
