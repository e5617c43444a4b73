"""`stream-sentiment rules`: check a rule file, print its JSON Schema, say in plain words what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer

from stream_sentiment.errors import ConfigurationError, ExitStatus

app = typer.Typer(no_args_is_help=True)


@app.command("lint")
def lint_command(
    file: Annotated[Path, typer.Argument(help="Rule file to check.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Find every mistake of a rule file at once, with line, column and remedy. Exit status 1 when there is one.

    Example: `stream-sentiment rules lint rules.yaml`
    """
    from stream_sentiment.escalation.lint import lint

    findings = lint(_read(file))
    if as_json:
        mistakes = [finding._asdict() for finding in findings]
        typer.echo(orjson.dumps({"file": str(file), "ok": not findings, "mistakes": mistakes}).decode())
    else:
        for finding in findings:
            where = f" {finding.path}:" if finding.path else ""
            typer.echo(f"{file}:{finding.line}:{finding.column}:{where} {finding.message}")
        typer.echo(f"{len(findings)} mistake(s)" if findings else f"{file} is good", err=bool(findings))
    if findings:
        raise typer.Exit(int(ExitStatus.NO))


@app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of rule files; editors check and complete with it.

    Example: `stream-sentiment rules schema > rules.schema.json`, then
    `# yaml-language-server: $schema=rules.schema.json` as the first line of a rule file.
    """
    from stream_sentiment.escalation.ruleformat import RuleFile

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **RuleFile.model_json_schema(by_alias=True)}
    typer.echo(orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode())


@app.command("explain")
def explain_command(
    file: Annotated[Path | None, typer.Argument(help="Rule file; none: the rules of the package.")] = None,
    language: Annotated[Literal["en", "zh"] | None, typer.Option(help="Unset: the file's own language.")] = None,
) -> None:
    """Say each rule as one sentence, in English or Chinese.

    Example: `stream-sentiment rules explain rules.yaml --language zh`
    """
    from stream_sentiment.escalation.explain import explain
    from stream_sentiment.escalation.rules import load_rules

    rules = load_rules(file)
    for rule in rules.file.rules:
        typer.echo(explain(rule, rules.file.defaults, language or rules.file.defaults.language))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"rule file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"rule file {file} is no UTF-8 text: {error}") from error


@app.command("default")
def default_command() -> None:
    """Print the rules that come along: the beginning of a file of your own.

    Example: `stream-sentiment rules default > rules.yaml`
    """
    from stream_sentiment.escalation.rules import DEFAULT_RULES

    typer.echo(DEFAULT_RULES.read_text(encoding="utf-8"), nl=False)


@app.command("signals")
def signals_command(
    source: Annotated[
        Path, typer.Argument(metavar="DATA", help="JSONL: `text`, and `signals`, `satisfaction` or `polarity`.")
    ],
    rules: Annotated[Path | None, typer.Option(metavar="FILE", help="Rule file, for its lexicon.")] = None,
    model: Annotated[Path | None, typer.Option(metavar="BUNDLE", help="Unset: the configured one.")] = None,
    cache: Annotated[Path | None, typer.Option(metavar="FILE", help="Where scores are kept between runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure the signals on messages of the past: precision and recall where they are labelled, and whose authors were unhappy.

    Example: `stream-sentiment rules signals labelled.jsonl --rules rules.yaml`
    """
    from stream_sentiment.backtest.hearing import measure_signals, read_rows
    from stream_sentiment.backtest.scores import ScoreCache, cache_path
    from stream_sentiment.cli.progress import progress_bar
    from stream_sentiment.escalation.rules import load_rules
    from stream_sentiment.settings import load_settings
    from stream_sentiment.worker import load_scorer

    ruleset = load_rules(rules)
    rows = list(read_rows(source))
    settings = load_settings(**({} if model is None else {"model": {"path": model, "stub": False}}))
    scorer = load_scorer(settings)
    kept = ScoreCache(cache or cache_path())
    with progress_bar("scoring", len({row.text for row in rows})) as advance:
        scores = kept.scores(scorer, (row.text for row in rows), advance)
    kept.close()
    figures = measure_signals(rows, ruleset.finder(scorer.info), scores)
    if as_json:
        typer.echo(orjson.dumps(figures).decode())
        return
    typer.echo(f"{figures['messages']} messages, {figures['labelled']} labelled, {figures['rated']} rated")
    if figures["dissatisfied"] is not None:
        typer.echo(f"{figures['dissatisfied']:.2f} of all rated messages are dissatisfied")
    typer.echo(f"{'signal':<18} {'source':<8} {'heard':>6} {'prec':>6} {'rec':>6} {'unhappy':>8}")
    for name, by_source in [*figures["signals"].items(), ("all", figures["all"])]:
        for place, figure in by_source.items():
            cells = [
                "" if figure[key] is None else f"{figure[key]:.2f}" for key in ("precision", "recall", "dissatisfied")
            ]
            typer.echo(f"{name:<18} {place:<8} {figure['heard']:>6} {cells[0]:>6} {cells[1]:>6} {cells[2]:>8}")
            name = ""
