"""Rows -> the rows to drop: one function for each step that drops, (rows, step) -> {place: reason}.

Each names nothing more when it is asked again about what it left.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from tunewright.data.content import own_text
from tunewright.data.example import Example, Labelled, input_and_answer
from tunewright.data.formats import TEXT_PAIRS
from tunewright.data.mend import is_missing
from tunewright.data.near import near
from tunewright.data.recipe import Conflicts, Drop, Duplicates, Errors, Language, Length, Missing, NearDuplicates, Outliers
from tunewright.data.rows import Fields, RawRow

Dropped = dict[int, str]

_NEEDED = (
    "text",
    "label",
    "completion",
    "chosen",
    "rejected",
    "instruction",
    "output",
    "question",
    "answer",
    *(name for names in TEXT_PAIRS for name in names),
)
# What `check` says of a row that has no text where one is needed.
_ABSENT = {"missing_key", "no_content", "no_messages", "no_assistant_turn"}


@dataclass(frozen=True, slots=True)
class Judged:
    """A row as it is after the edits, and the example in it, None where it has an error."""

    row: RawRow
    example: Example | None


def drops(rows: Sequence[Judged], step: Drop) -> Dropped:
    """The places of the rows that a step drops, each with the reason."""
    match step:
        case Missing():
            return missing(rows, step)
        case Errors():
            return {at: one.row.faults[0].code for at, one in enumerate(rows) if one.row.faults}
        case Length():
            return length(rows, step)
        case Language():
            return language(rows, step)
        case Conflicts():
            return conflicts(rows, step)
        case Duplicates():
            return duplicates(rows)
        case NearDuplicates():
            return near_duplicates(rows)
        case Outliers():
            return outliers(rows, step)


def missing(rows: Sequence[Judged], step: Missing) -> Dropped:
    """Rows without a text, an answer or a label. A prompt may be empty, and a turn that only calls a tool says nothing."""
    found = {}
    for at, one in enumerate(rows):
        fields = one.row.fields
        lacking = [key for key in _NEEDED if key in fields and is_missing(fields[key], step.as_missing)]
        lacking += ["prompt"] * ("prompt" in fields and fields["prompt"] is None) + ["content"] * any(_is_silent(t, step) for t in _turns(fields))
        codes = [f"missing_{key}" for key in lacking] + [fault.code for fault in one.row.faults if fault.code in _ABSENT]
        if codes:
            found[at] = codes[0]
    return found


def _turns(fields: Fields) -> list[Any]:
    turns = fields.get("messages", fields.get("conversations"))
    return turns if isinstance(turns, list) else []


def _is_silent(turn: Any, step: Missing) -> bool:
    if not isinstance(turn, dict) or turn.get("tool_calls") or turn.get("role", turn.get("from")) in ("tool", "observation"):
        return False
    return is_missing(turn.get("content", turn.get("value")), step.as_missing)


def length(rows: Sequence[Judged], step: Length) -> Dropped:
    """Rows that are too short or too long."""
    found = {}
    for at, one in _sound(rows):
        characters = len(own_text(one))
        if not step.at_least <= characters <= step.at_most:
            found[at] = "too_short" if characters < step.at_least else "too_long"
    return found


def language(rows: Sequence[Judged], step: Language) -> Dropped:
    """Rows in a language that is not kept, each under its language's name."""
    identify = _identifier()
    found: Dropped = {}
    for at, one in _sound(rows):
        text = own_text(one)
        if len(text) >= step.at_least:
            code, confidence = identify.classify(text[:2000])
            if code not in step.keep and confidence >= step.confidence:
                found[at] = f"language_{code}"
    return found


@lru_cache(maxsize=1)
def _identifier() -> Any:
    langid = import_module("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def conflicts(rows: Sequence[Judged], step: Conflicts) -> Dropped:
    """Rows whose input has several answers, but for those of the answer that is kept."""
    by_input: dict[Hashable, list[tuple[int, Hashable]]] = defaultdict(list)
    for at, one in _sound(rows):
        given, answer = input_and_answer(one)
        if given:
            by_input[given].append((at, answer))
    found: Dropped = {}
    for group in by_input.values():
        answers = Counter(answer for _, answer in group).most_common()
        if len(answers) > 1:
            best = answers[0][0] if answers[0][1] > answers[1][1] else None
            kept = {"none": None, "first": group[0][1], "most": best}[step.keep]
            found |= {at: "conflicting_answers" for at, answer in group if answer != kept}
    return found


def duplicates(rows: Sequence[Judged]) -> Dropped:
    """Rows that an earlier one equals in input and answer."""
    seen: set[Hashable] = set()
    found: Dropped = {}
    for at, one in _sound(rows):
        key = input_and_answer(one)
        if key in seen:
            found[at] = "duplicate_row"
        seen.add(key)
    return found


def near_duplicates(rows: Sequence[Judged]) -> Dropped:
    """Rows that are nearly an earlier one of the same label."""
    by_label: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for at, one in _sound(rows):
        by_label[one.label if isinstance(one, Labelled) else ""].append((at, own_text(one)))
    found: Dropped = {}
    for group in by_label.values():
        found |= {group[i][0]: "near_duplicate" for i, _, begins in near([text for _, text in group]) if not begins}
    return found


def outliers(rows: Sequence[Judged], step: Outliers) -> Dropped:
    """Rows whose length is far from the median, until none of what is left is."""
    places, sizes = [], []
    for at, one in _sound(rows):
        places.append(at)
        sizes.append(math.log1p(len(own_text(one))))
    here, size = np.array(places, int), np.array(sizes)
    found: Dropped = {}
    while len(size):
        middle = np.median(size)
        # A file of equal lengths has no spread of its own; a fiftieth is what counts as none.
        spread = max(1.4826 * float(np.median(np.abs(size - middle))), 0.02)
        far = np.abs(size - middle) > step.deviations * spread
        if not far.any():
            break
        found |= {int(at): "outlier_short" if one < middle else "outlier_long" for at, one in zip(here[far], size[far], strict=True)}
        here, size = here[~far], size[~far]
    return found


def _sound(rows: Sequence[Judged]) -> Iterator[tuple[int, Example]]:
    return ((at, one.example) for at, one in enumerate(rows) if one.example is not None)
