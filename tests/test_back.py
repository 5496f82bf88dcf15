"""Back from OpenAI's records: what is written reads as the same examples, and what would lose something is refused by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunewright.cli.commands import app
from tunewright.data.back import _same, convert_to
from tunewright.data.formats import Format, read
from tunewright.errors import BadConfig, BadData


def chat(*turns: str, system: str = "", **more: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(turns)
    start = [{"role": "system", "content": system}] if system else []
    return {"messages": start + [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)], **more}


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALLING = chat("q", tools=TOOLS)
CALLING["messages"] += [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "1", "tool_call_id": "call_1"},
    {"role": "assistant", "content": "one"},
]
UNLEARNT = chat("a", "b", "c", "d")
UNLEARNT["messages"][1]["weight"] = 0
PLAIN = [chat("what, is\nthis?", ' "quoted" '), chat("tab\there", "ä日本\u2028")]
SEVERAL = [chat("a", "b", "c", "d", system="s"), chat("q", "a")]


def write(folder: Path, *records: Any) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder / "a.jsonl"


@pytest.mark.parametrize(
    ("to", "name", "rows"),
    [
        ("chat", "b.jsonl", [*SEVERAL, CALLING, UNLEARNT]),
        ("chat", "b.parquet", SEVERAL),
        ("labelled", "b.csv", PLAIN),
        ("labelled", "b.tsv", PLAIN),
        ("labelled", "b.parquet", PLAIN),
        ("question_answer", "b.jsonl", PLAIN),
        ("question_answer", "b.csv", PLAIN),
        ("alpaca", "b.jsonl", [*PLAIN, *SEVERAL]),
        ("sharegpt", "b.jsonl", [*PLAIN, *SEVERAL, CALLING, UNLEARNT]),
        ("completion", "b.csv", [{"prompt": "p, q", "completion": " c\n"}, {"prompt": "", "completion": "x"}]),
        ("document", "b.jsonl", [{"prompt": "", "completion": "one\n\ntwo"}]),
        ("pair", "b.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}]),
    ],
)
def test_there_and_back(tmp_path: Path, to: Format, name: str, rows: list[Any]) -> None:
    source = write(tmp_path, *rows)
    assert len(convert_to(source, tmp_path / name, to).examples) == len(rows)
    there, here = read(tmp_path / name, 1, None if to == "document" else to), read(source, 1)
    assert not there.errors
    assert all(_same(one, other) for one, other in zip(here.examples, there.examples, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.jsonl", name])


@pytest.mark.parametrize(
    ("to", "rows", "lines"),
    [
        ("labelled", [chat("q", "a"), chat("q", "a", system="s"), chat("a", "b", "c", "d")], [2, 3]),
        ("question_answer", [chat("q", "a"), UNLEARNT], [2]),
        ("alpaca", [chat("q", "a"), CALLING, UNLEARNT, chat("a", "b", "c", "d")], [2, 3]),
        ("sharegpt", [{"messages": [{"role": "developer", "content": "d"}, *chat("q", "a")["messages"]]}], [1]),
        ("completion", [chat("q", "a")], [1]),
        ("document", [{"prompt": "p", "completion": "c"}], [1]),
        ("pair", [chat("q", "a")], [1]),
        ("chat", [{"prompt": "p", "completion": "c"}], [1]),
    ],
)
def test_what_would_be_lost_is_refused(tmp_path: Path, to: Format, rows: list[Any], lines: list[int]) -> None:
    with pytest.raises(BadData) as refused:
        convert_to(write(tmp_path, *rows), tmp_path / "b.jsonl", to)
    assert [(fault.line, fault.code) for fault in refused.value.faults] == [(line, "would_be_lost") for line in lines]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_on_the_command_line(tmp_path: Path) -> None:
    source, out = write(tmp_path, *PLAIN), tmp_path / "b.csv"
    run = lambda *words: CliRunner().invoke(app, ["convert", str(source), *map(str, words)])  # noqa: E731
    assert run(out, "--to", "labelled").exit_code == 0
    assert out.read_text(encoding="utf-8").startswith("text,label")
    assert isinstance(run(out, "--to", "labelled").exception, BadConfig)
    assert getattr(run(tmp_path / "c", "--to", "yaml").exception, "param", None) == "--to"
    assert getattr(run(tmp_path / "c.csv", "--to", "chat").exception, "code", None) == "not_for_csv"
