"""What one window is worked on with: one rule set and one model, from its first record to its APPLY.

In: a new rule set or a new model, from any thread. Out: `Live.current`, an immutable `Serving`. The intake reads it once per window
and writes it on the window; the other stages know no other. So no window is folded under two versions, and a switch needs neither a
lock on the road nor a stop: the windows in flight end under what they began with, and windows pass in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream_sentiment.escalation.rules import RuleSet
    from stream_sentiment.events.routing import RoutingOptions
    from stream_sentiment.observability.drift import DriftWindow
    from stream_sentiment.record_fold import RecordFolder
    from stream_sentiment.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """Rules and model, and what is derived from both."""

    rules: RuleSet
    scorer: Scorer
    #: Which texts the model reads; `score_roles` is the rule file's.
    routing: RoutingOptions
    folder: RecordFolder
    #: Compares the model's predictions with its reference; None where the bundle has none.
    drift: DriftWindow | None = None

    @property
    def longest_ttl_ms(self) -> int:
        """The longest event-time life that any conversation has under these rules."""
        return max(view.options.ttl_ms for view in (self.rules.default, *self.rules.views.values()))


class Live:
    """The serving in force. `make` builds one from a rule set and a model: it may take long, and runs on the caller's thread."""

    def __init__(self, rules: RuleSet, scorer: Scorer, make: Callable[[RuleSet, Scorer], Serving]) -> None:
        self._make = make
        self._changing = threading.Lock()
        self._current = make(rules, scorer)

    @property
    def current(self) -> Serving:
        """What the next window is worked on with."""
        return self._current

    def use(self, *, rules: RuleSet | None = None, scorer: Scorer | None = None) -> Serving:
        """Switch rules or model or both; whoever changes the other at the same time waits, and loses nothing."""
        with self._changing:
            now = self._current
            self._current = self._make(rules or now.rules, scorer or now.scorer)
            return self._current
