"""Writes the three dashboards: `python deploy/grafana/build.py [DIR]`. A test keeps the JSON files current.

One place for what every panel shares: datasource, matchers for job and instance, units, thresholds. Queries
use `$__rate_interval`, so that they are right at every zoom.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "$datasource"}
WIDTH = 24
ROW_HEIGHT = 8
GREEN, YELLOW, RED = "green", "yellow", "red"


def metric(name: str, **matchers: str) -> str:
    """`stream_sentiment_<name>{job, instance, ...}`; a value that begins with ~ or ! is a regular expression
    or a negation.
    """
    pairs = ['job=~"$job"', 'instance=~"$instance"']
    for label, value in matchers.items():
        if value.startswith("!"):
            pairs.append(f'{label}!="{value[1:]}"')
        elif value.startswith("~"):
            pairs.append(f'{label}=~"{value[1:]}"')
        else:
            pairs.append(f'{label}="{value}"')
    return f"stream_sentiment_{name}{{{', '.join(pairs)}}}"


def rate(name: str, **matchers: str) -> str:
    return f"rate({metric(name, **matchers)}[$__rate_interval])"


def total(name: str, by: str = "", **matchers: str) -> str:
    """Rate of a counter, summed."""
    return f"sum{f' by ({by})' if by else ''} ({rate(name, **matchers)})"


def quantile(share: float, name: str, by: str = "", **matchers: str) -> str:
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({groups}) ({rate(name + '_bucket', **matchers)}))"


Target = tuple[str, str]


def panel(
    kind: str,
    title: str,
    description: str,
    unit: str,
    *targets: Target,
    width: int = 8,
    stack: str | None = None,
    thresholds: list[tuple[str, float | None]] | None = None,
    maximum: float | None = None,
    format: str = "time_series",
) -> dict[str, Any]:
    """One panel; targets are (query, legend). stack: None, "normal" or "percent"."""
    defaults: dict[str, Any] = {"unit": unit, "min": 0}
    if kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if stack else 8,
            "showPoints": "never",
            "stacking": {"mode": stack or "none", "group": "A"},
        }
    if maximum is not None:
        defaults["max"] = maximum
    steps = thresholds or [(GREEN, None)]
    defaults["thresholds"] = {
        "mode": "absolute",
        "steps": [{"color": color, "value": value} for color, value in steps],
    }
    options: dict[str, Any] = {}
    if kind == "timeseries":
        options = {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif kind == "stat":
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background" if thresholds else "value",
            "graphMode": "area",
        }
    elif kind == "heatmap":
        options = {"calculate": False, "yAxis": {"unit": unit}, "color": {"scheme": "Oranges", "mode": "scheme"}}
        defaults = {}
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "width": width,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                "format": "heatmap" if kind == "heatmap" else format,
                "instant": False,
                "range": True,
            }
            for index, (query, legend) in enumerate(targets)
        ],
    }


def lines(title: str, description: str, unit: str, *targets: Target, **more: Any) -> dict[str, Any]:
    return panel("timeseries", title, description, unit, *targets, **more)


def stat(title: str, description: str, unit: str, query: str, **more: Any) -> dict[str, Any]:
    return panel("stat", title, description, unit, (query, ""), width=4, **more)


def shares(name: str, by: str, window: str = "$__rate_interval", offset: str = "", **matchers: str) -> str:
    """Each label's share of a counter's rate."""
    one = f"rate({metric(name, **matchers)}[{window}]{offset})"
    return f"sum by ({by}) ({one}) / ignoring ({by}) group_left () sum ({one})"


def overview() -> list[tuple[str, list[dict[str, Any]]]]:
    bad = [(GREEN, None), (YELLOW, 1.0), (RED, 6.0)]
    burn = (
        'max(slo:sli_error:ratio_rate{window}{{job=~"$job", slo="freshness"}})'
        ' / scalar(slo:error_budget:ratio{{slo="freshness"}})'
    )
    return [
        (
            "Objectives",
            [
                stat(
                    "Fresh within 2 s",
                    "Share of events with their state committed within 2 s of their Kafka timestamp, last hour. Objective: 99 %.",
                    "percentunit",
                    f"sum(rate({metric('end_to_end_latency_seconds_bucket', le='2.0')}[1h]))"
                    f" / sum(rate({metric('end_to_end_latency_seconds_count')}[1h]))",
                    thresholds=[(RED, None), (YELLOW, 0.99), (GREEN, 0.995)],
                    maximum=1,
                ),
                stat(
                    "Burn rate 1 h",
                    "Error budget of the freshness objective burnt in the last hour: 1 uses it up in exactly 28 days, 14.4 pages.",
                    "none",
                    burn.format(window="1h"),
                    thresholds=bad,
                ),
                stat(
                    "Burn rate 6 h",
                    "The same over six hours; 6 pages.",
                    "none",
                    burn.format(window="6h"),
                    thresholds=bad,
                ),
                stat(
                    "Worst lag",
                    "Age of the oldest event not yet applied, over all partitions.",
                    "s",
                    f"max({metric('consumer_lag_seconds')})",
                    thresholds=[(GREEN, None), (YELLOW, 60.0), (RED, 300.0)],
                ),
                stat(
                    "Workers ready",
                    "Workers with a loaded model that Prometheus can see.",
                    "short",
                    f"sum({metric('model_ready')})",
                    thresholds=[(RED, None), (GREEN, 1.0)],
                ),
                stat(
                    "Alerts firing",
                    "Alerts of severity page or ticket. Each has a runbook of its name under deploy/runbooks.",
                    "short",
                    'count(ALERTS{alertstate="firing", severity=~"page|ticket", job=~"$job"}) or vector(0)',
                    thresholds=[(GREEN, None), (RED, 1.0)],
                ),
            ],
        ),
        (
            "Events",
            [
                lines(
                    "Events by outcome",
                    "How events end. scored, skipped and duplicate are good; dead_lettered is bad.",
                    "ops",
                    (total("events_total", "outcome"), "{{outcome}}"),
                    stack="normal",
                ),
                lines(
                    "Dead letters",
                    "By error class. decode, schema and too_large are the producers' mistakes; the others are ours.",
                    "ops",
                    (total("dead_letter_total", "reason", result="ack"), "{{reason}}"),
                ),
                lines(
                    "End-to-end latency",
                    "Kafka timestamp to state committed. The 99th percentile has to stay below 2 s.",
                    "s",
                    (quantile(0.5, "end_to_end_latency_seconds"), "p50"),
                    (quantile(0.95, "end_to_end_latency_seconds"), "p95"),
                    (quantile(0.99, "end_to_end_latency_seconds"), "p99"),
                ),
                panel(
                    "heatmap",
                    "Latency of all events",
                    "The same as a heat map: a second band is another kind of traffic or another partition.",
                    "s",
                    (total("end_to_end_latency_seconds_bucket", "le"), "{{le}}"),
                    width=24,
                ),
            ],
        ),
        (
            "Lag",
            [
                lines(
                    "Waiting events",
                    "Events in Kafka that are not applied yet, ten worst partitions.",
                    "short",
                    (f"topk(10, {metric('consumer_lag_events')})", "{{topic}}[{{partition}}]"),
                ),
                lines(
                    "Waiting time",
                    "Age of the oldest waiting event, ten worst partitions. It grows even if the worker hangs.",
                    "s",
                    (f"topk(10, {metric('consumer_lag_seconds')})", "{{topic}}[{{partition}}]"),
                ),
                lines(
                    "Time to work the backlog off",
                    "Backlog divided by the speed at which it shrinks; no line while it does not shrink.",
                    "s",
                    (
                        f"sum({metric('consumer_lag_events')})"
                        f" / (-1 * sum(deriv({metric('consumer_lag_events')}[10m])) > 0)",
                        "backlog",
                    ),
                ),
                lines(
                    "Time since the watermark moved",
                    "Per partition. Harmless without lag; with lag ConsumerStalled fires after 60 s.",
                    "s",
                    (
                        f"topk(10, time() - {metric('last_progress_timestamp_seconds')})",
                        "{{topic}}[{{partition}}]",
                    ),
                    width=12,
                ),
                lines(
                    "Partitions per worker",
                    "How the partitions are shared out.",
                    "short",
                    (f"sum by (instance) ({metric('assigned_partitions')})", "{{instance}}"),
                    width=12,
                    stack="normal",
                ),
            ],
        ),
        (
            "Escalations",
            [
                lines(
                    "Opened by rule",
                    "Escalations opened; rules that opened none are left out.",
                    "ops",
                    (total("escalations_total", "rule, severity") + " > 0", "{{rule}} {{severity}}"),
                    stack="normal",
                ),
                lines(
                    "Opened, updated, resolved",
                    "Escalation events by action. More opened than resolved for hours: nobody takes care of them.",
                    "ops",
                    (total("escalation_transitions_total", "action"), "{{action}}"),
                ),
                lines(
                    "Latency and outbox",
                    "Triggering event to acknowledged escalation (p99), and the age of the oldest entry not yet published.",
                    "s",
                    (quantile(0.99, "escalation_latency_seconds"), "p99 latency"),
                    (f"max({metric('outbox_oldest_age_seconds')})", "oldest in the outbox"),
                ),
                lines(
                    "Announced and held back",
                    "Escalations opened. Held back: above a limit of the rules' suppress, marked on the topic. EscalationStorm fires.",
                    "ops",
                    (f"{total('escalations_total')} - {total('escalations_suppressed_total')}", "announced"),
                    (total("escalations_suppressed_total"), "held back"),
                    width=12,
                    stack="normal",
                ),
                lines(
                    "Notices of storms",
                    "Per tenant and partition: opened, updated each minute of it, resolved with the tenant's next event after it.",
                    "ops",
                    (total("escalation_storms_total", "action"), "{{action}}"),
                    width=12,
                ),
            ],
        ),
        (
            "Dependencies",
            [
                lines(
                    "Redis latency p99",
                    "Per kind of call.",
                    "s",
                    (quantile(0.99, "redis_op_duration_seconds", "op"), "{{op}}"),
                ),
                lines(
                    "Redis errors",
                    "Failed calls by kind.",
                    "ops",
                    (total("redis_errors_total", "kind"), "{{kind}}"),
                ),
                lines(
                    "Failed deliveries",
                    "Records that Kafka did not acknowledge, by topic.",
                    "ops",
                    (total("produce_total", "topic, result", result="!ack"), "{{topic}} {{result}}"),
                ),
                lines(
                    "Broker round trip p99",
                    "As librdkafka measures it.",
                    "s",
                    (f"max by (broker) ({metric('broker_rtt_p99_seconds')})", "{{broker}}"),
                ),
                lines(
                    "Brokers connected",
                    "Worker connections per broker.",
                    "short",
                    (f"sum by (broker) ({metric('broker_up')})", "{{broker}}"),
                ),
                lines(
                    "Waiting for a dependency",
                    "2 while the pipeline waits for it, else 0.",
                    "short",
                    (f"max by (dependency) ({metric('circuit_state')})", "{{dependency}}"),
                ),
            ],
        ),
        (
            "Saturation",
            [
                lines(
                    "Poll thread's time",
                    "Where the thread that reads Kafka spends its time. backpressure: what comes after it is the limit.",
                    "percentunit",
                    (total("consumer_time_seconds_total", "state"), "{{state}}"),
                    stack="percent",
                ),
                lines(
                    "Score and apply threads' time",
                    "infer: the model is the limit. store: Redis is. wait_input: there is room.",
                    "percentunit",
                    (total("thread_time_seconds_total", "thread, state"), "{{thread}} {{state}}"),
                    stack="percent",
                ),
                lines(
                    "CPU per worker",
                    "CPU seconds a second.",
                    "short",
                    (
                        'rate(process_cpu_seconds_total{job=~"$job", instance=~"$instance"}[$__rate_interval])',
                        "{{instance}}",
                    ),
                ),
                lines(
                    "Events in flight",
                    "Read and not yet applied; bounded by the number of windows.",
                    "short",
                    (f"sum by (instance) ({metric('inflight_events')})", "{{instance}}"),
                ),
                lines(
                    "Paused partitions",
                    "Back-pressure: fetching is paused until windows are free.",
                    "short",
                    (f"sum by (instance) ({metric('paused_partitions')})", "{{instance}}"),
                ),
                lines(
                    "Memory per worker",
                    "Resident memory.",
                    "bytes",
                    (
                        'process_resident_memory_bytes{job=~"$job", instance=~"$instance"}',
                        "{{instance}}",
                    ),
                ),
            ],
        ),
    ]


def pipeline() -> list[tuple[str, list[dict[str, Any]]]]:
    return [
        (
            "Stages",
            [
                lines(
                    "Stage duration p50",
                    "Per batch.",
                    "s",
                    (quantile(0.5, "stage_duration_seconds", "stage"), "{{stage}}"),
                    width=12,
                ),
                lines(
                    "Stage duration p99",
                    "Per batch; the largest is the one to enlarge.",
                    "s",
                    (quantile(0.99, "stage_duration_seconds", "stage"), "{{stage}}"),
                    width=12,
                ),
            ],
        ),
        (
            "Batching",
            [
                lines(
                    "Messages per micro-batch",
                    "Median and 90th percentile.",
                    "short",
                    (quantile(0.5, "batch_events"), "p50"),
                    (quantile(0.9, "batch_events"), "p90"),
                    width=6,
                ),
                lines(
                    "Tokens per micro-batch",
                    "Padding included; model.token_budget is the upper bound.",
                    "short",
                    (quantile(0.5, "batch_tokens"), "p50"),
                    (quantile(0.9, "batch_tokens"), "p90"),
                    width=6,
                ),
                lines(
                    "Padding",
                    "Median share of a micro-batch that is padding: work for nothing.",
                    "percentunit",
                    (quantile(0.5, "batch_padding_ratio"), "p50"),
                    width=6,
                ),
                lines(
                    "Why windows close",
                    "time: traffic is low. size, tokens: traffic is high.",
                    "ops",
                    (total("batch_flush_total", "trigger"), "{{trigger}}"),
                    width=6,
                    stack="normal",
                ),
            ],
        ),
        (
            "Delivery protocol",
            [
                lines(
                    "State updates",
                    "What the fold did with events.",
                    "ops",
                    (total("state_updates_total", "result"), "{{result}}"),
                ),
                lines(
                    "Refused and repeated writes",
                    "Fences and gaps around a rebalance are normal; without one they are not. already applied: a reply was lost.",
                    "ops",
                    (total("fences_total"), "fenced"),
                    (total("gaps_total"), "gap"),
                    (total("already_applied_total"), "already applied"),
                ),
                lines(
                    "Outbox",
                    "Entries in Redis that Kafka has not acknowledged.",
                    "short",
                    (f"sum by (instance) ({metric('outbox_entries')})", "{{instance}}"),
                ),
                lines(
                    "Rebalances",
                    "assign, revoke, lost. lost: the worker was silent for longer than its session.",
                    "ops",
                    (total("rebalances_total", "kind"), "{{kind}}"),
                ),
                lines(
                    "Commits",
                    "Offset commits to Kafka by result.",
                    "ops",
                    (total("commits_total", "result"), "{{result}}"),
                ),
                lines(
                    "Watermark speed",
                    "Offsets a second, ten fastest partitions.",
                    "ops",
                    (f"topk(10, deriv({metric('watermark_offset')}[5m]))", "{{topic}}[{{partition}}]"),
                ),
            ],
        ),
        (
            "Input",
            [
                lines(
                    "Bytes read",
                    "Record values.",
                    "Bps",
                    (total("consumed_bytes_total", "topic"), "{{topic}}"),
                ),
                lines(
                    "Invalid events",
                    "What is wrong with them.",
                    "ops",
                    (total("events_invalid_total", "reason"), "{{reason}}"),
                ),
                lines(
                    "Skipped events",
                    "Valid, with nothing to score.",
                    "ops",
                    (total("events_skipped_total", "reason"), "{{reason}}"),
                ),
            ],
        ),
    ]


def model() -> list[tuple[str, list[dict[str, Any]]]]:
    return [
        (
            "Labels",
            [
                lines(
                    "Polarity",
                    "Share of each label.",
                    "percentunit",
                    (shares("predictions_total", "label"), "{{label}}"),
                    stack="percent",
                ),
                lines(
                    "Emotion",
                    "Share of each label.",
                    "percentunit",
                    (shares("emotion_predictions_total", "label"), "{{label}}"),
                    stack="percent",
                ),
                lines(
                    "Polarity, last hour against last week",
                    "Difference of the shares. PredictionDrift watches the index made of them.",
                    "percentunit",
                    (
                        f"({shares('predictions_total', 'label', '1h')})"
                        f" - ({shares('predictions_total', 'label', '1w')})",
                        "{{label}}",
                    ),
                ),
            ],
        ),
        (
            "Against the reference",
            [
                lines(
                    "Distance from the reference: labels",
                    "Population stability index of the last messages against the model's manifest. Above 0.2 PredictionDrift fires.",
                    "none",
                    (
                        f"avg by (head, language) ({metric('prediction_psi', distribution='labels')})",
                        "{{head}} {{language}}",
                    ),
                    thresholds=[(GREEN, None), (YELLOW, 0.1), (RED, 0.2)],
                ),
                lines(
                    "Distance from the reference: confidence",
                    "The same of how sure the model is. It moves first when texts are new to the model.",
                    "none",
                    (
                        f"avg by (head, language) ({metric('prediction_psi', distribution='confidence')})",
                        "{{head}} {{language}}",
                    ),
                    thresholds=[(GREEN, None), (YELLOW, 0.1), (RED, 0.2)],
                ),
                lines(
                    "Messages compared",
                    "Per worker and language. No distance is shown below model.drift_minimum.",
                    "short",
                    (metric("prediction_window_events"), "{{language}} {{instance}}"),
                ),
            ],
        ),
        (
            "Confidence",
            [
                lines(
                    "Confidence",
                    "Largest polarity probability: median and lowest tenth. It falls when the model no longer fits the traffic.",
                    "percentunit",
                    (quantile(0.5, "prediction_confidence"), "p50"),
                    (quantile(0.1, "prediction_confidence"), "p10"),
                ),
                lines(
                    "Uncertain messages",
                    "Share inside the abstain band.",
                    "percentunit",
                    (
                        f"{total('low_confidence_total')} / {total('predictions_total')}",
                        "uncertain",
                    ),
                ),
                panel(
                    "heatmap",
                    "Distribution of confidence",
                    "All messages.",
                    "percentunit",
                    (total("prediction_confidence_bucket", "le"), "{{le}}"),
                ),
            ],
        ),
        (
            "Changes while workers run",
            [
                lines(
                    "Models in force",
                    "Workers by model. Two for longer than a minute: some have taken the new one up, others not.",
                    "short",
                    (f"count by (model, model_sha256_12) ({metric('build_info')})", "{{model}} {{model_sha256_12}}"),
                    width=6,
                    stack="normal",
                ),
                lines(
                    "Rules in force",
                    "Workers by version of their rules.",
                    "short",
                    (f"count by (version) ({metric('rules_info')})", "{{version}}"),
                    width=6,
                    stack="normal",
                ),
                lines(
                    "Changed files",
                    "Looks at a changed bundle or rule file, by what became of it.",
                    "ops",
                    (total("model_swap_total", "result"), "model {{result}}"),
                    (total("rules_reload_total", "result"), "rules {{result}}"),
                    width=6,
                ),
                lines(
                    "Refused files",
                    "How long an unusable file has been there; what was before it is in force. ModelSwapFailed, RulesFileInvalid.",
                    "s",
                    (f"max({metric('model_bundle_refused_seconds')})", "model"),
                    (f"max({metric('rules_file_invalid_seconds')})", "rules"),
                    width=6,
                ),
            ],
        ),
        (
            "Shadow model",
            [
                lines(
                    "Messages of its share",
                    "dropped: the shadow is slower than the traffic of its share, and no window waits for it.",
                    "ops",
                    (total("shadow_messages_total", "result"), "{{result}}"),
                ),
                lines(
                    "Disagreements per message",
                    "With the model in force, by head. Signals are several a message, so theirs can be above 1.",
                    "none",
                    (
                        f"{total('shadow_disagreements_total', 'head')} / ignoring (head) group_left ()"
                        f" {total('shadow_messages_total', result='compared')}",
                        "{{head}}",
                    ),
                ),
                lines(
                    "Who says what",
                    "The ten most frequent disagreements: the model in force, then the shadow.",
                    "ops",
                    (
                        f"topk(10, {total('shadow_disagreements_total', 'head, live, shadow')} > 0)",
                        "{{head}}: {{live}}, shadow {{shadow}}",
                    ),
                ),
            ],
        ),
        (
            "Input and errors",
            [
                lines(
                    "Tokens per message",
                    "Median and 99th percentile after truncation.",
                    "short",
                    (quantile(0.5, "input_tokens"), "p50"),
                    (quantile(0.99, "input_tokens"), "p99"),
                ),
                lines(
                    "Truncated texts",
                    "Cut by characters before, or by tokens in, the tokenizer.",
                    "ops",
                    (total("events_truncated_total", "by"), "{{by}}"),
                ),
                lines(
                    "Model errors and fallbacks",
                    "Failed runs by kind, and runs repeated in a weaker form.",
                    "ops",
                    (total("inference_errors_total", "kind"), "{{kind}}"),
                    (total("inference_fallback_total", "from, to"), "{{from}} to {{to}}"),
                ),
            ],
        ),
    ]


def dashboard(uid: str, title: str, rows: list[tuple[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    number = 0
    for heading, members in rows:
        number += 1
        panels.append(
            {"type": "row", "id": number, "title": heading, "collapsed": False, "panels": [],
             "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y}}
        )  # fmt: skip
        y += 1
        x = 0
        for member in members:
            width = member.pop("width")
            if x + width > WIDTH:
                x, y = 0, y + ROW_HEIGHT
            number += 1
            height = 4 if member["type"] == "stat" else ROW_HEIGHT
            panels.append({"id": number, **member, "gridPos": {"h": height, "w": width, "x": x, "y": y}})
            x += width
        y += 4 if members[-1]["type"] == "stat" else ROW_HEIGHT
    up = 'stream_sentiment_build_info{job=~"$job"}'
    return {
        "uid": uid,
        "title": title,
        "tags": ["stream-sentiment"],
        "editable": False,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [
            {"type": "dashboards", "title": "stream-sentiment", "tags": ["stream-sentiment"], "asDropdown": True}
        ],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("job", "Job", "label_values(stream_sentiment_build_info, job)"),
                _variable("instance", "Instance", f"label_values({up}, instance)"),
            ]
        },
        "annotations": {
            "list": [
                _annotation("Start or new version", "blue", f"changes({up}[1m]) > 0 or ({up} unless {up} offset 1m)"),
                _annotation(
                    "Rebalance",
                    "orange",
                    'sum(increase(stream_sentiment_rebalances_total{job=~"$job", kind="assign"}[1m])) > 0',
                ),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": query,
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": "All", "value": "$__all"},
        "sort": 1,
    }


def _annotation(name: str, color: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": color,
        "expr": query,
        "titleFormat": name,
    }


DASHBOARDS = {
    "overview": ("stream-sentiment-overview", "Stream sentiment: overview", overview),
    "pipeline": ("stream-sentiment-pipeline", "Stream sentiment: pipeline", pipeline),
    "model": ("stream-sentiment-model", "Stream sentiment: model and drift", model),
}


def build() -> dict[str, str]:
    """File name -> JSON text."""
    return {
        f"{name}.json": json.dumps(dashboard(uid, title, rows()), indent=1, ensure_ascii=False) + "\n"
        for name, (uid, title, rows) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
    for filename, text in build().items():
        (directory / filename).write_text(text, encoding="utf-8")
