"""Reading data: every fault by line and code, no row lost, memory bounded."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data.example import Chat, Completion, Labelled, Message
from tunewright.data.formats import Reading, load, read
from tunewright.data.lines import MAX_LINE
from tunewright.errors import BadData

GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


def chat(*messages: dict[str, Any], **more: Any) -> str:
    return json.dumps({"messages": list(messages), **more})


def turn(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


USER, ANSWER = turn("user"), turn("assistant")
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

# The line is put between two sound rows, so it is line 2 and its neighbours must survive.
BAD_ROWS: dict[str, tuple[str | bytes, set[str]]] = {
    "plain text": ("hello", {"not_json"}),
    "cut off": (GOOD[:40], {"not_json"}),
    "single quotes": (str(json.loads(GOOD)), {"not_json"}),
    "comma at the end": (GOOD + ",", {"not_json"}),
    "trailing comma": ('{"text": "a", "label": "b",}', {"not_json"}),
    "python constant": ('{"text": "a", "label": None}', {"not_json"}),
    "raw tab in a string": ('{"text": "a\tb", "label": "c"}', {"not_json"}),
    "bad escape": ('{"text": "a\\x", "label": "c"}', {"not_json"}),
    "comment": ("// note", {"not_json"}),
    "two records on a line": (GOOD + " " + GOOD, {"several_records"}),
    "Latin-1": (b'{"text": "caf\xe9", "label": "x"}', {"not_utf8"}),
    "overlong UTF-8": (b'{"text": "\xc0\xaf", "label": "x"}', {"not_utf8"}),
    "surrogate in UTF-8": (b'{"text": "\xed\xa0\x80", "label": "x"}', {"not_utf8"}),
    "raw NUL": (b'{"text": "a\0b", "label": "x"}', {"nul_character"}),
    "only NUL": (b"\0" * 50, {"nul_character"}),
    "escaped NUL": (chat(turn("user", "a\0"), ANSWER), {"nul_character"}),
    "lone surrogate": (r'{"messages": [{"role": "assistant", "content": "\ud83d"}]}', {"lone_surrogate"}),
    "lone low surrogate in a key": (r'{"text": "a", "label": "b", "\uDC00": 1}', {"lone_surrogate"}),
    "NaN": ('{"prompt": "a", "completion": "b", "score": NaN}', {"not_a_number"}),
    "-Infinity": ('{"prompt": "a", "completion": "b", "score": -Infinity}', {"not_a_number"}),
    "1e999": ('{"prompt": "a", "completion": "b", "score": 1e999}', {"number_too_large"}),
    "huge integer": ('{"text": "a", "label": ' + "9" * 5000 + "}", {"number_too_large"}),
    "deep, ignored key": ('{"text": "a", "label": "b", "c": ' + "[" * 100 + "]" * 100 + "}", {"nested_too_deep"}),
    "nesting bomb": ("[" * 200_000 + "]" * 200_000, {"nested_too_deep"}),
    "nesting bomb, open": ('{"a":' * 200_000, {"nested_too_deep"}),
    "duplicate key": ('{"text": "a", "text": "b", "label": "c"}', {"duplicate_key"}),
    "duplicate key, deep": (GOOD.replace('"content": "a"', '"content": "a", "content": "c"'), {"duplicate_key"}),
    "list": ("[1, 2]", {"not_an_object"}),
    "null": ("null", {"not_an_object"}),
    "string": ('"a"', {"not_an_object"}),
    "number": ("7", {"not_an_object"}),
    "empty object": ("{}", {"unknown_record"}),
    "ShareGPT": ('{"conversations": []}', {"no_messages"}),
    "messages null": ('{"messages": null}', {"messages_not_a_list"}),
    "messages a string": ('{"messages": "hi"}', {"messages_not_a_list"}),
    "messages empty": ('{"messages": []}', {"no_messages"}),
    "message a string": (chat(USER, "hi", ANSWER), {"message_not_an_object"}),  # type: ignore[arg-type]
    "wrong role": (chat(turn("human"), ANSWER), {"unknown_role"}),
    "role of another case": (chat(turn("User"), ANSWER), {"unknown_role"}),
    "role with NUL": (chat(turn("system\0"), ANSWER), {"nul_character"}),
    "role a list": (chat({"role": ["user"], "content": "x"}, ANSWER), {"unknown_role"}),
    "no role": (chat({"content": "x"}, ANSWER), {"no_role"}),
    "no assistant": (chat(USER), {"no_assistant_turn"}),
    "ends with the user": (chat(USER, ANSWER, USER), {"last_turn_not_assistant"}),
    "empty content": (chat(turn("user", ""), ANSWER), {"empty_content"}),
    "white space": (chat(USER, turn("assistant", " \n")), {"empty_content"}),
    "no content": (chat(USER, {"role": "assistant"}), {"no_content"}),
    "content null": (chat(USER, turn("assistant", None)), {"no_content"}),
    "content a number": (chat(USER, turn("assistant", 7)), {"content_not_text"}),
    "content an object": (chat(turn("user", {"text": "a"}), ANSWER), {"content_not_text"}),
    "content an empty list": (chat(turn("user", []), ANSWER), {"content_not_text"}),
    "image": (chat(turn("user", [{"type": "image_url", "image_url": {"url": "u"}}]), ANSWER), {"unsupported_part"}),
    "part without text": (chat(turn("user", [{"type": "text"}]), ANSWER), {"unsupported_part"}),
    "part a string": (chat(turn("user", ["a"]), ANSWER), {"unsupported_part"}),
    "part of empty text": (chat(turn("user", [{"type": "text", "text": ""}]), ANSWER), {"empty_content"}),
    "weight 2": (chat(USER, turn("assistant", weight=2)), {"bad_weight"}),
    "weight true": (chat(USER, turn("assistant", weight=True)), {"bad_weight"}),
    "weight 0.5": (chat(USER, turn("assistant", weight=0.5)), {"bad_weight"}),
    "weight null": (chat(USER, turn("assistant", weight=None)), {"bad_weight"}),
    "weight on the user": (chat(turn("user", weight=1), ANSWER), {"weight_on_wrong_role"}),
    "all weights 0": (chat(USER, turn("assistant", weight=0)), {"nothing_to_learn"}),
    "tool without id": (chat(USER, turn("tool"), ANSWER), {"no_tool_call_id"}),
    "tool_calls empty": (chat(USER, turn("assistant", None, tool_calls=[])), {"bad_tool_calls"}),
    "tool call without name": (chat(USER, turn("assistant", tool_calls=[{"function": {}}])), {"bad_tool_calls"}),
    "tool_calls on the user": (chat(turn("user", tool_calls=[CALL]), ANSWER), {"tool_calls_on_wrong_role"}),
    "function_call": (
        chat(USER, turn("assistant", function_call={"name": "f", "arguments": ""})),
        {"function_call_unsupported"},
    ),
    "functions": (chat(USER, ANSWER, functions=[]), {"functions_unsupported"}),
    "tools an object": (chat(USER, ANSWER, tools={}), {"bad_tools"}),
    "name a number": (chat(turn("user", name=3), ANSWER), {"bad_name"}),
    "another format": ('{"prompt": "a", "completion": "b"}', {"mixed_formats"}),
    "completion missing": ('{"prompt": "a"}', {"missing_key"}),
    "completion null": ('{"prompt": "a", "completion": null}', {"completion_not_text"}),
    "completion empty": ('{"prompt": "a", "completion": ""}', {"empty_completion"}),
    "prompt a list": ('{"prompt": [1], "completion": "b"}', {"prompt_not_text"}),
    "label missing": ('{"text": "a"}', {"missing_key"}),
    "label a fraction": ('{"text": "a", "label": 0.5}', {"label_not_text"}),
    "label null": ('{"text": "a", "label": null}', {"label_not_text"}),
    "label and text empty": ('{"text": "", "label": ""}', {"empty_text", "empty_label"}),
    "several faults": (
        chat(turn("user", "", weight=1), turn("assistant", 7, weight=3), turn("bot")),
        {"empty_content", "weight_on_wrong_role", "content_not_text", "bad_weight", "unknown_role"},
    ),
}


BAD_CSV: dict[str, tuple[str | bytes, list[tuple[int, str]]]] = {
    "no header": ("good film,pos\nbad film,neg\n", [(0, "missing_header")]),
    "column missing": ("text,class\na,b\n", [(0, "missing_column")]),
    "column twice": ("text,label,text\na,b,c\n", [(0, "duplicate_column")]),
    "header only": ("text,label\n", [(0, "empty_file")]),
    "header's quote open": ('"text,label\na,b\n', [(0, "quote_never_closed")]),
    "header not UTF-8": (b"text,label,\xe9\na,b,c\n", [(0, "not_utf8")]),
    "too few fields": ("text,label\na\nb,c\n", [(2, "ragged_row")]),
    "too many fields": ("text,label\na,b\nwell, no,c\n", [(3, "ragged_row")]),
    "quote open": ('text,label\na,b\n"c,d\ne,f\n', [(3, "quote_never_closed")]),
    "stray quote": ('text,label\n"a"b,c\nd,e\n', [(2, "stray_quote")]),
    "line of the record's start": ('text,label\n"a\n\nb",c\n"d\ne",\nf,g\n', [(5, "empty_label")]),
    "fault inside a record": (b'text,label\n"a\n\xe9\nb",c\nd,\n', [(2, "not_utf8"), (5, "empty_label")]),
    "empty fields": ("text,label\n,\n", [(2, "empty_text"), (2, "empty_label")]),
    "NUL": ("text,label\na\0,b\n", [(2, "nul_character")]),
    "carriage returns alone": ("text,label\na\rb,c\nd,e\n", [(2, "bare_carriage_return")]),
    "several at once": (
        b'text,label\n\xe9,a\nb\n"c"d,e\nf,\n',
        [(2, "not_utf8"), (3, "ragged_row"), (4, "stray_quote"), (5, "empty_label")],
    ),
}


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty_file"),
    "blank lines": (b"\n  \n\r\n", "empty_file"),
    "only a BOM": (b"\xef\xbb\xbf", "empty_file"),
    "JSON array, indented": (b"[\n" + GOOD.encode() + b",\n" + GOOD.encode() + b"\n]\n", "json_array"),
    "JSON array on one line": (f"[{GOOD}, {GOOD}]".encode(), "json_array"),
    "JSON array, line by line": (f"[{GOOD},\n{GOOD}]".encode(), "json_array"),
    "indented object": (json.dumps(json.loads(GOOD), indent=1).encode(), "json_over_lines"),
    "UTF-16": (GOOD.encode("utf-16"), "utf16_file"),
    "UTF-16 without BOM": (GOOD.encode("utf-16-le"), "utf16_file"),
    "UTF-16 big-endian": (GOOD.encode("utf-16-be"), "utf16_file"),
    "UTF-32": (GOOD.encode("utf-32"), "utf16_file"),
    "gzip, cut off": (gzip.compress(GOOD.encode())[:-12], "damaged_file"),
    "gzip in gzip": (gzip.compress(gzip.compress(GOOD.encode())), "not_text"),
    "gzip bomb": (gzip.compress(bytes(150_000_000)), "expands_too_much"),
    "gzip bomb of lines": (gzip.compress((b" " * 999_999 + b"\n") * 101), "expands_too_much"),
    "zip or xlsx": (b"PK\x03\x04" + b"\0" * 40, "not_text"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00", "damaged_file"),
    "Parquet": (b"PAR1\x15\x04", "damaged_file"),
}


def reading(folder: Path, content: str | bytes, name: str = "data.jsonl", minimum: int = 1) -> Reading:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    result = read(path, minimum)
    account(result)
    return result


def account(result: Reading) -> None:
    """Rows in = examples + rows with an error; faults are in order and can be shown."""
    assert result.rows == len(result.examples) + len({fault.line for fault in result.errors if fault.line})
    assert [fault.line for fault in result.faults] == sorted(fault.line for fault in result.faults)
    for fault in result.faults:
        assert (fault.message + fault.mend).isprintable()
        assert not fault.mend.endswith(".")
        assert not fault.message.endswith(".")
    lines = [example.line for example in result.examples]
    assert lines == sorted(set(lines))


def codes(result: Reading) -> list[tuple[int, str]]:
    return [(fault.line, fault.code) for fault in result.errors]


def warned(result: Reading) -> list[tuple[int, str]]:
    return [(fault.line, fault.code) for fault in result.faults if fault.warning]


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_and_its_neighbours_stay(tmp_path: Path, case: str) -> None:
    row, expected = BAD_ROWS[case]
    raw = row if isinstance(row, bytes) else row.encode()
    result = reading(tmp_path, b"\n".join([GOOD.encode(), raw, GOOD.encode()]))
    assert {(2, code) for code in expected} == set(codes(result))
    assert [example.line for example in result.examples] == [1, 3]
    assert result.format == "chat"


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path: Path, case: str) -> None:
    content, expected = BAD_CSV[case]
    assert codes(reading(tmp_path, content, "data.csv")) == expected


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_holds_no_records(tmp_path: Path, case: str) -> None:
    content, code = BAD_FILES[case]
    result = reading(tmp_path, content)
    assert codes(result) == [(0, code)]
    assert result.rows == 0


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    paths = {tmp_path: "is_a_directory", tmp_path / "none": "no_such_file", fifo: "not_a_file"}
    paths |= {Path("/dev/zero"): "not_a_file", Path("a\0b"): "no_such_file", tmp_path / ("x" * 300): "not_readable"}
    for path, code in paths.items():
        result = read(path)
        account(result)
        assert codes(result) == [(0, code)], path
        with pytest.raises(BadData) as raised:
            load(path)
        assert raised.value.code == code


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_the_right_to_read(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0)
    assert codes(read(tmp_path / "a")) == [(0, "not_readable")]


def test_every_problem_of_a_file_at_once(tmp_path: Path) -> None:
    rows = [GOOD, *(row for row, _ in BAD_ROWS.values())]
    result = reading(tmp_path, b"\n".join(row if isinstance(row, bytes) else row.encode() for row in rows), minimum=10)
    expected = {(line, code) for line, (_, wanted) in enumerate(BAD_ROWS.values(), 2) for code in wanted}
    assert set(codes(result)) == expected
    with pytest.raises(BadData) as raised:
        load(result.path)
    assert list(raised.value.faults) == result.errors
    assert "line 2: This is not JSON" in raised.value.message


def test_what_is_accepted_with_a_warning(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + "\r\n".join([GOOD, "", " \t", GOOD]).encode() + b"\r\n\xef\xbb\xbf" + GOOD.encode()
    result = reading(tmp_path, content)
    assert [example.line for example in result.examples] == [1, 4, 5]
    assert result.rows == 3
    assert warned(result) == [(1, "byte_order_mark"), (2, "blank_line")]
    assert all("(2 lines)" in fault.message for fault in result.faults)


def test_unknown_keys_are_named_once_with_their_lines(tmp_path: Path) -> None:
    odd = chat(turn("user", mood="x"), turn("assistant", mood="y", refusal=None), id=1, parallel_tool_calls=True)
    result = reading(tmp_path, "\n".join([GOOD, odd, odd, GOOD]))
    assert not result.errors
    assert len(result.examples) == 4
    said = {(fault.line, fault.code, fault.message) for fault in result.faults}
    assert said == {
        (2, "unknown_key", "The key 'id' is not read (2 lines)"),
        (2, "unknown_key", "The key 'messages[].mood' is not read (2 lines)"),
        (2, "unknown_key", "The key 'messages[].refusal' is not read (2 lines)"),
        (2, "ignored_key", "The key 'parallel_tool_calls' changes nothing here (2 lines)"),
    }


def test_fewer_rows_than_needed(tmp_path: Path) -> None:
    nine = "\n".join([GOOD] * 9)
    assert codes(reading(tmp_path, nine, minimum=10)) == [(0, "too_few_examples")]
    assert not reading(tmp_path, nine, minimum=9).faults
    assert not reading(tmp_path, nine + "\n" + GOOD, minimum=10).faults
    with pytest.raises(BadData, match="9 rows; at least 10 are needed"):
        load(tmp_path / "data.jsonl") if reading(tmp_path, nine) else None


def test_chats_keep_what_they_say(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    row = chat(
        turn("developer", "d"),
        turn("user", [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}], name="Ann"),
        {"role": "assistant", "tool_calls": [CALL], "weight": 0},
        turn("tool", "", tool_call_id="c1"),
        turn("assistant", " Ünï 🎈\n", weight=1),
        tools=[tool],
    )
    result = reading(tmp_path, row)
    assert result.examples == [
        Chat(
            (
                Message("developer", "d"),
                Message("user", "a b", extra={"name": "Ann"}),
                Message("assistant", "", extra={"tool_calls": [CALL]}),
                Message("tool", "", extra={"tool_call_id": "c1"}),
                Message("assistant", " Ünï 🎈\n", trained=True),
            ),
            1,
            (tool,),
        )
    ]
    assert warned(result) == [(1, "name_may_not_show")]


def test_escapes_that_only_look_like_halves_or_nul(tmp_path: Path) -> None:
    row = r'{"prompt": "\\u0000 \\ud83d", "completion": "\ud83c\udf88"}'
    assert reading(tmp_path, row).examples == [Completion(r"\u0000 \ud83d", "🎈", 1)]


def test_completions_are_kept_exactly(tmp_path: Path) -> None:
    result = reading(tmp_path, '{"prompt": "", "completion": " b \\n"}\n{"prompt": "a ->", "completion": "\\u00a0c"}')
    assert result.examples == [Completion("", " b \n", 1), Completion("a ->", "\u00a0c", 2)]
    assert (result.format, result.faults) == ("completion", [])


def test_labels_become_text_and_it_is_said(tmp_path: Path) -> None:
    result = reading(tmp_path, '{"text": "a", "label": 3}\n{"text": "b", "label": true}\n{"text": "c", "label": "x"}')
    assert result.examples == [Labelled("a", "3", 1), Labelled("b", "true", 2), Labelled("c", "x", 3)]
    assert (result.format, warned(result)) == ("labelled", [(1, "label_made_text")])


@pytest.mark.parametrize("name", ["data.csv", "data.txt", "file-1"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path: Path, name: str, delimiter: str) -> None:
    rows = [["label", "text"], ["x", '"a, b"'], [], ["y", '"c\r\n""d"""']]
    content = "\ufeff" + "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    result = reading(tmp_path, content, name)
    assert result.examples == [Labelled("a, b", "x", 2), Labelled('c\r\n"d"', "y", 4)]
    assert warned(result) == [(1, "byte_order_mark"), (3, "blank_line")]


