"""A text -> what in it should perhaps not be learnt: `find` gives personal data and secrets, each by its kind and place.

Numbers that carry a checksum are believed only with it. What has no fixed form (names, addresses of houses) is not looked for.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple


class Hit(NamedTuple):
    """`kind` stands at `start` to `end` of the text."""

    kind: str
    start: int
    end: int


KINDS = {
    "email": "an e-mail address",
    "phone": "a phone number",
    "card": "a payment card number (checksum right)",
    "iban": "a bank account number (IBAN, checksum right)",
    "ip": "an IP address",
    "secret": "a key, token or password",
}

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_CARD = re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-]|[.,]\d)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){2,7}(?::?[0-9a-fA-F]{1,4}){1,7}(?![\w:])")
# With a country's code; or as North America writes it, the area in brackets or all parts joined alike.
_PHONE = re.compile(
    r"(?<![\w.+-])\+[1-9]\d{0,2}(?:[ .-]?(?:\(\d{1,4}\)|\d{1,4})){2,6}(?![\w-])"
    r"|(?<!\w)\([2-9]\d{2}\) ?\d{3}[ .-]\d{4}(?![\w-])"
    r"|(?<![\w.+-])(?:1-)?[2-9]\d{2}([.-])[2-9]\d{2}\1\d{4}(?![\w-])"
)
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|(?<!\w)(?:sk-(?:proj-|ant-)?[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,}|hf_[A-Za-z0-9]{30,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|xox[abprs]-[A-Za-z0-9-]{10,}|glpat-[\w-]{20,}|[rs]k_live_[A-Za-z0-9]{20,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?!\w)"
)
_SECRET_STARTS = ("-----BEGIN ", "sk-", "_", "AKIA", "ASIA", "AIza", "xox", "glpat-", "eyJ")
# A text's shape: its digits as 0 and its capitals as A. What the patterns cannot match without is found in it without a pattern, which is ten times as fast.
_SHAPE = bytes.maketrans(b"123456789BCDEFGHIJKLMNOPQRSTUVWXYZ", b"0" * 9 + b"A" * 25)
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")


def find(text: str) -> Iterator[Hit]:
    """Yield what is found, each stretch of text once; the order is that of the kinds, not of the text."""
    taken: list[tuple[int, int]] = []
    for kind, match in _matches(text):
        start, end = match.span()
        if all(end <= other or start >= last for other, last in taken):
            taken.append((start, end))
            yield Hit(kind, start, end)


def _matches(text: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Each kind's matches, of the kinds whose shape the text has."""
    if not text.isascii():  # the digits of other scripts count as ours
        text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.digit(digit[0])), text)
    for start in _SECRET_STARTS:
        if start in text:
            yield from (("secret", match) for match in _SECRET.finditer(text))
            break
    if "@" in text:
        yield from (("email", match) for match in _EMAIL.finditer(text))
    shape = text.encode("utf-8", "surrogatepass").translate(_SHAPE)
    if b"AA00" in shape:
        yield from (("iban", match) for match in _IBAN.finditer(text) if is_iban(match[0]))
    # The digits that one number may have, without what may stand between them.
    is_long = b"0000000" in (digits := shape.translate(None, b" .-()"))
    if is_long and b"0" * 13 in digits:
        yield from (("card", match) for match in _CARD.finditer(text) if is_card(match[0]))
    if b"0.0.0" in shape or b"0.00.0" in shape or b"0.000.0" in shape:
        yield from (("ip", match) for match in _IPV4.finditer(text) if _is_address(match[0]))
    if "::" in text or text.count(":") > 5:
        yield from (("ip", match) for match in _IPV6.finditer(text) if _is_address(match[0]))
    if is_long:
        yield from (("phone", match) for match in _PHONE.finditer(text) if 7 <= sum(map(str.isdigit, match[0])) <= 15)


def is_card(text: str) -> bool:
    """A card's number: 13 to 19 digits in a network's range whose Luhn sum is right (ISO/IEC 7812-1)."""
    digits = [int(c) for c in text if c.isdigit()]
    # Visa, Mastercard, American Express, Discover, JCB, Diners: nothing else is told from a number that is merely long.
    known = {3: (14, 15, 16), 4: (13, 16, 19), 5: (16,), 6: (16, 19), 2: (16,)}.get(digits[0], ())
    doubled = (d if at % 2 == 0 else sum(divmod(2 * d, 10)) for at, d in enumerate(reversed(digits)))
    return len(digits) in known and len(set(digits)) > 1 and sum(doubled) % 10 == 0


def is_iban(text: str) -> bool:
    """An account number whose remainder by 97 is 1 (ISO 13616)."""
    plain = text.replace(" ", "")
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_address(text: str) -> bool:
    """An address of the public or a private net; those that stand for none (0.0.0.0, 127.0.0.1) say nothing of anyone."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)
