"""What `stream-sentiment backtest` shows: figures per rule, what would change, a sweep, a choice. Tables on stdout."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

HEADINGS = ("n", "conv", "prec", "rec", "early", "false", "lead", "open2")
COLUMNS = (
    "alerts",
    "conversations",
    "precision",
    "recall",
    "early",
    "false_alarm_rate",
    "median_lead_turns",
    "reopen_rate",
)


def print_report(report: dict[str, Any], source: str) -> None:
    """Everything that the report holds, for a person; `source` is the INPUT."""
    console = Console()
    counts = f"{report['conversations']} conversations, {report['messages']} messages, {report['labelled']} labelled"
    console.print(_table(f"{source.rpartition('/')[2] or source}: {counts}", report))
    if report["overlap"]:
        pairs = ", ".join(f"{' + '.join(pair['rules'])} {pair['conversations']}" for pair in report["overlap"][:5])
        console.print(f"rules that speak in the same conversations: {pairs}")
    storm = report["storm"]
    if storm["suppressed"]:
        console.print(f"storm guard: {storm['suppressed']} alert(s) held back in {storm['storms']} storm(s)")
    if "compare" in report:
        console.print(_table("with the other file", report["compare"]))
        changed = report["compare"]["changed"]
        console.print(f"{len(changed)} conversation(s) would change")
        for row in changed[:20]:
            wanted = {True: "should escalate", False: "should not", None: ""}[row["escalate"]]
            console.print(f"  {row['id']} {wanted}: {_said(row['before'])} -> {_said(row['after'])}")
    if "choose" in report:
        _print_choice(console, report["choose"])
    if "sweep" in report:
        table = Table(title=report["sweep"]["path"], box=SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
        for heading in ("value", *HEADINGS):
            table.add_column(heading, justify="right", no_wrap=True, min_width=4)
        for row in report["sweep"]["rows"]:
            cells = [_number(row.get(name)) for name in COLUMNS]
            table.add_row(f"{row['value']:g}", *(cells if "error" not in row else [row["error"]]))
        console.print(table)


def _print_choice(console: Console, choice: dict[str, Any]) -> None:
    table = Table(title="chosen on labels", box=SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
    for heading in ("", "recall", "95 %", "false alarms", "95 %", "precision"):
        table.add_column(heading, no_wrap=True)
    for name, title in (("as_given", "as given"), ("in_sample", "chosen on all"), ("out_of_fold", "out of fold")):
        row = choice[name]
        table.add_row(
            title,
            _number(row["recall"]),
            _span(row["recall_interval"]),
            _number(row["false_alarm_rate"]),
            _span(row["false_alarm_interval"]),
            _number(row["precision"]),
        )
    console.print(table)
    console.print(
        f"{choice['combinations']} combinations, {choice['conversations']} labelled conversations, {choice['folds']} folds, "
        f"{choice['shuffles']} shuffles; chosen on all: "
        + ", ".join(f"{path}={value:g}" for path, value in choice["chosen"].items())
    )
    total = choice["folds"] * choice["shuffles"]
    for vote in choice["votes"][:5]:
        console.print(
            f"  {vote['times'] / total:4.0%} of the folds chose {', '.join(f'{v:g}' for v in vote['values'])}"
        )


def _span(interval: list[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _said(alerts: list[list[Any]]) -> str:
    return (
        ", ".join(f"{action} {rule} ({severity}) at {index}" for action, rule, severity, index in alerts) or "nothing"
    )


def _table(title: str, report: dict[str, Any]) -> Table:
    table = Table(title=title, box=SIMPLE, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("rule", no_wrap=True, max_width=26)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True, min_width=4)
    for name, figures in [*report["rules"].items(), ("total", report["total"])]:
        table.add_row(name, *(_number(figures[column]) for column in COLUMNS))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.2f}"
