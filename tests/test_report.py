"""The report as a whole: its ledger, its tokens, the row under X-ray, the page; and a large file in little memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tiny import CHATML, DEFAULT_SYSTEM, INSTRUCT, tokenizer
from tunewright.cli.commands import app
from tunewright.data.check import check
from tunewright.data.example import Chat, Message, input_and_answer
from tunewright.data.formats import read
from tunewright.data.jsonl import _KEY_END, _Parser, _plainly_sound
from tunewright.data.page import page
from tunewright.data.profile import Reader, added_system
from tunewright.data.repeats import Keys, repeated
from tunewright.data.report import Report, render
from tunewright.data.tokens import tokenize
from tunewright.data.tree import distinct
from tunewright.data.xray import Ray, at_line, draw, rays

SAMPLE = Path(__file__).parents[1] / "tunewright" / "data" / "sample" / "train.jsonl"


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def reader(limit: int = 256, template: str = CHATML) -> Reader:
    return Reader("tiny", tokenizer(template), limit)


# --- tokens and the ledger ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [256, 60, 40])
def test_tokens_are_those_that_training_takes(limit: int) -> None:
    found = check(SAMPLE, reader=reader(limit)).tokens
    trained = tokenize(read(SAMPLE).examples, tokenizer(), limit)
    assert found
    assert (found.read, found.trained) == (trained.tokens, trained.trained_tokens)
    assert found.dropped == {reason: len(lines) for reason, lines in trained.dropped.items()}
    assert (found.kept, found.distinct) == (len(trained.rows), distinct([row for item in trained.rows for row in item.rows]))
    whole = tokenize(read(SAMPLE).examples, tokenizer(), 10_000)
    assert found.lengths and sum(height for *_, height in found.lengths.bars) == len(whole.rows)
    assert found.lengths.total == whole.tokens


def test_rows_in_are_rows_trained_and_rows_lost(tmp_path: Path) -> None:
    alternating = {"messages": [*chat("a", "b")["messages"], *chat("c", "d")["messages"]]}
    system = {"messages": [{"role": "system", "content": "s"}, *chat("a", "b")["messages"]]}
    path = write(tmp_path / "a.jsonl", *(chat(f"q {i}", "a") for i in range(10)), "no", chat("", "x"), system, alternating, chat("long " * 99, "x"))
    report = check(path, reader=reader(60, INSTRUCT))
    assert report.ledger == {"trained": 11, "not_json": 1, "empty_content": 1, "template_refused": 1, "nothing_to_learn_after_cut": 1}
    assert sum(report.ledger.values()) == report.rows == 15
    assert "ledger: 15 rows = 11 trained + 1 not_json + 1 empty_content + " in render(report)
    assert {(fault.line, fault.code) for fault in report.faults} >= {(13, "template_refused"), (15, "nothing_to_learn_after_cut")}


def test_a_row_with_two_errors_is_lost_once(tmp_path: Path) -> None:
    report = check(write(tmp_path / "a.jsonl", *(chat("", "") for _ in range(10)), chat("a", "b")))
    assert report.ledger == {"trained": 1, "empty_content": 10}
    assert report.groups[0].count == 20


def test_what_the_cut_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(chat("q", "a") for _ in range(9)), chat("q", "word " * 80))
    report = check(path, reader=reader(40))
    whole = sum(len(row.ids) for item in tokenize(read(path).examples, tokenizer(), 10_000).rows for row in item.rows)
    assert report.tokens and report.tokens.cut == whole - report.tokens.read
    assert report.tokens.cut_trained == report.tokens.cut - 1  # ChatML writes a line end after the end token
    assert [(f.line, f.code) for f in report.faults if "cut" in f.code] == [(10, "answer_cut")]


@pytest.mark.parametrize(("template", "added"), [(CHATML, None), (DEFAULT_SYSTEM, "You are helpful."), (INSTRUCT, None)])
def test_a_template_that_adds_a_system_prompt(template: str, added: str | None, tmp_path: Path) -> None:
    assert added_system(tokenizer(template)) == added
    bare = write(tmp_path / "a.jsonl", *(chat(f"q{i}", "a") for i in range(10)))
    told = {"messages": [{"role": "system", "content": "s"}, *chat("q", "a")["messages"]]}
    assert ("system_prompt_added" in {f.code for f in check(bare, reader=reader(template=template)).faults}) == bool(added)
    report = check(write(tmp_path / "b.jsonl", *[told] * 10), reader=reader(template=template))
    assert "system_prompt_added" not in {f.code for f in report.faults}


# --- one row --------------------------------------------------------------------------------------------------------------------------------------


def ray(question: str, answer: str, limit: int = 256, template: str = CHATML) -> Ray:
    example = Chat((Message("user", question), Message("assistant", answer, trained=True)), 7)
    return rays(example, reader(limit, template))[0]


def test_an_xray_shows_every_token_once_and_what_becomes_of_it() -> None:
    shown = ray("how are you? ä日本語🙂", "fine — 日本 🙂🙂\n", 256)
    text = "".join(piece.text for piece in shown.pieces)
    assert text == "<|im_start|>user\nhow are you? ä日本語🙂<|im_end|>\n<|im_start|>assistant\nfine — 日本 🙂🙂\n<|im_end|>\n"
    assert "".join(piece.text for piece in shown.pieces if piece.kind == "trained") == "fine — 日本 🙂🙂\n"
    assert [piece.text for piece in shown.pieces if piece.kind == "end"] == ["<|im_end|>"]
    (row,) = tokenize(
        [Chat((Message("user", "how are you? ä日本語🙂"), Message("assistant", "fine — 日本 🙂🙂\n", trained=True)))], tokenizer(), 256
    ).rows
    assert sum(shown.counts.values()) == len(row.rows[0].ids)
    assert shown.counts["trained"] + shown.counts["end"] == int(row.rows[0].trained.sum())
    assert not shown.warnings
    assert "日本" in draw(shown).plain and "line 7" in draw(shown).plain


def test_an_xray_warns() -> None:
    assert any("cut off" in warning for warning in ray("q", "long " * 50, 20).warnings)
    assert any("Nothing" in warning for warning in ray("long " * 50, "a", 20).warnings)
    endless = CHATML.replace("<|im_end|>", "") + "{# no end #}"
    assert any("may not stop" in warning for warning in ray("q", "a", 99, endless).warnings)
    assert any("system prompt" in warning for warning in ray("q", "a", 99, DEFAULT_SYSTEM).warnings)


def test_xray_on_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(chat(f"q {i}", "a") for i in range(3)), "", "no")
    assert [at_line(path, line)[0] is not None for line in (1, 3, 4, 5)] == [True, True, False, False]
    done = CliRunner().invoke(app, ["check", str(path), "--row", "2", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["counts"]["end"] == 1
    for line, code in ((4, "no_row_there"), (5, "not_json")):
        problem = CliRunner().invoke(app, ["check", str(path), "--row", str(line)]).exception
        assert getattr(problem, "code", None) == code


# --- the page -------------------------------------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[tuple[str, str]] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {(tag, name) for name, _ in attrs}
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag


def test_the_page_holds_no_markup_of_the_data(tmp_path: Path) -> None:
    evil = "</div><script>alert(1)</script><img src=x onerror=alert(1)>\"'&<svg onload=x>"
    path = write(tmp_path / "<b>a.jsonl", *(chat(evil + str(i), evil) for i in range(60)), {"messages": [], evil: 1}, {"text": "x", "label": evil})
    text = page(check(path, path, reader=reader()), reader())
    tags = Tags(text)
    assert not tags.open
    assert not {"script", "img", "b>a.jsonl", "link", "iframe"} & tags.tags.keys()
    assert not {name for _, name in tags.attributes if name.startswith("on") or name in ("src", "href", "style")}
    assert tags.tags["svg"] >= 6
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text


def test_the_page_of_nothing_and_of_errors_alone(tmp_path: Path) -> None:
    for records in ([], ["no"], [chat("a", "b")], [{"text": "a", "label": "b"}] * 10, [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 10):
        path = write(tmp_path / "a.jsonl", *records)
        assert not Tags(page(check(path, reader=reader()), reader())).open
        assert not Tags(page(check(path))).open
    assert not Tags(page(check(tmp_path / "none"))).open


# --- a file of any size ---------------------------------------------------------------------------------------------------------------------------

_MEASURE = """
import resource, sys
from pathlib import Path
from tunewright.data.check import check
report = check(Path(sys.argv[1]))
print(report.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000, *sorted({f.code for f in report.faults}))
"""


def measured(path: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Bigger files: `python benchmarks/gate.py memory`."""
    text = "".join(map(chr, range(97, 123))) * 160
    with (tmp_path / "a.jsonl").open("w") as file:
        for i in range(8000):
            file.write(json.dumps(chat(f"{i % 7990} {text}", "yes")) + "\n")
    rows, megabytes, *codes = measured(tmp_path / "a.jsonl")
    small = int(measured(write(tmp_path / "b.jsonl", *(chat(str(i), "yes") for i in range(10))))[1])
    assert (int(rows), codes) == (8000, ["duplicate_row"])
    assert int(megabytes) - small < 25, (small, megabytes)  # the file has 33 MB


