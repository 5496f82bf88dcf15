"""What a run does with rows that cannot be trained: it refuses, unless it was told how many it may lose; and its ledger adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from tunewright.config import TrainConfig
from tunewright.data.tokens import tokenize
from tunewright.errors import BadConfig, BadData
from tunewright.event import Event
from tunewright.train.ledger import ledger, reading


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


TWO_QUESTIONS = {"messages": [{"role": "user", "content": "a"}, *chat("b", "c")["messages"]]}
GOOD = [chat(f"q {i}", "a") for i in range(18)]


def said(path: Path, allowed: float, limit: int = 256, chosen: bool = False) -> list[Event]:
    found = reading(path, allowed)
    return list(ledger("training", found, tokenize(found.examples, tiny.tokenizer(tiny.INSTRUCT), limit), limit, allowed, chosen))


def write(folder: Path, *rows: Any) -> Path:
    (folder / "a.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder / "a.jsonl"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("no", "not_json"),
        (chat("q", ""), "empty_content"),
        (TWO_QUESTIONS, "template_refused"),
        (chat("long " * 300, "a"), "nothing_to_learn_after_cut"),
    ],
)
def test_one_lost_row_is_refused_unless_it_may_be_lost(tmp_path: Path, bad: Any, code: str) -> None:
    path = write(tmp_path, *GOOD, bad, chat("last", "a"))
    with pytest.raises(BadData) as refused:
        said(path, 0.0)
    assert (refused.value.code, refused.value.faults[0].line) == (code, 19)
    first, dropped, *_ = said(path, 0.05)
    assert first.data["dropped"] == {code: 1} and first.data["dropped_lines"] == {code: [19]}
    assert first.data["rows"] == first.data["kept"] + sum(first.data["dropped"].values()) == 20
    assert dropped.level == "warn" and f"dropped: {code} (first at line 19)" in dropped.message
    with pytest.raises(BadData):
        said(path, 0.049)


def test_a_cut_that_was_chosen_is_no_loss(tmp_path: Path) -> None:
    path = write(tmp_path, *GOOD, chat("long " * 300, "a"))
    assert said(path, 0.0, chosen=True)[0].data["dropped"] == {"nothing_to_learn_after_cut": 1}
    with pytest.raises(BadData, match=r"1 row would be lost as nothing_to_learn_after_cut; 1 of 19 are lost in all, and max_lost allows 0.00%"):
        said(path, 0.0)


def test_a_row_with_two_errors_counts_once_and_a_broken_file_is_never_let_through(tmp_path: Path) -> None:
    path = write(tmp_path, *GOOD, chat("", ""), chat("a", "b"))
    assert said(path, 0.05)[0].data["dropped"] == {"empty_content": 1}
    with pytest.raises(BadData):
        said(write(tmp_path, *GOOD[:3]), 1.0)  # too few
    with pytest.raises(BadData):
        said(write(tmp_path, *["no"] * 20), 1.0)
    with pytest.raises(BadData, match="no row is left"):
        said(write(tmp_path, *[TWO_QUESTIONS] * 20), 1.0)


def test_the_setting_is_bounded() -> None:
    assert TrainConfig.parse({"data": "a"}, ["max_lost=0.1"]).max_lost == 0.1
    with pytest.raises(BadConfig):
        TrainConfig.parse({"data": "a"}, ["max_lost=1.1"])
