"""Cleaning: what each step does and leaves alone, that a second cleaning finds nothing, and that the way back gives the very bytes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import ftfy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunewright.data import clean_folder
from tunewright.data.clean import Cleaning, clean
from tunewright.data.formats import read
from tunewright.data.personal import find
from tunewright.data.recipe import STEPS, Recipe
from tunewright.errors import BadConfig, BadData

ALL = [name + {"language": ":keep=[en]", "fill": ":values={label: unknown}", "length": ":at_least=3"}.get(name, "") for name in STEPS]
ENGLISH = "This is a sentence in English, and it is long enough to be told from others"


def jsonl(path: Path, *records: dict[str, Any] | bytes) -> Path:
    path.write_bytes(b"".join((one if isinstance(one, bytes) else json.dumps(one, ensure_ascii=False).encode()) + b"\n" for one in records))
    return path


def text(value: str, label: Any = "x") -> dict[str, Any]:
    return {"text": value, "label": label}


def cleaned(folder: Path, steps: list[str], *records: dict[str, Any] | bytes) -> Cleaning:
    return clean(jsonl(folder / "dirty.jsonl", *records), Recipe.named(steps))


def texts(cleaning: Cleaning) -> list[str]:
    return [row.fields["text"] for row in cleaning.rows]


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("encoding", "the cafÃ© is nice", "the café is nice"),
        ("encoding", "it â€™ s <b>so</b>  wide", "it ’ s <b>so</b>  wide"),
        ("unicode", "cafe\u0301 \u200bn\u00adow\u0007", "café now"),
        ("unicode", "x² ﬁ 👩\u200d👩 می\u200cخواهم", "x² ﬁ 👩\u200d👩 می\u200cخواهم"),
        ("unicode:form=NFKC", "x² ﬁ", "x2 fi"),
        ("html", "<p>Hello&nbsp;<b class='x > y'>you</b></p><p>a &lt;b&gt; &amp;amp; c</p>", "Hello\u00a0you\n\na  & c"),
        (
            "html",
            "List<int> a < b && c > d <input> <T> 3<5 AT&T &c; <|im_end|> </s>",
            "List<int> a < b && c > d <input> <T> 3<5 AT&T &c; <|im_end|> </s>",
        ),
        ("html", "a<script>if (a<b) {}</script><!-- no --><BR/>b", "a\nb"),
        ("whitespace", "  a\t b \r\n\r\n\r\n\r\n    code  here \rc\u00a0d ", "a b\n\n    code  here\nc d"),
        ("whitespace:collapse=false", "a   b  ", "a   b"),
    ],
)
def test_what_a_step_makes_of_a_text(tmp_path: Path, step: str, before: str, after: str) -> None:
    assert texts(cleaned(tmp_path, [step], text(before))) == [after]


def test_encoding_is_ftfys_repair_and_nothing_more(tmp_path: Path) -> None:
    damaged = ["naïve – ‘quoted’ ½".encode().decode("cp1252"), "ﬁ “curly” ｗｉｄｅ\u0007", "plain ascii", "schöne Grüße"]
    assert texts(cleaned(tmp_path, ["encoding"], *map(text, damaged))) == [ftfy.fix_encoding(one) for one in damaged]


def test_a_line_in_windows_1252_becomes_a_row(tmp_path: Path) -> None:
    line = b'{"text": "caf\xe9 \x93ok\x94", "label": "x"}'
    cleaning = cleaned(tmp_path, ["encoding", "errors"], line, b'{"text": "br\xf6ken', text("fine"))
    assert texts(cleaning) == ["café “ok”", "fine"]
    assert cleaning.dropped == {"not_utf8": 1}


def test_the_ends_of_prompts_and_completions_are_part_of_what_is_learnt(tmp_path: Path) -> None:
    row = {"prompt": "Q:  how? \nA: ", "completion": " so  so\n"}
    assert cleaned(tmp_path, ["whitespace"], row).rows[0].fields == {"prompt": "Q: how?\nA: ", "completion": " so so\n"}


def test_only_texts_are_edited_and_masking_reaches_everything(tmp_path: Path) -> None:
    call = {"id": "c  1", "type": "function", "function": {"name": "f", "arguments": '{"to":  "a@b.org"}'}}
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x  y"}], "name": "a  b"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "a@b.org  1", "tool_call_id": "c  1"},
            {"role": "assistant", "content": "done  ", "weight": 1},
        ],
        "source": "mine  a@b.org",
    }
    fields = cleaned(tmp_path, ["whitespace"], row).rows[0].fields
    assert fields["source"] == row["source"] and fields["messages"][1] == row["messages"][1]
    assert [m["content"] for m in fields["messages"]] == [[{"type": "text", "text": "x y"}], None, "a@b.org 1", "done"]
    masked = json.dumps(cleaned(tmp_path, ["mask"], row).rows[0].fields)
    assert masked == json.dumps(row).replace("a@b.org", "[EMAIL_1]")


def test_two_texts_and_a_source_with_its_target_are_texts(tmp_path: Path) -> None:
    two = {"premise": "a  b", "hypothesis": "c  d", "label": "x"}
    assert cleaned(tmp_path, ["whitespace"], two).rows[0].fields == {"premise": "a b", "hypothesis": "c d", "label": "x"}
    assert cleaned(tmp_path, ["whitespace"], {"source": "a  b", "target": "c  d"}).rows[0].fields == {"source": "a b", "target": "c d"}
    assert cleaned(tmp_path, ["missing"], two, two | {"hypothesis": ""}).dropped == {"missing_hypothesis": 1}


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("spelling", "please add the tranaction to my acccount informaton", "please add the transaction to my account information"),
        (
            "spelling",
            "their seperate hopsital was not there immediatly when we came",
            "their separate hospital was not there immediately when we came",
        ),
        ("spelling:language=de", "wir haben das gestern nicht veröffentlcht und warten", "wir haben das gestern nicht veröffentlicht und warten"),
        ("spelling:protect=[Informaton]", "we need the informaton and the tranaction", "we need the informaton and the transaction"),
        (
            "spelling",
            "we met Zorbl Xandrq Qwerp Blorv and Trenx about the tranaction",
            "we met Zorbl Xandrq Qwerp Blorv and Trenx about the transaction",
        ),
        ("spelling:at_least=12", "we need the informaton and the tranaction", "we need the informaton and the tranaction"),
    ],
)
def test_slips_are_mended(step: str, before: str, after: str, tmp_path: Path) -> None:
    assert texts(cleaned(tmp_path, [step], text(before))) == [after]


@pytest.mark.parametrize(
    "kept",
    [
        "the colour of the harbour was recognised by our neighbours in the theatre",
        "see https://informaton.example/tranaction or mail informaton@tranaction.example and the rest of it",
        "run `informaton` and then\n```\ntranaction = informaton\n```\nand so on as we said",
        "the Informaton and the TRANACTION of informaton_id in tranaction.py at x=informaton are as they should be",
        "das ist eine informaton über die tranaction und wir haben sie schon gestern gesehen",
        "in checkings and settins, with tmobile or mlife, for walken and for ratner: all of them are what they are",  # other words, names
        "they have adpted it, and we do not know whether that is adapted or adopted",
        "it is quite formulaiic in what it says and in how it says it",  # formulaic is rare
        "`the and of to in is was for` dann informaton tranaction",
        "we read it in https://example.org/the(tranaction)informaton and in the rest of it",
        "informaton",  # one word alone has no language
    ],
)
def test_what_may_be_right_is_not_corrected(kept: str, tmp_path: Path) -> None:
    assert texts(cleaned(tmp_path, ["spelling"], text(kept))) == [kept]


def test_the_files_own_words_and_its_labels_stay(tmp_path: Path) -> None:
    own = [text(f"the transacton number {i} was sent to us", "the transacton that was sent") for i in range(3)]
    assert texts(cleaned(tmp_path, ["spelling"], *own)) == [row["text"] for row in own]
    common = [text(f"the transaction number {i} was sent to us", "x") for i in range(60)]
    mended = cleaned(tmp_path, ["spelling"], *own, *common)
    assert [row.fields for row in mended.rows[:3]] == [{**row, "text": row["text"].replace("transacton", "transaction")} for row in own]


def test_a_word_that_is_the_files_own_no_more_is_mended_too(tmp_path: Path) -> None:
    """Two of three rows that hold it are dropped. A second cleaning would mend what is left of it, so the first one does."""
    rows = [text("the transacton of today was immediatly sent to us"), *(text(f"the transacton of the day {i} was sent to us" * 9) for i in (1, 2))]
    steps = ["spelling", "length:at_most=100"]
    cleaning = cleaned(tmp_path, steps, *rows)
    assert (texts(cleaning), cleaning.dropped) == (["the transaction of today was immediately sent to us"], {"too_long": 2})
    assert cleaning.to_dict()["steps"][0]["edited"] == 1  # each line once, though it was edited twice
    again = clean(jsonl(tmp_path / "again.jsonl", *(row.written() for row in cleaning.rows)), Recipe.named(steps))
    assert not again.changes


def test_masks_are_the_same_for_the_same_value_and_new_to_the_file(tmp_path: Path) -> None:
    rows = [
        text("I am [EMAIL_3], call +49 30 1234567"),
        text("Write to Ada@x.org or bob@x.org"),
        text("ada@x.org has +49 (30) 123-4567 and 4111 1111 1111 1111"),
    ]
    cleaning = cleaned(tmp_path, ["mask"], *rows)
    assert texts(cleaning) == ["I am [EMAIL_3], call [PHONE_1]", "Write to [EMAIL_4] or [EMAIL_5]", "[EMAIL_4] has [PHONE_1] and [CARD_1]"]
    assert not any(list(find(one)) for one in texts(cleaning))
    assert texts(cleaned(tmp_path, ["mask:kinds=[card]"], *rows))[2].endswith("4567 and [CARD_1]")


@pytest.mark.parametrize(
    ("step", "rows", "left", "dropped"),
    [
        ("missing", [text("a"), text("", "x"), text("b", None), {"text": "c"}, text("NaN"), text("0", 0)], [0, 5],
         {"missing_text": 2, "missing_label": 1, "missing_key": 1}),
        ("missing", [{"prompt": "", "completion": "a"}, {"prompt": None, "completion": "a"}, {"prompt": "a", "completion": " "}], [0],
         {"missing_prompt": 1, "missing_completion": 1}),
        ("errors", [text("a"), b"no json", {"text": "b", "label": 1.5}], [0], {"not_json": 1, "label_not_text": 1}),
        ("length:at_least=2,at_most=4", [text("a"), text("abc"), text("abcde")], [1], {"too_short": 1, "too_long": 1}),
        ("language:keep=[en]", [text(ENGLISH), text("Das ist ein deutscher Satz, der lang genug ist, um ihn zu erkennen"), text("kurz")], [0, 2],
         {"language_de": 1}),
        ("duplicates", [text("a"), text("a"), text("a", "y"), text("A")], [0, 2, 3], {"duplicate_row": 1}),
        ("near_duplicates", [text(ENGLISH), text(ENGLISH + " too"), text(ENGLISH, "y"), text("short"), text("short")], [0, 2, 3, 4],
         {"near_duplicate": 1}),
        ("conflicts", [text("a"), text("a", "y"), text("b"), text("b")], [2, 3], {"conflicting_answers": 2}),
        ("conflicts:keep=first", [text("a"), text("a", "y"), text("a")], [0, 2], {"conflicting_answers": 1}),
        ("conflicts:keep=most", [text("a"), text("a", "y"), text("a", "y"), text("b"), text("b", "y")], [1, 2], {"conflicting_answers": 3}),
        ("outliers", [*(text("a" * n) for n in range(20, 40)), text("b"), text("c" * 4000)], list(range(20)), {"outlier_short": 1, "outlier_long": 1}),
        ("fill:values={label: unknown}", [text("a"), text("b", None), {"text": "c"}], [0, 1, 2], {}),
    ],
)  # fmt: skip
def test_which_rows_a_step_drops(tmp_path: Path, step: str, rows: list[Any], left: list[int], dropped: dict[str, int]) -> None:
    cleaning = cleaned(tmp_path, [step], *rows)
    assert [row.line - 1 for row in cleaning.rows] == left
    assert cleaning.dropped == dropped
    assert cleaning.rows_in == len(rows) == len(cleaning.rows) + sum(dropped.values())


def test_rows_are_judged_by_what_the_edits_left(tmp_path: Path) -> None:
    rows = [text("<p> </p>"), text("cafÃ©"), text("café "), text("x", "")]
    cleaning = cleaned(tmp_path, ["duplicates", "missing", "fill:values={label: y}", "whitespace", "html", "encoding"], *rows)
    assert [step.step for step in cleaning.recipe.steps] == ["encoding", "html", "whitespace", "fill", "missing", "duplicates"]
    assert [(row.line, row.fields["label"]) for row in cleaning.rows] == [(2, "x"), (4, "y")]
    assert cleaning.dropped == {"missing_text": 1, "duplicate_row": 1}


def test_what_the_rows_are_is_judged_by_those_that_are_left(tmp_path: Path) -> None:
    asked = {"prompt": "a", "completion": "b"}
    cleaning = cleaned(tmp_path, ["length:at_least=2", "duplicates"], text("x"), asked, asked, text("yes"))
    assert [row.line for row in cleaning.rows] == [2, 4]
    assert cleaning.dropped == {"too_short": 1, "duplicate_row": 1}


def test_what_no_step_touches_keeps_its_bytes(tmp_path: Path) -> None:
    lines = [
        b'{"label" : "x",  "text": "caf\\u00e9", "n": 1.50}\r',
        b"not json",
        b'{"text": "a", "text": "b", "label": "x"}',
        b'{"text": "big", "label": 1e999}',
    ]
    cleaning = cleaned(tmp_path, ["encoding", "unicode", "whitespace", "html", "mask"], *lines, text(" edit "))
    assert [row.written() for row in cleaning.rows] == [*lines, b'{"text": "edit", "label": "x"}']
    assert [change.line for change in cleaning.changes] == [5]


_MARKUP = ["&amp;", "&amp;lt;p&gt;", "&#60;b>", "<p>", "</p>", "<b", ">", "<!--", "-->", "<script>", "</script>", "&", "lt;"]
_SIGNS = ["Ã©", "â€™", "\r", "\n", "\n\n\n", " ", "  ", "\t", "\u00a0", "\u0301", "\u00ad", "ﬁ", "Ã", "\u0083", "Â"]
_PERSONAL = ["a@b.org", "@", "+49 30 1234567", "4111111111111111", "1", "[EMAIL_1]", "nan"]
_PIECES = st.sampled_from([*_MARKUP, *_SIGNS, *_PERSONAL, "word ", "the film is good and so on ", "Das ist ein langer deutscher Satz und mehr "])
_TEXT = st.lists(_PIECES | st.text(max_size=3), max_size=12).map("".join)
_ROW = st.fixed_dictionaries({"text": _TEXT, "label": st.sampled_from(["x", "y", " x", None])})
_COUNT = count()


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=st.lists(_ROW, min_size=1, max_size=12), copies=st.integers(1, 2), steps=st.lists(st.sampled_from(ALL), min_size=1, unique=True))
def test_cleaning_twice_is_cleaning_once(tmp_path: Path, rows: list[dict[str, Any]], copies: int, steps: list[str]) -> None:
    folder = tmp_path / str(next(_COUNT))
    folder.mkdir()
    source = jsonl(folder / "dirty.jsonl", *rows * copies)
    recipe = Recipe.named(steps)
    first = clean(source, recipe)
    assert len(first.rows) + sum(first.dropped.values()) == first.rows_in == len(rows) * copies
    assert all(change.before != change.after for change in first.changes)
    assert [row.line for row in first.rows] == sorted(row.line for row in first.rows)
    clean_folder.write(first, folder / "out.jsonl")
    clean_folder.undo(folder / "out.jsonl", folder / "back.jsonl")
    assert (folder / "back.jsonl").read_bytes() == source.read_bytes()
    if first.rows:
        second = clean(folder / "out.jsonl", recipe)
        assert (second.changes, [row.written() for row in second.rows]) == ([], (folder / "out.jsonl").read_bytes().splitlines())


def _csv(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbftext;label\r\n"a ;\r\n b";x\r\n\r\nc ;y\r\n')


def _parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a ", "b", "b"], "label": ["x", "y", "y"]}), path)


def _packed(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"text": "a ", "label": "x"}\n\n{"text": "b", "label": "x"}'))


def _strange(path: Path) -> None:
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "a ", "label": "x"}\r\n \n{"text": "\xff\\ud800"}\n{"text": "\\ud800 \\u0000", "label": "y"}\n' + b"[" * 100_000
    )


@pytest.mark.parametrize(("name", "make"), [("a.csv", _csv), ("a.parquet", _parquet), ("a.jsonl.gz", _packed), ("a.jsonl", _strange)])
def test_the_way_back_gives_the_very_bytes_of_any_container(tmp_path: Path, name: str, make: Any) -> None:
    make(tmp_path / name)
    cleaning = clean(tmp_path / name, Recipe.named(["encoding", "unicode", "html", "whitespace", "mask", "duplicates"]))
    clean_folder.write(cleaning, tmp_path / "out.jsonl")
    assert cleaning.changes
    size = clean_folder.undo(tmp_path / "out.jsonl", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / name).read_bytes() and size == (tmp_path / name).stat().st_size
    repeated = clean(tmp_path / name, Recipe.read(tmp_path / "out.jsonl.clean" / "recipe.yaml"))
    assert b"".join(row.written() + b"\n" for row in repeated.rows) == (tmp_path / "out.jsonl").read_bytes()
    assert list(clean_folder.read_changes(tmp_path / "out.jsonl")) == cleaning.changes


def test_the_way_back_is_small_and_knows_when_it_is_cut_off(tmp_path: Path) -> None:
    rows = [text(f"row {i} {i * 7919 % 1009} {i * i}") for i in range(3000)]
    cleaning = cleaned(tmp_path, ["mask"], *rows, text("a@b.org"))
    out = tmp_path / "out.jsonl"
    folder = clean_folder.write(cleaning, out)
    assert (folder / "undo.zst").stat().st_size < 300 < out.stat().st_size / 300
    assert folder.stat().st_mode & 0o077 == 0
    held, packed = out.read_bytes(), (folder / "undo.zst").read_bytes()
    for place, data, code in (
        (out, held + b"\n", "changed_since"),
        (folder / "undo.zst", packed[:-9], "no_way_back"),
        (folder / "ledger.json", b"{", "not_cleaned"),
    ):
        before = place.read_bytes()
        place.write_bytes(data)
        with pytest.raises(BadConfig) as bad:
            clean_folder.undo(out, tmp_path / "back")
        assert bad.value.code == code and not (tmp_path / "back").exists()
        place.write_bytes(before)
    clean_folder.undo(out, tmp_path / "back")


def test_rows_that_cannot_be_read_stay_only_where_their_bytes_can(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\nb\nc,y\n")
    with pytest.raises(BadData, match="line 3"):
        clean(tmp_path / "a.csv", Recipe.named(["whitespace"]))
    assert clean(tmp_path / "a.csv", Recipe.named(["errors"])).dropped == {"ragged_row": 1}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["nope"], "there is no such name; choose among encoding"),
        (["length:at_least=-1,typo=2"], "at_least: Input should be greater than or equal to 0; steps.0.typo: there is no such setting"),
        (["language"], "keep: is needed"),
        (["mask", "mask"], "twice"),
        (["length:{"], "write it as"),
    ],
)
def test_a_recipe_says_what_is_wrong_with_it(steps: list[str], said: str) -> None:
    with pytest.raises(BadConfig) as bad:
        Recipe.named(steps)
    assert said in bad.value.message


def test_the_command(tmp_path: Path, command_line: Callable[..., tuple[int, str]]) -> None:
    run = partial(command_line, "clean")
    source = jsonl(tmp_path / "d.jsonl", text("the cafÃ© \x1b[31m"), text("same"), text("same"), b"broken")
    assert run("d.jsonl")[0] == run("d.jsonl", "--step", "mask")[0] == 2
    code, said = run("d.jsonl", "--step", "encoding", "--diff")
    assert code == 0 and "café" in said and "\x1b[31m" not in said and sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl"]
    code, said = run("d.jsonl", "--out", "c.jsonl", "--step", "encoding", "--step", "duplicates", "--step", "errors")
    assert code == 0 and "4 rows in = 2 out + 2 dropped; 1 of those out was edited" in said
    assert not read(tmp_path / "c.jsonl", 1).errors
    assert "duplicate_row" in run("c.jsonl", "--diff")[1]
    again = json.loads(run("d.jsonl", "--out", "e.jsonl", "--recipe", "c.jsonl.clean/recipe.yaml", "--json")[1])
    assert again["rows_dropped"] == 2 and (tmp_path / "e.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()
    assert run("c.jsonl", "--undo", "--out", "back.jsonl")[0] == 0
    assert (tmp_path / "back.jsonl").read_bytes() == source.read_bytes()
    for words, code in (
        (["d.jsonl", "--out", "c.jsonl", "--step", "mask"], 2),
        (["d.jsonl", "--diff"], 2),
        (["gone", "--step", "mask", "--diff"], 3),
    ):
        left, said = run(*words)
        assert (left, "Traceback" in said) == (code, False), said