def test_a_million_faults_are_counted_and_some_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 5000 + '{"messages": []}\n' * 3000)
    report = check(path)
    assert report.rows == 8000 and report.sound == 0
    assert {group.code: group.count for group in report.groups} == {"not_json": 5000, "no_messages": 3000}
    assert len(report.faults) == 4000
    assert "+ 4,995 more" in render(report)


# --- what makes it fast, held against what is slow -------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=3), values, max_size=4), st.booleans(), st.sampled_from([(", ", ": "), (",", "\t:\n"), (" , ", " : ")]))
def test_the_fast_parser_gives_what_the_careful_one_gives(value: dict[str, Any], escaped: bool, separators: tuple[str, str]) -> None:
    text = json.dumps(value, ensure_ascii=escaped, separators=separators)
    careful = _Parser()
    careful.found = []
    fast = _plainly_sound(text)
    slow = careful._decoder.decode(text)
    if fast is not None:
        assert not careful.found
        assert json.dumps(fast) == json.dumps(slow)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"a"\t:1,"a":2}', '{"a":1,"a"\n:2, "b":"\\":"}', '{"x":{"a":1,"a":1}}', '{"a":NaN}', '{"a":1e999}']
)
def test_the_fast_parser_leaves_what_is_wrong_to_the_careful_one(text: str) -> None:
    assert _plainly_sound(text) is None
    parser = _Parser()
    parser.parse(text)
    assert parser.found
    assert _KEY_END.findall(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=12))
