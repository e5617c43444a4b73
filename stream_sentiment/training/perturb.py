"""Harmless changes to a text that should not change what it means: typos, numbers, capitals, traditional characters, and their like.

In: a text and a random generator. Out: the changed text; equal to the given one where the change does not apply. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from stream_sentiment.scoring.text import _TO_SIMPLIFIED

Perturbation = Callable[[str, np.random.Generator], str]

#: Characters typed for one another because they sound alike.
HOMOPHONES: Mapping[str, str] = {
    **dict(zip("的地得在再那哪做作账帐以已像象他她", "地得的再在哪那作做帐账已以象像她他", strict=True)),
    **dict(zip("吗嘛吧把没美是事有又快块退腿", "嘛吗把吧美没事是又有块快腿退", strict=True)),
}
#: One changed place for so many characters, at least one.
CHARACTERS_PER_TYPO = 12
#: Say nothing about a mood.
NEUTRAL_EMOJI = ("📦", "📱", "🕐", "📍", "🧾")

_TRADITIONAL = {
    ord(simple): chr(code) for code, simple in reversed(list(_TO_SIMPLIFIED.items())) if isinstance(simple, str)
}
_PUNCTUATION = re.compile(r"[\s]*[,.!?;:~…，。！？；：、～\-]+[\s]*")
_FULL_WIDTH = {code: chr(code + 0xFEE0) for code in range(0x21, 0x7F)}


def typos(text: str, rng: np.random.Generator) -> str:
    """A homophone where there is one, else two neighbours change places; one for every twelve characters."""
    letters = list(text)
    for _ in range(max(1, len(text) // CHARACTERS_PER_TYPO)):
        alike = [at for at, char in enumerate(letters) if char in HOMOPHONES]
        if alike:
            at = int(rng.choice(alike))
            letters[at] = HOMOPHONES[letters[at]]
            continue
        inner = [at for at in range(1, len(letters) - 2) if letters[at].isalpha() and letters[at + 1].isalpha()]
        if inner:
            at = int(rng.choice(inner))
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def neutral_emoji(text: str, rng: np.random.Generator) -> str:
    """A thing, not a face, at the end."""
    return f"{text} {rng.choice(NEUTRAL_EMOJI)}"


def repeats(text: str, rng: np.random.Generator) -> str:
    """A lengthened word, as people type who are in the mood of the text already."""
    places = [match.end() for match in re.finditer(r"[A-Za-z]{3,}|[\u4e00-\u9fff]", text)]
    if not places:
        return text
    at = int(rng.choice(places))
    return text[:at] + text[at - 1] * 3 + text[at:]


def traditional(text: str, rng: np.random.Generator) -> str:
    """Simplified to traditional characters, one for one."""
    return text.translate(_TRADITIONAL)


def upper_case(text: str, rng: np.random.Generator) -> str:
    return text.upper()


def lower_case(text: str, rng: np.random.Generator) -> str:
    return text.lower()


def no_punctuation(text: str, rng: np.random.Generator) -> str:
    return _PUNCTUATION.sub(" ", text).strip()


def full_width(text: str, rng: np.random.Generator) -> str:
    """ASCII as an input method for Chinese types it."""
    return text.translate(_FULL_WIDTH)


def order_number(text: str, rng: np.random.Generator) -> str:
    """A number that any message may carry."""
    number = int(rng.integers(10**11, 10**12))
    return f"{text} 订单{number}" if re.search(r"[\u4e00-\u9fff]", text) else f"{text} Order {number}"


def link(text: str, rng: np.random.Generator) -> str:
    return f"{text} https://shop.example/o/{int(rng.integers(10**6))}"


PERTURBATIONS: Mapping[str, Perturbation] = {
    "typos": typos,
    "neutral emoji": neutral_emoji,
    "lengthened word": repeats,
    "traditional characters": traditional,
    "capitals": upper_case,
    "lower case": lower_case,
    "no punctuation": no_punctuation,
    "full width": full_width,
    "order number": order_number,
    "link": link,
}
