"""`stream-sentiment bench`: the cost of a message, with and without the model."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer


def bench(
    events: Annotated[int, typer.Option(min=1000, max=100_000, help="Messages in each run.")] = 20_000,
    conversations: Annotated[int, typer.Option(min=1, help="Conversations that they belong to.")] = 500,
    partitions: Annotated[int, typer.Option(min=1, max=100, help="Input partitions.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Runs of each variant, in turns.")] = 3,
    stub_only: Annotated[bool, typer.Option("--stub-only", help="Leave the model out.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order of the texts.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Measure in one run: the model alone, the worker with a stub in its place, and the worker with the model.

    Broker and Redis run in processes of their own and are not counted; the Kafka client's threads are. Compare figures of one
    report only: the load of the machine moves them more than most changes do.

    Example: `stream-sentiment bench --events 20000 --rounds 3`
    """
    from stream_sentiment.benchmark.measure import measure
    from stream_sentiment.observability.logs import configure_logging

    configure_logging("error", "json")
    report = measure(
        events=events,
        conversations=conversations,
        partitions=partitions,
        rounds=rounds,
        with_model=not stub_only,
        seed=seed,
        overrides={},
        progress=lambda text: typer.echo(text, err=True),
    ).as_json()
    if as_json:
        typer.echo(orjson.dumps(report).decode())
        return
    model = report["model"]
    name = f"{model['name']} {model['version']} ({model['precision']})" if model else "none"
    typer.echo(
        f"{events} messages, {conversations} conversations, {partitions} partitions, {report['threads']} inference threads, "
        f"mean {report['mean_tokens']} tokens; model {name}; Redis: {report['redis']}"
    )
    typer.echo(
        f"{'variant':<8} {'CPU us/msg':>11} {'wall us/msg':>12} {'msg/CPU-s':>11} {'msg/s':>10}   by thread (CPU us/msg)"
    )
    for variant, figures in report["variants"].items():
        threads = "  ".join(f"{thread} {used}" for thread, used in figures["cpu_us_by_thread"].items())
        typer.echo(
            f"{variant:<8} {figures['cpu_us_per_message']:>11} {figures['wall_us_per_message']:>12} "
            f"{figures['messages_per_cpu_second']:>11} {figures['messages_per_second']:>10}   {threads}"
        )
    if "worker_to_raw_ratio" in report:
        typer.echo(f"worker / raw, messages per CPU-second: {report['worker_to_raw_ratio']:.1%}")
