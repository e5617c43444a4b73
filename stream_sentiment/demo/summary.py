"""The closing summary: one object for machines, one table for people. Pure: a `Floor` in, values out."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream_sentiment.demo.floor import Floor

#: What the authors of a conversation meant it to be, in words.
_WROTE = {
    "escalates": "written to turn bad",
    "recovers": "written to turn bad and recover",
    "calm": "written to stay calm",
}


def summary(floor: Floor, *, redis: str, seconds: float, speed: float | None) -> dict[str, Any]:
    """The figures of a run.

    `events_per_second` counts from the first record sent to the last result published; `seconds_to_first_escalation` from the start
    of the command, loading included, null when nothing escalated; latencies from sending a message to publishing its score (with
    --fast, `speed` null, nearly all of it is waiting behind the others). `by_expectation` is there for conversations that come along.
    """
    span_s = (floor.last_output_s or 0.0) - (floor.first_sent_s or 0.0)
    return {
        "events": floor.sent,
        "scored": floor.scored,
        "skipped": floor.skipped,
        "conversations": len(floor.rows),
        "reviews": floor.reviews,
        "escalations": floor.actions["opened"],
        "escalations_updated": floor.actions["updated"],
        "escalations_resolved": floor.actions["resolved"],
        "by_expectation": floor.by_expectation(),
        "escalations_by_rule": dict(sorted(floor.rules.items())),
        "dead_letters": sum(floor.dead_letters.values()),
        "dead_letters_by_class": dict(sorted(floor.dead_letters.items())),
        "events_per_second": round(floor.sent / span_s, 1) if span_s > 0 else None,
        "latency_ms": {"p50": _round(floor.latency_ms(0.5)), "p95": _round(floor.latency_ms(0.95))},
        "seconds_to_first_escalation": None if floor.first_escalation_s is None else round(floor.first_escalation_s, 2),
        "seconds": round(seconds, 2),
        "speed": speed,
        "model": floor.model,
        "redis": redis,
        "kafka": "in-process mock",
        "durable": False,
    }


def summary_table(figures: dict[str, Any]) -> RenderableType:
    """The same for people."""
    table = Table(title="What happened", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bright_black")
    table.add_column(justify="right", style="bold")
    table.add_column()
    model = figures["model"]
    latency = figures["latency_ms"]
    where = f"in {figures['conversations']} conversations"
    if figures["reviews"]:
        where += f", with {figures['reviews']} reviews"
    table.add_row("events sent", str(figures["events"]), where)
    table.add_row(
        "messages scored",
        str(figures["scored"]),
        f"by {model.get('name', '?')} {model.get('version', '')} {model.get('precision', '')}".rstrip(),
    )
    table.add_row("skipped", str(figures["skipped"]), "valid, but nothing to score: an image, an empty text, ...")
    rules = ", ".join(f"{rule} {count}" for rule, count in figures["escalations_by_rule"].items())
    table.add_row("escalations opened", str(figures["escalations"]), rules)
    table.add_row("escalations resolved", str(figures["escalations_resolved"]), "recovered, or the conversation ended")
    expected = figures["by_expectation"]
    if expected:
        table.add_row(
            "",
            "",
            "; ".join(
                f"{count['escalated']} of {count['conversations']} {_WROTE[name]}" for name, count in expected.items()
            ),
        )
    classes = ", ".join(f"{name} {count}" for name, count in figures["dead_letters_by_class"].items())
    table.add_row("dead letters", str(figures["dead_letters"]), classes)
    if figures["events_per_second"] is not None:
        table.add_row("events per second", f"{figures['events_per_second']:.1f}", "first sent to last result")
    if latency["p50"] is not None:
        table.add_row(
            "sent to scored", f"{latency['p50']:.0f} ms", f"half of the messages; 95 % in {latency['p95']:.0f} ms"
        )
    first = figures["seconds_to_first_escalation"]
    table.add_row(
        "first escalation",
        "none" if first is None else f"{first:.1f} s",
        "" if first is None else "after the command began",
    )
    note = Text("Kafka and Redis were embedded: nothing of this run is kept.", style="bright_black")
    return Group(table, note)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
