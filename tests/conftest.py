"""The test kit's own fixtures, for all tests; pytester for the tests of those fixtures; `road` for whoever needs a whole worker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream_sentiment.testing.kafka import KafkaHarness
from tests.integration.road import Road

pytest_plugins = ["stream_sentiment.testing.pytest_plugin", "pytester"]


@pytest.fixture
def road(broker: KafkaHarness, redis_url: str, unique: Callable[[str], str]) -> Road:
    """Topics, Redis and worker of one test, on the mock cluster and on a real Kafka: what must hold on both."""
    return Road(broker, redis_url, unique)


@pytest.fixture
def mock_road(mock_kafka: KafkaHarness, redis_url: str, unique: Callable[[str], str]) -> Road:
    """On the mock cluster only: what does not depend on the broker."""
    return Road(mock_kafka, redis_url, unique)
