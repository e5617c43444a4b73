"""Each guard of each script by a directed schedule: harm is done exactly when the guard is removed.

Random schedules cannot show this: token and watermark back each other up, and with a bit-stable model one alone is nearly enough.
"""

from __future__ import annotations

from collections.abc import Callable

import fakeredis
import pytest

from stream_sentiment.store import (
    ApplyOutcome,
    DueRequest,
    Erasure,
    LoadRequest,
    PartitionBatch,
    StateStore,
    TickBatch,
    TopicPartition,
)
from stream_sentiment.store.errors import Fenced
from stream_sentiment.store.redis import _with_another_token
from tests.protocol.fuzz import ALREADY_GUARD, GAP_GUARD, TOKEN_GUARD, without
from tests.protocol.world import ScriptedRedis, make_store

TP = TopicPartition("chat.messages", 0)
ANN = "tenant|ann"


def one(token: str, first: int, following: int, state: bytes | None, **outputs: bytes) -> PartitionBatch:
    fields = {name.replace("_", ":").lstrip("f"): record for name, record in outputs.items()}
    return PartitionBatch(TP, token, first, following, {ANN: state}, fields)


def owned(store: StateStore, token: str, start: int = 0) -> None:
    store.acquire([(TP, token)], "worker", partition_counts={TP.topic: 1})
    store.initialise(TP, token, start)


def state(store: StateStore) -> bytes | None:
    found = store.find(TP.topic, ANN, partitions=1)
    return found[0].state if found else None


def outbox(store: StateStore) -> dict[str, bytes]:
    return store.acquire([(TP, "reader")], "reader")[0].outbox


def a_zombie_writes_its_view_of_an_event(store: StateStore) -> bool:
    """Two owners score one event differently; the one that lost the partition is faster."""
    owned(store, "zombie")
    owned(store, "owner")
    store.apply([one("zombie", 0, 1, b"the zombie's view")])
    return state(store) is not None


def a_zombie_goes_on_from_its_cache_after_a_failover(store: StateStore) -> bool:
    """Redis lost the zombie's batch; the owner has redone it with other scores, and the watermark is where the zombie holds it."""
    owned(store, "zombie")
    store.apply([one("zombie", 0, 2, b"the zombie's view")])
    owned(store, "owner")
    store.initialise(TP, "owner", 0, replaces=2)
    store.apply([one("owner", 0, 2, b"the owner's view")])
    store.apply([one("zombie", 2, 3, b"the zombie's view and one more")])
    return state(store) != b"the owner's view"


def an_erased_state_comes_back_from_a_cache(store: StateStore) -> bool:
    """The owner holds the state in its cache while a person erases the conversation."""
    owned(store, "owner")
    store.apply([one("owner", 0, 1, b"v1")])
    assert store.erase([Erasure(store.find(TP.topic, ANN)[0])], "eraser")
    store.apply([one("owner", 1, 2, b"v1 and v2")])
    return state(store) is not None


def a_batch_sent_twice_is_no_success(store: StateStore) -> bool:
    """The reply was lost; the owner must learn that its batch is in, not that it must seek."""
    owned(store, "owner")
    batch = one("owner", 0, 5, b"v5")
    store.apply([batch])
    return store.apply([batch])[0].outcome is not ApplyOutcome.ALREADY


def a_batch_skips_events_that_redis_lost(store: StateStore) -> bool:
    """A failover took the watermark from 5 back to 3; the same token still stands."""
    owned(store, "owner", start=3)
    store.apply([one("owner", 5, 6, b"v1..v6, but 3 and 4 are gone")])
    return state(store) is not None


def a_batch_sent_twice_is_applied_twice(store: StateStore) -> bool:
    owned(store, "owner")
    batch = one("owner", 0, 5, b"v5", f4_0=b"escalation")
    store.apply([batch])
    store.forget(TP, "owner", ["4:0"])
    store.apply([batch])
    return outbox(store) != {}


def a_batch_before_the_first_start_is_applied(store: StateStore) -> bool:
    """Nobody knows yet where to start: Redis may have been wiped."""
    store.acquire([(TP, "owner")], "worker")
    try:
        return store.apply([one("owner", 500, 501, b"x")])[0].outcome is not ApplyOutcome.GAP
    except Exception:
        return True


