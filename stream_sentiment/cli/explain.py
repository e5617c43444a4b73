"""`stream-sentiment explain`: which words made the score of a message, and how far such explanations can be trusted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from stream_sentiment.errors import ConfigurationError, ExitStatus

if TYPE_CHECKING:
    from stream_sentiment.kafka.message_search import FoundMessage
    from stream_sentiment.scoring.scorer import OnnxScorer
    from stream_sentiment.settings import Settings

WIDTH_OF_PICTURE = 110


def explain(
    text: Annotated[str | None, typer.Argument(help="The message; none: --message-id or --faithfulness.")] = None,
    message_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Explain this message or review of the input topics.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(metavar="ID", help="Its tenant; whose phrases count.")] = None,
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Its conversation, or its product if it is a review.")
    ] = None,
    since: Annotated[str, typer.Option(help="How far back the topics are searched: 90m, 24h, 7d, or all.")] = "24h",
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="Seconds for the search.")] = 60.0,
    head: Annotated[
        str | None, typer.Option(help="score, polarity, emotion, intensity or signals; none: the usual ones.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label of that head.")] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Measure on --data whether the named words matter to the model.")
    ] = False,
    data: Annotated[
        list[Path] | None, typer.Option("--data", "-d", metavar="FILE", help="JSONL rows with a text.")
    ] = None,
    sample: Annotated[int, typer.Option(min=10, help="Rows of each file, evenly spread.")] = 300,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Put the measured table into this page.")] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Model bundle; unset: the configured one.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the coloured output as a picture too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with spans instead of colours.")] = False,
) -> None:
    """Show which words made the score of a message, by hiding each of them from the deployed model.

    Examples: `stream-sentiment explain "The parcel never came."`,
    `stream-sentiment explain "你们的快递太慢了" --head emotion --label anger --json`,
    `stream-sentiment explain --message-id m-81723 --tenant shop --since 7d`,
    `stream-sentiment explain --faithfulness --data dev.jsonl`
    """
    from stream_sentiment.scoring.explain import as_json as to_json
    from stream_sentiment.scoring.explain import explain as explained
    from stream_sentiment.scoring.explain import output_name, usual_outputs
    from stream_sentiment.scoring.scorer import OnnxScorer
    from stream_sentiment.settings import load_settings

    if [text is not None, message_id is not None, faithfulness].count(True) != 1:
        raise typer.BadParameter("give a text, or --message-id, or --faithfulness with --data")
    settings = load_settings()
    found = None
    if message_id is not None:
        found = _find(settings, message_id, tenant, conversation, since, timeout)
        text = _text_of(found, settings)
    scorer = OnnxScorer.load(model or settings.model.path, device="cpu")
    if faithfulness:
        _measure(scorer, data or [], sample, page, as_json)
        return
    from stream_sentiment.scoring.corrections import Corrector

    wanted = output_name(scorer, head, label)
    result = explained(
        scorer,
        text or "",
        corrector=Corrector.of(settings.corrections, scorer.info),
        tenant_id=found.tenant_id if found is not None else tenant or "",
        rating=found.rating if found is not None else None,
    )
    outputs = usual_outputs(result) if wanted is None else [wanted]
    if as_json:
        about = {"model": {"name": scorer.info.name, "version": scorer.info.version, "sha256": scorer.info.sha256}}
        place = _place(found)
        typer.echo(orjson.dumps({**place, **to_json(result, outputs), **about}).decode())
        return
    from rich.console import Console

    from stream_sentiment.cli.explain_view import render

    console = Console()
    if found is not None:
        where = _place(found)
        console.print(
            f"{where['topic']}[{where['partition']}]@{where['offset']}  {where['tenant_id']} / {where['entity_id']}",
            style="dim",
            markup=False,
            highlight=False,
        )
    console.print(render(result, outputs))
    if svg is not None:
        picture = Console(record=True, width=WIDTH_OF_PICTURE, file=StringIO(), force_terminal=True)
        picture.print(render(result, outputs))
        picture.save_svg(str(svg), title=f"stream-sentiment explain ({scorer.info.name} {scorer.info.version})")


def _find(
    settings: Settings, message_id: str, tenant: str | None, conversation: str | None, since: str, timeout: float
) -> FoundMessage:
    from stream_sentiment.kafka.message_search import find_message
    from stream_sentiment.settings import parse_duration

    since_ms = 0
    if since != "all":
        try:
            back = parse_duration(since)
        except ValueError as error:
            raise typer.BadParameter(f"--since: {error}") from error
        assert isinstance(back, timedelta)
        since_ms = max(1, round((time.time() - back.total_seconds()) * 1000))
    return find_message(
        settings, message_id, tenant_id=tenant, conversation_id=conversation, since_ms=since_ms, timeout=timeout
    )


def _text_of(found: FoundMessage, settings: Settings) -> str:
    """What the worker's model read of it. Raises MessageNotFound where it read nothing."""
    from stream_sentiment.events.routing import RoutingOptions, route
    from stream_sentiment.kafka.message_search import MessageNotFound

    intake = settings.intake
    options = RoutingOptions(frozenset(intake.languages), intake.default_language, intake.max_text_chars)
    routed = route(found.decoded, options)
    if routed.text is None:
        why = routed.skipped.value if routed.skipped is not None else "not written by a customer"
        raise MessageNotFound(f"the message was not scored ({why}), so there is nothing to explain")
    return routed.text


def _place(found: FoundMessage | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "tenant_id": found.tenant_id,
        "entity_id": found.entity_id,
        "kind": found.decoded.kind,
        "topic": found.topic,
        "partition": found.partition,
        "offset": found.offset,
    }


def _measure(scorer: OnnxScorer, files: Sequence[Path], sample: int, page: Path | None, as_json: bool) -> None:
    from stream_sentiment.scoring.faithfulness import faithfulness
    from stream_sentiment.training.data import fill_placeholders, read_rows
    from stream_sentiment.training.pages import write_block

    if not files:
        raise typer.BadParameter("--faithfulness needs --data FILE")
    import numpy as np

    results = {}
    for file in files:
        rng = np.random.default_rng(0)
        texts = [fill_placeholders(row.text, rng) for row in read_rows(file)]
        if not texts:
            raise ConfigurationError(f"{file} holds no rows")
        step = max(1, len(texts) // sample)
        results[file.name] = faithfulness(scorer, texts[::step][:sample])
    lines = table(results)
    if page is not None:
        write_block(page, "faithfulness", lines)
    typer.echo(orjson.dumps(results).decode() if as_json else "\n".join(lines))
    if any(figures["low"] <= 0 for result in results.values() for figures in result["heads"].values()):
        typer.echo("the words named do not matter more than words drawn at random", err=True)
        raise typer.Exit(int(ExitStatus.NO))


def table(results: dict[str, Any]) -> list[str]:
    """The measurement as lines of a page."""
    lines = [
        "| set | head | messages | fall without the named word | without a random one | difference (95 %) | named word costs more |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for head, f in result["heads"].items():
            lines.append(
                f"| {name} | {head} | {f['messages']} | {f['top']:.3f} | {f['random']:.3f} | {f['difference']:.3f} "
                f"({f['low']:.3f} to {f['high']:.3f}) | {100 * f['wins']:.0f} % |"
            )
    return lines
