"""Rows without a label -> questions to a model, and its suggestions with a person's corrections -> labelled rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunewright.data.example import Example, input_and_answer
from tunewright.data.findings import Notes, quoted
from tunewright.data.formats import TEXT_PAIRS, parse
from tunewright.data.jsonl import Record
from tunewright.data.rows import Fields, RawRow, encoded, read_rows
from tunewright.errors import BadConfig, BadData, Fault

OWN_KEYS = ("line", "suggestion", "confidence", "probabilities")
"""The keys that a row of suggestions has beside those of its record."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A row to be labelled. `label`: the one it has already, or None. `stand_in`: an example of it with any label."""

    row: RawRow
    label: str | None
    stand_in: Example

    def example(self, label: str) -> Example:
        """The row with a label."""
        return _parsed(RawRow(self.row.line, labelled(self.row.fields, label)))


@dataclass(frozen=True, slots=True)
class Filled:
    """What corrections made of a file: rows in = labelled before + corrected + accepted + left out."""

    rows: list[bytes]
    before: int
    corrected: int
    accepted: int
    left_out: list[int]


def label_of(fields: Fields) -> str | None:
    """A record's label: under `label`, `completion`, or what the assistant says last; None where it has none."""
    if "messages" in fields:
        turns = fields["messages"]
        last = turns[-1] if isinstance(turns, list) and turns and isinstance(turns[-1], dict) else {}
        label = last.get("content") if last.get("role") == "assistant" else None
    else:
        label = fields.get(_key(fields))
    if isinstance(label, int):
        return str(label).lower()
    return label if isinstance(label, str) and label.strip() else None


def labelled(fields: Fields, label: str) -> Fields:
    """The record with a label, where `label_of` looks for it."""
    if isinstance(turns := fields.get("messages"), list):
        before = turns[:-1] if turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant" else turns
        return {**fields, "messages": [*before, {"role": "assistant", "content": label}]}
    return {**fields, _key(fields): label}


def _key(fields: Fields) -> str:
    return "label" if any(first in fields for first, _ in TEXT_PAIRS) else "completion"


def questions(path: Path) -> list[Asked]:
    """The rows of a file: text, prompt or messages, some with a label. Raises BadData with every error."""
    faults: list[Fault] = []
    found = []
    for row in read_rows(path):
        if row.faults:
            faults += row.faults
            continue
        try:
            label = label_of(row.fields)
            found.append(Asked(row, label, _parsed(RawRow(row.line, labelled(row.fields, label or "label")))))
        except BadData as bad:
            faults += bad.faults
    if faults:
        raise BadData(str(path), faults)
    return found


def _parsed(row: RawRow) -> Example:
    example, _, faults = parse(Record(row.line, row.fields, []), Notes(), None, None)
    if example is None:
        raise BadData("", faults)
    return example


def suggestion(asked: Asked, label: str, confidence: float, probabilities: dict[str, float]) -> Fields:
    """A row for a person to look at: with `label` null, to be filled in where the suggestion is wrong."""
    rest = {key: value for key, value in asked.row.fields.items() if key not in (*OWN_KEYS, "label")}
    shown = {name: round(value, 4) for name, value in probabilities.items()}
    return {"line": asked.row.line, "suggestion": label, "confidence": round(confidence, 6), "label": None, **rest, "probabilities": shown}


def fill(path: Path, corrections: Path, at_least: float | None) -> Filled:
    """Label the rows of a file: those with a label as they are, then corrections, then suggestions of `at_least` this confidence.

    Rows that none of it labels are left out. Raises BadData where a correction is of another file, or is none.
    """
    asked = {one.row.line: one for one in questions(path)}
    given, faults = dict[int, Fields](), list[Fault]()
    for row in read_rows(corrections):
        fault = row.faults[0] if row.faults else _misfit(row, asked, given)
        if fault:
            faults.append(fault)
        else:
            given[row.fields["line"]] = row.fields
    if faults:
        raise BadData(str(corrections), faults)
    rows, left_out = list[bytes](), list[int]()
    corrected = accepted = 0
    for line, one in asked.items():
        said = given.get(line, {})
        if one.label is not None:
            rows.append(one.row.written())
        elif isinstance(said.get("label"), str):
            corrected += 1
            rows.append(encoded(labelled(one.row.fields, said["label"])))
        elif at_least is not None and said and said["confidence"] >= at_least:
            accepted += 1
            rows.append(encoded(labelled(one.row.fields, said["suggestion"])))
        else:
            left_out.append(line)
    return Filled(rows, len(rows) - corrected - accepted, corrected, accepted, left_out)


def _misfit(row: RawRow, asked: dict[int, Asked], given: dict[int, Fields]) -> Fault | None:
    """Why a row of corrections cannot be taken."""
    fields = row.fields
    line, label, confidence = fields.get("line"), fields.get("label"), fields.get("confidence")
    mend = "Write the file with `tunewright label`, and fill in the labels alone"
    if (
        type(line) is not int
        or not isinstance(fields.get("suggestion"), str)
        or isinstance(confidence, bool)
        or not isinstance(confidence, int | float)
    ):
        return Fault(row.line, "not_a_suggestion", "The row lacks a line, a suggestion or a confidence", mend)
    if label is not None and (not isinstance(label, str) or not label.strip()):
        return Fault(row.line, "label_not_text", f"The label is {quoted(label)}, not text", "Write a string, or null to leave the suggestion")
    if line not in asked:
        return Fault(row.line, "no_such_line", f"The data has no row on line {line}", "Give the file that the suggestions were made for")
    if line in given:
        return Fault(row.line, "line_twice", f"Line {line} of the data stands here twice", "Keep one")
    same = {key: value for key, value in asked[line].row.fields.items() if key not in (*OWN_KEYS, "label")}
    if {key: fields.get(key) for key in same} != same:
        return Fault(
            row.line, "another_row", f"Line {line} of the data is another text than here", "Give the file that the suggestions were made for"
        )
    return None


def matched(one: Path, other: Path) -> tuple[list[str], list[str], int]:
    """The labels that two labellers gave to the same inputs, and how many rows only one of them labelled. Raises BadData, BadConfig.

    Where an input stands several times, the first there is compared with the first here.
    """
    sides = []
    for path in (one, other):
        found: dict[object, str] = {}
        seen: dict[object, int] = {}
        for asked in questions(path):
            given = input_and_answer(asked.stand_in)[0]
            seen[given] = seen.get(given, 0) + 1
            if asked.label is not None:
                found[given, seen[given]] = asked.label
        sides.append(found)
    both = [key for key in sides[0] if key in sides[1]]
    if len(both) < 2:
        raise BadConfig(
            f"{one} and {other} have {len(both)} labelled rows in common; at least two are needed", code="too_few_rows", param="--agreement"
        )
    return [sides[0][key] for key in both], [sides[1][key] for key in both], len(sides[0]) + len(sides[1]) - 2 * len(both)


def write_suggestions(out: Path, rows: Sequence[Fields]) -> None:
    """JSON lines, the least sure first."""
    write_lines(out, [json.dumps(row, ensure_ascii=False).encode() for row in sorted(rows, key=lambda row: row["confidence"])])


def write_lines(out: Path, lines: Sequence[bytes]) -> None:
    """A file that must not exist. Raises BadConfig."""
    try:
        with out.open("xb") as file:
            file.writelines(line + b"\n" for line in lines)
    except FileExistsError:
        raise BadConfig(f"{out} exists already; name a new file", code="file_exists", param="--out") from None
    except OSError as error:
        raise BadConfig(f"{out} cannot be written: {error.strerror}", code="unwritable", param="--out") from None
