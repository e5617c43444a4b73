"""`stream-sentiment backtest`: what would a rule file have done on these conversations?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from stream_sentiment.cli.backtest_tables import print_report
from stream_sentiment.cli.progress import progress_bar
from stream_sentiment.errors import ConfigurationError, ExitStatus

if TYPE_CHECKING:
    from stream_sentiment.backtest.conversations import Conversation
    from stream_sentiment.backtest.decide import Judge


def backtest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="JSONL: one conversation a line, or one chat event a line. Or kafka://TOPIC."
        ),
    ],
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rule file; none: the rules of the package.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(metavar="FILE", help="Show what this rule file would change.")] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="PATH=a..b[/n]", help="Figures for n values (11) of one number of the rule file."),
    ] = None,
    choose: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=a..b[/n]", help="Choose these numbers on labels, in folds; repeat for several."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=50, help="Of --choose.")] = 5,
    shuffles: Annotated[int, typer.Option(min=1, max=500, help="Of --choose: how often the folds are dealt.")] = 20,
    max_false_alarms: Annotated[
        float, typer.Option(min=0, max=1, help="Of --choose: the false-alarm rate that must not be exceeded.")
    ] = 0.10,
    noise: Annotated[float, typer.Option(min=0, max=1, help="Flip this share of the scores.")] = 0.0,
    labels: Annotated[
        bool, typer.Option("--labels", help="Use the file's own labels instead of the model: the ceiling.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Model bundle; unset: the configured one.")
    ] = None,
    silence: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Nobody writes for so long after each conversation's last message (a line's own `silence_s` wins).",
        ),
    ] = None,
    cache: Annotated[Path | None, typer.Option(metavar="FILE", help="Where scores are kept between runs.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=X", help="Exit 1 when a figure of the total is below X, as recall=.6."),
    ] = None,
    fail_over: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=X", help="Exit 1 when a figure is above X, as false_alarm_rate=.12."),
    ] = None,
    begin: Annotated[
        str,
        typer.Option("--from", metavar="TIME|OFFSET", help="Of kafka://: a time with its zone, an offset, earliest."),
    ] = "earliest",
    until: Annotated[str, typer.Option(metavar="TIME|OFFSET", help="Of kafka://: the same, or end.")] = "end",
    partitions: Annotated[
        int,
        typer.Option(min=1, help="Of the input topic, which share the storm guard's limits; a topic's own count wins."),
    ] = 1,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write decisions, tables and pictures here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Run a rule file over conversations of the past, with the worker's own code.

    Precision, recall and lead need labels (`escalate`, `earliest_message`, `by_message`); volumes and overlap do not.

    Example: `stream-sentiment backtest last-month.jsonl --rules rules.yaml --compare new-rules.yaml`
    or `stream-sentiment backtest labelled.jsonl --sweep rules.sustained-negative.when.rolling_score.open=-0.45..-0.15`
    or `stream-sentiment backtest kafka:// --from 2026-10-01T00:00:00+08:00 --until 2026-11-01T00:00:00+08:00`
    """
    from stream_sentiment.backtest import run as core
    from stream_sentiment.escalation.ruleformat import parse_duration
    from stream_sentiment.escalation.rules import DEFAULT_RULES, load_rules

    limits = [_limit(text) for text in fail_under or ()]
    bounds = [_limit(text, ("false_alarm_rate", "early", "alerts_per_1000")) for text in fail_over or ()]
    swept = core.parse_sweep(sweep) if sweep is not None else None
    varied = [core.parse_sweep(text, "--choose") for text in choose or ()]
    ruleset = load_rules(rules)
    other = load_rules(compare) if compare is not None else None
    conversations, partitions = _read(source, begin, until, partitions, ruleset.options.score_roles)
    if silence is not None:
        try:
            silence_ms = int(parse_duration(silence))
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--silence") from error
        conversations = [c if c.silence_ms else replace(c, silence_ms=silence_ms) for c in conversations]
    judges = _judges(conversations, [ruleset, other], labels, model, cache, noise)
    with progress_bar("deciding", len(conversations)) as advance:
        results = core.run(conversations, ruleset, judges[0], partitions, lambda: advance(1))
    report = core.figures(results, ruleset)
    if other is not None:
        after = core.run(conversations, other, judges[1], partitions)
        report["compare"] = {**core.figures(after, other), "changed": core.compare(results, after)}
    if swept is not None:
        text = (rules or DEFAULT_RULES).read_text(encoding="utf-8")
        with progress_bar("sweeping", len(swept[1])) as advance:
            rows = core.sweep(conversations, text, *swept, judges[0], lambda: advance(1))
        report["sweep"] = {"path": swept[0], "rows": rows}
    if varied:
        report["choose"] = _chosen(conversations, rules, varied, judges[0], max_false_alarms, folds, shuffles)
    if output is not None:
        _write(output, report, results)
    if as_json:
        typer.echo(orjson.dumps(report).decode())
    else:
        print_report(report, source)
    missed = [
        f"{name} is {report['total'].get(name)}, not {bound:g}"
        for name, bound in limits
        if not _reaches(report, name, bound)
    ]
    missed += [
        f"{name} is {_figure(report, name)}, over {bound:g}" for name, bound in bounds if _over(report, name, bound)
    ]
    for line in missed:
        typer.echo(f"beyond the limit: {line}", err=True)
    if missed:
        raise typer.Exit(int(ExitStatus.NO))


