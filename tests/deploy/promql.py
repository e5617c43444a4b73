"""What the tests of rules, dashboards and runbooks share: the series that can exist, and the queries in text."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stream_sentiment.observability.definitions import PREFIX, Kind
from stream_sentiment.observability.metrics import TABLE

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RUNBOOKS = ROOT / "deploy/runbooks"

#: Labels that come from Prometheus itself.
TARGET_LABELS = {"job", "instance"}


@cache
def series() -> dict[str, set[str]]:
    """Every series name on /metrics with its label names."""
    known: dict[str, set[str]] = {
        "up": set(),
        "process_start_time_seconds": set(),
        "process_cpu_seconds_total": set(),
        "process_resident_memory_bytes": set(),
        "ALERTS": {"alertname", "alertstate", "severity"},
    }
    for definition in TABLE.values():
        labels = set(definition.label_names)
        if definition.kind is Kind.HISTOGRAM:
            known |= {f"{definition.full_name}_{part}": labels for part in ("count", "sum")}
            known[f"{definition.full_name}_bucket"] = labels | {"le"}
        else:
            known[definition.full_name] = labels
    return known


@cache
def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


@cache
def rules() -> list[dict[str, Any]]:
    """All rules of all files, in order."""
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    return [
        rule
        for file in files
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def mistakes(query: str) -> list[str]:
    """Metrics that cannot exist, matchers on labels that their metric does not have, groups by labels that no metric of it has."""
    known, from_rules = series(), recorded()
    found = []
    for name, matchers in re.findall(r"\b((?:[a-zA-Z_]\w*:)*[a-zA-Z_]\w*)\s*(?:\{([^}]*)\})", query):
        if name in known:
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
                if label not in known[name] | TARGET_LABELS:
                    found.append(f"{name} has no label {label}")
    for name in re.findall(rf"\b(?:{PREFIX}|slo:|stream_sentiment:)[\w:]*", re.sub(r'"[^"]*"', '""', query)):
        if name not in known and name not in from_rules:
            found.append(f"{name} does not exist")
    bare = re.sub(r'"[^"]*"', '""', query)
    used = set(re.findall(r"[a-zA-Z_][\w:]*", bare))
    if not used & from_rules:  # what a recording rule keeps is in its own expression
        labels = TARGET_LABELS.union(*(known[name] for name in used & known.keys()))
        grouped = {label for names in re.findall(r"\bby\s*\(([^)]*)\)", bare) for label in re.findall(r"\w+", names)}
        found += [f"no metric here has a label {label}" for label in sorted(grouped - labels)]
    return found
