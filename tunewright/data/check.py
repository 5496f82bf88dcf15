"""A data file -> Report: its faults and what it holds. `render` makes text of it, `Report.to_dict` JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.data.content import near_duplicates, near_validation, warnings
from tunewright.data.example import Chat, Completion, Example, Labelled, Message, Pair, input_and_answer
from tunewright.data.findings import quoted
from tunewright.data.formats import MIN_EXAMPLES, Format, Reading, read
from tunewright.errors import Fault

_LINES_SHOWN = 5
_MESSAGES_SHOWN = 5
_NAMES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Report:
    """What is in a data file and what is wrong with it.

    `rows` = `sound` + rows with an error. `turns` counts messages by role, and `labels` rows by label, in sound
    rows; `trained_characters` is the length of what is learnt from them: answers, completions or labels.
    """

    path: Path
    format: Format | None
    rows: int
    sound: int
    faults: tuple[Fault, ...]
    turns: dict[str, int]
    labels: dict[str, int]
    trained_characters: int
    validation: Report | None = None

    @property
    def ok(self) -> bool:
        """No errors, in the validation file neither. Warnings may be there."""
        return all(fault.warning for fault in self.faults) and (self.validation is None or self.validation.ok)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "path": str(self.path),
            "ok": self.ok,
            "format": self.format,
            "rows": self.rows,
            "sound": self.sound,
            "turns": self.turns,
            "labels": self.labels,
            "trained_characters": self.trained_characters,
            "faults": [asdict(fault) for fault in self.faults],
            "validation": self.validation and self.validation.to_dict(),
        }


def check(path: Path, validation: Path | None = None, minimum: int = MIN_EXAMPLES, as_format: Format | None = None) -> Report:
    """Check a training file and, if given, the validation file beside it. Whatever they hold, this raises nothing."""
    reading = read(path, minimum, as_format)
    report = _report(reading, _within(reading.examples))
    if validation is None:
        return report
    other = read(validation, 1, as_format)
    differing = list(_differing_formats(reading, other))
    shared = [*_shared(reading.examples, other.examples), *near_validation(reading.examples, other.examples)]
    return replace(
        report,
        faults=_sorted([*report.faults, *shared]),
        validation=_report(other, [*_within(other.examples), *differing]),
    )


def summary(reading: Reading) -> Report:
    """The report on what was read, without what compares rows."""
    return _report(reading, ())


def render(report: Report) -> str:
    """The report as plain text: what the file holds, then its faults by code, the worst first."""
    parts = [*_summary(report), *_groups(report.faults)]
    if report.validation:
        parts += ["", render(report.validation)]
    return "\n".join(parts)


def _report(reading: Reading, more: Iterable[Fault]) -> Report:
    turns: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    characters = 0
    for example in reading.examples:
        for one in (example.chosen, example.rejected) if isinstance(example, Pair) else (example,):
            match one:
                case Chat():
                    turns.update(message.role for message in one.messages)
                    characters += sum(_trained_length(message) for message in one.messages if message.trained)
                case Completion():
                    characters += len(one.completion)
                case Labelled():
                    labels[one.label] += 1
                    characters += len(one.label)
    return Report(
        path=reading.path,
        format=reading.format,
        rows=reading.rows,
        sound=len(reading.examples),
        faults=_sorted([*reading.faults, *more]),
        turns=dict(turns),
        labels=dict(labels.most_common()),
        trained_characters=characters,
    )


def _trained_length(message: Message) -> int:
    calls = message.extra.get("tool_calls")
    return len(message.content) + (len(json.dumps(calls, ensure_ascii=False)) if calls else 0)


def _sorted(faults: list[Fault]) -> tuple[Fault, ...]:
    return tuple(sorted(faults, key=lambda fault: fault.line))


def _within(examples: Sequence[Example]) -> list[Fault]:
    return [*_repeats(examples), *near_duplicates(examples), *warnings(examples)]


def _repeats(examples: Sequence[Example]) -> Iterator[Fault]:
    """Warn of rows that are there twice, and of inputs with more than one answer."""
    rows: dict[Hashable, int] = {}
    answers: dict[Hashable, tuple[Hashable, int]] = {}
    repeated: list[tuple[int, int]] = []
    conflicting: dict[Hashable, tuple[int, int]] = {}
    for example in examples:
        key = given, answer = input_and_answer(example)
        if (first := rows.setdefault(key, example.line)) != example.line:
            repeated.append((example.line, first))
        if given:
            known, first = answers.setdefault(given, (answer, example.line))
            if known != answer:
                conflicting.setdefault(given, (example.line, first))
    if repeated:
        (line, first), count = repeated[0], len(repeated)
        message = f"{_rows(count)} repeat{'s' if count == 1 else ''} an earlier one: line {line} is line {first}"
        yield Fault(line, "duplicate_row", message, "Delete the copies, unless they are meant to weigh more", warning=True)
    if conflicting:
        line, first = min(conflicting.values())
        count = len(conflicting)
        message = f"{count:,} input{'s have' if count > 1 else ' has'} more than one answer: see lines {first} and {line}"
        yield Fault(line, "conflicting_answers", message, "Keep the right answer, unless several are right", warning=True)


def _shared(training: Sequence[Example], validation: Sequence[Example]) -> Iterator[Fault]:
    """Warn of training rows whose input the validation file holds too: what they measure is memory."""
    inputs_there: dict[Hashable, int] = {}
    rows_there: set[Hashable] = set()
    for example in validation:
        key = given, _ = input_and_answer(example)
        inputs_there.setdefault(given or key, example.line)
        rows_there.add(key)
    hits: list[tuple[int, int, bool]] = []
    for example in training:
        key = given, _ = input_and_answer(example)
        if (there := inputs_there.get(given or key)) is not None:
            hits.append((example.line, there, key in rows_there))
    if hits:
        line, there = hits[0][:2]
        same = sum(exact for *_, exact in hits)
        message = (
            f"The input of {_rows(len(hits))} ({same:,} with the same answer) stands in the validation file too: line {line} is its line {there}"
        )
        yield Fault(line, "in_validation_too", message, "Take them out of one of the files", warning=True)


def _differing_formats(training: Reading, validation: Reading) -> Iterator[Fault]:
    if training.format and validation.format and training.format != validation.format:
        message = f"The validation file holds {validation.format} rows, the training file {training.format} rows"
        yield Fault(0, "formats_differ", message, "Write both files in one format")


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def _summary(report: Report) -> Iterator[str]:
    if not report.rows:
        yield f"{report.path}: no rows read"
        return
    kind = f" ({report.format})" if report.format else ""
    wrong = report.rows - report.sound
    state = f"{report.sound:,} sound, {wrong:,} with errors" if wrong else "all sound"
    yield f"{report.path}: {_rows(report.rows)}{kind}, {state}"
    if report.sound:
        held = [f"{count:,} {role}" for role, count in report.turns.items()]
        names = [f"{quoted(label)} {count:,}" for label, count in report.labels.items()]
        shown = names[:_NAMES_SHOWN] + [f"{len(names) - _NAMES_SHOWN:,} more labels"] * (len(names) > _NAMES_SHOWN)
        yield "  " + ", ".join([*held, *shown, f"{report.trained_characters:,} characters to learn"])


def _groups(faults: Sequence[Fault]) -> Iterator[str]:
    """Faults of one code together: errors before warnings, those of the whole file first, then by number."""
    groups: dict[tuple[bool, str], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.warning, fault.code), []).append(fault)
    for (warning, code), group in sorted(groups.items(), key=lambda g: (g[0][0], g[1][0].line > 0, -len(g[1]))):
        yield ""
        yield f"{'warning' if warning else 'error'}: {code}" + (f" ({len(group):,})" if len(group) > 1 else "")
        by_message: dict[str, list[int]] = {}
        for fault in group:
            by_message.setdefault(fault.message, []).append(fault.line)
        for message, numbers in list(by_message.items())[:_MESSAGES_SHOWN]:
            yield f"  {_where(numbers)}{message}"
        if rest := [line for numbers in list(by_message.values())[_MESSAGES_SHOWN:] for line in numbers]:
            yield f"  {_where(rest)}the like"
        for mend in list(dict.fromkeys(fault.mend for fault in group))[:2]:
            yield f"  -> {mend}."


def _where(numbers: list[int]) -> str:
    if not numbers[0]:
        return ""
    distinct = list(dict.fromkeys(numbers))
    shown = ", ".join(map(str, distinct[:_LINES_SHOWN]))
    more = f" + {len(distinct) - _LINES_SHOWN:,} more" if len(distinct) > _LINES_SHOWN else ""
    return f"line{'s' if len(distinct) > 1 else ''} {shown}{more}: "
