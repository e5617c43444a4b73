"""Values of a rule file chosen on labelled conversations, and judged on conversations that had no part in the choice.

In: labelled conversations, a rule file's text, numbers to vary. Out: `Choice`, with figures out of fold. Pure, and its seed is fixed:
the same input gives the same figures. Raises `ConfigurationError` for what cannot be chosen from.

Every combination of the values is run once over all conversations; what a fold needs is then a matter of adding up. In each shuffle the
conversations are dealt into folds, those that should escalate and those that should not apart; for each fold the combination is taken
that has the highest recall on the other folds among those whose false alarms there stay under the bound (of equals the one with
fewer false alarms, then the first), and is judged on this fold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from math import sqrt
from random import Random
from typing import Any

import yaml

from stream_sentiment.backtest.conversations import Conversation
from stream_sentiment.backtest.decide import Decision, Judge, decide
from stream_sentiment.backtest.measure import is_timely
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.rules import parse_rules, set_path

#: Each is one run over all conversations.
MAX_COMBINATIONS = 3_000
RESAMPLES = 2_000
SEED = 1
#: Of the normal distribution, for a two-sided 95 %.
Z = 1.959964

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a combination did with one conversation."""

    timely: bool
    alerted: bool


@dataclass(frozen=True, slots=True)
class Rates:
    """Shares with 95 % intervals over conversations; None where no conversation of the kind is there."""

    recall: float | None
    recall_interval: Interval | None
    false_alarm_rate: float | None
    false_alarm_interval: Interval | None
    precision: float | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "recall": _round(self.recall),
            "recall_interval": _rounded(self.recall_interval),
            "false_alarm_rate": _round(self.false_alarm_rate),
            "false_alarm_interval": _rounded(self.false_alarm_interval),
            "precision": _round(self.precision),
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """`chosen`: on all conversations. `votes`: how often each combination was chosen, over folds and shuffles."""

    paths: tuple[str, ...]
    chosen: tuple[float, ...]
    in_sample: Rates
    out_of_fold: Rates
    given: Rates  # the file as it is
    votes: list[tuple[tuple[float, ...], int]] = field(default_factory=list)
    folds: int = 5
    shuffles: int = 1
    combinations: int = 0
    conversations: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "paths": list(self.paths),
            "chosen": dict(zip(self.paths, self.chosen, strict=True)),
            "in_sample": self.in_sample.as_dict(),
            "out_of_fold": self.out_of_fold.as_dict(),
            "as_given": self.given.as_dict(),
            "votes": [{"values": list(values), "times": times} for values, times in self.votes],
            "folds": self.folds,
            "shuffles": self.shuffles,
            "combinations": self.combinations,
            "conversations": self.conversations,
        }


def choose(
    conversations: Sequence[Conversation],
    rules_text: str,
    varied: Sequence[tuple[str, Sequence[float]]],
    judge: Judge,
    *,
    max_false_alarms: float,
    folds: int = 5,
    shuffles: int = 20,
    progress: Callable[[], None] = lambda: None,
) -> Choice:
    """Choose among all combinations of `varied` (path and values, as of a sweep)."""
    labelled = [conversation for conversation in conversations if conversation.label is not None]
    should = [place for place, conversation in enumerate(labelled) if _escalates(conversation)]
    should_not = [place for place, conversation in enumerate(labelled) if not _escalates(conversation)]
    if min(len(should), len(should_not)) < folds:
        raise ConfigurationError(
            f"{len(should)} labelled conversations should escalate and {len(should_not)} should not: {folds} folds need as many "
            "of each"
        )
    grid = combinations_of(varied)
    raw = yaml.safe_load(rules_text)
    verdicts: dict[tuple[float, ...], list[Verdict]] = {}
    refused = ""
    for values in grid:
        try:
            verdicts[values] = _verdicts(labelled, _with_values(raw, varied, values), judge)
        except ConfigurationError as error:
            refused = str(error).splitlines()[-1].strip()
        progress()
    if not verdicts:
        raise ConfigurationError(f"no combination of the values is accepted: {refused}")
    given = rates(_verdicts(labelled, rules_text, judge), should, should_not)
    everyone = [*should, *should_not]
    chosen = _best(verdicts, everyone, should, max_false_alarms)
    votes: Counter[tuple[float, ...]] = Counter()
    timely, alerted = [0] * len(labelled), [0] * len(labelled)
    rng = Random(SEED)
    for _ in range(shuffles):
        for fold in _dealt(should, should_not, folds, rng):
            held_out = set(fold)
            best = _best(verdicts, [place for place in everyone if place not in held_out], should, max_false_alarms)
            votes[best] += 1
            for place in fold:
                timely[place] += verdicts[best][place].timely
                alerted[place] += verdicts[best][place].alerted
    return Choice(
        tuple(path for path, _ in varied),
        chosen,
        rates(verdicts[chosen], should, should_not),
        _mean_rates(timely, alerted, should, should_not, shuffles),
        given,
        votes.most_common(),
        folds,
        shuffles,
        len(verdicts),
        len(labelled),
    )


