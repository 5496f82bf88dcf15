"""Text -> mended text: one function for each step that edits, (text, the key it stands under, the step) -> text.

Each gives a text that it would not change again.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from tunewright.data.personal import find
from tunewright.data.recipe import Fill, Html, Mask, Unicode, Whitespace
from tunewright.data.rows import Fields, RawRow, edited, is_whole

_ROUNDS = 50
_PLACEHOLDER = re.compile(r"\[([A-Z]+)_(\d{1,9})\]")

# Where the model's text begins is a matter of a space, so the ends of these belong to what is learnt.
_ENDS_KEPT = {"prompt", "completion", "chosen", "rejected"}
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_INVISIBLE = re.compile("[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u200b\u2060\ufeff]")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Names that prompts use in brackets too (input, label, title, …; s, which ends a text for some models) are left out: what may be no HTML stays.
_BLOCKS = "p|div|br|hr|li|ul|ol|dl|dt|dd|tr|table|thead|tbody|tfoot|h[1-6]|blockquote|pre|center"
_INLINE = "a|abbr|b|big|body|code|em|font|html|head|i|iframe|img|meta|noscript|small|span|strike|strong|sub|sup|td|th|tt|u|svg|video"
_ATTRIBUTES = r"""(?:\s(?:"[^"]{0,2000}"|'[^']{0,2000}'|[^<>"']){0,2000})?"""
_BLOCK, _TAG = (re.compile(rf"</?(?:{names}){_ATTRIBUTES}/?>", re.IGNORECASE) for names in (_BLOCKS, _INLINE))
_UNSEEN = re.compile(
    rf"<(script|style){_ATTRIBUTES}>.{{0,100000}}?</\1\s*>|<!--.{{0,100000}}?-->|<!doctype[^<>]{{0,200}}>", re.IGNORECASE | re.DOTALL
)


def encoding(text: str, key: str, step: object) -> str:
    """What ftfy takes for UTF-8 that was read as something else, read right. ASCII alone cannot be such."""
    if text.isascii():
        return text
    import ftfy

    return _settled(text, ftfy.fix_encoding)


def unicode(text: str, key: str, step: Unicode) -> str:
    """One spelling of each character, and none that is invisible. Joiners stay: letters and emoji need them."""
    return text if text.isascii() and text.isprintable() else unicodedata.normalize(step.form, _INVISIBLE.sub("", text))


def whitespace(text: str, key: str, step: Whitespace) -> str:
    """See the step. The ends of prompts and completions stay as they are."""
    core = text.strip()
    start = text.find(core) if core else 0
    lines = _SPACES.sub(" ", core.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    if step.collapse:
        lines = [line if line[:1].isspace() else re.sub(r"[ \t]{2,}|\t", " ", line) for line in lines]
    mended = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip()
    return text[:start] + mended + text[start + len(core) :] if key in _ENDS_KEPT else mended


def strip_html(text: str, key: str, step: Html) -> str:
    """The text that a reader of the page would see."""
    return _settled(text, _stripped) if "<" in text or "&" in text else text


def _stripped(text: str) -> str:
    if "<" in text:
        plain = _TAG.sub("", _BLOCK.sub("\n", _UNSEEN.sub("", text)))
        # A block's line break separates it from others, not from nothing.
        plain = plain if text.startswith("\n") else plain.lstrip("\n")
        text = plain if text.endswith("\n") else plain.rstrip("\n")
    return _ENTITY.sub(_character, text)


def _character(entity: re.Match[str]) -> str:
    character = html.unescape(entity[0])
    return entity[0] if "\0" in character or "\ud800" <= character <= "\udfff" else character


class Masks:
    """Placeholders of one file: the same value has the same one, and none that the file holds already is given again."""

    def __init__(self, rows: Iterable[RawRow]) -> None:
        self._known: dict[tuple[str, str], str] = {}
        self._last: Counter[str] = Counter()
        for row in filter(is_whole, rows):
            edited(row.fields, self._note, everywhere=True)

    def _note(self, text: str, key: str) -> str:
        for kind, number in _PLACEHOLDER.findall(text) if "[" in text else ():
            self._last[kind.lower()] = max(self._last[kind.lower()], int(number))
        return text

    def mask(self, text: str, key: str, step: Mask) -> str:
        """The text with a placeholder for each value that is found."""
        parts, end = [], 0
        for hit in sorted(find(text), key=lambda hit: hit.start):
            if hit.kind in step.kinds:
                parts += [text[end : hit.start], self._placeholder(hit.kind, text[hit.start : hit.end])]
                end = hit.end
        return "".join([*parts, text[end:]])

    def _placeholder(self, kind: str, value: str) -> str:
        key = kind, value.lower() if kind == "email" else re.sub(r"[\s().-]", "", value) if kind in ("phone", "card", "iban") else value
        if key not in self._known:
            self._last[kind] += 1
            self._known[key] = f"[{kind.upper()}_{self._last[kind]}]"
        return self._known[key]


def fill(fields: Fields, step: Fill) -> Fields:
    """The record with the step's values where it has none."""
    new = {name: value for name, value in step.values.items() if is_missing(fields.get(name), step.as_missing)}
    return {**fields, **new} if new else fields


def is_missing(value: object, as_missing: Sequence[str]) -> bool:
    """Null, white space alone, or a word that stands for nothing."""
    return value is None or (isinstance(value, str) and (not value.strip() or value.strip().lower() in as_missing))


def _settled(text: str, change: Callable[[str], str]) -> str:
    for _ in range(_ROUNDS):
        if (new := change(text)) == text:
            break
        text = new
    return text
