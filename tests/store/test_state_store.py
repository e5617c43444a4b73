from __future__ import annotations

import pytest

from stream_sentiment.store import (
    ApplyOutcome,
    ApplyResult,
    Erasure,
    LoadRequest,
    LoadResult,
    PartitionBatch,
    StateStore,
    TopicPartition,
)
from stream_sentiment.store.errors import Fenced
from stream_sentiment.store.keys import conversation_key
from stream_sentiment.testing.clock import FakeClock
from stream_sentiment.testing.redis import RedisServer
from tests.store.reading import TP, states

pytestmark = pytest.mark.redis

OTHER = TopicPartition("product.reviews", 0)
ANN = conversation_key("acme", "ann")
BOB = conversation_key("acme", "bob")


def started(store: StateStore, token: str = "T1", start: int = 0, tp: TopicPartition = TP) -> None:
    store.acquire([(tp, token)], "worker-1")
    store.initialise(tp, token, start)


def batch(first: int, following: int, token: str = "T1", tp: TopicPartition = TP, **more: object) -> PartitionBatch:
    return PartitionBatch(tp, token, first, following, more.get("states", {}), more.get("outputs", {}))  # type: ignore[arg-type]


def test_the_first_owner_finds_nothing(store: StateStore) -> None:
    [acquired] = store.acquire([(TP, "T1")], "worker-1")
    assert (acquired.watermark, acquired.outbox, acquired.partitions, acquired.previous_token) == (None, {}, None, "")


def test_the_next_owner_finds_watermark_and_outbox_in_publishing_order(store: StateStore) -> None:
    started(store)
    store.apply([batch(0, 12, outputs={"11:0": b"c", "9:1": b"b", "9:0": b"a"})])

    [acquired] = store.acquire([(TP, "T2")], "worker-2")

    assert acquired.watermark == 12
    assert list(acquired.outbox.items()) == [("9:0", b"a"), ("9:1", b"b"), ("11:0", b"c")]
    assert acquired.previous_token == "T1"


def test_meta_tells_a_person_who_owns_the_partition_since_when(server: RedisServer, group: str) -> None:
    store = StateStore(server.url, group=group, state_ttl_ms=1000, clock=FakeClock(1_767_603_600_000))
    store.acquire([(TP, "T1")], "worker-7", partition_counts={"chat.messages": 12})

    with server.client() as client:
        assert client.hgetall(f"ss:{{{group}:chat.messages:3}}:meta") == {
            b"token": b"T1",
            b"member": b"worker-7",
            b"at": b"1767603600000",
            b"partitions": b"12",
        }


def test_a_changed_partition_count_is_seen_until_an_operator_accepts_it(store: StateStore) -> None:
    store.acquire([(TP, "T1")], "w", partition_counts={TP.topic: 12})
    [second] = store.acquire([(TP, "T2")], "w", partition_counts={TP.topic: 16})
    assert second.partitions == 12
    [third] = store.acquire([(TP, "T3")], "w", partition_counts={TP.topic: 16}, accept_partition_counts=True)
    assert third.partitions == 16


def test_the_first_start_is_set_once(store: StateStore) -> None:
    started(store, start=7000)
    assert store.initialise(TP, "T1", 12) == 7000
    assert store.initialise(TP, "T1", 12, replaces=6999) == 7000
    assert store.initialise(TP, "T1", 12, replaces=7000) == 12


def test_the_first_start_is_fenced(store: StateStore) -> None:
    store.acquire([(TP, "T1")], "w")
    store.acquire([(TP, "T2")], "w")
    with pytest.raises(Fenced):
        store.initialise(TP, "T1", 12)
    [acquired] = store.acquire([(TP, "T2")], "w")
    assert acquired.watermark is None


def test_apply_writes_states_outputs_and_watermark(store: StateStore) -> None:
    started(store, start=5)
    result = store.apply([batch(5, 9, states={ANN: b'{"n":1}', BOB: b"{}"}, outputs={"6:0": b"record"})])
    assert result == [ApplyResult(ApplyOutcome.OK, 9, 1)]
    assert states(store, BOB, "acme|nobody", ANN) == [b"{}", None, b'{"n":1}']
    [acquired] = store.acquire([(TP, "T2")], "w")
    assert (acquired.watermark, acquired.outbox) == (9, {"6:0": b"record"})


