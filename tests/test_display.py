"""What the command line shows: numbers, others' texts, and that a terminal's usual 80 columns hold it whole."""

import io

import pytest
from rich.console import Console

from tunewright.cli import advise, plan
from tunewright.cli.display import hanging, number, printable
from tunewright.cli.evaluate import alone, compared
from tunewright.evaluate.verdict import Difference, Estimate
from tunewright.train.advice import Choice


def test_what_others_wrote_cannot_command_the_terminal() -> None:
    hostile = "a\x1b]0;title\x07b\x1b[2Jc\rd\x9b31me\u202ef\u2066g\ud800"
    assert printable(hostile) == "a]0;titleb[2Jcd31mefg"
    kept = "Zeile\n\tgrün 日本\u3000語 می\u200cخواهم 👩\u200d👧 1\u00a0000"
    assert printable(kept) == kept


def test_numbers() -> None:
    assert number("exact_match", 0.935) == "93.5 %" and number("exact_match", -0.1, sign=True) == "-10.0"
    assert number("loss", 1.23456) == "1.235" and number("perplexity", 999.994) == "999.99" and number("loss", float("nan")) == "-"
    assert number("perplexity", 12345.678) == "12,346" and number("perplexity", -1.5e9, sign=True) == "-1.50e+09"


def shown(*what: object) -> str:
    """As a terminal of 80 columns shows it."""
    file = io.StringIO()
    console = Console(file=file, width=80)
    for one in what:
        console.print(one)
    text = file.getvalue()
    assert "…" not in text and all(len(line) <= 80 for line in text.splitlines()), text
    return text


@pytest.mark.parametrize(
    ("name", "before", "after", "interval"),
    [
        ("field_product", 0.0, 1.0, "0.0 %   100.0 %   +100.0 [+100.0, +100.0]"),
        ("token_accuracy", 1.0, 0.0, "100.0 %   0.0 %   -100.0 [-100.0, -100.0]"),
        ("loss", 105.123, 0.01, "105.123   0.010   -105.113 [-105.113, -105.113]"),
        ("perplexity", 123456.7, 1.01, "123,457     1.01   -123,456 [-123,456, -123,456]"),
        ("perplexity", 1e9, 2.5e9, "1.00e+09   2.50e+09   +1.50e+09 [+1.50e+09, +1.50e+09]"),
        ("perplexity", 999_999.4, 0.0, "999,999     0.00   -999,999 [-999,999, -999,999]"),
    ],
)
def test_a_comparison_is_whole_at_80_columns(name: str, before: float, after: float, interval: str) -> None:
    change = after - before
    row = Difference(
        Estimate(before, before, before, 200), Estimate(after, after, after, 200), change, change, change, 200, "no measurable difference"
    )
    none = Estimate(0.0, 0.0, 1.0, 200)
    other = Difference(none, none, 0.0, -1.0, 1.0, 200, "no measurable difference")
    text = shown(compared({name: row, "field_what the customer [/] asks for, in a word": other}), alone({name: row.after}))
    spaced = " ".join(text.split())
    assert " ".join(interval.split()) in spaced and "unclear" in text and name.replace("_", " ") in text and "[/]" in text


def test_advice_is_whole_at_80_columns() -> None:
    path = "/a/path/to/[a]/model/" + "x" * 40
    text = shown(advise.table([Choice("learning rate", {"model": path, "tuning": {"kind": "lora"}}, "as measured", "(arXiv:2405.09673)")]))
    assert path in "".join(cells(text, 1)) and "kind lora" in text and "learning rate" in text


def cells(text: str, column: int) -> list[str]:
    """A column's words in a table with borders."""
    return [line.split("│")[column + 1].strip() for line in text.splitlines() if "│" in line]


def test_long_lines_hang_beside_their_column() -> None:
    text = "model    nano\ntokens   " + "several words of it, " * 6 + "\n\n  x  a/path/that-is-long"
    folded = hanging(text, 9, 40)
    assert folded.split() == text.split() and "\n\n" in folded
    lines = folded.splitlines()
    assert lines[0] == "model    nano" and lines[-1] == "  x  a/path/that-is-long" and max(map(len, lines)) <= 40
    assert all(line[8] == " " and line[9] != " " for line in lines[1:5])


def test_what_would_fit_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["tuning=lora", "tuning.bits=4", "tuning={kind: top_layers, layers: 3}", "micro_batch_tokens=1234"]
    estimate = {"estimated_peak_memory_bytes": 12.3e9, "estimated_seconds": 5000.0}
    file = io.StringIO()
    plan._show(Console(file=file, width=80), [{"settings": settings, "changes": "layers", "price": "only 3 of 12 layers " * 5, "estimate": estimate}])
    lines = file.getvalue().splitlines()
    assert "--set tuning=lora --set tuning.bits=4 --set 'tuning={kind: top_layers, layers: 3}' --set micro_batch_tokens=1234" in lines
    assert lines[4].startswith("    layers: 12.30 GB, 83 min; only 3") and all(len(line) <= 80 for line in lines[4:])
