"""Text preparation: what happens to a message between the contract and the tokenizer. Training and serving both use it.

In: any string. Out: a prepared string and whether characters were cut. Blocks on nothing, raises nothing. The
rules are versioned (`TEXT_PREPARATION`); a bundle names the version it was trained with, and a bundle with
another one is refused.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from importlib import resources

TEXT_PREPARATION = "1"

# 96 tokens hold at most about 500 characters of ordinary text. 1,600 and 960 keep more than the 60 head and
# 36 tail tokens for words of up to 26 characters, and bound the time that one hostile message can cost.
HEAD_CHARACTERS = 1_600
TAIL_CHARACTERS = 960

USER = "@user"
URL = "http"
EMAIL = "email"
# One ordinary token in both languages. Not a special word: sets that mask their numbers would otherwise teach
# the model that a masked number means a calm message.
NUMBER = "123"

_AT = re.compile(r"[\w.+\-]{1,64}@[\w\-]{1,64}(?:\.[\w\-]{1,32})+|@[\w\-]{1,30}")
_LINK = re.compile(r"(?:https?://|www\.)[\w\-./?%&=#~:+,;!$*']+", re.IGNORECASE)
# Seven digits or more, with single spaces or hyphens between them: phone, order, tracking, card and identity
# numbers. Dates of eight digits fall under it too; amounts, quantities and model numbers do not. The last
# place of an identity number may be an X.
# The pattern begins with a set, which the engine scans for quickly; `?+` keeps a plus from standing in for a digit.
_NUMBER = re.compile(r"[+\d](?:(?<=\+)\d)?+(?:[ \-]?\d){6,30}(?:[xX](?![A-Za-z]))?")
# Four or more of one character become three ("sooooooo", "。。。。。。"). Digits are not squeezed: 10000 is not 1000.
_REPEAT = re.compile(r"([^\d\s])\1{3,}")
# Control and format characters (bidirectional marks, zero width, tags), private use, lone surrogates.
_DROPPED = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\ue000-\uf8ff\U000e0001-\U000e007f\U000f0000-\U0010fffd"
)


def _traditional() -> dict[int, str]:
    lines = resources.files(__package__).joinpath("traditional.txt").read_text("utf-8").splitlines()
    pairs = "".join(line for line in lines if not line.startswith("#"))
    return {ord(pairs[i]): pairs[i + 1] for i in range(0, len(pairs), 2)}


_TO_SIMPLIFIED = _traditional()
# In these characters NFKC changes nothing but full-width forms, which a table does in a tenth of its time: ASCII, Chinese
# characters and punctuation, quotation marks and dashes, full-width ASCII, emoji.
_PLAIN = re.compile(
    "[\x00-\x7f\u2013\u2014\u2018\u2019\u201c\u201d\u3001-\u3029\u4e00-\u9fff\uff01-\uff5e\U0001f300-\U0001faff]*"
)
_TABLE = _TO_SIMPLIFIED | {0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)}
_DROP = re.compile(f"[{_DROPPED}]+")
_HAS_TRADITIONAL = re.compile(f"[{''.join(map(chr, _TO_SIMPLIFIED))}]")


@dataclass(frozen=True, slots=True)
class PreparedText:
    """What the tokenizer gets."""

    text: str
    cut: bool  # characters were left out in the middle


def prepare(text: str) -> PreparedText:
    """Cut, NFKC, drop invisible characters, simplify, mask, squeeze, collapse white space. Idempotent on uncut text."""
    cut = len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS
    if cut:
        text = f"{text[:HEAD_CHARACTERS]} {text[-TAIL_CHARACTERS:]}"
    if not text.isascii():
        # The tokenizer normalises as well; the masks need half-width digits and signs before that.
        if _PLAIN.fullmatch(text):
            text = text.translate(_TABLE)
        else:
            text = unicodedata.normalize("NFKC", text)
            if _HAS_TRADITIONAL.search(text):
                text = text.translate(_TO_SIMPLIFIED)
    text = _DROP.sub("", text)
    if "@" in text:
        text = _AT.sub(_mask_at, text)
    if "://" in text or "www." in text.lower():
        text = _LINK.sub(f" {URL} ", text)
    text = _NUMBER.sub(NUMBER, text)
    text = _REPEAT.sub(r"\1\1\1", text)
    return PreparedText(" ".join(text.split()), cut)


def _mask_at(match: re.Match[str]) -> str:
    return f" {USER} " if match[0][0] == "@" else f" {EMAIL} "
