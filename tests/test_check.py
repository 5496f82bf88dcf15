"""The report on a data file: what it counts, what it warns of, and how it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunewright.data.check import check, render


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def chats(count: int) -> list[dict[str, Any]]:
    return [chat(f"question {i}", f"answer {i}") for i in range(count)]


def test_a_clean_file_takes_two_lines(tmp_path: Path) -> None:
    report = check(write(tmp_path / "a.jsonl", *chats(10)))
    assert report.ok
    assert not report.faults
    assert (report.format, report.rows, report.sound) == ("chat", 10, 10)
    assert report.turns == {"user": 10, "assistant": 10}
    assert report.trained_characters == 10 * len("answer 0")
    assert render(report).splitlines() == [
        f"{tmp_path / 'a.jsonl'}: 10 rows (chat), all sound",
        "  10 user, 10 assistant, 80 characters to learn",
    ]


def test_only_what_is_learnt_counts(tmp_path: Path) -> None:
    first = chat("q", "not this", weight=0)
    first["messages"] += chat("q", "this")["messages"]
    report = check(write(tmp_path / "a.jsonl", first, *chats(9)))
    assert report.trained_characters == len("this") + 9 * 8
    labelled = [{"text": f"t{i}", "label": "ab" if i % 2 else "c"} for i in range(11)]
    report = check(write(tmp_path / "b.jsonl", *labelled))
    assert (report.labels, report.trained_characters) == ({"c": 6, "ab": 5}, 16)
    assert "'c' 6, 'ab' 5, 16 characters to learn" in render(report)


def found(report: Any) -> list[tuple[int, str]]:
    return [(fault.line, fault.code) for fault in report.faults]


def test_repeated_rows_and_conflicting_answers(tmp_path: Path) -> None:
    rows = chats(10)
    rows += [rows[2], rows[2], chat("question 5", "another"), chat("question 5", "a third")]
    report = check(write(tmp_path / "a.jsonl", *rows))
    assert report.ok
    assert found(report) == [(11, "duplicate_row"), (13, "conflicting_answers")]
    assert report.faults[0].message == "2 rows repeat an earlier one: line 11 is line 3"
    assert report.faults[1].message == "1 input has more than one answer: see lines 6 and 13"


@pytest.mark.parametrize(
    "differing",
    [
        {"tools": [{"function": {"name": "f"}}]},
        {"messages": chat("q", "a", weight=0)["messages"] + chat("r", "b")["messages"]},
    ],
)
def test_rows_that_differ_in_more_than_text_are_no_repeats(tmp_path: Path, differing: dict[str, Any]) -> None:
    plain = {"messages": chat("q", "a")["messages"] + chat("r", "b")["messages"]}
    report = check(write(tmp_path / "a.jsonl", *chats(8), plain, {**plain, **differing}))
    assert found(report) == []


def test_rows_without_an_input_do_not_conflict(tmp_path: Path) -> None:
    report = check(write(tmp_path / "a.jsonl", *({"prompt": "", "completion": f"text {i}"} for i in range(10))))
    assert found(report) == []
    other = write(tmp_path / "b.jsonl", {"prompt": "", "completion": "new"})
    assert found(check(report.path, other)) == []
    assert found(check(report.path, write(other, {"prompt": "", "completion": "text 4"}))) == [(5, "in_validation_too")]


def test_rows_shared_with_the_validation_file(tmp_path: Path) -> None:
    rows = chats(12)
    training = write(tmp_path / "a.jsonl", *rows)
    validation = write(tmp_path / "b.jsonl", chat("new", "x"), rows[7], chat("question 3", "otherwise"))
    report = check(training, validation)
    assert report.ok
    assert found(report) == [(4, "in_validation_too")]
    assert report.faults[0].message == ("The input of 2 rows (1 with the same answer) stands in the validation file too: line 4 is its line 3")
    assert report.validation
    assert report.validation.rows == 3
    assert not report.validation.faults
    assert f"{validation}: 3 rows (chat), all sound" in render(report)


def test_a_validation_file_must_be_sound_and_of_the_same_format(tmp_path: Path) -> None:
    training = write(tmp_path / "a.jsonl", *chats(10))
    report = check(training, write(tmp_path / "b.jsonl", {"text": "a", "label": "b"}))
    assert not report.ok
    assert report.validation
    assert found(report) == []
    assert found(report.validation) == [(0, "formats_differ")]
    assert not check(training, tmp_path / "none").ok
    assert not check(tmp_path / "none", training).ok


def test_to_dict_is_json(tmp_path: Path) -> None:
    training = write(tmp_path / "a.jsonl", *chats(3), "no")
    shown = json.loads(json.dumps(check(training, training).to_dict(), allow_nan=False))
    assert (shown["ok"], shown["rows"], shown["sound"], shown["path"]) == (False, 4, 3, str(training))
    assert [fault["code"] for fault in shown["faults"]] == ["too_few_examples", "in_validation_too", "not_json"]
    assert shown["faults"][2]["line"] == 4
    assert not shown["faults"][2]["warning"]
    assert shown["validation"]["rows"] == 4


def test_the_report_groups_faults_worst_first(tmp_path: Path) -> None:
    bad = [chat("", "a"), *[chat("a", "") for _ in range(7)], '{"messages": 1}', {**chat("z", "y"), "id": 1}]
    path = write(tmp_path / "a.jsonl", *bad, "", "{\x1b[31m")
    assert render(check(path, minimum=20)).splitlines() == [
        f"{path}: 11 rows (chat), 1 sound, 10 with errors",
        "  1 user, 1 assistant, 1 characters to learn",
        "",
        "error: too_few_examples",
        "  The file has 11 rows; at least 20 are needed",
        "  -> Add 9 more.",
        "",
        "error: empty_content (8)",
        "  line 1: The content of messages[0] (user) is empty",
        "  lines 2, 3, 4, 5, 6 + 2 more: The content of messages[1] (assistant) is empty",
        "  -> Write the text, or delete the message or the row.",
        "",
        "error: messages_not_a_list",
        "  line 9: 'messages' is 1, not a list",
        "  -> Write a list of messages in brackets.",
        "",
        "error: not_json",
        "  line 12: This is not JSON: expecting property name enclosed in double quotes at character 2, near '\\x1b[31m'",
        "  -> Write one JSON object a line, as json.dumps does.",
        "",
        "warning: unknown_key",
        "  line 10: The key 'id' is not read (1 line)",
        "  -> Remove it, or check its spelling.",
        "",
        "warning: blank_line",
        "  line 11: Blank lines are skipped (1 line)",
        "  -> Delete them if a record should stand there.",
    ]


def test_a_report_on_many_faults_stays_short(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(f"bad {i}" for i in range(10_000)))
    lines = render(check(path)).splitlines()
    assert len(lines) == 10
    assert lines[-2] == "  lines 6, 7, 8, 9, 10 + 9,990 more: the like"


def test_nothing_read(tmp_path: Path) -> None:
    assert render(check(tmp_path)).splitlines() == [
        f"{tmp_path}: no rows read",
        "",
        "error: is_a_directory",
        "  This is a directory without a data file (.jsonl, .ndjson, .csv, .tsv, .txt, .parquet, .arrow)",
        "  -> Name the file, or the split's folder.",
    ]


def test_real_training_and_validation(shared_data: Path) -> None:
    folder = shared_data / "ar_lsat"
    report = check(folder / "train.jsonl", folder / "valid.jsonl")
    assert report.ok
    assert report.validation
    assert (report.rows, report.sound, report.trained_characters) == (1630, 1630, 1630)
    assert report.turns == {"system": 1630, "user": 1630, "assistant": 1630}
    # The published training file holds 21 rows twice.
    assert (1521, "duplicate_row") in found(report)
    assert {code for _, code in found(report)} == {"duplicate_row", "near_duplicate"}
