"""What the live screen draws."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from stream_sentiment.demo.chatlog import Conversation
from stream_sentiment.demo.floor import Floor, Row
from stream_sentiment.demo.view import (
    Frame,
    Screen,
    Seats,
    alarm_line,
    emotion_line,
    gauge,
    progress_bar,
    status_line,
    status_of,
)

FRAME = Frame(
    at_s=42.0,
    progress=0.25,
    pace="8 times the pace of people",
    services="in-process mock Kafka: nothing is durable",
    show_text=True,
    model="service 1 int8",
    stage="playing",
)


def floor_with(conversations: int) -> Floor:
    titles = ("Tent promised three times", "退款拖了半个月还没有到账")
    floor = Floor(Conversation("t", f"c{i}", titles[i % 2], "", ()) for i in range(40))
    for number in range(conversations):
        event = {
            "tenant_id": "t",
            "conversation_id": f"c{number}",
            "message_id": "m",
            "language": "zh" if number % 2 else "en",
            "sender": {"role": "customer"},
            "text": "你们到底什么时候发货？" if number % 2 else "Where is my tent?",
        }
        floor.record_sent(event, float(number))
        floor.record_scored(
            {**event, "sentiment": {"label": "negative", "score": -0.9}, "emotion": {"label": "disappointment"},
             "rolling": {"score": -0.5, "trend": "declining"}},
            number + 0.1,
        )  # fmt: skip
    return floor


def alarm(floor: Floor, conversation: int, revision: int = 1, **fields: object) -> None:
    floor.record_escalation(
        {
            "tenant_id": "t",
            "conversation_id": f"c{conversation}",
            "escalation_id": f"e{conversation}",
            "action": "opened",
            "revision": revision,
            "severity": "error",
            "trigger": {"rule_id": "sustained-negative"},
            "reason": "The rolling score has fallen to -0.62 (alert at -0.40) after 4 messages from the customer.",
            **fields,
        },
        12.0,
    )


def drawn(floor: Floor, width: int, height: int, color: bool = False, frame: Frame = FRAME) -> list[str]:
    file = io.StringIO()
    console = Console(
        file=file, width=width, height=height, force_terminal=True, color_system="truecolor" if color else None
    )
    console.print(Screen()(floor, frame), height=height, end="")
    return file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (160, 45), (220, 60), (60, 16)])
@pytest.mark.parametrize("conversations", [0, 3, 40])
def test_the_screen_fills_the_terminal_and_never_leaves_it(width: int, height: int, conversations: int) -> None:
    floor = floor_with(conversations)
    for number in range(min(conversations, 12)):
        alarm(floor, number)

    lines = drawn(floor, width, height)

    assert len(lines) == height
    assert max(cell_len(line) for line in lines) <= width


def test_a_narrow_screen_shows_title_emotion_score_status_and_the_counts() -> None:
    floor = floor_with(2)
    alarm(floor, 0)
    floor.record_dead_letter("d-1", "schema", 13.0)

    text = "\n".join(drawn(floor, 100, 30))

    for said in (
        "Tent promised",
        "退款拖了半个月",
        "let down",
        "-0.50",
        "▲ error",
        "escalations: 1 open",
        "00:12 ▲ opened error",
        "The rolling score has fallen",
        "2 events",
        "2 scored",
        "1 escalations opened",
        "1 dead letters (schema 1)",
        "service 1 int8",
        "in-process mock Kafka: nothing is durable",
        "25 %  playing",
        "00:42",
    ):
        assert said in text, said


def test_a_wide_screen_adds_the_rule_the_gauge_and_the_customers_last_words() -> None:
    floor = floor_with(2)
    alarm(floor, 0)

    text = "\n".join(drawn(floor, 160, 45))

    for said in ("disappointment", "Where is my tent?", "你们到底什么时候", "··██│····", "sustained-negative"):
        assert said in text, said


def test_the_customers_words_are_hidden_when_asked() -> None:
    hidden = Frame(**{**{name: getattr(FRAME, name) for name in Frame.__slots__}, "show_text": False})

    text = "\n".join(drawn(floor_with(2), 160, 45, frame=hidden))

    assert "Where is my tent?" not in text
    assert "什么时候发货" not in text


def test_without_colour_no_escape_sequence_is_written() -> None:
    floor = floor_with(3)
    alarm(floor, 1)

    assert "\x1b" not in "\n".join(drawn(floor, 100, 30, color=False))
    assert "\x1b" in "\n".join(drawn(floor, 100, 30, color=True))


def test_a_chinese_reason_is_broken_between_characters_and_keeps_all_of_them() -> None:
    floor = floor_with(1)
    alarm(floor, 0, reason="客户发送六条消息后，滚动情绪分降至告警阈值以下。")

    panel = "".join(line.partition("││")[2].strip("│ ") for line in drawn(floor, 100, 30))

    assert "客户发送六条消息后，滚动情绪分降至告警阈值以下。" in panel


def test_the_emotion_line_is_higher_for_happier_messages_and_shows_the_newest() -> None:
    assert emotion_line([-1.0, -0.5, 0.0, 0.5, 1.0], 10).plain == "▁▃▅▇█"
    assert emotion_line([1.0, 1.0, -1.0], 2).plain == "█▁"


@settings(max_examples=100)
@given(st.lists(st.floats(-1, 1), max_size=80), st.integers(1, 30))
def test_the_emotion_line_has_one_bar_a_message_and_never_exceeds_its_width(points: list[float], width: int) -> None:
    assert len(emotion_line(points, width).plain) == min(len(points), width)


@settings(max_examples=100)
@given(st.floats(-1, 1), st.integers(1, 20))
def test_the_gauge_has_a_fixed_width_and_fills_the_side_of_the_sign(score: float, half: int) -> None:
    left, _, right = gauge(score, half).plain.partition("│")

    assert (len(left), len(right)) == (half, half)
    assert left.count("█") == (round(-score * half) if score < 0 else 0)
    assert right.count("█") == (round(score * half) if score > 0 else 0)


def test_the_gauge_of_a_score() -> None:
    assert gauge(-0.5, 4).plain == "··██│····"
    assert gauge(1.0, 4).plain == "····│████"
    assert gauge(0.0, 4).plain == "····│····"


@pytest.mark.parametrize("share", [0.0, 0.33, 1.0, 1.5])
def test_the_progress_bar_fills_its_width(share: float) -> None:
    assert cell_len(progress_bar(share, 50, "playing").plain) == 50


def row(name: str, touched_s: float, ended: bool = False, severity: str = "") -> Row:
    return Row("t", name, name, touched_s=touched_s, ended=ended, severity=severity)


def names(rows: list[Row]) -> list[str]:
    return [r.conversation_id for r in rows]


def test_a_conversation_keeps_its_line_while_others_come_and_go() -> None:
    seats = Seats()
    rows = [row("a", 1), row("b", 2), row("c", 3)]
    assert names(seats.arrange(rows, 3)) == ["a", "b", "c"]

    rows[1].ended = True
    rows.append(row("d", 4))

    assert names(seats.arrange(rows, 3)) == ["a", "d", "c"]
    assert names(seats.arrange(rows, 3)) == ["a", "d", "c"]


def test_an_alarm_takes_the_line_of_the_quietest_conversation_but_not_of_another_alarm() -> None:
    seats = Seats()
    rows = [row("a", 1, severity="error"), row("b", 2), row("c", 3)]
    seats.arrange(rows, 3)

    rows.append(row("d", 4, severity="warning"))

    assert names(seats.arrange(rows, 3)) == ["a", "d", "c"]


def test_on_a_smaller_terminal_the_least_important_lines_go() -> None:
    seats = Seats()
    rows = [row("a", 1, ended=True), row("b", 2, severity="error"), row("c", 3)]
    seats.arrange(rows, 3)

    assert names(seats.arrange(rows, 2)) == ["b", "c"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"severity": "critical"}, "▲ critical"),
        ({"severity": "critical", "ended": True}, "▲ critical"),
        ({"escalated": True, "resolution": "recovered"}, "✔ recovered"),
        ({"escalated": True, "resolution": "conversation_ended", "ended": True}, "ended ▲"),
        ({"escalated": True, "resolution": "expired"}, "resolved"),
        ({}, "calm"),
        ({"phase": "with_bot"}, "with bot"),
        ({"ended": True}, "ended"),
    ],
)
def test_the_status_says_the_most_important_thing(fields: dict[str, object], said: str) -> None:
    assert status_of(Row("t", "c", "c", **fields)).plain == said  # type: ignore[arg-type]


def test_plain_lines_say_the_same_without_a_terminal() -> None:
    floor = floor_with(1)
    alarm(floor, 0)
    alarm(floor, 0, revision=2, action="resolved", resolution="recovered")

    opened, resolved = (alarm_line(item) for item in floor.alarms_since(0))

    assert opened == (
        "[  12.0 s] escalation opened (error) sustained-negative in 'Tent promised three times': The rolling score has "
        "fallen to -0.62 (alert at -0.40) after 4 messages from the customer."
    )
    assert resolved == "[  12.0 s] escalation resolved (recovered) sustained-negative in 'Tent promised three times'"
    assert status_line(floor, FRAME) == (
        "[  42.0 s] playing: 1 events sent, 1 scored, 1 escalations opened, 1 resolved, 0 dead letters"
    )
