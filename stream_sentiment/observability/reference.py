"""The documentation page of the metrics, written from the one table: `python -m
stream_sentiment.observability.reference`.

In: the table of metrics.py. Out: docs/metrics.md as text. Pure except `write_docs`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stream_sentiment.observability.definitions import Domain, Kind, Label
from stream_sentiment.observability.metrics import TABLE

HEADER = """# Metrics

Written by `python -m stream_sentiment.observability.reference docs/metrics.md` from the table in
`stream_sentiment/observability/metrics.py`; a test keeps it current. One worker process has one port with
`/metrics`; `job` and `instance` come from Prometheus. The standard `process_*` metrics are there as well.

Every series with enumerated label values exists at 0 from the start. Conversation, message and user ids are
never labels.
"""


def _values(label: Label) -> str:
    if isinstance(label.values, Domain):
        return f"`{label.name}`: {label.values}"
    return f"`{label.name}`: " + ", ".join(label.values)


def _bounds(buckets: tuple[float, ...]) -> str:
    if len(buckets) < 18:
        return " ".join(f"{bound:g}" for bound in buckets)
    return f"{buckets[0]:g} {buckets[1]:g} ... {buckets[-1]:g}"


def render_docs() -> str:
    """The whole page as Markdown."""
    lines = [HEADER, "| name | type | labels | meaning |", "|---|---|---|---|"]
    for definition in TABLE.values():
        labels = "; ".join(_values(label) for label in definition.labels)
        meaning = definition.help
        if definition.kind is Kind.HISTOGRAM:
            meaning += f" Buckets: {_bounds(definition.buckets)}."
        cells = (f"`{definition.full_name}`", definition.kind.value, labels, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write_docs(path: Path) -> None:
    """Write the page to `path`."""
    path.write_text(render_docs(), encoding="utf-8")


if __name__ == "__main__":
    write_docs(Path(sys.argv[1]))
