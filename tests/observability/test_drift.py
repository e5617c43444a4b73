"""The rolling comparison of predictions with the reference of the model."""

from __future__ import annotations

from prometheus_client import generate_latest

from stream_sentiment.observability.drift import REPORT_SECONDS, DriftWindow
from stream_sentiment.observability.labels import Distribution, PredictionHead
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.scoring.reference import HEADS, Prediction, measure

LABELS = {"polarity": ("negative", "neutral", "positive"), "emotion": ("anger", "neutral")}


def messages(count: int, label: str = "neutral", language: str = "zh") -> list[Prediction]:
    return [Prediction(language, (label, "neutral"), (0.9, 0.8)) for _ in range(count)]


def window(metrics: Metrics, size: int = 100, minimum: int = 50) -> DriftWindow:
    reference = measure(messages(150) + messages(50, "negative"), LABELS)
    return DriftWindow(reference, metrics, size=size, minimum=minimum)


def polarity(metrics: Metrics) -> float | None:
    name = 'stream_sentiment_prediction_psi{distribution="labels",head="polarity",language="zh"}'
    for line in generate_latest(metrics.registry).decode().splitlines():
        if line.startswith(name):
            return float(line.split()[-1])
    return None


def test_the_label_values_are_the_heads_that_are_compared():
    assert tuple(PredictionHead) == HEADS
    assert tuple(Distribution) == ("labels", "confidence")


def test_nothing_is_said_below_the_minimum():
    metrics = Metrics()
    drift = window(metrics)
    drift.add(messages(49, "negative"))
    drift.report(0)
    assert polarity(metrics) is None
    assert metrics.prediction_window_events.labels("zh")._value.get() == 49
    drift.add(messages(1, "negative"))
    drift.report(REPORT_SECONDS)
    assert polarity(metrics) > 1


def test_old_messages_leave_the_window():
    metrics = Metrics()
    drift = window(metrics)
    drift.add(messages(100, "negative"))
    drift.report(0)
    assert polarity(metrics) > 1
    drift.add(messages(25, "negative") + messages(75))
    drift.report(REPORT_SECONDS)
    assert polarity(metrics) < 0.001
    assert metrics.prediction_window_events.labels("zh")._value.get() == 100


def test_a_language_without_a_reference_makes_no_series():
    metrics = Metrics()
    drift = window(metrics)
    drift.add(messages(100, language="en"))
    drift.report(0)
    assert 'language="en"' not in generate_latest(metrics.registry).decode()


def test_it_is_computed_again_only_after_a_while():
    metrics = Metrics()
    drift = window(metrics)
    drift.add(messages(100, "negative"))
    drift.report(0)
    first = polarity(metrics)
    drift.add(messages(100))
    drift.report(REPORT_SECONDS - 0.1)
    assert polarity(metrics) == first
    drift.report(REPORT_SECONDS)
    assert polarity(metrics) != first


def test_the_window_of_another_model_begins_without_the_figures_of_the_last():
    metrics = Metrics()
    first = window(metrics)
    first.add(messages(100, "negative"))
    first.report(0)
    assert polarity(metrics) > 1
    window(metrics)
    assert polarity(metrics) is None
    assert metrics.prediction_window_events.labels("zh")._value.get() == 0
