"""The planted faults: each in a file that is else sound, caught by its own code on its own line, with nothing said of the rest.

Also what the check must not say: real data sets, as they are, have no errors.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from tunewright.data.check import check
from tunewright.data.profile import Reader
from tunewright.data.tokens import tokenize

AT = 7  # the line that the fault is planted on
WORDS = ["river", "stone", "lamp", "cloud", "bread", "glass", "horse", "night", "paper", "sugar", "tower", "wheel", "garden", "silver", "window"]


def chat(question: str, answer: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def sentence(i: int) -> str:
    return " ".join(WORDS[(i * 7 + j * (i + 3)) % len(WORDS)] for j in range(6)) + f" {i}"


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
LAST = {"role": "assistant", "content": "a"}
GOOD: dict[str, Any] = {
    "chat": lambda i: chat(sentence(i), f"answer {i}"),
    "completion": lambda i: {"prompt": sentence(i), "completion": f"answer {i}"},
    "labelled": lambda i: {"text": sentence(i), "label": "ab"[i % 2]},
    "pair": lambda i: {"prompt": sentence(i), "chosen": "good", "rejected": f"bad {i}"},
    "alpaca": lambda i: {"instruction": sentence(i), "input": "", "output": f"answer {i}"},
    "sharegpt": lambda i: {"conversations": [{"from": "human", "value": sentence(i)}, {"from": "gpt", "value": f"answer {i}"}]},
}

# (format of the file, the row, the code)
ROWS: list[tuple[str, Any, str]] = [
    ("chat", '{"messages": [}', "not_json"),
    ("chat", '{"messages": [{"role": "user", "content": "cut o', "not_json"),
    ("chat", "{'messages': []}", "not_json"),
    ("chat", '{"messages": None}', "not_json"),
    ("chat", json.dumps(chat("q", "a")) + ",", "not_json"),
    ("chat", json.dumps(chat("q", "a")) + json.dumps(chat("r", "b")), "several_records"),
    ("chat", [1, 2], "not_an_object"),
    ("chat", '{"messages": [], "messages": []}', "duplicate_key"),
    ("chat", '{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}', "duplicate_key"),
    ("chat", '{"messages": NaN}', "not_a_number"),
    ("chat", '{"messages": 1e999}', "number_too_large"),
    ("chat", chat("a\0b", "c"), "nul_character"),
    ("chat", '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "c"}]}', "lone_surrogate"),
    ("chat", '{"messages": ' + "[" * 70 + "]" * 70 + "}", "nested_too_deep"),
    ("chat", b'{"messages": [{"role": "user", "content": "caf\xe9"}, {"role": "assistant", "content": "c"}]}', "not_utf8"),
    ("chat", '{"text": "' + "x" * 10_000_001 + '"}', "line_too_long"),
    ("chat", {"messages": "hello"}, "messages_not_a_list"),
    ("chat", {"messages": []}, "no_messages"),
    ("chat", {"messages": ["hello", LAST]}, "message_not_an_object"),
    ("chat", {"messages": [{"content": "q"}, LAST]}, "no_role"),
    ("chat", {"messages": [{"role": "human", "content": "q"}, LAST]}, "unknown_role"),
    ("chat", {"messages": [{"role": "user", "content": "q"}, {"role": "asistant", "content": "a"}]}, "unknown_role"),
    ("chat", chat("q", None), "no_content"),
    ("chat", chat("q", ""), "empty_content"),
    ("chat", chat(" \n", "a"), "empty_content"),
    ("chat", chat("q", 4), "content_not_text"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, LAST]}, "unsupported_part"),
    ("chat", {"messages": [{"role": "user", "content": "q"}]}, "no_assistant_turn"),
    ("chat", {"messages": [*chat("q", "a")["messages"], {"role": "user", "content": "and?"}]}, "last_turn_not_assistant"),
    ("chat", chat("q", "a", weight=0), "nothing_to_learn"),
    ("chat", chat("q", "a", weight=0.5), "bad_weight"),
    ("chat", {"messages": [{"role": "user", "content": "q", "weight": 1}, LAST]}, "weight_on_wrong_role"),
    ("chat", {"messages": [*CALLS, {"role": "tool", "content": "1"}, LAST]}, "no_tool_call_id"),
    ("chat", chat("q", "a", tool_calls=[{"name": "f"}]), "bad_tool_calls"),
    ("chat", {**chat("q", "a"), "tools": [{"name": "f"}]}, "bad_tools"),
    ("chat", {**chat("q", "a"), "functions": []}, "functions_unsupported"),
    ("chat", chat("q", "a", function_call={"name": "f"}), "function_call_unsupported"),
    ("chat", {"messages": [{"role": "user", "content": "q", "tool_calls": [CALL]}, LAST]}, "tool_calls_on_wrong_role"),
    ("chat", chat("q", "a", name=3), "bad_name"),
    ("chat", {"prompt": "q", "completion": "a"}, "mixed_formats"),
    ("chat", {"body": {}}, "unknown_record"),
    ("completion", {"prompt": "q", "completion": " "}, "empty_completion"),
    ("completion", {"completion": "a"}, "missing_key"),
    ("completion", {"prompt": "q", "completion": None}, "completion_not_text"),
    ("completion", {"prompt": ["q"], "completion": "a"}, "prompt_not_text"),
    ("labelled", {"text": "t"}, "missing_key"),
    ("labelled", {"text": "", "label": "a"}, "empty_text"),
    ("labelled", {"text": "t", "label": ""}, "empty_label"),
    ("labelled", {"text": "t", "label": 1.5}, "label_not_text"),
    ("pair", {"prompt": "q", "chosen": "a", "rejected": "a"}, "same_answers"),
    ("pair", {"prompt": "q", "chosen": "a"}, "missing_key"),
    ("pair", {"prompt": "q", "chosen": "a", "rejected": ""}, "empty_rejected"),
    ("pair", {"prompt": "q", "chosen": "a", "rejected": None}, "rejected_not_text"),
    ("alpaca", {"instruction": "q", "input": "", "output": "a", "history": ["x"]}, "bad_history"),
    ("alpaca", {"instruction": "q", "input": 3, "output": "a"}, "input_not_text"),
    ("alpaca", {"instruction": "q", "input": ""}, "missing_key"),
    ("alpaca", {"instruction": "q", "input": "", "output": {"name": None, "count": 57}}, "content_not_text"),
    ("sharegpt", {"conversations": [{"from": "narrator", "value": "q"}, {"from": "gpt", "value": "a"}]}, "unknown_role"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f()"}]}, "not_json"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"}]}, "bad_tool_calls"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "[{"}, "not_json"),
    ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]}, "last_turn_not_assistant"),
]


def line(row: Any) -> bytes:
    return row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()


def planted(folder: Path, format: str, row: Any, name: str = "a.jsonl") -> Path:
    rows = [line(GOOD[format](i)) for i in range(12)]
    (folder / name).write_bytes(b"\n".join([*rows[: AT - 1], line(row), *rows[AT - 1 :]]) + b"\n")
    return folder / name


def errors(path: Path) -> list[tuple[int, str]]:
    return [(fault.line, fault.code) for fault in check(path).faults if not fault.warning]


@pytest.mark.parametrize(("format", "row", "code"), ROWS, ids=[f"{format}-{code}-{i}" for i, (format, _, code) in enumerate(ROWS)])
def test_a_row(tmp_path: Path, format: str, row: Any, code: str) -> None:
    path = planted(tmp_path, format, row)
    assert errors(path) == [(AT, code)]
    assert check(path).sound == 12


def test_the_rows_around_are_sound(tmp_path: Path) -> None:
    for format in GOOD:
        report = check(planted(tmp_path, format, GOOD[format](99)))
        assert not report.faults
        assert report.sound == 13


TABLE = "text,label\n" + "".join(f"{sentence(i)},{'ab'[i % 2]}\n" for i in range(5))
REST = "".join(f"{sentence(i)},{'ab'[i % 2]}\n" for i in range(5, 14))
GOOD_LINES = "".join(json.dumps(GOOD["chat"](i)) + "\n" for i in range(12))

# (file name, its bytes, line, code)
FILES: list[tuple[str, bytes, int, str]] = [
    ("a.csv", (TABLE + "one,two,three\n" + REST).encode(), AT, "ragged_row"),
    ("a.csv", (TABLE + '"one"x,a\n' + REST).encode(), AT, "stray_quote"),
    ("a.csv", (TABLE + '"one,a\n' + REST).encode(), AT, "quote_never_closed"),
    ("a.csv", (TABLE + "one\rtwo,a\n" + REST).encode(), AT, "bare_carriage_return"),
    ("a.csv", TABLE.replace("text,label", "text,text,label").encode(), 0, "duplicate_column"),
    ("a.csv", TABLE.replace("text,label", "text,class").encode(), 0, "missing_column"),
    ("a.csv", REST.encode(), 0, "missing_header"),
    ("a.jsonl", b"", 0, "empty_file"),
    ("a.jsonl", ("[" + GOOD_LINES.strip().replace("\n", ",\n") + "]").encode(), 0, "json_array"),
    ("a.jsonl", json.dumps(chat("q", "a"), indent=1).encode(), 0, "json_over_lines"),
    ("a.jsonl", GOOD_LINES.encode("utf-16"), 0, "utf16_file"),
    ("a.xlsx", b"PK\x03\x04" + b"\0" * 50, 0, "not_text"),
    ("a.jsonl.gz", gzip.compress(GOOD_LINES.encode())[:-20], 0, "damaged_file"),
    ("a.jsonl.gz", gzip.compress(gzip.compress(GOOD_LINES.encode())), 0, "not_text"),
    ("a.jsonl", GOOD_LINES[: GOOD_LINES.index("\n") + 1].encode(), 0, "too_few_examples"),
    ("a.parquet", b"PAR1" + b"\0" * 50, 0, "damaged_file"),
]


@pytest.mark.parametrize(("name", "content", "at", "code"), FILES, ids=[f"{code}-{i}" for i, (*_, code) in enumerate(FILES)])
def test_a_file(tmp_path: Path, name: str, content: bytes, at: int, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert [(fault.line, fault.code) for fault in check(tmp_path / name, minimum=2).faults if not fault.warning] == [(at, code)]


def test_no_file(tmp_path: Path) -> None:
    assert errors(tmp_path / "none") == [(0, "no_such_file")]
    assert errors(tmp_path) == [(0, "is_a_directory")]
    assert errors(tmp_path / "*.jsonl") == [(0, "no_such_file")]


PASSAGE = " ".join(f"{WORDS[i % 15]}{i}" for i in range(120))
LONG = " ".join(f"{WORDS[i % 15]}{i}" for i in range(40))

# (format, the row, the code): what keeps no row from being used, and is to be known
WARNINGS: list[tuple[str, Any, str]] = [
    ("chat", GOOD["chat"](2), "duplicate_row"),
    ("chat", chat(sentence(2), "another answer"), "conflicting_answers"),
    ("chat", chat("write to ada@example.org", "done"), "holds_email"),
    ("chat", chat("call +49 30 1234567", "done"), "holds_phone"),
    ("chat", chat("card 4111 1111 1111 1111", "done"), "holds_card"),
    ("chat", chat("to DE89 3704 0044 0532 0130 00", "done"), "holds_iban"),
    ("chat", chat("ping 8.8.4.4", "done"), "holds_ip"),
    ("chat", chat("use AKIAIOSFODNN7EXAMPLE", "done"), "holds_secret"),
    ("chat", chat("cafÃ© au lait", "done"), "mojibake"),
    ("chat", chat("<b>bold</b>", "done"), "html_left"),
    ("chat", chat("zero\u200bwidth", "done"), "odd_character"),
    ("chat", chat("bell\x07", "done"), "odd_character"),
    ("chat", chat("turned \u202eround", "done"), "odd_character"),
    ("chat", chat("٠١٢ and +٤٩ ٣٠ ١٢٣٤٥٦٧", "done"), "holds_phone"),
    ("chat", {**chat("q", "a"), "id": 1}, "unknown_key"),
    ("chat", {**chat("q", "a"), "parallel_tool_calls": True}, "ignored_key"),
    ("chat", {"messages": [{"role": "user", "content": "q", "name": "ada"}, LAST]}, "name_may_not_show"),
    ("chat", "", "blank_line"),
    ("chat", "\ufeff" + json.dumps(chat("q", "a")), "byte_order_mark"),
    ("labelled", {"text": "t", "label": 3}, "label_made_text"),
]


@pytest.mark.parametrize(("format", "row", "code"), WARNINGS, ids=[f"{code}-{i}" for i, (*_, code) in enumerate(WARNINGS)])
def test_a_warning(tmp_path: Path, format: str, row: Any, code: str) -> None:
    report = check(planted(tmp_path, format, row))
    assert report.ok
    assert [(fault.line, fault.code) for fault in report.faults] == [(AT, code)]


@pytest.mark.parametrize(
    ("there", "here", "code"),
    [
        (chat(sentence(99), "a"), chat(sentence(99), "b"), "in_validation_too"),
        (chat(LONG, "a"), chat(LONG.replace("lamp2 ", ""), "a"), "near_in_validation"),
        (
            chat(PASSAGE + " why is it so, and what follows of it then", "a"),
            chat(PASSAGE + " who has said this to whom at what hour", "b"),
            "passage_in_validation_too",
        ),
    ],
)
def test_between_training_and_validation(tmp_path: Path, there: Any, here: Any, code: str) -> None:
    validation = tmp_path / "v.jsonl"
    validation.write_bytes(line(there) + b"\n")
    report = check(planted(tmp_path, "chat", here), validation)
    assert [(fault.line, fault.code) for fault in report.faults] == [(AT, code)]


def test_other_kinds_of_rows_in_the_validation_file(tmp_path: Path) -> None:
    report = check(planted(tmp_path, "chat", chat("q", "a")), planted(tmp_path, "labelled", GOOD["labelled"](99), "v.jsonl"))
    assert report.validation
    assert [(fault.line, fault.code) for fault in report.validation.faults] == [(0, "formats_differ")]


def test_a_near_copy(tmp_path: Path) -> None:
    path = planted(tmp_path, "chat", chat(LONG, "a"))
    with path.open("ab") as file:
        file.write(line(chat(LONG.replace("lamp2", "lamps"), "a")) + b"\n")
    assert [(fault.line, fault.code) for fault in check(path).faults] == [(14, "near_duplicate")]


# --- what users of other trainers reported: each is named here before the first step ---------------------------------------------------------------


def with_tokens(path: Path, limit: int = 200, template: str = tiny.CHATML) -> list[tuple[int, str]]:
    return [(fault.line, fault.code) for fault in check(path, reader=Reader("tiny", tiny.tokenizer(template), limit)).faults]


def test_every_label_masked_by_the_cut(tmp_path: Path) -> None:
    """TRL #6668, #3927 and #6320 (such rows are deleted without a word): a long prompt, a short answer, and `max_length` between them; loss 0.0, and the run looks well."""
    row = {"prompt": "You are a helpful assistant. Please answer this question. " * 8, "completion": " The answer is 4."}
    assert with_tokens(planted(tmp_path, "completion", row), 60) == [(AT, "nothing_to_learn_after_cut")]


