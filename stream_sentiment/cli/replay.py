"""`stream-sentiment replay`: the same events once more, beside the live worker, and every difference."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from stream_sentiment.cli.progress import progress_bar
from stream_sentiment.errors import ConfigurationError, ExitStatus
from stream_sentiment.settings import load_settings

if TYPE_CHECKING:
    from stream_sentiment.replay.run import Report

#: Differences that are shown; --json and --output hold all of them.
SHOWN = 20


def replay(
    begin: Annotated[
        str, typer.Option("--from", metavar="TIME|OFFSET", help="A time with its zone, an offset, or `earliest`.")
    ],
    until: Annotated[
        str | None,
        typer.Option(metavar="TIME|OFFSET", help="Where to end; unset: as far as the live worker has come."),
    ] = None,
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="Rule file; unset: the configured one.")] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Model bundle; unset: the configured one.")
    ] = None,
    warm_up: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Read so much more before --from for its states; unset: state.ttl."),
    ] = None,
    compare: Annotated[bool, typer.Option(help="Set the result beside the live output topics.")] = True,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the outputs and the differences here.")
    ] = None,
    topics: Annotated[
        str, typer.Option(metavar="PREFIX", help="Publish to topics of this prefix, too; they are created.")
    ] = "",
    replication: Annotated[int, typer.Option(min=1, help="Of those topics.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the states in Redis, to look at them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Replay events of the input topics in a shadow namespace: own group, own Redis prefix, own topics or none.

    Two replays of one slice give the same bytes. Exit status: 0 equal to the live output (or not compared), 1 it differs.

    Example: `stream-sentiment replay --from 2026-11-22T06:00:00Z --output replayed --json`
    or, to see what another rule file would have said: `stream-sentiment replay --from earliest --rules new.yaml`
    """
    from stream_sentiment.escalation.ruleformat import parse_duration
    from stream_sentiment.escalation.rules import load_rules
    from stream_sentiment.kafka.log_slice import parse_point
    from stream_sentiment.replay.run import Plan
    from stream_sentiment.replay.run import replay as run
    from stream_sentiment.worker import load_scorer

    settings = load_settings(**({} if model is None else {"model": {"path": model}}))
    try:
        warm_up_ms = None if warm_up is None else int(parse_duration(0 if warm_up == "0" else warm_up))
    except ValueError as error:
        raise ConfigurationError(f"--warm-up: {error}") from None
    plan = Plan(
        begin=parse_point(begin, "--from"),
        end=None if until is None else parse_point(until, "--until"),
        warm_up_ms=warm_up_ms,
        compare=compare,
        keep=keep,
        topics=topics,
        replication=replication,
    )
    ruleset = load_rules(settings.rules.path if rules is None else rules)
    report = run(settings, ruleset, load_scorer(settings), plan, output, progress_bar)
    if output is not None:
        _write(output, report)
    if as_json:
        typer.echo(orjson.dumps(report.as_dict()).decode())
    else:
        _print(report, keep)
    if report.comparison is not None and report.comparison.differences:
        raise typer.Exit(int(ExitStatus.NO))


def _write(folder: Path, report: Report) -> None:
    (folder / "report.json").write_bytes(orjson.dumps(report.as_dict(), option=orjson.OPT_INDENT_2) + b"\n")
    if report.comparison is not None:
        with (folder / "differences.jsonl").open("wb") as out:
            for difference in report.comparison.differences:
                out.write(orjson.dumps(difference.as_dict()) + b"\n")


def _print(report: Report, kept: bool) -> None:
    shown = report.as_dict()
    begun = f", after {shown['warm_up_records']} of warm-up" if shown["warm_up_records"] else ""
    typer.echo(f"{shown['records']} records replayed{begun}")
    for kind, digest in report.digests.items():
        typer.echo(f"  {report.counts[kind]:>8} {kind.replace('_', ' '):<13} sha256 {digest[:16]}")
    if kept:
        typer.echo(f"states kept: redis.prefix {report.prefix}, kafka.group_id {report.group}")
    result = report.comparison
    if result is None:
        return
    for difference in result.differences[:SHOWN]:
        what = {"only_live": "only live", "only_replay": "only in the replay", "differs": "differs"}[difference.what]
        where = "/".join(part for part in (difference.tenant_id, difference.entity_id) if part)
        names = f": {', '.join(difference.fields)}" if difference.fields else ""
        typer.echo(f"{difference.kind} {where} {difference.id}: {what}{names}")
    if len(result.differences) > SHOWN:
        typer.echo(f"... and {len(result.differences) - SHOWN} more; --json or --output for all")
    counts = Counter(difference.what for difference in result.differences)
    told = f"{counts['differs']} differ, {counts['only_live']} only live, {counts['only_replay']} only in the replay"
    typer.echo(
        f"beside the live output: {result.equal.total()} equal, {told}; {result.outside.total()} live outputs of other records"
    )
