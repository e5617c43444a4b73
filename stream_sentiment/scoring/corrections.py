"""Error correction: audited rules that move the label of a message after the model has scored it.

In: the prepared text, the rounded score, and what the event says beside it (tenant, rating). Out: the score to go on with and a
`Correction` that names the rule, what was and what is. A rule acts by letting the model's label and the right one change places in
the probabilities, so that they still sum to 1 and confidence and the abstain mark stay what they were. The first rule that
applies decides; a tenant's own phrases come before all others. Pure: the same text and score give the same result in the worker,
in `score` and in `backtest`. Reading the rule files raises `ConfigurationError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.calibration import DIGITS, Score
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES
from stream_sentiment.scoring.text import prepare

if TYPE_CHECKING:
    from stream_sentiment.scoring.bundle import ModelInfo
    from stream_sentiment.settings import CorrectionSettings

#: One phrase does not decide what a long text says; it also bounds the work on a hostile one.
MAX_CHARACTERS = 120

#: Emotions that can stand beside a polarity. An emotion that cannot gives its place to the likeliest one that can.
EMOTIONS_OF: Mapping[str, tuple[str, ...]] = {
    "negative": ("anger", "disappointment", "anxiety", "surprise"),
    "neutral": ("neutral", "anxiety", "surprise"),
    "positive": ("joy", "surprise"),
}

TENANT_PHRASE = "tenant-phrase"
_HAS_LETTER = re.compile(r"[A-Za-z]")


class Correction(NamedTuple):
    """One move. `before` and `after` hold `label`, `score` and `emotion`."""

    rule_id: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    reason: str

    def block(self) -> dict[str, Any]:
        """As the scored event shows it."""
        return {
            "rule_id": self.rule_id,
            "before": dict(self.before),
            "after": dict(self.after),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class CorrectionRule:
    """One rule of the rule file; see its head for the meaning of the fields."""

    id: str
    reason: str
    sources: frozenset[str]
    to: str
    below: float
    latin: re.Pattern[str] | None
    other: re.Pattern[str] | None
    unless: re.Pattern[str] | None
    rating_at_least: float | None
    rating_at_most: float | None

    def applies(self, text: str, score: Score, rating: float | None) -> bool:
        """`text` in lower case."""
        if score.label not in self.sources or score.confidence >= self.below:
            return False
        if self.rating_at_least is not None or self.rating_at_most is not None:
            if rating is None:
                return False
            low, high = self.rating_at_least, self.rating_at_most
            return (low is None or rating >= low) and (high is None or rating <= high)
        found = (
            self.latin is not None and _HAS_LETTER.search(text) is not None and self.latin.search(text) is not None
        ) or (self.other is not None and not text.isascii() and self.other.search(text) is not None)
        return found and (self.unless is None or self.unless.search(text) is None)


@dataclass(frozen=True, slots=True)
class TenantPhrase:
    """A phrase that a tenant has pinned to a polarity; an empty tenant means all."""

    phrase: str
    polarity: str
    emotion: str | None = None
    tenant_id: str = ""


class Corrector:
    """The rules that are on, and the phrases of the tenants."""

    def __init__(
        self,
        rules: Iterable[CorrectionRule] = (),
        phrases: Iterable[TenantPhrase] = (),
        emotions: Sequence[str] = EMOTIONS,
    ) -> None:
        """`emotions`: labels of `Score.emotion` in its order."""
        self._rules = tuple(rules)
        self._emotions = tuple(emotions)
        phrases = tuple(phrases)
        self._phrases: dict[str, tuple[re.Pattern[str], dict[str, TenantPhrase]]] = {}
        for tenant in sorted({phrase.tenant_id for phrase in phrases}):
            # The tenant's own after those for all: the later one of equal phrases stands.
            own = [p for p in phrases if not p.tenant_id] + [p for p in phrases if tenant and p.tenant_id == tenant]
            table = {prepare(phrase.phrase).text.lower(): phrase for phrase in own}
            longest = sorted(table, key=lambda text: (-len(text), text))
            self._phrases[tenant] = re.compile("|".join(map(_whole, longest))), table
        self.version = _version(self._rules, phrases)

    @classmethod
    def of(cls, settings: CorrectionSettings, model: ModelInfo) -> Corrector:
        """What the model's manifest switches on, as changed by the settings."""
        if not settings.enabled:
            return cls()
        known = {rule.id: rule for rule in load_rules()}
        for name in settings.rules:
            if name not in known:
                raise ConfigurationError(
                    f"corrections.rules: there is no rule {name!r}; rules: {', '.join(known)}. Correct the name or leave it out"
                )
        on = [rule for name, rule in known.items() if settings.rules.get(name, name in model.corrections)]
        phrases = read_phrases(settings.phrases) if settings.phrases is not None else ()
        return cls(on, phrases, model.emotion_labels)

    @property
    def rule_ids(self) -> tuple[str, ...]:
        """Every id that a correction of this corrector may carry."""
        return (*(rule.id for rule in self._rules), *((TENANT_PHRASE,) if self._phrases else ()))

    def correct(
        self, text: str | None, score: Score, *, tenant_id: str = "", rating: float | None = None
    ) -> tuple[Score, tuple[Correction, ...]]:
        """The score to go on with, and the corrections that made it, at most one.

        Args:
            text: prepared text; None (a scorer that prepares nothing) and long texts are left alone.
            rating: 1 to 5, of a review.
        """
        if text is None or len(text) > MAX_CHARACTERS or not (self._rules or self._phrases):
            return score, ()
        lower = text.lower()
        if self._phrases:
            pinned = self._pinned(lower, tenant_id)
            if pinned is not None:
                emotion = pinned.emotion or score.emotion_label
                if (pinned.polarity, emotion) == (score.label, score.emotion_label):
                    return score, ()
                reason = f"the tenant has set {pinned.phrase!r} to {pinned.polarity}"
                return self._moved(score, pinned.polarity, pinned.emotion, TENANT_PHRASE, reason)
        for rule in self._rules:
            if rule.applies(lower, score, rating):
                return self._moved(score, rule.to, None, rule.id, rule.reason)
        return score, ()

    def _pinned(self, text: str, tenant_id: str) -> TenantPhrase | None:
        entry = self._phrases.get(tenant_id) or self._phrases.get("")
        if entry is None:
            return None
        pattern, table = entry
        found = pattern.search(text)
        return None if found is None else table[found[0]]

    def _moved(
        self, score: Score, polarity: str, emotion: str | None, rule_id: str, reason: str
    ) -> tuple[Score, tuple[Correction, ...]]:
        shares = _exchanged(score.polarity, POLARITIES.index(score.label), POLARITIES.index(polarity))
        wanted = (emotion,) if emotion is not None else EMOTIONS_OF[polarity]
        feeling, feelings = score.emotion_label, score.emotion
        if feeling not in wanted:
            places = [self._emotions.index(name) for name in wanted if name in self._emotions]
            place = max(places, key=lambda at: score.emotion[at])
            feelings = _exchanged(score.emotion, self._emotions.index(feeling), place)
            feeling = self._emotions[place]
        moved = replace(
            score,
            polarity=(shares[0], shares[1], shares[2]),
            emotion=feelings,
            score=round(shares[2] - shares[0], DIGITS),
            label=polarity,
            emotion_label=feeling,
        )
        return moved, (Correction(rule_id, _seen(score), _seen(moved), reason),)