def test_an_end_that_is_not_learnt(tmp_path: Path) -> None:
    """TRL #1623: nothing writes an end token after the answer, and the tuned model never stops. Completions get one here, whatever the template."""
    endless = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert (1, "end_not_trained") in with_tokens(planted(tmp_path, "chat", chat("q", "a")), template=endless)
    assert with_tokens(planted(tmp_path, "completion", {"prompt": "q", "completion": "a"}), template=endless) == []


def test_a_mask_never_falls_back_to_everything(tmp_path: Path) -> None:
    """Megatron-Bridge #3359: a template without generation marks, and the loss runs over the whole conversation. Here the mask needs no marks,
    and a template under which no one can tell what is the answer is refused by name."""
    path = planted(tmp_path, "chat", chat("q", "learn this"))
    (row, *_), plain = tokenize([_example("q", "learn this")], tiny.tokenizer(), 99).rows, tiny.tokenizer()
    assert plain.decode(row.rows[0].ids[row.rows[0].trained]) == "learn this<|im_end|>"
    assert {code for _, code in with_tokens(path, template=tiny.REWRITING)} == {"template_rewrites_content"}


def _example(question: str, answer: str) -> Any:
    from tunewright.data.example import Chat, Message

    return Chat((Message("user", question), Message("assistant", answer, trained=True)))


