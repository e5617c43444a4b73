"""Spans as an exporter receives them."""

from __future__ import annotations

import gzip
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.observability import tracing
from stream_sentiment.observability.tracing import StageTime, WindowTracer, links_of, tracer_from_environment

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel is not installed")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")


def traceparent(number: int, sampled: bool = True) -> bytes:
    return f"00-{number:032x}-{number:016x}-{'01' if sampled else '00'}".encode()


@pytest.fixture
def exported():
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter = memory.InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return WindowTracer(provider, "group"), exporter


def test_a_window_is_one_span_with_a_child_for_each_stage(exported):
    tracer, exporter = exported
    tracer.window(["chat.messages"] * 3, [], [StageTime("score", 10.0, 10.5), StageTime("state", 10.5, 10.75)])
    score, state, window = exporter.get_finished_spans()
    assert [span.name for span in (score, state, window)] == ["score", "state", "process chat.messages"]
    assert {score.parent.span_id, state.parent.span_id} == {window.context.span_id}
    assert window.parent is None
    assert (window.end_time - window.start_time) / 1e9 == pytest.approx(0.75)
    assert (state.end_time - state.start_time) / 1e9 == pytest.approx(0.25)
    assert dict(window.attributes) == {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.destination.name": "chat.messages",
        "messaging.consumer.group.name": "group",
        "messaging.batch.message_count": 3,
    }


def test_a_window_links_to_the_traces_of_its_events_and_belongs_to_none(exported):
    tracer, exporter = exported
    tracer.window(["a", "b"], [traceparent(1), traceparent(2)], [StageTime("score", 0.0, 1.0)])
    window = exporter.get_finished_spans()[-1]
    assert [link.context.trace_id for link in window.links] == [1, 2]
    assert window.context.trace_id not in {1, 2}
    assert window.name == "process several topics"


def test_sampled_traces_come_first_and_there_are_at_most_128():
    links = links_of([traceparent(number, sampled=number > 200) for number in range(1, 300)])
    assert len(links) == 128
    assert [link.context.trace_id for link in links[:99]] == list(range(201, 300))
    assert links[99].context.trace_id == 1


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"nonsense",
        b"00-00000000000000000000000000000000-0000000000000001-01",
        b"00-00000000000000000000000000000001-0000000000000000-01",
        b"00-0000000000000000000000000000000G-0000000000000001-01",
        b"00-1-1-01",
        b"\xff" * 55,
    ],
)
def test_a_header_that_is_no_traceparent_is_passed_over(header: bytes):
    assert links_of([header]) == []


def test_the_same_trace_is_linked_once():
    assert len(links_of([traceparent(1), traceparent(1)])) == 1


def test_without_an_endpoint_there_is_no_tracer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(tracing.ENDPOINT_VARIABLE, raising=False)
    assert tracer_from_environment("group") is None


def test_an_endpoint_without_the_extra_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(tracing.ENDPOINT_VARIABLE, "http://127.0.0.1:4318")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"stream-sentiment\[otel\]"):
        tracer_from_environment("group")


def test_spans_reach_the_collector_that_the_environment_names(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
    received: queue.Queue[tuple[str, bytes]] = queue.Queue()

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            received.put((self.path, gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        tracer = tracer_from_environment("group-7")
        assert tracer is not None
        tracer.window(["chat.messages"], [traceparent(1)], (StageTime("fold", 1.0, 2.0),))
        path, body = received.get(timeout=30)
        server.shutdown()
    assert path == "/v1/traces"
    assert {name for name in (b"stream-sentiment", b"group-7", b"chat.messages", b"fold") if name in body} == {
        b"stream-sentiment",
        b"group-7",
        b"chat.messages",
        b"fold",
    }