def test_the_first_bytes_outweigh_the_name(tmp_path: Path) -> None:
    assert reading(tmp_path, GOOD, "data.csv").format == "chat"
    assert reading(tmp_path, "text,label\na,b\n", "data.jsonl").examples == [Labelled("a", "b", 2)]
    assert reading(tmp_path, "prompt,completion,id\na,b,1\n", "data.csv").examples == [Completion("a", "b", 2)]


def test_an_array_on_the_first_line_of_many_is_one_bad_row(tmp_path: Path) -> None:
    assert codes(reading(tmp_path, f"[{GOOD}]\n{GOOD}\n{GOOD}")) == [(1, "not_an_object")]


def test_the_byte_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (fault,) = reading(tmp_path, b'{"text": "caf\xe9", "label": "x"}').errors
    assert "Byte 14 of line 1 (0xe9)" in fault.message
    assert "café" in fault.message
    assert "iconv" in fault.mend


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_a_line_of_100_mb_is_reported_and_not_held(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    good, start = (b"a,b\n", b'text,label\na,b\n"') if name.endswith("csv") else (GOOD.encode() + b"\n", GOOD.encode() + b"\n")
    with path.open("wb") as file:
        file.write(start)
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b"\n" + good)
    tracemalloc.start()
    began = time.perf_counter()
    result = read(path, 1)
    took, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    account(result)
    assert [code for _, code in codes(result)] == ["line_too_long"]
    assert len(result.examples) == 2
    assert "100.0 MB" in result.errors[0].message
    assert peak < 4 * MAX_LINE
    assert took < 2