def test_a_batch_sent_twice_is_applied_once_and_says_already(store: StateStore) -> None:
    started(store)
    assert store.apply([batch(0, 3, states={ANN: b"once"}, outputs={"2:0": b"r"})])[0].outcome is ApplyOutcome.OK
    store.forget(TP, "T1", ["2:0"])
    assert store.apply([batch(0, 3, states={ANN: b"twice"}, outputs={"2:0": b"r"})]) == [
        ApplyResult(ApplyOutcome.ALREADY, 3)
    ]
    assert states(store, ANN) == [b"once"]
    assert store.acquire([(TP, "T2")], "w")[0].outbox == {}


@pytest.mark.parametrize("first", [2, 4])
def test_a_batch_that_does_not_begin_at_the_watermark_is_a_gap_and_writes_nothing(
    store: StateStore, first: int
) -> None:
    started(store, start=3)
    assert store.apply([batch(first, 9, states={ANN: b"x"}, outputs={"5:0": b"r"})]) == [
        ApplyResult(ApplyOutcome.GAP, 3)
    ]
    assert states(store, ANN) == [None]
    assert store.acquire([(TP, "T2")], "w")[0].outbox == {}


def test_a_batch_before_the_first_start_is_a_gap_without_a_watermark(store: StateStore) -> None:
    store.acquire([(TP, "T1")], "w")
    assert store.apply([batch(0, 9)]) == [ApplyResult(ApplyOutcome.GAP, None)]


def test_a_zombie_is_fenced_and_writes_nothing(store: StateStore) -> None:
    started(store)
    store.acquire([(TP, "T2")], "w2")
    assert store.apply([batch(0, 9, states={ANN: b"zombie"}, outputs={"5:0": b"r"})]) == [
        ApplyResult(ApplyOutcome.FENCED, None)
    ]
    assert states(store, ANN) == [None]


def test_an_owner_that_acquires_late_takes_the_token_and_the_other_is_fenced(store: StateStore) -> None:
    started(store, token="true owner")
    store.acquire([(TP, "stalled")], "w")
    assert store.apply([batch(0, 1, token="true owner")])[0].outcome is ApplyOutcome.FENCED
    store.acquire([(TP, "true owner again")], "w")
    assert store.apply([batch(0, 1, token="true owner again")])[0].outcome is ApplyOutcome.OK
    assert store.apply([batch(1, 2, token="stalled")])[0].outcome is ApplyOutcome.FENCED


def test_partitions_of_one_call_are_independent(store: StateStore) -> None:
    started(store)
    started(store, tp=OTHER, start=50)
    results = store.apply(
        [batch(0, 1, states={ANN: b"a"}), batch(50, 60, tp=OTHER, states={ANN: b"r"}), batch(9, 10, token="stranger")]
    )
    assert [result.outcome for result in results] == [ApplyOutcome.OK, ApplyOutcome.OK, ApplyOutcome.FENCED]
    assert states(store, ANN) == [b"a"]
    assert states(store, ANN, tp=OTHER) == [b"r"]


def test_offsets_beyond_fourteen_digits_come_back_unrounded(store: StateStore) -> None:
    big = 1_234_567_890_123_456
    started(store, start=big)
    assert store.apply([batch(big, big + 1)]) == [ApplyResult(ApplyOutcome.OK, big + 1, 0)]
    assert store.apply([batch(big, big + 1)]) == [ApplyResult(ApplyOutcome.ALREADY, big + 1)]
    assert store.apply([batch(big + 2, big + 3)]) == [ApplyResult(ApplyOutcome.GAP, big + 1)]
    assert store.acquire([(TP, "T2")], "w")[0].watermark == big + 1


def test_load_reads_many_partitions_in_the_order_asked(store: StateStore) -> None:
    started(store)
    started(store, tp=OTHER, start=50)
    store.apply([batch(0, 1, states={ANN: b"a", BOB: b"b"}), batch(50, 60, tp=OTHER, states={ANN: b"r"})])
    assert store.load(
        [
            LoadRequest(OTHER, "T1", 60, [ANN]),
            LoadRequest(TP, "T1", 1, []),
            LoadRequest(TP, "T1", 1, [BOB, "acme|nobody", ANN]),
        ]
    ) == [
        LoadResult(ApplyOutcome.OK, [b"r"]),
        LoadResult(ApplyOutcome.OK, []),
        LoadResult(ApplyOutcome.OK, [b"b", None, b"a"]),
    ]
    assert store.load([]) == []


