"""The rules and the model that come with the package, on the scripted scenarios: what they promise in docs/rules.md."""

from __future__ import annotations

from pathlib import Path

import stream_sentiment
from stream_sentiment.backtest.conversations import read_conversations
from stream_sentiment.backtest.decide import by_model
from stream_sentiment.backtest.run import figures, run
from stream_sentiment.escalation.rules import load_rules
from stream_sentiment.scoring.scorer import OnnxScorer

SCENARIOS = Path(stream_sentiment.__file__).parent / "demo" / "scenarios.jsonl"


def test_the_default_rules_hear_those_who_need_a_person_and_leave_the_others_alone() -> None:
    rules, scorer = load_rules(None), OnnxScorer.load(device="cpu")
    conversations = list(read_conversations(SCENARIOS))
    texts = list(dict.fromkeys(m.text for c in conversations for m in c.messages if m.text is not None))
    judge = by_model(dict(zip(texts, scorer.score(texts), strict=True)), rules.finder(scorer.info))
    report = figures(run(conversations, rules, judge), rules)
    assert report["labelled"] >= 60
    # Measured .75, 0 and 1.0; a few scenarios of room, so that a new model or a new scenario does not break the build at once.
    assert report["total"]["recall"] >= 0.68
    assert report["total"]["false_alarm_rate"] <= 0.07
    assert report["total"]["precision"] >= 0.90