def combinations_of(varied: Sequence[tuple[str, Sequence[float]]]) -> list[tuple[float, ...]]:
    """Every combination of the values. Raises ConfigurationError where they are too many."""
    grid = list(product(*(values for _, values in varied)))
    if len(grid) > MAX_COMBINATIONS:
        raise ConfigurationError(
            f"{len(grid)} combinations are more than {MAX_COMBINATIONS}: vary fewer paths, or give fewer values (a..b/n)"
        )
    return grid


def wilson(successes: int, total: int) -> Interval | None:
    """95 % interval of a share: Wilson's score interval, which holds for few conversations and for shares near 0 and 1."""
    if not total:
        return None
    share, z2 = successes / total, Z * Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z / (1 + z2 / total) * sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def rates(verdicts: Sequence[Verdict], should: Sequence[int], should_not: Sequence[int]) -> Rates:
    """Shares of one combination over these conversations."""
    timely = sum(verdicts[place].timely for place in should)
    right = sum(verdicts[place].alerted for place in should)
    false = sum(verdicts[place].alerted for place in should_not)
    return Rates(
        timely / len(should) if should else None,
        wilson(timely, len(should)),
        false / len(should_not) if should_not else None,
        wilson(false, len(should_not)),
        right / (right + false) if right + false else None,
    )


def _mean_rates(
    timely: Sequence[int], alerted: Sequence[int], should: Sequence[int], should_not: Sequence[int], shuffles: int
) -> Rates:
    """Means over the shuffles; the intervals by drawing conversations with replacement, since the shuffles share them."""
    rng = Random(SEED)
    recalls = _resampled([timely[place] / shuffles for place in should], rng)
    falses = _resampled([alerted[place] / shuffles for place in should_not], rng)
    right, false = sum(alerted[place] for place in should), sum(alerted[place] for place in should_not)
    return Rates(
        sum(timely[place] for place in should) / shuffles / len(should),
        recalls,
        false / shuffles / len(should_not),
        falses,
        right / (right + false) if right + false else None,
    )


def _resampled(values: Sequence[float], rng: Random) -> Interval:
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]


def _best(
    verdicts: dict[tuple[float, ...], list[Verdict]], places: Sequence[int], should: Sequence[int], bound: float
) -> tuple[float, ...]:
    wanted = set(should)
    positives = [place for place in places if place in wanted]
    negatives = [place for place in places if place not in wanted]

    def rank(values: tuple[float, ...]) -> tuple[bool, float, float]:
        said = verdicts[values]
        recall = sum(said[place].timely for place in positives) / len(positives)
        false = sum(said[place].alerted for place in negatives) / len(negatives)
        # Where nothing stays under the bound, the fewest false alarms.
        return (True, recall, -false) if false <= bound else (False, -false, recall)

    return max(verdicts, key=rank)


def _dealt(should: Sequence[int], should_not: Sequence[int], folds: int, rng: Random) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(folds)]
    for group in (should, should_not):
        for number, place in enumerate(rng.sample(group, len(group))):
            parts[number % folds].append(place)
    return parts


def _verdicts(conversations: Sequence[Conversation], rules_text: str, judge: Judge) -> list[Verdict]:
    rules = parse_rules(rules_text)
    return [_verdict(conversation, decide(conversation, rules, judge)) for conversation in conversations]


def _verdict(conversation: Conversation, decisions: Sequence[Decision]) -> Verdict:
    opened = [decision.message_index for decision in decisions if decision.transition.action == "opened"]
    return Verdict(bool(opened) and is_timely(conversation, opened[0]), bool(opened))


def _with_values(raw: dict[str, Any], varied: Sequence[tuple[str, Sequence[float]]], values: Sequence[float]) -> str:
    changed = deepcopy(raw)
    for (path, _), value in zip(varied, values, strict=True):
        set_path(changed, path, int(value) if float(value).is_integer() and holds_int(path) else value)
    return yaml.safe_dump(changed, allow_unicode=True)


def holds_int(path: str) -> bool:
    """Whether the rule file has a whole number at a path."""
    return path.rsplit(".", 1)[-1] in {
        "length",
        "at_least",
        "min_customer_messages",
        "for_messages",
        "close_for_messages",
        "skip_first_messages",
        "window",
    }


def _escalates(conversation: Conversation) -> bool:
    return conversation.label is not None and conversation.label.escalate


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _rounded(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [round(value, 4) for value in interval]
