"""A file -> Examples: `read` and `load`. A format is one function, (fields, findings) -> Example or None.

Every row either becomes an example or has an error that says why not: nothing is dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunewright.data.chat import chat
from tunewright.data.container import Place, records
from tunewright.data.example import Completion, Example, Labelled
from tunewright.data.findings import Faults, Findings, Notes, quoted
from tunewright.data.foreign import alpaca, document, question_answer, sharegpt
from tunewright.data.jsonl import Record
from tunewright.data.lines import not_readable
from tunewright.data.pairs import pair
from tunewright.errors import BadData, Fault

Format = Literal["chat", "completion", "labelled", "pair", "alpaca", "sharegpt", "question_answer", "source_target", "document"]
"""What a record is. The container, such as JSON lines or Parquet, follows from the file's first bytes, else from its name."""

MIN_EXAMPLES = 10
"""A training file's fewest rows, as in OpenAI's API."""

FORMATS: dict[Format, str] = {
    "chat": "messages",
    "completion": "prompt + completion",
    "labelled": "text + label",
    "pair": "two answers to one prompt",
    "alpaca": "instruction + output (Alpaca)",
    "sharegpt": "conversations (ShareGPT)",
    "question_answer": "question + answer",
    "source_target": "source + target",
    "document": "text alone",
}
_PAIR = {"preferred_output", "non_preferred_output", "chosen", "rejected"}
TEXT_PAIRS = (("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"))
"""What two texts under one label are called. The first pair's first is also what a single text is called."""
_KNOWN_ELSEWHERE = {
    "body": "This is a batch request, not an example: use its body's messages, and add the answer",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file holds: the sound examples in file order, and every fault in the order of lines.

    `rows` counts the records met (blank lines and a CSV header are none): the examples and the rows with
    an error. A file of which no record can be read has no rows and one error, on line 0.
    """

    path: Path
    examples: list[Example]
    faults: list[Fault]
    format: Format | None
    rows: int

    @property
    def errors(self) -> list[Fault]:
        """The faults that keep rows, or the file, from being used."""
        return [fault for fault in self.faults if not fault.warning]


@dataclass(slots=True)
class Tally:
    """What reading a file has met so far: `rows` = `sound` + `lost`, by the code of each lost row's first error.

    `faults` is whole, the file's own and notes included, once the rows have all been read.
    """

    faults: Faults = field(default_factory=Faults)
    format: Format | None = None
    rows: int = 0
    sound: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    place: Place = field(default_factory=Place)


def load(path: Path, minimum: int = MIN_EXAMPLES) -> list[Example]:
    """The examples of a file without errors. Raises BadData with every error otherwise."""
    reading = read(path, minimum)
    if reading.errors:
        raise BadData(str(path), reading.errors)
    return reading.examples


def read(path: Path, minimum: int = MIN_EXAMPLES, as_format: Format | None = None) -> Reading:
    """Read a file, whatever it holds: what is wrong with it is in the result. `minimum`: the fewest rows to have.

    `as_format`: take every record as this, instead of what its keys say.
    """
    tally = Tally()
    examples = list(stream(path, tally, minimum, as_format))
    return Reading(Path(path), examples, sorted(tally.faults.listed, key=lambda fault: fault.line), tally.format, tally.rows)


def stream(path: Path, tally: Tally, minimum: int = MIN_EXAMPLES, as_format: Format | None = None) -> Iterator[Example]:
    """Yield the sound examples one by one, as `read` finds them, holding none. Everything else goes into `tally`."""
    path, notes = Path(path), Notes()
    try:
        for record in records(path, notes, as_format == "document", tally.place):
            tally.rows += 1
            example, tally.format, wrong = parse(record, notes, tally.format, as_format)
            if wrong:
                tally.faults.add(wrong)
                tally.lost[wrong[0].code] += 1
            if example:
                tally.sound += 1
                yield example
        tally.faults.add(_file_faults(tally.rows, minimum))
    except BadData as bad:
        tally.faults.add(bad.faults)
    except OSError as error:
        tally.faults.add(not_readable(path, error).faults)
    tally.faults.add(notes.faults())


def parse(record: Record, notes: Notes, before: Format | None, as_format: Format | None) -> tuple[Example | None, Format | None, list[Fault]]:
    """One record as an example, or None with what is wrong; and the file's format, which is that of its first example (`before`)."""
    row = Findings(record.line, notes, record.faults)
    found = None if row.faults else as_format or _format_of(record.fields, row, before)
    example = _READERS[found](record.fields, row) if found else None
    if example and found and found != (before or found):
        row.error("mixed_formats", f"The row is {FORMATS[found]}; those before are {FORMATS[before or found]}", "Keep one format in a file")
        example = None
    return example, before or (found if example else None), row.faults


def _file_faults(rows: int, minimum: int) -> list[Fault]:
    if not rows:
        return [Fault(0, "empty_file", "The file holds no rows", "Write one record on each line")]
    if rows < minimum:
        message = f"The file has {rows} row{'s' if rows > 1 else ''}; at least {minimum} are needed"
        return [Fault(0, "too_few_examples", message, f"Add {minimum - rows} more")]
    return []


def _format_of(fields: dict[str, Any], row: Findings, before: Format | None) -> Format | None:
    if "messages" in fields:
        return "chat"
    if _PAIR & fields.keys():
        return "pair"
    if "completion" in fields or "prompt" in fields:
        return "completion"
    if "conversations" in fields:
        return "sharegpt"
    if "instruction" in fields:
        return "alpaca"
    if "question" in fields and "answer" in fields:
        return "question_answer"
    if "source" in fields and "target" in fields:
        return "source_target"
    # A label that is missing in one row of many stays a fault.
    if "text" in fields and "label" not in fields and before in (None, "document"):
        return "document"
    if "label" in fields or "text" in fields:
        return "labelled"
    keys = f"has the keys {', '.join(map(quoted, list(fields)[:6]))}{' …' if len(fields) > 6 else ''}" if fields else "is empty"
    mend = next((mend for name, mend in _KNOWN_ELSEWHERE.items() if name in fields), "Write one of these, or force one with --format")
    row.error("unknown_record", f"The record {keys}; needed are messages, prompt + completion, text + label, or a pair", mend)
    return None


def completion(fields: dict[str, Any], row: Findings) -> Completion | None:
    """The texts are kept exactly, with white space at their ends. The prompt may be empty: text from nothing."""
    row.unknown_keys([name for name in fields if name not in ("prompt", "completion")])
    prompt, text = _text(fields, "prompt", row, may_be_empty=True), _text(fields, "completion", row)
    return None if row.faults else Completion(prompt, text, row.line)


def source_target(fields: dict[str, Any], row: Findings) -> Completion | None:
    """A text and what to make of it, such as its translation."""
    row.unknown_keys([name for name in fields if name not in ("source", "target")])
    source, target = _text(fields, "source", row), _text(fields, "target", row)
    return None if row.faults else Completion(source, target, row.line)


def labelled(fields: dict[str, Any], row: Findings) -> Labelled | None:
    """A text, or two, and a label; a label that is a whole number or a truth value becomes the text that JSON writes for it."""
    first, second = next((names for names in TEXT_PAIRS if names[0] in fields), TEXT_PAIRS[0])
    row.unknown_keys([name for name in fields if name not in (first, second, "label")])
    text = _text(fields, first, row)
    pair = _text(fields, second, row) if second in fields or first != "text" else None
    label = fields.get("label")
    if isinstance(label, int):
        row.note("label_made_text", "A label is a number or a truth value and is taken as text", "Write labels as strings")
        label = str(label).lower()
    elif label is not None and not isinstance(label, str):
        row.error("label_not_text", f"The label is {quoted(label)}, not a string or a whole number", "Write it as a string")
    else:
        label = _text(fields, "label", row)
    return None if row.faults else Labelled(text, label, row.line, pair)


def _text(fields: dict[str, Any], name: str, row: Findings, may_be_empty: bool = False) -> str:
    value = fields.get(name)
    if isinstance(value, str):
        if not may_be_empty and (not value or value.isspace()):
            row.error(f"empty_{name}", f"The {name} is empty", "Write the text, or delete the row")
        return value
    if name not in fields:
        row.error("missing_key", f"The key {quoted(name)} is missing", "Add it, or delete the row")
    else:
        row.error(
            f"{name}_not_text",
            f"The {name} is {'null' if value is None else quoted(value)}, not text",
            "Write a string",
        )
    return ""


_READERS: dict[Format, Callable[[dict[str, Any], Findings], Example | None]] = {
    "chat": chat,
    "completion": completion,
    "labelled": labelled,
    "pair": pair,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "question_answer": question_answer,
    "source_target": source_target,
    "document": document,
}
