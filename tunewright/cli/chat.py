"""`tunewright chat`: one model, one conversation, the same rendering as in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tunewright.cli.display import printable
from tunewright.data.example import Chat, Message

if TYPE_CHECKING:
    from tunewright.models.load import Loaded


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
    if loaded.task == "classification":
        return _classify(loaded, console, name, message, system)
    if loaded.task == "text_to_text":
        return _translate(loaded, console, name, message, system, max_tokens)
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


def _classify(loaded: Loaded, console: Console, name: str, message: str | None, system: str | None) -> None:
    """The likeliest labels of each text, with their probabilities, from the likeliest down."""
    from tunewright.models.classify import classify

    if message is None:
        console.print(f"{name} tells {len(loaded.labels):,} labels apart. An empty line leaves.", style="dim", highlight=False, markup=False)
    while text := message if message is not None else _ask(console):
        [chances] = classify(loaded, [f"{system}\n\n{text}" if system else text])
        for label, chance in list(chances.items())[:3]:
            print(f"{chance * 100:5.1f} %  {printable(label)}", flush=True)
        if message is not None:
            return


def _translate(loaded: Loaded, console: Console, name: str, message: str | None, system: str | None, max_tokens: int) -> None:
    """What an encoder-decoder makes of each text, one by one."""
    from tunewright.data.sources import encode
    from tunewright.models.translate import translate

    if message is None:
        console.print(f"{name} turns one text into another. An empty line leaves.", style="dim", highlight=False, markup=False)
    while text := message if message is not None else _ask(console):
        source = encode(f"{system}\n\n{text}" if system else text, loaded.tokenizer)
        [(answer, _)] = translate(loaded.model, loaded.tokenizer, [source], min(max_tokens, loaded.context - 1))
        print(printable(answer), flush=True)
        if message is not None:
            return


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
