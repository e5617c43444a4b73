"""A few words of the message behind an alert, for the agent who gets it: only where they were asked for, never as they were written.

In: the prepared text (long numbers, links, e-mail addresses and names after @ are masked already, `scoring.text`) and the spans of its
signals. Out: at most 120 characters in which personal data and credentials are stars. Pure; linear time; raises nothing.

Every star stands for one character, so that spans into the prepared text point at the same words in the excerpt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from stream_sentiment.observability.masking import findings
from stream_sentiment.scoring.text import prepare

MAX_CHARACTERS = 120
#: Characters kept before the first signal, where it would otherwise lie beyond the end.
LEAD = 40

_HAN = "\u4e00-\u9fff"
#: Beside what no log line may hold: what tells who somebody is or where they live. Names are known by the words before them only, and
#: addresses by the words of which they are made: this masks what is usual, and is no anonymiser.
_PERSONAL = (
    # Five digits or more: codes, room and order numbers. Prices of a thousand stay readable.
    re.compile(r"\d{5,}"),
    re.compile("[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-Z][A-Z0-9]{4,6}(?![A-Za-z0-9])"),
    re.compile(f"(?:我叫|我姓|姓名是?|名字(?:是|叫)|收件人是?|收货人是?|联系人是?)[: ]?[{_HAN}]{{1,4}}"),
    re.compile(
        r"(?i:\bmy (?:full )?name is|\bname:|\bi am called|\baddressed to|\brecipient(?: is|:))\s+"
        r"[A-Za-z][A-Za-z'.\-]{0,30}(?:\s+[A-Z][A-Za-z'.\-]{0,30}){0,2}"
    ),
    re.compile(
        f"[{_HAN}]{{2,8}}?(?:省|市|区|县|镇|乡)[{_HAN}A-Za-z0-9]{{1,20}}?(?:路|街|道|巷|弄|村|号|栋|幢|室|小区|单元)[{_HAN}A-Za-z0-9]{{0,6}}"
    ),
    re.compile(
        f"[{_HAN}]{{2,6}}(?:路|街|巷|弄|大道|小区|花园)[A-Za-z0-9]{{1,5}}(?:号|栋|幢|弄|单元|室)?(?:[A-Za-z0-9]{{1,5}}(?:栋|幢|单元|室))?"
    ),
    re.compile(
        r"\b\d{1,5}[A-Za-z]?\s+(?:[A-Za-z]{2,20}\s+){1,3}"
        r"(?i:street|st|road|rd|avenue|ave|lane|ln|drive|dr|boulevard|blvd|court|ct|square|way)\b\.?"
    ),
    re.compile(r"\b[A-Z]{1,2}\d[A-Z\d]?\s?\d[A-Z]{2}\b"),
)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{5,59}")


class Excerpt(NamedTuple):
    text: str
    begin: int  # place of its first character in the prepared text


def excerpt(prepared: str, spans: Sequence[tuple[int, int]] = ()) -> Excerpt:
    """The beginning of a message, or the part around its first signal where that lies further on.

    `spans` are places in the prepared text, which preparing once more does not change.
    """
    prepared = prepare(prepared).text
    first = min((begin for begin, _ in spans), default=0)
    last = max((end for _, end in spans if end <= first + MAX_CHARACTERS), default=0)
    begin = max(0, first - LEAD) if last > MAX_CHARACTERS else 0
    # Masked as a whole before it is cut: half an address would no longer look like one.
    return Excerpt(starred(prepared)[begin : begin + MAX_CHARACTERS], begin)


def starred(text: str) -> str:
    """`text` with a star for every character of what tells who somebody is, or is a secret."""
    hidden = list(findings(text))
    for pattern in _PERSONAL:
        hidden += [match.span() for match in pattern.finditer(text)]
    hidden += [match.span() for match in _WORD.finditer(text) if _looks_like_a_number(match[0])]
    if not hidden:
        return text
    characters = list(text)
    for begin, end in hidden:
        characters[begin:end] = "*" * (end - begin)
    return "".join(characters)


def _looks_like_a_number(word: str) -> bool:
    """Letters and two digits or more, mixed: order, tracking and plate numbers."""
    return sum(character.isdigit() for character in word) >= 2 and any(character.isalpha() for character in word)
