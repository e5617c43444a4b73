"""What must not be readable in a log line: personal data and credentials in strings that other code wrote.

In: text of any kind. Out: the same with each finding replaced by its kind in angle brackets. Pure; linear
time (the patterns have no nested repeats) and bounded input. This masks logs and previews; it is no
anonymiser of customer texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Payment cards begin with 2 to 6; a timestamp in milliseconds has 13 digits and begins with 1.
_CARD = re.compile(r"(?<![\w.])[2-6](?:[ -]?\d){12,18}(?![\w.])")

MAX_CHARACTERS = 2000
"""Longer strings are cut first: a log line is read by people, and a pattern must not meet a megabyte."""

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    # pydantic quotes the value that it refuses; that value may be the message.
    (re.compile(r"input_value=.{0,2000}?, input_type=", re.DOTALL), "input_value=<dropped>, input_type="),
    (re.compile(r"-----BEGIN [A-Z ]{1,40}-----.*", re.DOTALL), "<key>"),
    (re.compile(r"(?<=://)[^/\s@]{1,200}@"), "<credentials>@"),
    (re.compile(r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), "<token>"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"), "<token>"),
    (re.compile(r"\b(?:sk|pk|ghp|gho|xox[abp]|AKIA)[-_]?[A-Za-z0-9_-]{14,}"), "<token>"),
    (
        re.compile(
            r"(?i)\b((?:[a-z_.]*(?:password|passwd|secret|token|api[-_]?key|sasl\.password))\"?'?\s*[=:]\s*)"
            r"(?:\"[^\"]{0,500}\"|'[^']{0,500}'|[^\s,;&\"']{1,500})"
        ),
        r"\1<secret>",
    ),
    (re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,253}\.[A-Za-z]{2,24}"), "<email>"),
    (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"), "<iban>"),
    (re.compile(r"(?<![\w.])\d{17}[\dXx](?![\w.])"), "<id-number>"),
    (re.compile(r"(?<![\w.])(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?![\w.])"), "<phone>"),
    (re.compile(r"(?<![\w.])\+\d{1,3}[ -]?(?:\(?\d{1,4}\)?[ -]?){2,4}\d{2,4}(?![\w.])"), "<phone>"),
    (re.compile(r"(?<![\w.])\(?\d{3}\)?[ -]\d{3}[ -]\d{4}(?![\w.])"), "<phone>"),
)


def mask(text: str) -> str:
    """`text` without e-mail addresses, phone, card and identity numbers, IBANs, tokens, passwords and URL
    credentials.
    """
    if len(text) > MAX_CHARACTERS:
        text = text[:MAX_CHARACTERS] + f"... ({len(text)} characters)"
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return _CARD.sub(_mask_card, text)


def findings(text: str) -> Iterator[tuple[int, int]]:
    """Where `mask` would replace something, as [begin, end); they may overlap. For texts that keep their length."""
    for pattern, _ in _PATTERNS:
        yield from (found.span() for found in pattern.finditer(text))
    yield from (found.span() for found in _CARD.finditer(text) if _mask_card(found) == "<card>")


def _mask_card(found: re.Match[str]) -> str:
    """Only numbers with a card's check digit (ISO/IEC 7812-1, Luhn): offsets and timestamps are long numbers too."""
    digits = [int(character) for character in reversed(found.group()) if character.isdigit()]
    doubled = [digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[1::2]]
    return "<card>" if (sum(digits[::2]) + sum(doubled)) % 10 == 0 else found.group()