def ticked(
    store: StateStore, token: str, next_token: str, watermark: int, state: bytes, **outputs: bytes
) -> ApplyOutcome:
    fields = {f"{watermark}:t:1:0:{next_token}": record for record in outputs.values()}
    return store.tick([TickBatch(TP, token, next_token, watermark, {ANN: state}, fields, {ANN: None})])[0].outcome


def a_tick_sent_twice_is_no_success(store: StateStore) -> bool:
    """The reply was lost; the owner must learn that its tick is in, not that it has lost the partition."""
    owned(store, "owner")
    ticked(store, "owner", "owner/2", 0, b"expired")
    return ticked(store, "owner", "owner/2", 0, b"expired") is not ApplyOutcome.ALREADY


def a_late_copy_of_a_tick_takes_a_later_tick_back(store: StateStore) -> bool:
    """Two timers of one conversation at one watermark; the first tick's first copy lay in a socket's buffer."""
    owned(store, "owner")
    ticked(store, "owner", "owner/2", 0, b"opened", a=b"opened")
    ticked(store, "owner/2", "owner/3", 0, b"expired", a=b"expired")
    ticked(store, "owner", "owner/2", 0, b"opened", a=b"opened")
    return state(store) != b"expired"


def an_owner_goes_on_from_a_tick_that_a_failover_took_back(store: StateStore) -> bool:
    """The watermark is where it was before the tick, so only the token can tell: the failover brings the old one back."""
    owned(store, "owner")
    store.apply([one("owner", 0, 1, b"waiting")])
    server = store.link.client  # type: ignore[attr-defined]
    kept = {key: server.dump(key) for key in server.keys("*")}
    ticked(store, "owner", "owner/2", 1, b"opened", a=b"opened")
    held = server.hget(f"ss:{{fuzz:{TP.topic}:{TP.partition}}}:meta", "token").decode()
    server.flushdb()
    for key, value in kept.items():
        server.restore(key, 0, value)
    return store.apply([one(held, 1, 2, b"opened and answered")])[0].outcome is ApplyOutcome.OK


def a_zombie_ticks(store: StateStore) -> bool:
    owned(store, "zombie")
    owned(store, "owner")
    ticked(store, "zombie", "zombie/2", 0, b"expired")
    return state(store) is not None


def a_tick_skips_events_that_redis_lost(store: StateStore) -> bool:
    """A failover took the watermark from 5 back to 3, and the token is that of the owner."""
    owned(store, "owner", start=3)
    ticked(store, "owner", "owner/2", 5, b"v1..v6, expired; but 3 and 4 are gone")
    return state(store) is not None


def a_zombie_looks_for_timers(store: StateStore) -> bool:
    owned(store, "zombie")
    owned(store, "owner")
    return store.due([DueRequest(TP, "zombie", 0, 10, 10)])[0].outcome is ApplyOutcome.OK


def timers_are_looked_for_where_redis_lost_events(store: StateStore) -> bool:
    owned(store, "owner", start=3)
    return store.due([DueRequest(TP, "owner", 5, 10, 10)])[0].outcome is ApplyOutcome.OK


def an_erased_conversations_timer_stays(store: StateStore) -> bool:
    owned(store, "owner")
    store.apply([one("owner", 0, 1, b"waiting")._replace(deadlines={ANN: 100})])
    store.erase([Erasure(store.find(TP.topic, ANN)[0])], "eraser")
    return store.due([DueRequest(TP, "eraser", 1, 100, 10)])[0].conversations != []


def a_zombie_moves_the_watermark(store: StateStore) -> bool:
    """The zombie resolved the start offset before it stalled, and initialises late."""
    store.acquire([(TP, "zombie")], "zombie")
    store.acquire([(TP, "owner")], "owner")
    try:
        store.initialise(TP, "zombie", 0)
    except Fenced:
        return False
    return True


def a_second_initialise_moves_the_watermark_back(store: StateStore) -> bool:
    """The reply to INITIALISE was lost, the owner applied, and the late copy of the call arrives."""
    owned(store, "owner", start=10)
    store.apply([one("owner", 10, 20, b"v20")])
    return store.initialise(TP, "owner", 10) != 20


