"""Writes prometheusrule.yaml and dashboards.yaml from deploy/prometheus and deploy/grafana: `python3 rules.py`.

A test keeps both current. Needs PyYAML.
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
DEPLOY = HERE.parents[2]
LABELS = {"app.kubernetes.io/part-of": "stream-sentiment"}


def prometheus_rule() -> str:
    """All rule files in one PrometheusRule."""
    groups = [
        group
        for file in sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    ]
    made = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "stream-sentiment", "labels": LABELS},
        "spec": {"groups": groups},
    }
    return yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=120)


def dashboards() -> str:
    """The dashboards in one ConfigMap, with the label that Grafana's sidecar looks for."""
    data = {
        file.name: file.read_text(encoding="utf-8") for file in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
    }
    made = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "stream-sentiment-dashboards", "labels": {**LABELS, "grafana_dashboard": "1"}},
        "data": data,
    }
    return yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    (HERE / "prometheusrule.yaml").write_text(prometheus_rule(), encoding="utf-8")
    (HERE / "dashboards.yaml").write_text(dashboards(), encoding="utf-8")