def test_rows_that_other_trainers_delete_without_a_word(tmp_path: Path) -> None:
    """ms-swift #4026 (1,124,869 rows became 586,472) and #5712 (a rejected answer that is null), LLaMA-Factory #9600 and #4249 (an odd number of
    turns, an output that is an object): the ledger has each of them by its reason."""
    rows = [GOOD["chat"](i) for i in range(10)]
    bad = [chat("q", None), chat("q", {"a": 1}), {"messages": [*chat("q", "a")["messages"], {"role": "user", "content": "?"}]}, "{"]
    (tmp_path / "a.jsonl").write_bytes(b"".join(line(row) + b"\n" for row in [*rows, *bad]))
    report = check(tmp_path / "a.jsonl", reader=Reader("tiny", tiny.tokenizer(), 200))
    assert report.ledger == {"trained": 10, "no_content": 1, "content_not_text": 1, "last_turn_not_assistant": 1, "not_json": 1}
    assert sum(report.ledger.values()) == report.rows


def test_tokens_lost_beyond_the_limit(tmp_path: Path) -> None:
    """TRL #4554 and #5075: what stands beyond the length is dropped, the end of the answer with it, or learnt without what it answers."""
    assert with_tokens(planted(tmp_path, "chat", chat("q", "word " * 60)), 60) == [(AT, "answer_cut")]


