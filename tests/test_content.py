"""What the check says about texts: near duplicates, personal data, mojibake, HTML; and what it must not say."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tunewright.data.check import check
from tunewright.data.near import near
from tunewright.data.personal import find, is_card, is_iban

WORDS = [a + b for a in ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti") for b in ("da", "fe", "gi", "ho", "pu", "xa", "ze")]


def prose(seed: int, count: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def found(report: Any) -> dict[str, tuple[int, str]]:
    return {fault.code: (fault.line, fault.message) for fault in report.faults}


def labelled(folder: Path, *texts: str, name: str = "data.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps({"text": text, "label": "x"}) + "\n" for text in texts))
    return folder / name


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("email", "ada.lovelace+x@mail.example.co.uk"),
        ("phone", "+49 30 1234567"),
        ("phone", "(415) 555-2671"),
        ("phone", "415-555-2671"),
        ("card", "4111 1111 1111 1111"),
        ("card", "378282246310005"),
        ("iban", "GB82 WEST 1234 5698 7654 32"),
        ("iban", "DE89370400440532013000"),
        ("ip", "8.8.4.4"),
        ("ip", "2001:db8::8a2e:370:7334"),
        ("secret", "AKIAIOSFODNN7EXAMPLE"),
        ("secret", "-----BEGIN RSA PRIVATE KEY-----"),
    ],
)
def test_personal_data_by_kind_and_place(kind: str, text: str) -> None:
    for before, after in (("", ""), ("It is ", "."), ("(", ")"), ("see ", ", please")):
        assert list(find(before + text + after)) == [(kind, len(before), len(before) + len(text))]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # the checksums of these three are wrong
        "DE89370400440532013001",
        "5500 0000 0000 0005",
        "0000 0000 0000 0000",
        "version 1.2.3",
        "1.2.3.4.5",
        "999.1.1.1",
        "127.0.0.1",
        "12:30:45",
        "@ada at noon",
        "$1,234,567.89",
        "48/2 = <<48/2=24>>24 clips",
        "2026-11-21",
        "sk-learn",
        "a 100-200-3000 mix",
        "std::vector::at",
    ],
)
def test_what_only_looks_like_it(text: str) -> None:
    assert list(find(text)) == []


def test_checksums_against_every_wrong_digit() -> None:
    for number, is_right in (("4111111111111111", is_card), ("DE89370400440532013000", is_iban)):
        assert is_right(number)
        for at in range(2, len(number)):
            for digit in "0123456789":
                if digit != number[at]:
                    assert not is_right(number[:at] + digit + number[at + 1 :])


def test_near_duplicates_and_a_shared_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    one, passage = prose(1), prose(2, 100)
    changed = one.replace(one.split()[20], "changed", 1)
    asked = [f"{passage} {prose(i, 20)}" for i in (3, 4)]
    assert [(i, j) for i, j, begins in near([one, prose(5), changed, *asked]) if not begins] == [(2, 0)]
    assert list(near([changed, prose(5)], [prose(6), one])) == [(0, 1, False)]
    with monkeypatch.context() as long:  # texts that are too long to wait for others
        long.setattr("tunewright.data.near._BATCH_CHARACTERS", 2 * len(one))
        assert [(i, j) for i, j, begins in near([one, prose(5), changed, *asked]) if not begins] == [(2, 0)]


def test_a_thousand_copies_cost_no_thousand_squared() -> None:
    rows = [prose(1) + f" {i}" for i in range(1000)]
    assert [(i, j) for i, j, _ in near(rows)] == [(i, 0) for i in range(1, 1000)]


def test_the_report_names_them_once_with_their_lines(tmp_path: Path) -> None:
    clean = [prose(i) for i in range(20)]
    one = clean[3].split()
    one[30] = "changed"
    texts = [*clean, " ".join(one), "write to ada@example.org", "write to bob@example.org", "cafÃ© au lait", "<b>bold</b> &amp; brave"]
    validation = labelled(tmp_path, clean[5] + " more", prose(99), name="valid.jsonl")
    report = check(labelled(tmp_path, *texts), validation)
    assert report.ok
    said = found(report)
    assert {code: line for code, (line, _) in said.items()} == {
        "near_duplicate": 21,
        "holds_email": 22,
        "mojibake": 24,
        "html_left": 25,
        "near_in_validation": 6,
    }
    assert "(2 lines)" in said["holds_email"][1]
    assert "line 21 is like line 4" in said["near_duplicate"][1]
    assert not check(labelled(tmp_path, *clean)).faults


def test_no_false_alarm_on_real_data(shared_data: Path, tmp_path: Path) -> None:
    """Of these sets it is known what they hold; everything else that is said would be wrong."""
    said = found(check(shared_data / "ar_lsat" / "train.jsonl"))
    assert said.keys() == {"duplicate_row", "near_duplicate"}  # 21 equal rows; questions that differ in an option or a typing error
    assert "14 rows" in said["near_duplicate"][1]
    assert found(check(shared_data / "gsm8k" / "train.jsonl")).keys() == {"odd_character"}  # one zero-width space
    english = gzip.decompress((shared_data / "multi30k" / "val.en.gz").read_bytes()).decode()
    assert found(check(labelled(tmp_path, *filter(None, english.split("\n"))))).keys() <= {"duplicate_row"}
