"""JSON from strangers: `parse` takes what RFC 8259 and our database can hold, within limits of depth and size, and nothing else."""

from __future__ import annotations

import json
import math
import re
from typing import Any

DEPTH = 64
NODES = 100_000

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{},]', re.DOTALL)
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


class NotStrict(ValueError):
    """The body is not JSON, or not of a kind that is taken; the message says why."""


def parse(body: bytes) -> Any:
    """The value of a JSON body. Raises NotStrict.

    Refused: other encodings than UTF-8, NaN and infinities, numbers beyond 64 bits, a key given twice, NUL and lone
    surrogates in a string, more than 64 levels or 100,000 values.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotStrict(f"The body is not UTF-8: see byte {error.start}") from None
    _measure(text)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise NotStrict(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise NotStrict(f"The body is nested deeper than {DEPTH} levels") from None
    if "\\u" in text:  # only an escape can spell what UTF-8 cannot
        _texts(value)
    return value


def _measure(text: str) -> None:
    """Depth and number of values, before anything is built: a million keys would hold up everyone else."""
    depth = nodes = 0
    for token in _TOKEN.finditer(text):
        mark = text[token.start()]
        if mark in "[{":
            depth += 1
            if depth > DEPTH:
                raise NotStrict(f"The body is nested deeper than {DEPTH} levels")
        elif mark in "]}":
            depth -= 1
        nodes += mark != '"'
        if nodes > NODES:
            raise NotStrict(f"The body has more than {NODES:,} values")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise NotStrict(f"The key {twice[:64]!a} is given twice")
    return made


def _int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise NotStrict(f"The number {text[:32]} does not fit into 64 bits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotStrict(f"The number {text[:32]} is too large")
    return number


def _constant(text: str) -> float:
    raise NotStrict(f"{text} is not JSON")


def _texts(value: Any) -> None:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo.extend(item)
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
        elif isinstance(item, str) and (bad := _NOT_TEXT.search(item)):
            raise NotStrict(f"A string holds U+{ord(bad.group()):04X}, which is not text")
