"""Other tools' formats and containers: each spelling gives the same examples, and what is converted reads back the same."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from typer.testing import CliRunner

from tunewright.cli.commands import app
from tunewright.data.convert import convert
from tunewright.data.example import Chat, Completion, Message, Pair
from tunewright.data.formats import Reading, read

CALL = {"id": "call_1", "type": "function", "function": {"name": "rain", "arguments": '{"city": "Rome"}'}}
TOOL = {"type": "function", "function": {"name": "rain", "parameters": {}}}
SYSTEM, USER, ANSWER = Message("system", "s"), Message("user", "u"), Message("assistant", "a", True)


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def reading(folder: Path, *rows: Any, name: str = "data.jsonl") -> Reading:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(folder / name, 1)


SAME: dict[str, tuple[dict[str, Any], Any]] = {
    "alpaca": ({"instruction": "u", "input": "", "output": "a"}, Chat((USER, ANSWER))),
    "alpaca, all": (
        {"instruction": "u", "input": "more", "output": "a", "system": "s", "history": [["u", "a"]]},
        Chat((SYSTEM, USER, ANSWER, Message("user", "u\n\nmore"), ANSWER)),
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s"}, Chat((SYSTEM, USER, ANSWER))),
    "sharegpt, tools": (
        {
            "conversations": [
                {"from": "human", "value": "u"},
                {"from": "function_call", "value": '{"name": "rain", "arguments": {"city": "Rome"}}'},
                {"from": "observation", "value": "no"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": '[{"name": "rain", "parameters": {}}]',
        },
        Chat(
            (USER, Message("assistant", "", True, {"tool_calls": [CALL]}), Message("tool", "no", False, {"tool_call_id": "call_1"}), ANSWER),
            tools=(TOOL,),
        ),
    ),
    "question + answer": ({"question": "u", "answer": "a"}, Chat((USER, ANSWER))),
    "document": ({"text": "all of it"}, Completion("", "all of it")),
}


@pytest.mark.parametrize("case", SAME)
def test_what_other_tools_write(tmp_path: Path, case: str) -> None:
    record, expected = SAME[case]
    result = reading(tmp_path, record)
    assert result.faults == []
    assert result.examples == [replace(expected, line=1)]


better, worse = Chat((USER, Message("assistant", "good", True)), 1), Chat((USER, Message("assistant", "bad", True)), 1)
PAIRS = {
    "OpenAI": {
        "input": {"messages": [said("user", "u")]},
        "preferred_output": [said("assistant", "good")],
        "non_preferred_output": [said("assistant", "bad")],
    },
    "messages": {"prompt": [said("user", "u")], "chosen": [said("assistant", "good")], "rejected": [said("assistant", "bad")]},
    "prompt inside": {"chosen": [said("user", "u"), said("assistant", "good")], "rejected": [said("user", "u"), said("assistant", "bad")]},
    "prompt twice": {
        "prompt": "u",
        "chosen": [said("user", "u"), said("assistant", "good")],
        "rejected": [said("user", "u"), said("assistant", "bad")],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "u"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "Alpaca": {"instruction": "u", "input": "", "chosen": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("case", PAIRS)
def test_every_spelling_of_a_pair_is_the_same_pair(tmp_path: Path, case: str) -> None:
    result = reading(tmp_path, PAIRS[case])
    assert result.faults == []
    assert result.examples == [Pair(better, worse, 1)]


def test_a_dialogue_as_text(tmp_path: Path) -> None:
    result = reading(tmp_path, {"chosen": "\n\nHuman: u\n\nAssistant: good", "rejected": "\n\nHuman: u\n\nAssistant: bad"})
    prompt = "\n\nHuman: u\n\nAssistant:"
    assert result.examples == [Pair(Completion(prompt, " good", 1), Completion(prompt, " bad", 1), 1)]


BAD: dict[str, tuple[Any, str]] = {
    "alpaca without output": ({"instruction": "u"}, "missing_key"),
    "alpaca's output empty": ({"instruction": "u", "output": " "}, "empty_content"),
    "alpaca's input a list": ({"instruction": "u", "input": [1], "output": "a"}, "input_not_text"),
    "alpaca's history": ({"instruction": "u", "output": "a", "history": [["u"]]}, "bad_history"),
    "sharegpt of a stranger": ({"conversations": [{"from": "alien", "value": "u"}]}, "unknown_role"),
    "sharegpt no list": ({"conversations": "u"}, "messages_not_a_list"),
    "sharegpt ends with the user": ({"conversations": [{"from": "gpt", "value": "u"}, {"from": "human", "value": "u"}]}, "last_turn_not_assistant"),
    "sharegpt's call no JSON": ({"conversations": [{"from": "function_call", "value": "rain("}]}, "not_json"),
    "sharegpt's call no call": ({"conversations": [{"from": "function_call", "value": "3"}]}, "bad_tool_calls"),
    "question null": ({"question": None, "answer": "a"}, "no_content"),
    "nothing shared": ({"chosen": "a", "rejected": "b"}, "missing_key"),
    "document of a number": ({"text": 3}, "text_not_text"),
    "document empty": ({"text": "\n"}, "empty_text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_of_them_is_named(tmp_path: Path, case: str) -> None:
    record, code = BAD[case]
    result = reading(tmp_path, record)
    assert result.examples == []
    assert [(fault.line, fault.code) for fault in result.errors] == [(1, code)]


def test_a_first_row_decides_and_can_be_overruled(tmp_path: Path) -> None:
    result = reading(tmp_path, {"text": "a", "label": "b"}, {"text": "c"})
    assert [(fault.line, fault.code) for fault in result.errors] == [(2, "missing_key")]
    result = read(tmp_path / "data.jsonl", 1, "document")  # forced to plain text, every block of lines is one
    assert [example.line for example in result.examples] == [1]


ROWS = [{"messages": [{**said("user", f"u{i}"), "name": None}, {**said("assistant", "a"), "name": "x" if i == 2 else None}]} for i in range(600)]


def write_arrow(path: Path, stream: bool) -> None:
    table = pa.Table.from_pylist(ROWS)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(path, table.schema) as sink:
        sink.write_table(table)


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream", "gz", "zst", "folder"])
def test_every_container_holds_the_same(tmp_path: Path, kind: str) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    path = tmp_path / "data"
    match kind:
        case "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path)
        case "gz":
            path.write_bytes(gzip.compress(text))
        case "zst":
            path.write_bytes(zstandard.compress(text))
        case "folder":
            path.mkdir()
            write_arrow(path / "data-00000-of-00001.arrow", True)
            (path / "state.json").write_text("{}")
        case _:
            write_arrow(path, kind == "arrow stream")
    expected = [Chat((Message("user", f"u{i}"), Message("assistant", "a", True, {"name": "x"} if i == 2 else {})), i + 1) for i in range(600)]
    # JSON lines keep `"name": null`, which says nothing; columns cannot leave it out.
    found = read(path, 1)
    assert found.errors == []
    assert [(e.line, [(m.role, m.content) for m in e.messages]) for e in found.examples if isinstance(e, Chat)] == [
        (e.line, [(m.role, m.content) for m in e.messages]) for e in expected
    ]
    if kind in ("parquet", "arrow file", "arrow stream", "folder"):
        assert found.examples == expected


def test_names_of_labels_come_from_the_datasets_library(tmp_path: Path) -> None:
    features = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = pa.table({"text": ["a", "b"], "label": [1, 0]}).replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [e.label for e in read(tmp_path / "a.parquet", 1).examples] == ["pos", "neg"]  # type: ignore[union-attr]


def test_several_files_count_on(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "c", "label": "b"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "d", "label": "b"}\n\n{"text": ""}\n')
    result = read(tmp_path / "*.jsonl", 1)
    assert [example.line for example in result.examples] == [1, 2, 3]
    assert {(f.line, f.code) for f in result.faults} == {
        (1, "file_begins"),
        (3, "file_begins"),
        (4, "blank_line"),
        (5, "missing_key"),
        (5, "empty_text"),
    }
    assert [f.code for f in read(tmp_path / "*.csv", 1).faults] == ["no_such_file"]


def test_plain_text_and_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n \nthree\n")
    assert read(tmp_path / "a.txt", 1).examples == [Completion("", "one\ntwo", 1), Completion("", "three", 5)]
    (tmp_path / "a.tsv").write_text("text\tlabel\na, b; c\tx\n")
    assert [e.text for e in read(tmp_path / "a.tsv", 1).examples] == ["a, b; c"]  # type: ignore[union-attr]


def test_zstd_of_several_frames_and_cut_anywhere(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{i} " + "x" * 3000, "label": "b"}).encode() + b"\n" for i in range(40)]
    packed = b"".join(zstandard.compress(b"".join(rows[i : i + 10])) for i in range(0, 40, 10))
    (tmp_path / "a.zst").write_bytes(packed)
    assert len(read(tmp_path / "a.zst").examples) == 40
    for cut in (10, len(packed) // 3, len(packed) - 1):
        (tmp_path / "a.zst").write_bytes(packed[:cut])
        assert [fault.code for fault in read(tmp_path / "a.zst").errors] == ["damaged_file"]


def test_packed_text_stays_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress((b" " * 999_999 + b"\n") * 101))
    tracemalloc.start()
    result = read(tmp_path / "a.gz", 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [fault.code for fault in result.errors] == ["expands_too_much"]
    assert peak < 60_000_000


@pytest.mark.parametrize("case", [*SAME, *PAIRS])
def test_what_is_converted_reads_back_the_same(tmp_path: Path, case: str) -> None:
    first = reading(tmp_path, SAME[case][0] if case in SAME else PAIRS[case])
    convert(first.path, tmp_path / "out.jsonl")
    second = read(tmp_path / "out.jsonl", 1)
    assert second.faults == []
    assert second.examples == first.examples


def test_weights_survive_and_rows_with_errors_are_said(tmp_path: Path) -> None:
    kept = {"messages": [said("user", "u"), {**said("assistant", "no"), "weight": 0}, said("user", "u"), said("assistant", "a")]}
    (tmp_path / "a.jsonl").write_text(json.dumps(kept) + "\n" + json.dumps({"messages": []}) + "\n")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert done.exit_code == 3
    assert "no_messages" in done.output and "1 rows written" in done.output
    assert json.loads((tmp_path / "b.jsonl").read_text()) == kept
    again = CliRunner().invoke(app, ["convert", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert getattr(again.exception, "code", "") == "file_exists"
    unknown = CliRunner().invoke(app, ["check", str(tmp_path / "a.jsonl"), "--format", "alpacca"])
    assert "alpaca" in str(unknown.exception)
