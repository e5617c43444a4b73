"""Text preparation with a memory: where in the message as it was written does each prepared character come from?

In: any string. Out: the text of `prepare`, and one span [begin, end) of the original for each of its characters. For explanations
only: ten times slower than `prepare`, whose result it always repeats. Blocks on nothing, raises nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from stream_sentiment.scoring.text import (
    _AT,
    _DROP,
    _HAS_TRADITIONAL,
    _LINK,
    _NUMBER,
    _PLAIN,
    _REPEAT,
    _TABLE,
    _TO_SIMPLIFIED,
    HEAD_CHARACTERS,
    NUMBER,
    TAIL_CHARACTERS,
    URL,
    _mask_at,
)

Span = tuple[int, int]
Aligned = tuple[str, list[Span]]

_WORD = re.compile(r"\S+")


def prepare_aligned(text: str) -> Aligned:
    """`prepare(text).text`, and where each of its characters comes from. Spans of one mask are the whole of what it masks."""
    spans: list[Span] = [(i, i + 1) for i in range(len(text))]
    if len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS:
        resume = len(text) - TAIL_CHARACTERS
        spans = [*spans[:HEAD_CHARACTERS], (HEAD_CHARACTERS, resume), *spans[resume:]]
        text = f"{text[:HEAD_CHARACTERS]} {text[resume:]}"
    if not text.isascii():
        if _PLAIN.fullmatch(text):
            text = text.translate(_TABLE)
        else:
            text, spans = _normalised(text, spans)
            if _HAS_TRADITIONAL.search(text):
                text = text.translate(_TO_SIMPLIFIED)
    aligned = _substituted(_DROP, lambda _: "", (text, spans))
    if "@" in aligned[0]:
        aligned = _substituted(_AT, _mask_at, aligned)
    if "://" in aligned[0] or "www." in aligned[0].lower():
        aligned = _substituted(_LINK, lambda _: f" {URL} ", aligned)
    aligned = _substituted(_NUMBER, lambda _: NUMBER, aligned)
    return _collapsed(_squeezed(aligned))


def _normalised(text: str, spans: list[Span]) -> Aligned:
    """NFKC in the smallest pieces that normalise on their own."""
    pieces: list[tuple[int, int]] = []
    for at, char in enumerate(text):
        form = unicodedata.normalize("NFKC", char)
        if pieces:
            begin, end = pieces[-1]
            before = text[begin:end]
            joined = unicodedata.normalize("NFKC", before + char)
            if unicodedata.combining(form[0]) or joined != unicodedata.normalize("NFKC", before) + form:
                pieces[-1] = begin, at + 1
                continue
        pieces.append((at, at + 1))
    out: list[str] = []
    found: list[Span] = []
    for begin, end in pieces:
        form = unicodedata.normalize("NFKC", text[begin:end])
        out.append(form)
        found += [(spans[begin][0], spans[end - 1][1])] * len(form)
    normal = unicodedata.normalize("NFKC", text)
    if "".join(out) != normal:  # no such text is known; then all of it is one piece
        return normal, [(spans[0][0], spans[-1][1])] * len(normal)
    return normal, found


def _substituted(pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str], aligned: Aligned) -> Aligned:
    text, spans = aligned
    out: list[str] = []
    found: list[Span] = []
    at = 0
    for match in pattern.finditer(text):
        begin, end = match.span()
        new = replacement(match)
        out += [text[at:begin], new]
        found += [*spans[at:begin], *[(spans[begin][0], spans[end - 1][1])] * len(new)]
        at = end
    return "".join([*out, text[at:]]), [*found, *spans[at:]]


def _squeezed(aligned: Aligned) -> Aligned:
    """Three of a long run are left; the third stands for the rest."""
    text, spans = aligned
    out: list[str] = []
    found: list[Span] = []
    at = 0
    for match in _REPEAT.finditer(text):
        begin, end = match.span()
        out += [text[at:begin], match[1] * 3]
        found += [*spans[at : begin + 2], (spans[begin + 2][0], spans[end - 1][1])]
        at = end
    return "".join([*out, text[at:]]), [*found, *spans[at:]]


def _collapsed(aligned: Aligned) -> Aligned:
    text, spans = aligned
    out: list[str] = []
    found: list[Span] = []
    for match in _WORD.finditer(text):
        begin, end = match.span()
        if out:
            out.append(" ")
            found.append((found[-1][1], max(found[-1][1], spans[begin][0])))
        out.append(match[0])
        for first, last in spans[begin:end]:
            # A mask may end inside a piece of the normalisation; the spans still run from left to right.
            least = found[-1] if found else (0, 0)
            found.append((max(first, least[0]), max(last, least[1])))
    return "".join(out), found
