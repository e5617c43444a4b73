"""Signals of a message: what it says beside its mood (asks for a human, threatens, reports a danger), from words and from the model.

In: the prepared (masked) text of a message, and the probabilities of the model's signals head where it has one. Out: `Signal`s, each
naming its source. One pass of an Aho-Corasick automaton over the text, then work in proportion to the hits: linear whatever the text.
Never blocks. Raises `ConfigurationError` for a broken lexicon, nothing at run time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import ahocorasick
import yaml

from stream_sentiment.conversation.turn import Signal
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.ruleformat import CATEGORIES, SIGNALS, LexiconChanges, PhraseLists

if TYPE_CHECKING:
    from stream_sentiment.scoring.calibration import Score

LEXICON = Path(__file__).with_name("lexicon")

# A negation reaches this many characters ahead, inside its clause: "不用" before "转人工", "not asking for a" before "refund".
REACH = {"zh": 3, "en": 22}
GAPS = {"zh": 8, "en": 30}

# A phrase with a gap stays in its sentence, a negation in its clause.
_SENTENCE_ENDS = frozenset("。！？；.!?;\n")
_CLAUSE_ENDS = _SENTENCE_ENDS | frozenset("，,、：:()（）~～…")

MAX_SPANS = 5

# Where the model hears signals too and gives one less than this, words alone do not make it: on the service dev rows this takes
# precision from .75 to .78 (zh) and .71 to .78 (en) for one or two points of recall. Danger is believed on words alone.
DOUBT = 0.05
_NEVER_DOUBTED = frozenset({"safety_risk"})

# Signals that say what a complaint is about.
TOPIC_OF_SIGNAL = {
    "quality_defect": "quality",
    "safety_risk": "quality",
    "delivery_delay": "logistics",
    "refund_request": "refund_after_sales",
}

Kind = Literal["phrase", "except", "negation", "not_negation"]


class _Part(NamedTuple):
    """One literal of the automaton."""

    entry: int
    place: int  # in a phrase with gaps
    length: int
    whole_start: bool  # the character before must not be a letter or digit
    whole_end: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: Kind
    signal: str
    language: str
    rule_id: str
    parts: int
    gap: int


Hit = tuple[_Entry, int, int]  # begin and end are character offsets


@dataclass(slots=True)
class Lexicon:
    """Phrases, exceptions and negations of one or more languages in one automaton."""

    entries: list[_Entry] = field(default_factory=list)
    _literals: dict[str, list[_Part]] = field(default_factory=dict)
    _automata: tuple[Any, Any] | None = None

    def add(self, kind: Kind, phrase: str, signal: str = "", language: str = "zh") -> None:
        literals = [part.strip().lower() for part in phrase.split("...")]
        if not all(literals) or (kind != "phrase" and len(literals) > 2):
            raise ConfigurationError(f"lexicon: {phrase!r} is no phrase: write words, or two of them with ... between")
        number = len(self.entries)
        self.entries.append(_Entry(kind, signal, language, f"{language}:{phrase}", len(literals), GAPS[language]))
        for index, literal in enumerate(literals):
            any_end = literal.endswith("*") and len(literal) > 1
            text = literal[:-1] if any_end else literal
            ascii_start, ascii_end = text[0].isascii() and text[0].isalnum(), text[-1].isascii() and text[-1].isalnum()
            part = _Part(number, index, len(text), ascii_start, ascii_end and not any_end)
            self._literals.setdefault(text, []).append(part)
        self._automata = None

    def remove(self, phrase: str, signal: str, language: str) -> bool:
        """Take a phrase out; False when there is none."""
        numbers = {
            number
            for number, entry in enumerate(self.entries)
            if entry.kind == "phrase" and entry.signal == signal and entry.rule_id == f"{language}:{phrase}"
        }
        for literal, parts in self._literals.items():
            self._literals[literal] = [part for part in parts if part.entry not in numbers]
        self._automata = None
        return bool(numbers)

    def copy(self) -> Lexicon:
        """An independent lexicon with the same entries."""
        return Lexicon(list(self.entries), {literal: list(parts) for literal, parts in self._literals.items()})

    def find(self, text: str) -> list[Hit]:
        """Hits that stand, in order of their end."""
        phrases, context = self._automata or self._build()
        lower = text.lower()
        if len(lower) != len(text):  # a few letters change length ("İ"); spans must not
            lower = "".join(low if len(low := char.lower()) == 1 else char for char in text)
        if "\u2019" in lower:
            lower = lower.replace("\u2019", "'")
        hits = self._hits(lower, phrases)
        if not hits:
            return hits
        around = self._hits(lower, context)
        if around:
            exceptions = [hit for hit in around if hit[0].kind == "except"]
            hits = [hit for hit in hits if not _covered(hit, exceptions)]
            seeming = [hit for hit in around if hit[0].kind == "not_negation"]
            negations = [hit for hit in around if hit[0].kind == "negation" and not _inside(hit, seeming)]
            hits = [hit for hit in hits if not _negated(lower, hit, negations)]
        return hits

    def _build(self) -> tuple[Any, Any]:
        """Two automata: most messages hold no phrase, and need no look at exceptions and negations."""
        automata = []
        for wanted in (True, False):
            automaton = ahocorasick.Automaton()
            for literal, parts in self._literals.items():
                chosen = tuple(part for part in parts if (self.entries[part.entry].kind == "phrase") is wanted)
                if chosen:
                    automaton.add_word(literal, chosen)
            if not len(automaton):
                automaton.add_word("\0", ())
            automaton.make_automaton()
            automata.append(automaton)
        self._automata = automata[0], automata[1]
        return self._automata

    def _hits(self, text: str, automaton: Any) -> list[Hit]:
        hits: list[Hit] = []
        begun: dict[int, tuple[int, int, int]] = {}  # entry with a gap -> parts seen, begin, end of the last one
        for last, parts in automaton.iter(text):
            end = last + 1
            for number, place, length, whole_start, whole_end in parts:
                begin = end - length
                if (whole_start and begin and _is_word(text[begin - 1])) or (
                    whole_end and end < len(text) and _is_word(text[end])
                ):
                    continue
                entry = self.entries[number]
                if entry.parts == 1:
                    hits.append((entry, begin, end))
                elif place == 0:
                    begun[number] = 1, begin, end
                elif number in begun:
                    seen, first, before = begun[number]
                    if (
                        seen == place
                        and 0 <= begin - before <= entry.gap
                        and not _crosses(text, before, begin, _SENTENCE_ENDS)
                    ):
                        if seen + 1 == entry.parts:
                            hits.append((entry, first, end))
                        else:
                            begun[number] = seen + 1, first, end
        return hits


def _is_word(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "'")


def _crosses(text: str, begin: int, end: int, ends: frozenset[str]) -> bool:
    return any(char in ends for char in text[begin:end])


def _covered(hit: Hit, exceptions: list[Hit]) -> bool:
    """An exception of the same signal overlaps the hit."""
    entry, begin, end = hit
    return any(other.signal == entry.signal and b < end and begin < e for other, b, e in exceptions)


def _inside(hit: Hit, others: list[Hit]) -> bool:
    _, begin, end = hit
    return any(b <= begin and end <= e for _, b, e in others)


def _negated(text: str, hit: Hit, negations: list[Hit]) -> bool:
    """A negation ends shortly before the hit, in the same clause."""
    entry, begin, _ = hit
    if entry.signal in _NEVER_NEGATED:
        return False
    return any(
        0 <= begin - e <= REACH[negation.language] and not _crosses(text, e, begin, _CLAUSE_ENDS)
        for negation, _, e in negations
    )


# "not working", "没坏" and their like are written out as phrases and exceptions; a word before these says nothing about them.
_NEVER_NEGATED = frozenset({"abuse", "delivery_delay", "repeat_issue", "safety_risk", "churn"})


@dataclass(frozen=True, slots=True)
class SignalFinder:
    """The lexicon, and the thresholds from which the model's probabilities count."""

    lexicon: Lexicon
    thresholds: Mapping[str, float] = field(default_factory=dict)
    labels: Sequence[str] = SIGNALS
    tenants: Mapping[str, Lexicon] = field(default_factory=dict)  # lexicons of tenants that have their own
    topics: Lexicon | None = None  # words that speak of a complaint category

    def hear(
        self, text: str | None, score: Score | None, tenant_id: str = ""
    ) -> tuple[tuple[Signal, ...], tuple[str, ...]]:
        """Signals and complaint categories of a message as the worker has it: prepared text and score."""
        if score is None or text is None:
            return (), ()
        signals = self.of_message(text, score, tenant_id)
        spoken = {hit[0].signal for hit in self.topics.find(text)} if self.topics is not None else set()
        spoken.update(TOPIC_OF_SIGNAL[signal.name] for signal in signals if signal.name in TOPIC_OF_SIGNAL)
        return signals, tuple(topic for topic in CATEGORIES if topic in spoken)

    def of_message(self, text: str | None, score: Score | None, tenant_id: str = "") -> tuple[Signal, ...]:
        """Signals of a message as the worker has it: prepared text and score, None when it is not scored."""
        if score is None or text is None:
            return ()
        lexicon = self.tenants.get(tenant_id, self.lexicon) if self.tenants else self.lexicon
        return self._find(lexicon, text, score.signals)

    def find(self, text: str, probabilities: Sequence[float] = ()) -> tuple[Signal, ...]:
        """Signals of one message, by name; a signal that both sources see is told by both."""
        return self._find(self.lexicon, text, probabilities)

    def _find(self, lexicon: Lexicon, text: str, probabilities: Sequence[float]) -> tuple[Signal, ...]:
        hits = lexicon.find(text) if text else []
        if not hits and not probabilities:
            return ()
        signals: list[Signal] = []
        by_name: dict[str, list[Hit]] = {}
        for hit in hits:
            by_name.setdefault(hit[0].signal, []).append(hit)
        heard = dict(zip(self.labels, probabilities, strict=False))
        for name, group in by_name.items():
            if heard.get(name, 1.0) < DOUBT and name not in _NEVER_DOUBTED:
                continue
            spans = sorted({(begin, end) for _, begin, end in group})[:MAX_SPANS]
            signals.append(Signal(name, "lexicon", group[0][0].rule_id, tuple(spans), 1.0))
        thresholds = self.thresholds
        for name, probability in heard.items():
            if probability >= thresholds.get(name, 0.5):
                signals.append(Signal(name, "model", "signals-head", (), probability))
        signals.sort()
        return tuple(signals)