def test_the_longest_line_is_read(tmp_path: Path) -> None:
    def row(size: int) -> str:
        return '{"text": "' + "x" * (size - 25) + '", "label": "y"}'.rjust(15)

    def fitted(size: int) -> str:
        return row(size + size - len(row(size)))

    assert len(fitted(MAX_LINE)) == MAX_LINE
    assert codes(reading(tmp_path, fitted(MAX_LINE) + "\n" + fitted(MAX_LINE))) == []
    assert codes(reading(tmp_path, fitted(MAX_LINE + 1) + "\n" + fitted(100))) == [(1, "line_too_long")]


def test_an_open_quote_does_not_swallow_a_large_file(tmp_path: Path) -> None:
    result = reading(tmp_path, 'text,label\n"a,b\n' + ("x" * 1000 + ",b\n") * 12_000, "data.csv")
    assert codes(result) == [(2, "quote_never_closed")]
    assert 1000 < len(result.examples) < 3000


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["a.jsonl", "a.csv", "a"]))
def test_random_bytes_are_never_a_traceback(tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str) -> None:
    reading(tmp_path_factory.getbasetemp(), raw, name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON,
        "content": st.text(max_size=5) | JSON,
        "weight": st.integers(0, 1) | JSON,
        "tool_calls": st.just([CALL]) | JSON,
        "tool_call_id": st.just("c1") | JSON,
        "function_call": JSON,
        "name": st.text(max_size=3) | JSON,
    },
)
RECORD = JSON | st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGE | JSON, max_size=4) | JSON,
        "tools": JSON,
        "prompt": st.text(max_size=3) | JSON,
        "completion": st.text(max_size=3) | JSON,
        "text": st.text(max_size=3) | JSON,
        "label": st.text(max_size=3) | JSON,
    },
)


