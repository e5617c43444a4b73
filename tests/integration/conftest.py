"""`road`: topics, Redis and worker of one test, on the mock cluster and on a real Kafka."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream_sentiment.testing.kafka import KafkaHarness
from tests.integration.road import Road


@pytest.fixture
def road(broker: KafkaHarness, redis_url: str, unique: Callable[[str], str]) -> Road:
    """On both brokers: what must hold whatever the cluster."""
    return Road(broker, redis_url, unique)


@pytest.fixture
def mock_road(mock_kafka: KafkaHarness, redis_url: str, unique: Callable[[str], str]) -> Road:
    """On the mock cluster only: what does not depend on the broker."""
    return Road(mock_kafka, redis_url, unique)