def test_repeats_against_a_plain_count(rows: list[tuple[str, str]]) -> None:
    keys, seen, first, conflicts = Keys(), {}, {}, {}
    for line, (given_, answer) in enumerate(rows, 1):
        example = Chat((Message("user", given_), Message("assistant", answer, trained=True)), line)
        keys.add(example)
        seen.setdefault(input_and_answer(example), []).append(line)
        known = first.setdefault(given_, (answer, line))
        if known[0] != answer:
            conflicts.setdefault(given_, (line, known[1]))
    found = repeated(keys)
    assert found.count == sum(len(lines) - 1 for lines in seen.values())
    assert found.first == min(((lines[1], lines[0]) for lines in seen.values() if len(lines) > 1), default=(0, 0))
    assert (found.conflicts, found.conflict) == (len(conflicts), min(conflicts.values(), default=(0, 0)))


def test_parts_find_what_the_whole_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> Keys:
        made, draw = Keys(), random.Random(1)
        for line in range(1, 3001):
            made.add(Chat((Message("user", str(draw.randrange(900))), Message("assistant", str(draw.randrange(3)), trained=True)), line))
        return made

    whole = repeated(keys())
    monkeypatch.setattr("tunewright.data.repeats._PART", 400)
    monkeypatch.setattr("tunewright.data.repeats._CHUNK", 128)
    assert repeated(keys()) == whole
    assert whole.count and whole.conflicts


def test_an_unread_report_is_json_too(tmp_path: Path) -> None:
    report: Report = check(tmp_path / "none", reader=reader())
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["tokens"]["rows"] == 0


def test_answers_that_the_base_does_not_expect(tmp_path: Path) -> None:
    rows = [chat(f"Which colour has the sky on day {i}?", "The sky is blue.") for i in range(30)]
    rows[12]["messages"][1]["content"] = "zq xj vv kq wz"
    path = write(tmp_path / "a.jsonl", *rows, "no")
    done = CliRunner().invoke(app, ["check", str(path), "--perplexity", "--json"])
    found = json.loads(done.stdout)["surprise"]
    assert (found["rows"], found["outliers"]) == (30, 1)
    assert found["highest"][0][1] == 13 and found["highest"][0][0] > 5 * found["p95"] > found["median"] > 1


def test_what_training_would_refuse_is_an_error_for_the_model_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(chat(f"q{i}", "a") for i in range(10)), chat("long " * 2000, "a"))
    run = lambda *words: CliRunner().invoke(app, ["check", str(path), *words]).exit_code  # noqa: E731
    assert [run(), run("--model", "nano"), run("--model", "nano", "--max-tokens", "1024"), run("--model", "none")] == [0, 3, 0, 0]