@settings(max_examples=100, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=6), st.binary(max_size=3), st.integers(0, 10_000))
def test_random_records_are_all_accounted_for(tmp_path_factory: pytest.TempPathFactory, records: list[Any], damage: bytes, at: int) -> None:
    raw = "\n".join(map(json.dumps, records)).encode()
    folder = tmp_path_factory.getbasetemp()
    result = reading(folder, raw)
    assert result.rows in (0, len(records))
    cut = at % (len(raw) + 1)
    reading(folder, raw[:cut] + damage + raw[cut:])


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(lambda s: not s.isspace())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["system", "developer", "user", "assistant"]), TEXT)), min_size=1),
    st.booleans(),
)
def test_random_chats_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, chats: list[list[tuple[str, str]]], ascii_only: bool) -> None:
    chats = [[*turns, ("assistant", "end")] for turns in chats]
    records = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in chats]
    content = "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
    result = reading(tmp_path_factory.getbasetemp(), content)
    assert result.faults == []
    expected = [Chat(tuple(Message(r, t, r == "assistant") for r, t in turns), i) for i, turns in enumerate(chats, 1)]
    assert result.examples == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1))
def test_random_tables_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    content = "text,label\n" + "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)
    result = reading(tmp_path_factory.getbasetemp(), content, "data.csv")
    assert [(example.text, example.label) for example in result.examples if isinstance(example, Labelled)] == rows
    assert result.errors == []


def test_real_chats(shared_data: Path) -> None:
    result = read(shared_data / "ar_lsat" / "train.jsonl")
    account(result)
    assert (result.rows, len(result.examples), result.format, result.faults) == (1630, 1630, "chat", [])


def test_real_sentences_in_windows_1252(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "rt_polarity" / "rt-polarity.neg").read_text("utf-8").encode("cp1252").splitlines()
    rows = b"".join(b'"' + line.replace(b'"', b'""') + b'",neg\n' for line in lines)
    result = reading(tmp_path, b"text,label\n" + rows, "data.csv")
    latin = sum(not line.isascii() for line in lines)
    assert result.rows == 5331
    assert latin > 0
    assert [code for _, code in codes(result)] == ["not_utf8"] * latin


def test_reading_needs_no_torch() -> None:
    program = "import sys, tunewright.data.formats; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_tool_call_needs_no_content_key(tmp_path: Path) -> None:
    result = reading(tmp_path, chat(turn("user", "hi"), {"role": "assistant", "tool_calls": [CALL]}))
    assert result.examples == [Chat((Message("user", "hi"), Message("assistant", "", True, {"tool_calls": [CALL]})), 1)]
