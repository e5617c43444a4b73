"""Traces with OpenTelemetry, by hand: one span a window, linked to the traces of its events, with a child span a stage.

In: stage times of a finished window and the `traceparent` headers of its events. Out: spans to whatever exporter is set up. A window
joins many traces, so it has none of them as its parent: links instead (at most 128, sampled ones first). Escalations and scored events
carry the traceparent of *their* event, never the window's: downstream sees one trace from the customer's message on. Exporting
runs on a thread of the SDK; nothing here blocks. Off unless the extra `otel` is installed and OTEL_EXPORTER_OTLP_ENDPOINT is set.

Attributes follow the messaging conventions of OpenTelemetry. No ids of conversations or messages, no text.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from stream_sentiment import __version__
from stream_sentiment.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.trace import Link, TracerProvider

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
MAX_LINKS = 128

#: version-traceid-parentid-flags of https://www.w3.org/TR/trace-context/; all-zero ids are invalid.
_TRACEPARENT = re.compile(rb"^[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?$")


class StageTime(NamedTuple):
    """One stage of a window, in seconds of the monotonic clock."""

    name: str
    began: float
    ended: float


class WindowTracer:
    """Turns finished windows into spans. Belongs to the apply thread."""

    def __init__(self, provider: TracerProvider, group_id: str) -> None:
        self._tracer = provider.get_tracer("stream_sentiment", __version__)
        self._group_id = group_id
        self._wall_offset_ns = time.time_ns() - round(time.monotonic() * 1e9)

    def window(self, topics: Iterable[str], traceparents: Sequence[bytes], stages: Sequence[StageTime]) -> None:
        """One span for the window. topics: of its records, one each; stages: in order, at least one."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        counts = Counter(topics)
        name = next(iter(counts)) if len(counts) == 1 else "several topics"
        span = self._tracer.start_span(
            f"process {name}",
            kind=SpanKind.CONSUMER,
            links=links_of(traceparents),
            start_time=self._ns(stages[0].began),
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": name,
                "messaging.consumer.group.name": self._group_id,
                "messaging.batch.message_count": counts.total(),
            },
        )
        context = set_span_in_context(span)
        for stage in stages:
            child = self._tracer.start_span(stage.name, context=context, start_time=self._ns(stage.began))
            child.end(self._ns(stage.ended))
        span.end(self._ns(stages[-1].ended))

    def _ns(self, monotonic: float) -> int:
        return round(monotonic * 1e9) + self._wall_offset_ns


def links_of(traceparents: Iterable[bytes]) -> list[Link]:
    """Links to the events' spans: valid ones, each once, sampled ones first, at most `MAX_LINKS`."""
    from opentelemetry.trace import Link, SpanContext, TraceFlags

    found: dict[bytes, Link] = {}
    for traceparent in traceparents:
        match = _TRACEPARENT.match(traceparent)
        if match is None or traceparent in found:
            continue
        trace_id, span_id, flags = (int(part, 16) for part in match.groups())
        context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
        found[traceparent] = Link(context)
    return sorted(found.values(), key=lambda link: not link.context.trace_flags.sampled)[:MAX_LINKS]


def tracer_from_environment(group_id: str) -> WindowTracer | None:
    """A tracer that exports by OTLP over HTTP, None without an endpoint.

    Raises:
        ConfigurationError: an endpoint is set and the extra is not installed.
    """
    if not os.environ.get(ENDPOINT_VARIABLE):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(
            f"{ENDPOINT_VARIABLE} is set, but OpenTelemetry is not installed: pip install 'stream-sentiment[otel]', "
            "or unset the variable"
        ) from error
    provider = TracerProvider(
        resource=Resource.create({"service.name": "stream-sentiment", "service.version": __version__})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return WindowTracer(provider, group_id)
