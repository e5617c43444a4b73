"""The scripted scenarios: conversations with the decision that a team lead would take."""

import json
from pathlib import Path

import stream_sentiment.demo

SCENARIOS = [
    json.loads(line)
    for line in (Path(stream_sentiment.demo.__file__).parent / "scenarios.jsonl").read_text("utf-8").splitlines()
]


def test_there_are_as_many_to_leave_alone_as_to_escalate_in_both_languages() -> None:
    counts = {(row["lang"], row["escalate"]): 0 for row in SCENARIOS}
    for row in SCENARIOS:
        counts[row["lang"], row["escalate"]] += 1

    assert counts == {("en", True): 17, ("en", False): 17, ("zh", True): 15, ("zh", False): 15}
    assert len({row["id"] for row in SCENARIOS}) == len(SCENARIOS)


def test_every_decision_has_a_reason_and_a_window_that_begins_with_a_customers_message() -> None:
    for row in SCENARIOS:
        assert len(row["why"]) >= 4, row["id"]
        if row["escalate"]:
            first, last = row["earliest_message"], row["by_message"]
            assert 0 <= first <= last < len(row["messages"]), row["id"]
            assert row["messages"][first]["role"] == "customer", row["id"]
            assert row["severity"] in {"info", "warning", "error", "critical"}, row["id"]
        else:
            assert "earliest_message" not in row, row["id"]


def test_messages_are_in_order_and_none_is_empty() -> None:
    for row in SCENARIOS:
        offsets = [message["offset_s"] for message in row["messages"]]
        assert offsets == sorted(offsets), row["id"]
        assert all(message["text"].strip() for message in row["messages"]), row["id"]
