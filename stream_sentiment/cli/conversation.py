"""`stream-sentiment conversation show|erase`: look at one conversation, or forget it. Texts are never kept, so none are shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from stream_sentiment.errors import ExitStatus, StreamSentimentError
from stream_sentiment.settings import load_settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stream_sentiment.escalation.rules import RuleSet
    from stream_sentiment.settings import Settings
    from stream_sentiment.store.redis import StateStore

app = typer.Typer(no_args_is_help=True)

_Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="tenant_id of the events")]
_Identity = Annotated[str, typer.Argument(metavar="ID", help="conversation_id of the events")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


class UnknownConversation(StreamSentimentError):
    """Redis holds no state of it."""

    exit_status = ExitStatus.NO


@app.command()
def show(tenant: _Tenant, conversation: _Identity, as_json: _Json = False) -> None:
    """Show what is known of a conversation: its emotion line, rolling figures, escalation and the last scored messages.

    Reads Redis only; times are UTC. Exit status: 0 shown, 1 no such conversation, 69 Redis cannot be reached.

    Example: `stream-sentiment conversation show maplewood-home en-lamp-recovered`
    """
    settings = load_settings()
    card = _look_up(settings, tenant, conversation)
    if as_json:
        typer.echo(orjson.dumps(card).decode())
        return
    from rich.console import Console

    Console(highlight=False).print(_card(card))


@app.command()
def erase(
    tenant: _Tenant,
    conversation: _Identity,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: _Json = False,
) -> None:
    """Forget a conversation: its state in Redis goes, an open escalation resolves as `erased`, a tombstone follows in the state topic.

    Workers may go on meanwhile. Messages in the input topics stay until their retention ends, and a further message of the
    conversation begins a new state. Exit status: 0 erased, 75 it changed all the time, 69 a service cannot be reached.

    Example: `stream-sentiment conversation erase maplewood-home en-lamp-recovered --yes`
    """
    from stream_sentiment.clock import SystemClock
    from stream_sentiment.erasure import erase_conversation

    settings = load_settings()
    if not yes:
        typer.confirm(f"Forget conversation {conversation!r} of {tenant!r}?", abort=True, err=True)
    with _store(settings) as (store, rules):
        done = erase_conversation(settings, store, rules, SystemClock(), tenant, conversation)
    if as_json:
        typer.echo(
            orjson.dumps({"states": done.states, "escalations": done.escalations, "tombstone": done.tombstone}).decode()
        )
    elif done.states:
        typer.echo(
            f"erased; {done.escalations} open escalation{'s' if done.escalations != 1 else ''} resolved. "
            "The owner of the partition publishes this next; without a running worker, the next one does."
        )
    else:
        typer.echo("Redis holds no state of it; a tombstone was published, so that the state topic forgets it too.")


@contextmanager
def _store(settings: Settings) -> Iterator[tuple[StateStore, RuleSet]]:
    from stream_sentiment.escalation.rules import load_rules
    from stream_sentiment.worker import STATE_LIVES, open_store

    rules = load_rules(settings.rules.path)
    store = open_store(settings, STATE_LIVES * rules.options.ttl_ms)
    try:
        yield store, rules
    finally:
        store.close()


def _look_up(settings: Settings, tenant: str, conversation: str) -> dict[str, Any]:
    """The value of `conversation.state` as it would be published now, with where it lies and the last scored messages."""
    from stream_sentiment.conversation.state import WINDOW_FIELDS, ConversationState
    from stream_sentiment.erasure import newest
    from stream_sentiment.events.envelope import rfc3339
    from stream_sentiment.events.outgoing import conversation_state_event
    from stream_sentiment.store.keys import conversation_key

    with _store(settings) as (store, rules):
        found = newest(store.find(settings.topics.chat_messages, conversation_key(tenant, conversation)))
        if found is None:
            raise UnknownConversation(
                f"no state of conversation {conversation!r} of {tenant!r} for group {settings.kafka.group_id!r}: "
                "it was never seen, has expired, or was erased"
            )
        state = ConversationState.from_json(found.state)
        options = rules.options_of(state)
    value = conversation_state_event(
        state,
        options,
        updated_at_ms=state.last_event_at_ms,
        expires_at_ms=state.last_event_at_ms + options.ttl_ms,
    )
    recent = [dict(zip(WINDOW_FIELDS, entry, strict=True)) for entry in state.window]
    for entry in recent:
        entry["created_at"] = rfc3339(entry.pop("at_ms"))
    place = {"topic": found.tp.topic, "partition": found.tp.partition, "watermark": found.watermark}
    return {**value, "recent_messages": recent, "stored_in": place}


def _card(card: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from stream_sentiment.demo.view import emotion_line, gauge, score_style

    rolling = card["rolling"]
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bright_black")
    facts.add_column()
    recent = card["recent_messages"]
    line = emotion_line([entry["score"] for entry in recent], 40)
    facts.add_row("emotion", Text.assemble(line, f"  {rolling['trend_class']}, level {rolling['level']} of 7"))
    score = rolling["score"]
    facts.add_row(
        "rolling score", Text.assemble(gauge(score, 10), "  ", (f"{score:+.2f}", score_style(score)), " of -1 to +1")
    )
    extremes = " ".join(
        f"{name} {rolling[key]['score']:+.2f}" for name, key in (("lowest", "min"), ("highest", "max")) if rolling[key]
    )
    facts.add_row(
        f"last {rolling['window_n']}",
        f"mean {rolling['window_mean']:+.2f}, {extremes}, volatility {rolling['volatility']:.2f}",
    )
    facts.add_row(
        "begin to end",
        f"{rolling['begin_score']:+.2f} to {rolling['end_score']:+.2f}; "
        f"progressive score {rolling['progressive_score']:+.2f} of -5 to +5",
    )
    facts.add_row("escalation", _escalation_text(card["escalation"]))
    facts.add_row("messages", ", ".join(f"{count} {role}" for role, count in card["counts"].items()) or "none")
    if card["signals_seen"]:
        facts.add_row("signals", ", ".join(f"{name} {count}" for name, count in card["signals_seen"].items()))
    if card["agent_response_gap_s"]:
        facts.add_row("waiting", f"{card['agent_response_gap_s']:.0f} s for an answer, at the last event")
    facts.add_row("from, to", f"{card['started_at']}, {card['last_message_at']}; expires {card['expires_at']}")
    place = card["stored_in"]
    facts.add_row("stored in", f"{place['topic']}[{place['partition']}], state version {card['state_version']}")
    facts.add_row("made by", f"model {card['model_version']}, rules {card['rules_version']}")

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bright_black")
    for name, least in (("last scored (UTC)", 19), ("score", 5), ("", 11), ("label", 8), ("emotion", 7), ("weight", 6)):
        table.add_column(name, no_wrap=True, min_width=least)
    table.add_column("message", no_wrap=True)
    for entry in recent:
        table.add_row(
            entry["created_at"][:19].replace("T", " "),
            Text(f"{entry['score']:+.2f}", style=score_style(entry["score"])),
            gauge(entry["score"], 5),
            str(entry["label"]),
            str(entry["emotion"]),
            f"{entry['weight']:.2f}",
            str(entry["message_id"]),
        )
    where = ", ".join(part for part in (card["channel"], card["language"], card["phase"], card["status"]) if part)
    return Panel(
        Group(facts, Text(), table),
        title=Text(f"{card['tenant_id']} / {card['conversation_id']}", style="bold"),
        subtitle=Text(where),
        title_align="left",
        subtitle_align="left",
        border_style="bright_black",
    )


def _escalation_text(escalation: dict[str, Any]) -> str:
    if escalation["status"] == "none" or escalation["opened_at"] is None:
        return escalation["status"] if escalation["status"] != "none" else "none"
    until = f", cooldown until {escalation['cooldown_until']}" if escalation["cooldown_until"] else ""
    return (
        f"{escalation['status']}, {escalation['severity']}, opened {escalation['opened_at']}, "
        f"told {escalation['notified_count']} times{until}; {escalation['escalation_id']}"
    )