def test_only_the_owner_may_read_states_to_fold_on_and_only_at_its_watermark(store: StateStore) -> None:
    started(store)
    store.apply([batch(0, 4, states={ANN: b"v4"})])
    assert store.load([LoadRequest(TP, "T1", 3, [ANN])]) == [LoadResult(ApplyOutcome.GAP, [])]
    store.acquire([(TP, "T2")], "w")
    assert store.load([LoadRequest(TP, "T1", 4, [ANN])]) == [LoadResult(ApplyOutcome.FENCED, [])]
    assert store.load([LoadRequest(TP, "T2", 4, [ANN])]) == [LoadResult(ApplyOutcome.OK, [b"v4"])]


def test_nothing_can_be_read_before_the_first_start(store: StateStore) -> None:
    store.acquire([(TP, "T1")], "w")
    assert store.load([LoadRequest(TP, "T1", 0, [ANN])]) == [LoadResult(ApplyOutcome.GAP, [])]


def test_an_empty_batch_is_a_programming_error(store: StateStore) -> None:
    with pytest.raises(ValueError, match="empty batch"):
        store.apply([batch(4, 4)])


def test_a_state_expires_after_its_time_to_live_and_every_write_renews_it(server: RedisServer, group: str) -> None:
    store = StateStore(server.url, group=group, state_ttl_ms=90_000)
    started(store)
    store.apply([batch(0, 1, states={ANN: b"x"})])
    key = f"ss:{{{group}:chat.messages:3}}:c:{ANN}"
    with server.client() as client:
        assert 80_000 < client.pttl(key) <= 90_000
        client.pexpire(key, 5_000)
        store.apply([batch(1, 2, states={ANN: b"y"})])
        assert 80_000 < client.pttl(key) <= 90_000
        assert client.pttl(f"ss:{{{group}:chat.messages:3}}:meta") == -1


def test_a_batch_can_delete_a_state(store: StateStore) -> None:
    started(store)
    store.apply([batch(0, 1, states={ANN: b"x", BOB: b"y"})])
    store.apply([batch(1, 2, states={ANN: None, BOB: b"z"})])
    assert states(store, ANN, BOB) == [None, b"z"]


def test_delivered_entries_are_forgotten_once_and_only_by_the_owner(store: StateStore) -> None:
    started(store)
    store.apply([batch(0, 5, outputs={"1:0": b"a", "2:0": b"b", "3:0": b"c"})])
    assert store.forget(TP, "T1", ["1:0", "2:0"]) == 2
    assert store.forget(TP, "T1", ["1:0", "2:0"]) == 0
    assert store.forget(TP, "T1", []) == 0
    [acquired] = store.acquire([(TP, "T2")], "w")
    assert acquired.outbox == {"3:0": b"c"}
    assert store.forget(TP, "T1", ["3:0"]) is None
    assert store.acquire([(TP, "T3")], "w")[0].outbox == {"3:0": b"c"}


NASTY = ["{x}", "a|b", "line\nbreak", "\x00", "tab\t", "'\";--", "\\", "会话", "🙂", "%7C", "~", "", "*", "x" * 10_000]


def test_ids_of_any_content_keep_their_states_apart(store: StateStore) -> None:
    started(store)
    names = [(tenant, conversation) for tenant in NASTY for conversation in NASTY]
    written = {conversation_key(*name): repr(name).encode() for name in names}
    assert len(written) == len(names)
    store.apply([batch(0, 1, states=written)])
    assert states(store, *written) == list(written.values())


def test_bytes_of_any_content_survive_in_states_and_records(store: StateStore) -> None:
    everything = bytes(range(256)) + b"\r\n$-1\r\n"
    started(store)
    store.apply([batch(0, 1, states={ANN: everything}, outputs={"0:0": everything})])
    assert states(store, ANN) == [everything]
    assert store.acquire([(TP, "T2")], "w")[0].outbox == {"0:0": everything}


def test_find_asks_every_partition_of_the_topic(store: StateStore) -> None:
    for number in range(4):
        tp = TopicPartition("chat.messages", number)
        store.acquire([(tp, "T1")], "w", partition_counts={"chat.messages": 4})
        store.initialise(tp, "T1", 0)
    store.apply([batch(0, 8, states={ANN: b"state"})])
    [found] = store.find("chat.messages", ANN)
    assert (found.tp, found.state, found.watermark) == (TP, b"state", 8)
    assert store.find("chat.messages", BOB) == []
    assert store.find("unknown.topic", ANN) == []
    assert store.find("chat.messages", ANN, partitions=2) == []