def a_late_copy_of_a_policys_initialise_moves_the_watermark_back(store: StateStore) -> bool:
    """The topic was created anew, so a watermark of 900 was replaced by 0; the call's first copy lay in a socket's buffer."""
    owned(store, "owner", start=900)
    store.initialise(TP, "owner", 0, replaces=900)
    store.apply([one("owner", 0, 20, b"v20")])
    return store.initialise(TP, "owner", 0, replaces=900) != 20


def a_zombie_reads_the_state_of_the_owner(store: StateStore) -> bool:
    """It stalled between ACQUIRE and LOAD. Should Redis lose the owner's writes now, the zombie's token and watermark would stand
    again, and it would fold the owner's event a second time onto what it has read."""
    owned(store, "zombie")
    owned(store, "owner")
    store.apply([one("owner", 0, 1, b"owner's event")])
    return store.load([LoadRequest(TP, "zombie", 0, [ANN])])[0].states != []


def an_owner_reads_a_state_that_a_failover_took_back(store: StateStore) -> bool:
    """Redis shows the state before the owner's last batch, and a late copy of that batch may come and bring the watermark back."""
    owned(store, "owner")
    store.apply([one("owner", 0, 1, b"v1")])
    return store.load([LoadRequest(TP, "owner", 2, [ANN])])[0].states != []


def a_zombie_forgets_an_entry_that_was_made_anew(store: StateStore) -> bool:
    """A failover took the entry back; the new owner made it again from a new score, and has not published it yet."""
    owned(store, "zombie")
    store.apply([one("zombie", 0, 1, b"x", f0_0=b"published")])
    owned(store, "owner")
    store.initialise(TP, "owner", 0, replaces=1)
    store.apply([one("owner", 0, 1, b"y", f0_0=b"made anew")])
    store.forget(TP, "zombie", ["0:0"])
    return outbox(store) != {"0:0": b"made anew"}


def an_erasure_removes_what_the_eraser_never_saw(store: StateStore) -> bool:
    """Between find and erase an escalation opened: its `resolved` would be missing."""
    owned(store, "owner")
    store.apply([one("owner", 0, 1, b"calm")])
    found = store.find(TP.topic, ANN)[0]
    store.apply([one("owner", 1, 2, b"escalated")])
    store.erase([Erasure(found)], "eraser")
    return state(store) is None


def an_erasure_sent_twice_is_told_that_it_failed(store: StateStore) -> bool:
    owned(store, "owner")
    store.apply([one("owner", 0, 1, b"v1")])
    erasure = Erasure(store.find(TP.topic, ANN)[0], [b"tombstone"])
    store.erase([erasure], "eraser")
    return not store.erase([erasure], "eraser")


LOAD_GAP_GUARD = "if tonumber(stored) ~= tonumber(ARGV[2]) then\n  return {'GAP', stored}\nend\n"
ABSENT = "if not stored then\n  return {'GAP', ''}\nend\n"
ERASE_FENCE = "redis.call('HSET', KEYS[1], 'token', ARGV[1], 'member', 'erasure')\n"
ERASE_COMPARE = "  if redis.call('GET', KEYS[3 + i]) ~= ARGV[1 + i] then\n    return {'CHANGED', i}\n  end\n"
ERASE_TWICE = "if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then\n  return {'OK', 0}\nend\n"

TICK_GAP_GUARD = "if tonumber(stored) ~= tonumber(ARGV[3]) then\n  return {'GAP', stored}\nend\n"
TICK_TWICE = "if token == ARGV[2] then\n  return {'ALREADY', stored}\nend\n"
TICK_TOKEN = "redis.call('HSET', KEYS[1], 'token', ARGV[2])\n"
ERASE_DUE = "  redis.call('ZREM', KEYS[3], ARGV[n + 1 + i])\n"

NOT_STORED = "if not stored or stored == ARGV[3] then\n"


def replaced(script: str, guard: str, weaker: str) -> Callable[[str, str], str]:
    def mutate(name: str, source: str) -> str:
        assert name != script or source.count(guard) == 1
        return source.replace(guard, weaker) if name == script else source

    return mutate


