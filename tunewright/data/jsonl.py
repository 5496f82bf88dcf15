"""Lines of JSON -> records, strictly: what Python's json would let pass or overwrite in silence is a fault here."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from tunewright.data.findings import Notes, note_blank, note_bom, quoted
from tunewright.data.lines import Line
from tunewright.errors import BadData, Fault

MAX_DEPTH = 64
"""How deep lists and objects may be nested."""

# Escapes that may stand for half a character or for NUL; whether they do is seen in the parsed text.
_DUBIOUS_ESCAPE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")


class Record(NamedTuple):
    """One record of a file. With faults, `fields` may be empty."""

    line: int
    fields: dict[str, Any]
    faults: list[Fault]


class _Parser:
    """JSON by RFC 8259, with Python's C scanner; `found` collects (code, message, mend) on the way."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_int=self._int, parse_float=self._float, parse_constant=self._constant)

    def parse(self, text: str) -> Any:
        """The value, or None with what is wrong in `found`."""
        if (value := _plainly_sound(text)) is not None:
            return value
        try:
            value = self._decoder.decode(text)
        except json.JSONDecodeError as error:
            self.found.append(_not_json(text, error))
        except RecursionError:
            self.found.append(_TOO_DEEP)
        else:
            if text.count("{") + text.count("[") > MAX_DEPTH or _DUBIOUS_ESCAPE.search(text):
                self.found += faults_inside(value)
            return value
        return None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            for name, count in Counter(name for name, _ in pairs).items():
                if count > 1:
                    message = f"The key {quoted(name)} stands {count} times in one object"
                    self.found.append(("duplicate_key", message, "Keep one of them"))
        return fields

    def _int(self, digits: str) -> int:
        if len(digits) < 25 and abs(number := int(digits)) < 2**64:
            return number
        self._too_large(digits)
        return 0

    def _float(self, digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            self._too_large(digits)
        return value

    def _too_large(self, digits: str) -> None:
        message = f"The number {digits[:20]}{'…' if len(digits) > 20 else ''} is too large"
        self.found.append(("number_too_large", message, "Write it as a string, or remove it"))

    def _constant(self, name: str) -> None:
        self.found.append(("not_a_number", f"{name} is not JSON", "Write null, or a number"))


# A key's end. Every key has one; a text may hold more of them, behind a backslash.
_KEY_END = re.compile(r'"[ \t\r\n]*:')
_SHALLOW = 8
_EXACT = 2**53


def _plainly_sound(text: str) -> dict[str, Any] | None:
    """The object on a line in which nothing can be wrong, by a parser several times as fast; None where something may be.

    As many keys in the result as key ends in the text: then none stands twice. Escapes that may hide half a character or NUL,
    deep nesting and numbers near any limit are left to the careful parser, and so is everything that is no object.
    """
    try:
        value = from_json(text, allow_inf_nan=False, cache_strings="keys")
    except ValueError:
        return None
    if type(value) is not dict or ("\\u" in text and _DUBIOUS_ESCAPE.search(text)):
        return None
    keys, level = 0, [value]
    for _ in range(_SHALLOW):
        below: list[Any] = []
        for item in level:
            is_object = type(item) is dict
            keys += len(item) if is_object else 0
            for inner in item.values() if is_object else item:
                kind = type(inner)
                if kind is dict or kind is list:
                    below.append(inner)
                elif kind is not str and inner is not None and not -_EXACT < inner < _EXACT:
                    return None
        if not below:
            return value if keys == len(_KEY_END.findall(text)) else None
        level = below
    return None


_TOO_DEEP = ("nested_too_deep", f"Lists or objects are nested more than {MAX_DEPTH} deep", "Flatten the record")
_NUL = ("nul_character", "A text holds a NUL character", "Remove it; it often stems from a damaged or UTF-16 source")


def faults_inside(value: Any) -> list[tuple[str, str, str]]:
    """What is wrong in a parsed value, at any depth and without recursion: (code, message, mend)."""
    found: list[tuple[str, str, str]] = []
    level, depth, texts = [value], 0, []
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                texts.append(item)
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                texts += item
                below += item.values()
        level = below
    if depth > MAX_DEPTH + 1:
        found.append(_TOO_DEEP)
    if any("\0" in text for text in texts):
        found.append(_NUL)
    if halves := re.search("[\ud800-\udfff]", "\n".join(texts)):
        message = f"A text holds \\u{ord(halves[0]):04x}, half of a character that UTF-8 cannot say"
        found.append(("lone_surrogate", message, "Write the whole character, or remove the half"))
    return found


def json_records(lines: Iterable[Line], path: Path, notes: Notes) -> Iterator[Record]:
    """Yield a record for every line that is not blank. Raises BadData where the file is JSON, but not JSON lines."""
    parser = _Parser()
    held: Record | None = None  # an array on the first line: is it the whole file?
    first = True
    for number, text, fault in lines:
        if text.startswith("\ufeff"):
            text = text.removeprefix("\ufeff")
            note_bom(notes, number)
        if not text or text.isspace():
            note_blank(notes, number)
            continue
        value = None
        if fault is None:
            value = parser.parse(text)
        if first and (whole := _whole_value(text, value)):
            raise BadData(str(path), [whole])
        faults = [fault] if fault else [Fault(number, *found) for found in parser.found]
        parser.found.clear()
        if not faults and not isinstance(value, dict):
            faults = [_not_object(number, value)]
        record = Record(number, value if isinstance(value, dict) else {}, faults)
        if first and isinstance(value, list):
            held = record
        else:
            if held:
                yield held
                held = None
            yield record
        first = False
    if held:
        raise BadData(str(path), [_ARRAY])


_ARRAY = Fault(0, "json_array", "The file is one JSON array, not JSON lines", "Write its items one a line: jq -c '.[]' FILE > NEW")


def _whole_value(text: str, value: Any) -> Fault | None:
    """The fault of a file whose first line begins a value that goes on below."""
    if value is not None:
        return None
    if re.match(r"\s*\[\s*(\{|$)", text):
        return _ARRAY
    if text.strip() == "{":
        message, mend = "The records are spread over several lines", "Write each on one line: jq -c . FILE > NEW"
        return Fault(0, "json_over_lines", message, mend)
    return None


def _not_object(line: int, value: Any) -> Fault:
    kinds = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    kind = kinds.get(type(value), "a number")
    return Fault(line, "not_an_object", f"The line is {kind}, not an object", 'Write a record in braces: {"messages": [...]}')


def _not_json(text: str, error: json.JSONDecodeError) -> tuple[str, str, str]:
    if "\0" in text:
        return _NUL
    at, rest = error.pos, text[error.pos :].strip()
    if error.msg == "Extra data" and rest.startswith("{"):
        return (
            "several_records",
            f"Another record begins at character {at + 1}",
            "Write each record on a line of its own",
        )
    before = text[:at].rstrip()
    if error.msg == "Extra data" and rest == ",":
        mend = "Remove the comma at the line's end: JSON lines have none between records"
    elif "control character" in error.msg:
        mend = r"Write line breaks and tabs inside a string as \n and \t"
    elif not rest or "Unterminated" in error.msg:
        mend = "The line ends too early: write each record whole and on one line"
    elif rest.startswith("'"):
        mend = "Use double quotes, as json.dumps does"
    elif re.match("None|True|False", rest):
        mend = "Write null, true and false, as json.dumps does"
    elif rest[0] in "]}" and before.endswith(","):
        mend = "Remove the comma before the closing bracket"
    else:
        mend = "Write one JSON object a line, as json.dumps does"
    what = error.msg[0].lower() + error.msg[1:].removesuffix(" at")
    near = f", near {quoted(rest[:25])}" if rest else ""
    return ("not_json", f"This is not JSON: {what} at character {at + 1}{near}", mend)