def test_an_erasure_fences_the_owner_so_that_its_cache_cannot_bring_the_state_back(store: StateStore) -> None:
    # Given an owner that holds a state in its cache and has a batch under way
    started(store)
    store.acquire([(TP, "T1")], "w", partition_counts={TP.topic: 4})
    store.apply([batch(0, 4, states={ANN: b"v1", BOB: b"b"}, outputs={"3:0": b"opened"})])
    under_way = batch(4, 5, states={ANN: b"v2"})

    # When a person erases the conversation
    found = store.find(TP.topic, ANN)
    assert store.erase([Erasure(found[0], [b"resolved: erased", b"tombstone"])], "E1")

    # Then the owner's batch is refused, and its next ACQUIRE brings the eraser's records after the entries before them
    assert store.apply([under_way])[0].outcome is ApplyOutcome.FENCED
    [acquired] = store.acquire([(TP, "T2")], "w")
    assert list(acquired.outbox.items()) == [
        ("3:0", b"opened"),
        ("4:e:E1:0", b"resolved: erased"),
        ("4:e:E1:1", b"tombstone"),
    ]
    assert acquired.watermark == 4
    assert states(store, ANN, BOB) == [None, b"b"]
    assert store.forget(TP, "T2", list(acquired.outbox)) == 3


def test_an_erasure_of_a_state_that_changed_meanwhile_writes_nothing(store: StateStore) -> None:
    started(store)
    store.acquire([(TP, "T1")], "w", partition_counts={TP.topic: 4})
    store.apply([batch(0, 1, states={ANN: b"v1"})])
    found = store.find(TP.topic, ANN)
    store.apply([batch(1, 2, states={ANN: b"v2"})])
    assert not store.erase([Erasure(found[0], [b"tombstone"])], "E1")
    assert states(store, ANN) == [b"v2"]
    assert store.apply([batch(2, 3)])[0].outcome is ApplyOutcome.OK


def test_an_erasure_sent_twice_is_done_once(store: StateStore) -> None:
    started(store)
    store.acquire([(TP, "T1")], "w", partition_counts={TP.topic: 4})
    store.apply([batch(0, 1, states={ANN: b"v1"})])
    erasure = Erasure(store.find(TP.topic, ANN)[0], [b"tombstone"])
    assert store.erase([erasure], "E1")
    assert store.erase([erasure], "E1")
    assert store.acquire([(TP, "T2")], "w")[0].outbox == {"1:e:E1:0": b"tombstone"}


def test_two_groups_and_two_prefixes_do_not_see_each_other(server: RedisServer, group: str) -> None:
    stores = [
        StateStore(server.url, group=group, state_ttl_ms=1000),
        StateStore(server.url, group=group + "2", state_ttl_ms=1000),
        StateStore(server.url, group=group, state_ttl_ms=1000, prefix="shadow"),
    ]
    for number, store in enumerate(stores):
        started(store, start=number)
        store.apply([batch(number, 10 + number, states={ANN: b"%d" % number})])
    loads = [store.load([LoadRequest(TP, "T1", 10 + number, [ANN])]) for number, store in enumerate(stores)]
    assert [load[0].states for load in loads] == [[b"0"], [b"1"], [b"2"]]


def test_settled_output_positions_pass_to_the_next_owner_and_only_the_owner_sets_them(store: StateStore) -> None:
    started(store)
    assert store.settle(TP, "T1", 0, b'{"escalation.events":{"0":17}}', []) is ApplyOutcome.OK
    [acquired] = store.acquire([(TP, "T2")], "w")
    assert acquired.settled == b'{"escalation.events":{"0":17}}'
    assert store.settle(TP, "T1", 0, b"zombie", []) is ApplyOutcome.FENCED
    assert store.acquire([(TP, "T3")], "w")[0].settled == b'{"escalation.events":{"0":17}}'


def test_positions_are_not_settled_where_redis_holds_what_the_owner_does_not_know(store: StateStore) -> None:
    started(store)
    store.apply([batch(0, 5, outputs={"1:0": b"a", "2:0": b"b"})])
    assert store.settle(TP, "T1", 4, b"x", ["1:0", "2:0"]) is ApplyOutcome.GAP
    assert store.settle(TP, "T1", 5, b"x", ["1:0"]) is ApplyOutcome.GAP
    assert store.settle(TP, "T1", 5, b"x", ["1:0", "2:0", "3:0"]) is ApplyOutcome.OK