def test_what_the_template_does(tmp_path: Path) -> None:
    two = {"messages": [{"role": "user", "content": "a"}, *chat("b", "c")["messages"]]}
    assert with_tokens(planted(tmp_path, "chat", two), template=tiny.INSTRUCT) == [(AT, "template_refused")]
    tool = {"messages": [*CALLS, {"role": "tool", "content": "1", "tool_call_id": "c"}, LAST]}
    assert with_tokens(planted(tmp_path, "chat", tool)) == [(AT, "tool_call_not_rendered")]
    assert with_tokens(planted(tmp_path, "chat", chat("q", "a")), template=tiny.DEFAULT_SYSTEM) == [(0, "system_prompt_added")]


def test_how_many_there_are() -> None:
    codes = {code for *_, code in [*ROWS, *FILES, *WARNINGS]}
    assert len(ROWS) + len(FILES) + len(WARNINGS) >= 95
    assert len(codes) >= 70


# --- no false alarms ------------------------------------------------------------------------------------------------------------------------------


def real(shared: Path) -> Iterator[tuple[str, list[dict[str, str]], set[str]]]:
    """Rows of public data sets in our formats, texts as they are, and what is truly in them."""
    questions = json.loads((shared / "clinc150" / "data_full.json").read_text())
    for split in ("train", "val"):
        yield f"clinc150-{split}", [{"text": text, "label": label} for text, label in questions[split]], {"near_duplicate"}
    kinds = {"rt-polarity.pos": "positive", "rt-polarity.neg": "negative"}
    reviews = [
        {"text": text, "label": kinds[file.name]}
        for file in sorted((shared / "rt_polarity").iterdir())
        if file.name in kinds
        for text in file.read_text("latin-1").rstrip().split("\n")
    ]
    yield "rt_polarity", reviews, {"duplicate_row", "near_duplicate", "mojibake", "odd_character", "html_left"}  # all of them are truly there
    for split, known in (
        ("train", {"html_left", "conflicting_answers", "duplicate_row"}),
        ("val", set()),
    ):  # "&amp;" in 16 captions, three pairs twice
        texts = (gzip.decompress((shared / "multi30k" / f"{split}.{name}.gz").read_bytes()).decode().splitlines() for name in ("en", "de"))
        yield f"multi30k-{split}", [{"prompt": english, "completion": german} for english, german in zip(*texts, strict=True)], known


def test_real_data_has_no_errors(shared_data: Path, tmp_path: Path) -> None:
    """AR-LSAT and GSM8K: see test_content."""
    for name, rows, known in real(shared_data):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        report = check(path)
        assert report.ok and report.sound == len(rows) > 1000
        assert {fault.code for fault in report.faults} <= known, (name, report.faults)
