"""Probes over real HTTP, with time turned by hand."""

from __future__ import annotations

import json
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.observability.health import HealthServer, HealthState, StuckDetector
from stream_sentiment.observability.metrics import Metrics


@dataclass
class Served:
    state: HealthState
    server: HealthServer
    metrics: Metrics
    seconds: list[float]

    def get(self, path: str, accept: str = "*/*") -> tuple[int, str, bytes]:
        request = urllib.request.Request(self.server.url + path, headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read()


@pytest.fixture
def served() -> Iterator[Served]:
    seconds = [100.0]
    state = HealthState(now=lambda: seconds[0])
    metrics = Metrics()
    server = HealthServer("127.0.0.1", 0, metrics, state)
    server.start()
    yield Served(state, server, metrics, seconds)
    server.stop()


def test_a_loop_that_beats_keeps_the_process_alive(served: Served):
    served.state.watch("poll", 10)
    for _ in range(5):
        served.seconds[0] += 9
        served.state.beat("poll")
    assert served.get("/livez")[0] == 200


def test_a_loop_older_than_its_bound_fails_liveness_by_name_and_recovers_with_a_beat(served: Served):
    served.state.watch("poll", 10)
    served.state.watch("apply", 60)
    served.seconds[0] += 11
    status, _, body = served.get("/livez")
    assert status == 503
    assert json.loads(body) == {"status": "stuck", "overdue_seconds": {"poll": 11.0}}
    served.state.beat("poll")
    assert served.get("/livez")[0] == 200


def test_an_outage_of_redis_fails_readiness_but_not_liveness(served: Served):
    served.state.watch("poll", 10)
    served.state.set_started()
    served.state.set_ready("redis", True, "7.0.15")
    assert served.get("/readyz")[0] == 200
    served.state.set_ready("redis", False, "connection refused, circuit open")
    status, _, body = served.get("/readyz")
    assert status == 503
    assert json.loads(body)["conditions"] == {"redis": {"ok": False, "detail": "connection refused, circuit open"}}
    assert served.get("/livez")[0] == 200


def test_a_loop_that_ended_as_planned_is_not_missed(served: Served):
    served.state.watch("poll", 10)
    served.state.unwatch("poll")
    served.seconds[0] += 1000
    assert served.get("/livez")[0] == 200


def test_started_is_false_until_said_and_stays_true(served: Served):
    assert served.get("/startupz")[0] == 503
    assert served.get("/readyz")[0] == 503
    served.state.set_started()
    assert served.get("/startupz")[0] == 200
    assert served.get("/readyz")[0] == 200


def test_the_scrape_shows_metrics_and_each_condition_of_readiness(served: Served):
    served.state.set_ready("model", False, "loading")
    served.metrics.fences_total.inc(3)
    status, content_type, body = served.get("/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert b"stream_sentiment_fences_total 3.0" in body
    assert b'stream_sentiment_ready{condition="model"} 0.0' in body
    assert b"process_start_time_seconds" in body


def test_a_scraper_that_asks_for_openmetrics_gets_it(served: Served):
    _, content_type, body = served.get("/metrics", accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_other_paths_are_not_found_and_methods_that_change_are_refused(served: Served):
    assert served.get("/")[0] == 404
    assert served.get("/metrics/../../etc/passwd")[0] == 404
    request = urllib.request.Request(served.server.url + "/livez", data=b"x", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)
    refused.value.close()
    assert refused.value.code == 501


def test_a_client_that_says_nothing_does_not_block_the_probe(served: Served):
    with socket.create_connection(("127.0.0.1", served.server.port)) as silent:
        silent.sendall(b"GET /livez")
        assert served.get("/livez")[0] == 200


def test_a_taken_port_is_one_clear_error_with_the_remedy(served: Served):
    with pytest.raises(ServiceUnavailable, match=r"cannot listen on 127\.0\.0\.1:\d+ .*HTTP__PORT"):
        HealthServer("127.0.0.1", served.server.port, served.metrics, served.state)


def test_a_stopped_server_frees_its_port_and_may_be_stopped_again(served: Served):
    port = served.server.port
    served.server.stop()
    served.server.stop()
    again = HealthServer("127.0.0.1", port, served.metrics, served.state)
    again.stop()


def test_the_stacks_of_all_threads_are_written_once_for_each_time_a_loop_gets_stuck():
    seconds = [0.0]
    state = HealthState(now=lambda: seconds[0])
    state.watch("apply", 5)
    said: list[dict[str, float]] = []
    with tempfile.TemporaryFile("w+") as output:
        detector = StuckDetector(state, output=output, on_stuck=lambda overdue: said.append(dict(overdue)))
        assert detector.check() is False
        seconds[0] = 6
        assert [detector.check() for _ in range(3)] == [True, False, False]
        state.beat("apply")
        assert detector.check() is False
        seconds[0] = 20
        assert detector.check() is True
        output.seek(0)
        stacks = output.read()
    assert stacks.count("Current thread") == 2
    assert "in test_the_stacks_of_all_threads" in stacks
    assert said == [{"apply": 6.0}, {"apply": 14.0}]


def test_the_detector_runs_by_itself_and_stops():
    seconds = [0.0]
    state = HealthState(now=lambda: seconds[0])
    state.watch("apply", 5)
    seconds[0] = 6
    with tempfile.TemporaryFile("w+") as output:
        found = []
        detector = StuckDetector(
            state, output=output, interval_seconds=0.01, on_stuck=lambda overdue: found.append(overdue)
        )
        detector.start()
        for _ in range(500):
            if found:
                break
            detector._stop.wait(0.01)
        detector.stop()
    assert found == [{"apply": 6.0}]
