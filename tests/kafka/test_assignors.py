"""How a group shares out two topics: what docs/operations.md says about `kafka.remote_assignor`."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer

from stream_sentiment.kafka.clients import consumer_config
from stream_sentiment.settings import GroupProtocol, load_settings

Shares = list[dict[str, int]]


def shares(bootstrap_servers: str, group: str, topics: list[str], assignor: str | None, wanted: int) -> Shares:
    """Partitions by topic of two members, the second of which joins when the first has everything."""
    kafka = load_settings(
        kafka={"bootstrap_servers": bootstrap_servers, "group_id": group, "remote_assignor": assignor}
    ).kafka
    members: list[Consumer] = []
    try:
        for expected in (wanted, wanted // 2):
            members.append(Consumer(consumer_config(kafka, GroupProtocol.CONSUMER)))
            members[-1].subscribe(topics)
            deadline = time.monotonic() + 60
            while any(len(member.assignment()) != expected for member in members):
                assert time.monotonic() < deadline, [member.assignment() for member in members]
                for member in members:
                    member.poll(0.1)
        return [
            {topic: sum(place.topic == topic for place in member.assignment()) for topic in topics}
            for member in members
        ]
    finally:
        for member in members:
            member.close()


@pytest.mark.kafka
def test_range_shares_each_topic_by_itself_and_uniform_does_not(kafka, unique: Callable[[str], str]):
    chats, reviews = unique("chats"), unique("reviews")
    for topic in (chats, reviews):
        kafka.create_topic(topic, 4)
    half = {chats: 2, reviews: 2}
    by_range = shares(kafka.bootstrap_servers, unique("range"), [chats, reviews], "range", 8)
    assert by_range == [half, half]
    uniform = shares(kafka.bootstrap_servers, unique("uniform"), [chats, reviews], "uniform", 8)
    assert uniform != [half, half]


def test_the_classic_protocol_and_no_choice_leave_it_out():
    def configured(protocol: GroupProtocol, **chosen: str) -> object:
        return consumer_config(load_settings(kafka=chosen).kafka, protocol).get("group.remote.assignor")

    assert configured(GroupProtocol.CONSUMER, remote_assignor="range") == "range"
    assert configured(GroupProtocol.CONSUMER) is None
    assert configured(GroupProtocol.CLASSIC, remote_assignor="range") is None
