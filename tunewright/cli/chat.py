"""`tunewright chat`: one model, one conversation, the same rendering as in training."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from tunewright.cli.display import printable
from tunewright.data.example import Chat, Message


def chat(name: str, message: str | None, system: str | None, max_tokens: int, temperature: float, top_p: float, seed: int | None) -> None:
    """Answer one message, or talk until an empty line. Raises BadModel, or Problem where the conversation is too long."""
    from tunewright.data.tokens import next_turn
    from tunewright.models.generate import stream
    from tunewright.models.load import load

    console = Console()
    if message is None:
        with console.status(f"loading {name}"):
            loaded = load(name)
    else:
        loaded = load(name)
    system = system if system is not None else _system_of(name)
    turns = [Message("system", system)] if system else []
    if message is None:
        console.print(f"{name}{f', told: {printable(system)}' if system else ''}. An empty line leaves.", style="dim", highlight=False, markup=False)
    while text := message if message is not None else _ask(console):
        turns.append(Message("user", text))
        answer = ""
        for piece in stream(loaded.model, loaded.tokenizer, next_turn(Chat(tuple(turns)), loaded.tokenizer), max_tokens, temperature, top_p, seed):
            print(printable(piece), end="", flush=True)
            answer += piece
        print()
        if message is not None:
            return
        turns.append(Message("assistant", answer))


def _ask(console: Console) -> str:
    try:
        return console.input("[bold]> [/]").strip()
    except EOFError:
        return ""


def _system_of(name: str) -> str | None:
    """The system prompt that every row of a run's training data shares: what the model was tuned under."""
    from tunewright.data import formats
    from tunewright.errors import Problem
    from tunewright.train.folder import read_config

    run = Path(name)
    run = run.parent if run.name == "model" else run
    if not (run / "events.jsonl").is_file():
        return None
    try:
        examples = formats.load(read_config(run).data)
    except (Problem, OSError, json.JSONDecodeError):
        return None  # the data has moved since: the conversation begins without one
    starts = {e.messages[0].content if isinstance(e, Chat) and e.messages[0].role == "system" else None for e in examples}
    return starts.pop() if len(starts) == 1 else None