def changed_lexicon(lexicon: Lexicon, changes: LexiconChanges) -> Lexicon:
    """The lexicon with a rule file's changes made in it."""
    for signal, lists in changes.remove.items():
        for language, phrase in _phrases(lists):
            if not lexicon.remove(phrase, signal, language):
                raise ConfigurationError(f"lexicon: remove: {signal} has no {language} phrase {phrase!r}")
    for signal, lists in changes.add.items():
        for language, phrase in _phrases(lists):
            lexicon.add("phrase", phrase, signal, language)
    for signal, lists in changes.exceptions.items():
        for language, phrase in _phrases(lists):
            lexicon.add("except", phrase, signal, language)
    return lexicon


def _phrases(lists: PhraseLists) -> list[tuple[str, str]]:
    return [("zh", phrase) for phrase in lists.zh] + [("en", phrase) for phrase in lists.en]


def load_lexicon(languages: Sequence[str] = ("zh", "en"), folder: Path = LEXICON) -> Lexicon:
    """The lexicon of the package."""
    lexicon = Lexicon()
    for language in languages:
        path = folder / f"{language}.yaml"
        extend_lexicon(lexicon, yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
    return lexicon


def extend_lexicon(lexicon: Lexicon, raw: Any, name: str) -> None:
    """Add the phrases of one parsed lexicon file."""
    if not isinstance(raw, dict) or raw.get("language") not in REACH:
        raise ConfigurationError(f"lexicon {name}: needs a language, one of {', '.join(REACH)}")
    language = raw["language"]
    for kind, key in (("negation", "negations"), ("not_negation", "not_negations")):
        for phrase in raw.get(key, ()):
            lexicon.add(kind, str(phrase), language=language)  # type: ignore[arg-type]
    for signal, lists in raw.get("signals", {}).items():
        if signal not in SIGNALS:
            raise ConfigurationError(f"lexicon {name}: unknown signal {signal!r}; there are {', '.join(SIGNALS)}")
        for phrase in lists.get("phrases", ()):
            lexicon.add("phrase", str(phrase), signal, language)
        for phrase in lists.get("except", ()):
            lexicon.add("except", str(phrase), signal, language)


def load_topics(changes: Mapping[str, PhraseLists], path: Path = LEXICON / "topics.yaml") -> Lexicon:
    """Words of the complaint categories, with those of a rule file added."""
    lexicon = Lexicon()
    for language, categories in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for category, phrases in categories.items():
            for phrase in phrases:
                lexicon.add("phrase", str(phrase), category, language)
    for category, lists in changes.items():
        for language, phrase in _phrases(lists):
            lexicon.add("phrase", phrase, category, language)
    return lexicon


def category_of(topics: Mapping[str, int]) -> str | None:
    """The category of a conversation: the one most messages spoke of, the first in the list of equals; None when none was."""
    return max((name for name in CATEGORIES if name in topics), key=lambda name: topics[name], default=None)
