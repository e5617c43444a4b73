"""When each record of a chat log is sent."""

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_sentiment.demo.chatlog import BrokenRecord, ChatLog, Conversation, Line, bundled
from stream_sentiment.demo.load import BROKEN_EVERY
from stream_sentiment.demo.player import MAX_GAP_S, TimedRecord, play, schedule

END_MS = 1_767_600_000_000  # 2026-01-05T08:00:00Z


def conversation(name: str, *offsets: float, created_at: str | None = None) -> Conversation:
    rows = []
    for index, offset in enumerate(offsets):
        event = {"tenant_id": "t", "conversation_id": name, "message_id": f"{name}-{index}", "text": "hi"}
        if created_at:
            event["created_at"] = created_at
        rows.append(Line(offset, event))
    return Conversation("t", name, name, "en", tuple(rows))


class Hand:
    """A clock turned by waiting; `stop_after` waits it says stop."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.stop_after = stop_after

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return self.stop_after is not None and len(self.waits) > self.stop_after


def sent_by(record: TimedRecord) -> str:
    assert record.event is not None
    return str(record.event["message_id"])


def test_conversations_share_the_lanes_and_a_newcomer_waits_for_a_free_one() -> None:
    log = ChatLog(conversations=[conversation("a", 0, 10), conversation("b", 0, 30), conversation("c", 0, 5)])

    records = schedule(log, END_MS, lanes=2)

    # b begins 4 s after a; c takes a's lane 8 s after a's end at 10
    assert [(sent_by(r), r.at_s) for r in records] == [
        ("a-0", 0.0),
        ("b-0", 4.0),
        ("a-1", 10.0),
        ("c-0", 18.0),
        ("c-1", 23.0),
        ("b-1", 34.0),
    ]


def test_a_long_silence_is_shortened_on_the_floor_but_not_in_the_event() -> None:
    [first, second] = schedule(ChatLog(conversations=[conversation("a", 0, 3600)]), END_MS)

    assert second.at_s == MAX_GAP_S
    assert orjson.loads(first.value)["created_at"] == "2026-01-05T07:00:00.000Z"
    assert orjson.loads(second.value)["created_at"] == "2026-01-05T08:00:00.000Z"


def test_a_time_in_the_log_is_kept() -> None:
    log = ChatLog(conversations=[conversation("a", 0, created_at="2020-02-29T12:00:00Z")])

    [record] = schedule(log, END_MS)

    assert orjson.loads(record.value)["created_at"] == "2020-02-29T12:00:00Z"


def test_reviews_and_broken_records_are_spread_over_the_floors_time() -> None:
    log = ChatLog(
        conversations=[conversation("a", 0, 60)],
        reviews=[{"tenant_id": "t", "product_id": "p", "review_id": "r", "text": "fine"}],
        broken=[BrokenRecord("chat", b"oops", "not JSON"), BrokenRecord("review", b"oops", "not JSON")],
    )

    records = schedule(log, END_MS)

    assert [(r.topic_kind, r.key, r.at_s) for r in records] == [
        ("chat", "t|a", 0.0),
        ("chat", "broken", 15.0),
        ("review", "t|p", 30.0),
        ("review", "broken", 45.0),
        ("chat", "t|a", 60.0),
    ]


def test_playing_the_log_again_gives_new_ids() -> None:
    log = bundled("en")

    once, twice = schedule(log, END_MS), schedule(log, END_MS, repeat=2)

    conversations = {r.key for r in twice if r.topic_kind == "chat" and r.event}
    assert len(conversations) == 2 * len({r.key for r in once if r.topic_kind == "chat" and r.event})
    assert "maplewood-home|en-lamp-recovered~2" in conversations


def test_the_player_waits_for_the_moment_of_each_record() -> None:
    records = schedule(ChatLog(conversations=[conversation("a", 0, 10, 40)]), END_MS)
    published: list[tuple[str, float]] = []
    hand = Hand()

    count = play(records, lambda record: published.append((sent_by(record), hand.now)), hand, speed=10)

    assert count == 3
    assert published == [("a-0", 100.0), ("a-1", 101.0), ("a-2", 104.0)]


def test_without_a_speed_nothing_waits() -> None:
    records = schedule(ChatLog(conversations=[conversation("a", 0, 10, 40)]), END_MS)
    hand = Hand()

    play(records, lambda record: None, hand, speed=None)

    assert hand.waits == [0.0, 0.0, 0.0]


def test_a_stop_is_obeyed_before_the_next_record() -> None:
    records = schedule(ChatLog(conversations=[conversation("a", 0, 10, 40)]), END_MS)
    published: list[str] = []

    count = play(records, lambda record: published.append(sent_by(record)), Hand(stop_after=1), speed=1)

    assert (count, published) == (1, ["a-0"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 5000), min_size=1, max_size=6).map(sorted), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_every_conversation_keeps_its_order_and_no_more_than_the_lanes_are_open(
    offsets: list[list[float]], lanes: int
) -> None:
    log = ChatLog(conversations=[conversation(f"c{i}", *row) for i, row in enumerate(offsets)])

    records = schedule(log, END_MS, lanes=lanes)

    assert [r.at_s for r in records] == sorted(r.at_s for r in records)
    spans: dict[str, tuple[float, float]] = {}
    seen: dict[str, int] = {}
    for record in records:
        name, number = sent_by(record).rsplit("-", 1)
        assert int(number) == seen.get(name, 0)
        seen[name] = int(number) + 1
        spans[name] = (spans.get(name, (record.at_s, 0.0))[0], record.at_s)
    for begin, _ in spans.values():
        assert sum(start <= begin <= end for start, end in spans.values()) <= lanes


def test_the_load_has_too_few_broken_records_for_an_alert_that_never_ends() -> None:
    """DlqRatio begins at 1 %."""
    records = list(schedule(bundled(), 0))
    broken = sum(record.event is None for record in records)
    assert broken / len(records) > 0.01  # a round alone: what BROKEN_EVERY is for
    assert 0 < broken / BROKEN_EVERY / len(records) < 0.005
