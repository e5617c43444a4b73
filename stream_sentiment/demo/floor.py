"""The chat floor as a watcher sees it: what was sent and what came back, folded into rows, alarms and counts.

In: sent records, and values of the four output topics. Out: plain attributes for `view` and `summary`. Pure: no I/O, no clock; times
are seconds since the demo began, given by the caller. One thread calls it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from stream_sentiment.demo.chatlog import Conversation

#: Scored messages kept per conversation, enough for the widest emotion line.
_POINTS_KEPT: Final = 64

#: Alarms kept for the view; the counts go on.
_ALARMS_KEPT: Final = 200

#: Latencies kept for the percentiles.
_LATENCIES_KEPT: Final = 2000

#: Seconds over which the shown rate is taken.
_RATE_WINDOW_S: Final = 5.0

#: Sent messages without an answer that are remembered to measure latency.
_PENDING_KEPT: Final = 50_000

SEVERITIES: Final = ("info", "warning", "error", "critical")


@dataclass(slots=True)
class Row:
    """One conversation."""

    tenant_id: str
    conversation_id: str
    title: str
    language: str = ""
    channel: str = ""
    points: deque[float] = field(default_factory=lambda: deque(maxlen=_POINTS_KEPT))  # scores in [-1, 1]
    label: str = ""
    emotion: str = ""
    rolling: float | None = None  # in [-1, 1], after the last scored message
    trend: str = ""
    severity: str = ""  # of the open escalation; "" when none is open
    escalated: bool = False  # ever
    resolution: str = ""  # of the last one that was resolved
    ended: bool = False
    phase: str = ""
    last_role: str = ""
    last_text: str = ""
    touched_s: float = 0.0  # when something was last heard of it


@dataclass(frozen=True, slots=True)
class Alarm:
    """One escalation event."""

    at_s: float
    action: str  # opened, updated, resolved
    severity: str
    rule_id: str
    reason: str
    resolution: str
    tenant_id: str
    conversation_id: str
    title: str
    revision: int
    score: float | None


class Floor:
    """Everything that is known; see the module."""

    def __init__(self, conversations: Iterable[Conversation] = ()) -> None:
        """`conversations`: where the titles come from; one that is not among them is called by its id."""
        known = list(conversations)
        self._titles = {(c.tenant_id, c.conversation_id): c.title for c in known}
        self._expectations = {(c.tenant_id, c.conversation_id): c.expect for c in known if c.expect}
        self._sent_at: dict[tuple[str, str, str], float] = {}
        self._seen_escalations: set[tuple[str, int]] = set()
        self._seen_dead_letters: set[str] = set()
        self._sent_times: deque[float] = deque()
        self.rows: dict[tuple[str, str], Row] = {}
        self.alarms: deque[Alarm] = deque(maxlen=_ALARMS_KEPT)
        self.alarm_count = 0
        self.actions: Counter[str] = Counter()  # opened, updated, resolved
        self.rules: Counter[str] = Counter()  # opened escalations by rule
        self.languages: Counter[str] = Counter()  # scored messages by language
        self.labels: Counter[str] = Counter()  # scored messages by polarity label
        self.dead_letters: Counter[str] = Counter()  # by error class
        self.latencies_ms: deque[float] = deque(maxlen=_LATENCIES_KEPT)  # sent until scored, as seen from outside
        self.sent = 0
        self.reviews = 0  # sent
        self.scored = 0
        self.skipped = 0
        self.first_escalation_s: float | None = None
        self.last_output_s: float | None = None
        self.first_sent_s: float | None = None
        self.model: dict[str, Any] = {}

    # What was sent

    def record_sent(self, event: Mapping[str, Any] | None, at_s: float) -> None:
        """One record went to an input topic; `event` is None for a broken one."""
        self.sent += 1
        self.first_sent_s = at_s if self.first_sent_s is None else self.first_sent_s
        self._sent_times.append(at_s)
        if event is None:
            return
        if "conversation_id" not in event:
            self.reviews += 1
            return
        row = self._row(event, at_s)
        kind = str(event.get("type", "chat.message.created")).rpartition(".")[2]
        row.channel = str(event.get("channel", row.channel))
        row.language = str(event.get("language") or row.language)
        if kind == "ended":
            row.ended = True
        elif kind == "transferred":
            row.phase = str(event.get("phase") or "")
        elif kind in {"created", "edited"}:
            sender = event.get("sender") or {}
            row.last_role = str(sender.get("role", ""))
            if row.last_role == "customer":
                content_type = str(event.get("content_type", "text/plain"))
                row.last_text = str(event.get("text") or f"[{content_type}]")
                if len(self._sent_at) < _PENDING_KEPT:
                    self._sent_at[row.tenant_id, row.conversation_id, str(event.get("message_id"))] = at_s
        elif kind == "deleted":
            row.last_text = "[message deleted by the customer]"

    # What came back

    def record_scored(self, event: Mapping[str, Any], at_s: float) -> None:
        """One value of `sentiment.scored`."""
        self.last_output_s = at_s
        sentiment = event.get("sentiment")
        if sentiment is None:
            self.skipped += 1
            return
        self.scored += 1
        self.labels[str(sentiment["label"])] += 1
        if event.get("model"):
            self.model = dict(event["model"])
        if event.get("conversation_id") is None:
            return
        row = self._row(event, at_s)
        if row.language:
            self.languages[row.language] += 1
        row.points.append(float(sentiment["score"]))
        row.label = "uncertain" if event.get("uncertain") else str(sentiment["label"])
        row.emotion = str((event.get("emotion") or {}).get("label", ""))
        rolling = event.get("rolling") or {}
        if rolling.get("score") is not None:
            row.rolling = float(rolling["score"])
        row.trend = str(rolling.get("trend") or "")
        sent_s = self._sent_at.pop((row.tenant_id, row.conversation_id, str(event.get("message_id"))), None)
        if sent_s is not None:
            self.latencies_ms.append((at_s - sent_s) * 1000)

    def record_state(self, event: Mapping[str, Any], at_s: float) -> None:
        """One value of `conversation.state`."""
        self.last_output_s = at_s
        row = self._row(event, at_s, touch=False)
        row.ended = row.ended or event.get("status") == "ended"
        rolling = event.get("rolling") or {}
        if rolling.get("score") is not None:
            row.rolling = float(rolling["score"])

    def record_escalation(self, event: Mapping[str, Any], at_s: float) -> None:
        """One value of `escalation.events`; a repeated one is dropped, as every consumer of an at-least-once topic must."""
        self.last_output_s = at_s
        if "conversation_id" not in event:
            return  # a storm's notice; what it speaks of is on the topic by itself
        copy_of = (str(event.get("escalation_id")), int(event.get("revision", 0)))
        if copy_of in self._seen_escalations:
            return
        self._seen_escalations.add(copy_of)
        action = str(event["action"])
        trigger = event.get("trigger") or {}
        row = self._row(event, at_s)
        self.actions[action] += 1
        severity = str(event.get("severity", ""))
        if action == "opened":
            self.rules[str(trigger.get("rule_id", ""))] += 1
            row.escalated = True
            if self.first_escalation_s is None:
                self.first_escalation_s = at_s
        if action == "resolved":
            row.severity = ""
            row.resolution = str(event.get("resolution") or "")
        else:
            row.severity = severity
            row.resolution = ""
        self.alarm_count += 1
        self.alarms.append(
            Alarm(
                at_s=at_s,
                action=action,
                severity=severity,
                rule_id=str(trigger.get("rule_id", "")),
                reason=str(event.get("reason") or ""),
                resolution=str(event.get("resolution") or ""),
                tenant_id=row.tenant_id,
                conversation_id=row.conversation_id,
                title=row.title,
                revision=int(event.get("revision", 0)),
                score=None if event.get("score") is None else float(event["score"]),
            )
        )

    def record_dead_letter(self, identity: str, error_class: str, at_s: float) -> None:
        """One record of `sentiment.dlq`."""
        self.last_output_s = at_s
        if identity not in self._seen_dead_letters:
            self._seen_dead_letters.add(identity)
            self.dead_letters[error_class] += 1

    # What is shown

    def rate(self, at_s: float) -> float:
        """Records sent per second, over the last five seconds."""
        while self._sent_times and self._sent_times[0] < at_s - _RATE_WINDOW_S:
            self._sent_times.popleft()
        span_s = min(_RATE_WINDOW_S, max(at_s - (self.first_sent_s or 0.0), 0.5))
        return len(self._sent_times) / span_s

    def latency_ms(self, share: float) -> float | None:
        """The latency below which `share` of the recent messages lie; None before the first."""
        if not self.latencies_ms:
            return None
        ordered = sorted(self.latencies_ms)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    def alarms_since(self, count: int) -> list[Alarm]:
        """The alarms after the first `count`, oldest first; at most the 200 newest."""
        fresh = min(self.alarm_count - count, len(self.alarms))
        return list(self.alarms)[len(self.alarms) - fresh :]

    def by_expectation(self) -> dict[str, dict[str, int]]:
        """Of the conversations whose authors said how they go (calm, recovers, escalates): how many were played, and escalated."""
        counts: dict[str, dict[str, int]] = {}
        for key, row in self.rows.items():
            expect = self._expectations.get(key)
            if expect is not None:
                count = counts.setdefault(expect, {"conversations": 0, "escalated": 0})
                count["conversations"] += 1
                count["escalated"] += row.escalated
        return dict(sorted(counts.items()))

    @property
    def open_escalations(self) -> int:
        """Escalations that are open now."""
        return self.actions["opened"] - self.actions["resolved"]

    def _row(self, event: Mapping[str, Any], at_s: float, touch: bool = True) -> Row:
        key = (str(event.get("tenant_id", "")), str(event["conversation_id"]))
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = Row(key[0], key[1], self._titles.get(key, key[1]))
        if touch:
            row.touched_s = at_s
        return row
