"""What of a valid event the model reads: the text, or the reason why nothing is scored.

Pure. Only a customer's words are scored; an agent's set the response gap and the phase, nothing else.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from stream_sentiment.events.incoming import TEXT_CONTENT_TYPES, ChatEvent, Decoded, SkippedReason

_HAN: Final = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0002fa1f]")
_OTHER_SCRIPTS: Final = (
    ("ja", re.compile(r"[\u3041-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7a3\u1100-\u11ff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
)


class Routed(NamedTuple):
    """`text` is None where nothing is scored; then `skipped` says why, or is None for a turn that is no customer's."""

    text: str | None
    language: str
    skipped: SkippedReason | None
    truncated: bool


class RoutingOptions(NamedTuple):
    """Which texts the model may read."""

    languages: frozenset[str] = frozenset({"zh", "en"})
    default_language: str = ""
    max_chars: int = 10_000
    score_roles: frozenset[str] = frozenset({"customer"})


def guess_language(text: str) -> str:
    """Primary language subtag by script: zh for Han, the language of another script where its letters prevail, else en.

    Kana wins over Han, since Japanese holds both. A heuristic: a Latin text may be French. Producers should name the language.
    """
    if text.isascii():
        return "en"
    han = len(_HAN.findall(text))
    for language, letters in _OTHER_SCRIPTS:
        found = len(letters.findall(text))
        if found and found * 3 > han and found * 2 > sum(character.isalpha() for character in text) - han:
            return language
    return "zh" if han else "en"


def route(decoded: Decoded, options: RoutingOptions) -> Routed:
    """The text to be scored, cut to `max_chars` characters, with its language; or the reason for none."""
    kind, event, _ = decoded
    if isinstance(event, ChatEvent):
        role = event.sender["role"] if event.sender is not None else ""
        if kind not in ("created", "edited") or role not in options.score_roles:
            return Routed(None, event.language or "", None, False)
        content_type = event.content_type
        if (
            content_type not in TEXT_CONTENT_TYPES
            and content_type.partition(";")[0].strip().lower() not in TEXT_CONTENT_TYPES
        ):
            return Routed(None, event.language or "", SkippedReason.UNSUPPORTED_CONTENT_TYPE, False)
        text = event.text or ""
    else:
        if kind == "deleted":
            return Routed(None, event.language or "", None, False)
        text = "\n".join(part for part in (event.title, event.text) if part)
    if not text or text.isspace():
        return Routed(None, event.language or "", SkippedReason.EMPTY_TEXT, False)
    truncated = len(text) > options.max_chars
    if truncated:
        text = text[: options.max_chars]
    language = event.language or options.default_language or guess_language(text[:400])
    if language not in options.languages:
        primary = re.split(r"[-_]", language, maxsplit=1)[0].lower()
        if primary not in options.languages:
            return Routed(None, language, SkippedReason.LANGUAGE_UNSUPPORTED, truncated)
    return Routed(text, language, None, truncated)