def corrections_block(corrections: Sequence[Correction]) -> list[dict[str, Any]]:
    """`corrections[]` of the scored event."""
    return [correction.block() for correction in corrections]


@cache
def load_rules() -> tuple[CorrectionRule, ...]:
    """The rules of the package, in the order in which they are tried."""
    return tuple(_rule(entry) for entry in _document()["rules"])


@cache
def rules_version() -> int:
    """Version of the package's rule file. A manifest that was measured with another one switches nothing on."""
    return int(_document()["version"])


def read_phrases(path: Path) -> list[TenantPhrase]:
    """Tenants' phrases from a YAML file: a list under `phrases` of `{phrase, polarity, emotion?, tenant_id?}`."""
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"corrections.phrases: {path} cannot be read: {error}") from error
    entries = document.get("phrases") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ConfigurationError(f"corrections.phrases: {path} needs a list under `phrases`")
    return [_phrase(f"corrections.phrases: {path}, entry {number}", entry) for number, entry in enumerate(entries, 1)]


def _phrase(where: str, entry: Any) -> TenantPhrase:
    try:
        phrase = TenantPhrase(**entry)
    except TypeError:
        raise ConfigurationError(f"{where}: an entry is {{phrase, polarity, emotion?, tenant_id?}}") from None
    if not isinstance(phrase.phrase, str) or not prepare(phrase.phrase).text:
        raise ConfigurationError(f"{where}: the phrase is empty or no string")
    if phrase.polarity not in POLARITIES:
        raise ConfigurationError(f"{where}: polarity {phrase.polarity!r} is none of {', '.join(POLARITIES)}")
    if phrase.emotion is not None and phrase.emotion not in EMOTIONS:
        raise ConfigurationError(f"{where}: emotion {phrase.emotion!r} is none of {', '.join(EMOTIONS)}")
    return phrase


def _seen(score: Score) -> dict[str, Any]:
    return {"label": score.label, "score": score.score, "emotion": score.emotion_label}


def _exchanged(values: Sequence[float], first: int, second: int) -> tuple[float, ...]:
    out = list(values)
    out[first], out[second] = out[second], out[first]
    return tuple(out)


def _whole(phrase: str) -> str:
    """A pattern of the phrase; its Latin ends must be ends of words."""
    begin = r"(?<![A-Za-z0-9])" if phrase[0].isascii() and phrase[0].isalnum() else ""
    end = r"(?![A-Za-z0-9])" if phrase[-1].isascii() and phrase[-1].isalnum() else ""
    return f"{begin}{re.escape(phrase)}{end}"


def _version(rules: Sequence[CorrectionRule], phrases: Sequence[TenantPhrase]) -> str:
    """What is in force, for the outputs: `off`, or the file's version and a digest of the rules and phrases that are on."""
    if not rules and not phrases:
        return "off"
    parts = [rule.id for rule in rules] + [repr(phrase) for phrase in phrases]
    return f"{rules_version()}-{blake2b(chr(10).join(parts).encode(), digest_size=4).hexdigest()}"


@cache
def _document() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("corrections.yaml").read_text("utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def _rule(entry: Mapping[str, Any]) -> CorrectionRule:
    match, unless, rating = entry.get("match", {}), entry.get("unless", {}), entry.get("rating", {})
    return CorrectionRule(
        id=entry["id"],
        reason=entry["reason"],
        sources=frozenset(entry["from"]),
        to=entry["to"],
        # Above every probability: without `below` the model's certainty does not matter.
        below=float(entry.get("below", 2.0)),
        latin=_any_of(match.get("en", ())),
        other=_any_of([*match.get("zh", ()), *match.get("any", ())]),
        unless=_any_of([pattern for patterns in unless.values() for pattern in patterns]),
        rating_at_least=rating.get("at_least"),
        rating_at_most=rating.get("at_most"),
    )


def _any_of(patterns: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns)) if patterns else None