def _chosen(
    conversations: list[Conversation],
    rules: Path | None,
    varied: list[tuple[str, list[float]]],
    judge: Judge,
    max_false_alarms: float,
    folds: int,
    shuffles: int,
) -> dict[str, Any]:
    from stream_sentiment.backtest.choose import choose, combinations_of
    from stream_sentiment.escalation.rules import DEFAULT_RULES

    text = (rules or DEFAULT_RULES).read_text(encoding="utf-8")
    with progress_bar("choosing", len(combinations_of(varied))) as advance:
        choice = choose(
            conversations,
            text,
            varied,
            judge,
            max_false_alarms=max_false_alarms,
            folds=folds,
            shuffles=shuffles,
            progress=lambda: advance(1),
        )
    return choice.as_dict()


def _read(
    source: str, begin: str, until: str, partitions: int, score_roles: frozenset[str]
) -> tuple[list[Conversation], int]:
    """Conversations of a file or a topic, and how many partitions share the storm guard's limits."""
    from stream_sentiment.backtest.conversations import read_conversations
    from stream_sentiment.backtest.topics import SCHEME, read_log

    if source.startswith(SCHEME):
        from stream_sentiment.events.routing import RoutingOptions
        from stream_sentiment.kafka.log_slice import parse_point
        from stream_sentiment.settings import load_settings

        settings = load_settings()
        intake = settings.intake
        routing = RoutingOptions(
            frozenset(intake.languages), intake.default_language, intake.max_text_chars, score_roles
        )
        points = parse_point(begin, "--from"), parse_point(until, "--until")
        conversations, partitions = read_log(settings, source, *points, routing, progress_bar)
    else:
        if begin != "earliest" or until != "end":
            raise ConfigurationError("--from and --until are for kafka://TOPIC; a file is read as a whole")
        conversations = list(read_conversations(Path(source)))
    if not conversations:
        raise ConfigurationError(f"{source} holds no conversation")
    return conversations, partitions


def _judges(
    conversations: list[Any], rulesets: list[Any], labels: bool, model: Path | None, cache: Path | None, noise: float
) -> list[Any]:
    """One judge per rule set, since each has its own lexicon; all share the scores."""
    from stream_sentiment.backtest.decide import by_labels, by_model, with_noise
    from stream_sentiment.backtest.scores import ScoreCache, cache_path

    if labels:
        if not any(message.gold for conversation in conversations for message in conversation.messages):
            raise ConfigurationError("--labels: no message of the file has a polarity")
        judges = [by_labels() for _ in rulesets]
    else:
        from stream_sentiment.scoring.corrections import Corrector
        from stream_sentiment.settings import load_settings
        from stream_sentiment.worker import load_scorer

        settings = load_settings(**({} if model is None else {"model": {"path": model, "stub": False}}))
        scorer = load_scorer(settings)
        texts = [m.text for c in conversations for m in c.messages if m.text is not None]
        kept = ScoreCache(cache or cache_path())
        with progress_bar("scoring", len(set(texts))) as advance:
            scores = kept.scores(scorer, texts, advance)
        kept.close()
        corrector = Corrector.of(settings.corrections, scorer.info)
        judges = [
            by_model(scores, ruleset.finder(scorer.info), corrector) for ruleset in rulesets if ruleset is not None
        ]
    return [with_noise(judge, noise) for judge in judges] if noise else judges


def _limit(text: str, known: tuple[str, ...] = ("precision", "recall", "f1")) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        if name not in known:
            raise ValueError(name)
        return name, float(value)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: write NAME=X with one of {', '.join(known)}, as {known[0]}=.6") from None


def _reaches(report: dict[str, Any], name: str, bound: float) -> bool:
    value = report["total"].get(name)
    return value is not None and value >= bound


def _over(report: dict[str, Any], name: str, bound: float) -> bool:
    value = _figure(report, name)
    return value is None or value > bound


def _figure(report: dict[str, Any], name: str) -> Any:
    return report["total"][name] if name in report["total"] else report.get(name)


def _write(folder: Path, report: dict[str, Any], results: Any) -> None:
    from stream_sentiment.backtest.picture import precision_recall_svg
    from stream_sentiment.backtest.run import write_decisions

    folder.mkdir(parents=True, exist_ok=True)
    write_decisions(results, folder / "decisions.jsonl")
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    if "sweep" in report:
        svg = precision_recall_svg(report["sweep"]["rows"], report["sweep"]["path"])
        (folder / "sweep.svg").write_text(svg, encoding="utf-8")