GUARDS: list[tuple[Callable[[StateStore], bool], Callable[[str, str], str]]] = [
    (a_zombie_writes_its_view_of_an_event, without("apply.lua", TOKEN_GUARD)),
    (a_zombie_goes_on_from_its_cache_after_a_failover, without("apply.lua", TOKEN_GUARD)),
    (an_erased_state_comes_back_from_a_cache, without("apply.lua", TOKEN_GUARD)),
    (an_erased_state_comes_back_from_a_cache, without("erase.lua", ERASE_FENCE)),
    (a_batch_sent_twice_is_no_success, without("apply.lua", ALREADY_GUARD)),
    (a_batch_skips_events_that_redis_lost, without("apply.lua", GAP_GUARD)),
    (a_batch_sent_twice_is_applied_twice, without("apply.lua", ALREADY_GUARD, GAP_GUARD)),
    (a_batch_before_the_first_start_is_applied, without("apply.lua", ABSENT)),
    (a_zombie_moves_the_watermark, without("initialise.lua", TOKEN_GUARD)),
    (
        a_second_initialise_moves_the_watermark_back,
        replaced("initialise.lua", NOT_STORED, "if true then\n"),
    ),
    (
        a_late_copy_of_a_policys_initialise_moves_the_watermark_back,
        replaced("initialise.lua", NOT_STORED, "if not stored or ARGV[3] ~= '' then\n"),
    ),
    (a_zombie_reads_the_state_of_the_owner, without("load.lua", TOKEN_GUARD, LOAD_GAP_GUARD)),
    (an_owner_reads_a_state_that_a_failover_took_back, without("load.lua", LOAD_GAP_GUARD)),
    (a_zombie_forgets_an_entry_that_was_made_anew, without("forget.lua", TOKEN_GUARD)),
    (an_erasure_removes_what_the_eraser_never_saw, without("erase.lua", ERASE_COMPARE)),
    (an_erasure_sent_twice_is_told_that_it_failed, without("erase.lua", ERASE_TWICE)),
    (a_tick_sent_twice_is_no_success, without("tick.lua", TICK_TWICE)),
    (a_late_copy_of_a_tick_takes_a_later_tick_back, without("tick.lua", TOKEN_GUARD)),
    (an_owner_goes_on_from_a_tick_that_a_failover_took_back, without("tick.lua", TICK_TOKEN)),
    (a_zombie_ticks, without("tick.lua", TOKEN_GUARD)),
    (a_tick_skips_events_that_redis_lost, without("tick.lua", TICK_GAP_GUARD)),
    (a_zombie_looks_for_timers, without("due.lua", TOKEN_GUARD)),
    (timers_are_looked_for_where_redis_lost_events, without("due.lua", LOAD_GAP_GUARD)),
    (an_erased_conversations_timer_stays, without("erase.lua", ERASE_DUE)),
]


def store_with(mutate: Callable[[str, str], str]) -> StateStore:
    return make_store(ScriptedRedis(fakeredis.FakeRedis(), mutate))


@pytest.mark.parametrize("sent_again_as", ["same token", "another token"])
def test_a_late_copy_of_an_acquire_is_harmless_because_it_carries_a_token_that_nobody_uses(sent_again_as: str) -> None:
    # Given an owner whose ACQUIRE was sent twice, the first copy still on its way
    store = store_with(lambda name, source: source)
    first = "token"
    second = "token" if sent_again_as == "same token" else str(_with_another_token(("", "", 0, first), 2)[3])
    owned(store, second)
    store.apply([one(second, 0, 1, b"v1")])
    # When a person erases a conversation, and the first copy is executed afterwards
    store.erase([Erasure(store.find(TP.topic, ANN)[0])], "eraser")
    store.acquire([(TP, first)], "late copy")
    # Then the owner's cache can bring the state back only where both copies carried one token
    store.apply([one(second, 1, 2, b"v1 and v2")])
    assert (state(store) is None) == (sent_again_as == "another token")


@pytest.mark.parametrize("harm", list(dict.fromkeys(harm for harm, _ in GUARDS)), ids=lambda harm: harm.__name__)
def test_it_cannot_happen_that(harm: Callable[[StateStore], bool]) -> None:
    assert not harm(store_with(lambda name, source: source))


@pytest.mark.parametrize(("harm", "mutate"), GUARDS, ids=[harm.__name__ for harm, _ in GUARDS])
def test_without_its_guard_it_happens_that(
    harm: Callable[[StateStore], bool], mutate: Callable[[str, str], str]
) -> None:
    assert harm(store_with(mutate))
