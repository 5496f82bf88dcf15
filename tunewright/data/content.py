"""Examples -> warnings about what their texts hold: near duplicates, personal data and secrets, broken characters, left-over mark-up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tunewright.data.example import Chat, Completion, Example, Labelled, Pair
from tunewright.data.findings import Notes
from tunewright.data.near import near
from tunewright.data.personal import KINDS, find
from tunewright.errors import Fault

# UTF-8 read as Windows-1252 or Latin-1, and the character that stands for one that could not be read.
_MOJIBAKE = re.compile("[\u00c3\u00c2][\u0080-\u00bf]|\u00e2\u20ac[\u2122\u0153\u009d\u201c\u201d\u00a6\u02dc]|\u00ef\u00bf\u00bd|\ufffd")
_HTML = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|ul|ol|li|table|t[dhr]|strong|em|script|style|img|h[1-6])(?:\s[^<>]{0,500})?/?>|&(?:amp|nbsp|quot|lt|gt|apos|#\d{2,5});"
)


def texts(example: Example) -> list[str]:
    """Every text of a row that may be learnt or read, system prompts included."""
    match example:
        case Chat():
            return [message.content for message in example.messages if message.content]
        case Completion():
            return [example.prompt, example.completion]
        case Labelled():
            return [example.text]
        case Pair():
            return list(dict.fromkeys([*texts(example.chosen), *texts(example.rejected)]))


def own_text(example: Example) -> str:
    """The text by which rows are compared: all of it but the system prompt, which is the same in every row."""
    if isinstance(example, Chat):
        return "\n".join(message.content for message in example.messages if message.role not in ("system", "developer"))
    return own_text(example.chosen) if isinstance(example, Pair) else "\n".join(texts(example))


def warnings(examples: Sequence[Example]) -> list[Fault]:
    """One warning for each kind of thing found, with its first line and the number of lines."""
    notes = Notes()
    for example in examples:
        for text in texts(example):
            for hit in find(text):
                notes.add(example.line, f"holds_{hit.kind}", f"A text holds {KINDS[hit.kind]}", "Mask it, unless it is public and meant to be learnt")
            if _MOJIBAKE.search(text):
                mend = "Export it again as UTF-8, or repair it with ftfy"
                notes.add(example.line, "mojibake", "A text holds characters that were read in a wrong encoding", mend)
            if _HTML.search(text):
                notes.add(example.line, "html_left", "A text holds HTML mark-up or entities", "Strip it, unless the model is to write it")
    return notes.faults()


def near_duplicates(examples: Sequence[Example]) -> Iterator[Fault]:
    """Warn of rows that nearly repeat an earlier one. Equal rows are another warning; a shared passage is none."""
    held = [own_text(example) for example in examples]
    found = [(i, j) for i, j, begins in near(held) if not begins and held[i] != held[j]]
    if found:
        (i, j), count = found[0], len(found)
        message = f"{count:,} row{'s nearly repeat' if count > 1 else ' nearly repeats'} an earlier one: line {examples[i].line} is like line {examples[j].line}"
        yield Fault(examples[i].line, "near_duplicate", message, "Keep one of them, unless they are meant to weigh more", warning=True)


def near_validation(training: Sequence[Example], validation: Sequence[Example]) -> Iterator[Fault]:
    """Warn of training rows that are nearly one of the validation file's, or share a long beginning with one."""
    held, there = [own_text(example) for example in training], [own_text(example) for example in validation]
    if not there:
        return
    found = [(i, j, begins) for i, j, begins in near(held, there) if held[i] != there[j]]
    for code, wanted, how in (
        ("near_in_validation", False, "are nearly in"),
        ("passage_in_validation_too", True, "share a long beginning with a row of"),
    ):
        if hits := [(i, j) for i, j, begins in found if begins is wanted]:
            (i, j), count = hits[0], len(hits)
            message = f"{count:,} training row{'s' if count > 1 else ''} {how} the validation file: line {training[i].line} and its line {validation[j].line}"
            yield Fault(training[i].line, code, message, "Keep such rows on one side", warning=True)
