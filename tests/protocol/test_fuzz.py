"""A short run of the protocol fuzz on the shipped scripts, and the controls without which a green run means nothing.

The long run is `python -m tests.protocol.fuzz --schedules 1000`; its figures are in docs/delivery.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest

from stream_sentiment.testing.redis import RedisServer
from tests.protocol import fuzz
from tests.protocol.fuzz import Table, Variant, open_redis, run_many, run_schedule


@pytest.fixture(scope="module")
def redis() -> Iterator[Any]:
    with open_redis() as client:
        yield client


@pytest.mark.parametrize(
    ("variant", "failovers", "schedules"),
    [
        (fuzz.SHIPPED, False, 50),
        (fuzz.SHIPPED, True, 60),
        (fuzz.SHIPPED_NOISY, False, 25),
        (fuzz.SHIPPED_NOISY, True, 25),
        (fuzz.SHIPPED_ERASING, False, 40),
        (fuzz.EXACTLY_ONCE, False, 20),
        (fuzz.EXACTLY_ONCE, True, 30),
    ],
    ids=lambda value: value.name if isinstance(value, Variant) else str(value),
)
def test_no_schedule_loses_or_doubles_anything(redis: Any, variant: Variant, failovers: bool, schedules: int) -> None:
    table = run_many(redis, variant, schedules, failovers=failovers)
    assert table.bad_seeds == []
    # The faults did bite: entries were published again, calls were repeated, Redis did fail over.
    if variant is fuzz.EXACTLY_ONCE:
        assert table.counts["copies"] == 0
    else:
        assert table.counts["copies"] > schedules // 2
    assert bool(table.counts["failover_count"]) == failovers


def test_without_faults_nothing_is_even_copied(redis: Any) -> None:
    table = Table("shipped", failovers=False)
    for seed in range(10):
        table.add(run_schedule(redis, seed, fuzz.SHIPPED, failovers=False, faults=False))
    assert table.bad_seeds == []
    assert table.counts["copies"] == 0


@pytest.mark.parametrize(
    ("variant", "failovers", "schedules", "symptom"),
    [
        (fuzz.NO_TOKEN_NO_WATERMARK, False, 5, "wrong_state"),
        (fuzz.NO_WATERMARK, True, 20, "stale_write"),
        (fuzz.NO_OUTBOX, False, 8, "lost"),
        (fuzz.NO_TOKEN, False, 20, "stale_write"),
        (fuzz.ERASURE_WITHOUT_FENCE, False, 20, "stale_write"),
        (fuzz.UNFENCED, False, 12, "doubled"),
        (fuzz.UNPROBED, False, 4, "doubled"),
        (fuzz.HASTY, False, 40, "doubled"),
        (fuzz.SAME_TOKEN, True, 10, "stale_write"),
        (fuzz.NO_DEADLINES, False, 2, "lost"),
    ],
    ids=lambda value: value.name if isinstance(value, Variant) else str(value),
)
def test_a_protocol_without_one_of_its_parts_is_caught(
    redis: Any, variant: Variant, failovers: bool, schedules: int, symptom: str
) -> None:
    assert run_many(redis, variant, schedules, failovers=failovers).counts[symptom] > 0


def test_settling_before_lost_timers_are_redone_tells_one_twice(redis: Any) -> None:
    """One seed of 600: random schedules seldom take a published timer back and settle before it is redone."""
    assert run_schedule(redis, 678, fuzz.TIMERLESS, failovers=True).doubled
    assert not run_schedule(redis, 678, fuzz.EXACTLY_ONCE, failovers=True).bad()


@pytest.mark.redis
def test_redis_and_its_imitation_give_the_same_verdicts(redis_server: RedisServer) -> None:
    with redis_server.client(db=9) as client:
        for seed in range(8):
            real = run_schedule(client, seed, fuzz.SHIPPED, failovers=True)
            assert not real.bad()
            assert real == run_schedule(fakeredis.FakeRedis(), seed, fuzz.SHIPPED, failovers=True)
