"""Rules, their tests and their runbooks belong together: every alert is proved, explained, and made of metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.promql import PROMETHEUS, ROOT, RUNBOOKS, alerts, mistakes, rules

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)"
)

ALERT_NAMES = sorted({rule["alert"] for rule in alerts()})


@needs_promtool
def test_promtool_accepts_the_configuration_and_every_rule():
    files = [str(path) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    checked = subprocess.run(["promtool", "check", "rules", *files], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    checked = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(PROMETHEUS / "prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@needs_promtool
@pytest.mark.parametrize("file", sorted((PROMETHEUS / "tests").glob("*.test.yml")), ids=lambda path: path.name)
def test_every_alert_fires_stays_quiet_and_ends_as_its_unit_test_says(file: Path):
    tested = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_the_unit_tests_go_red_when_an_alert_never_fires(tmp_path: Path):
    shutil.copytree(PROMETHEUS, tmp_path / "prometheus")
    rules_file = tmp_path / "prometheus/rules/alerts.yml"
    before = rules_file.read_text()
    rules_file.write_text(before.replace("stream_sentiment_outbox_oldest_age_seconds) > 60", "vector(0)) > 60"))
    assert rules_file.read_text() != before
    tests_file = tmp_path / "prometheus/tests/alerts.test.yml"
    content = yaml.safe_load(tests_file.read_text())
    content["tests"] = [test for test in content["tests"] if test["name"].startswith("OutboxStuck")]
    tests_file.write_text(yaml.safe_dump(content))
    tested = subprocess.run(["promtool", "test", "rules", str(tests_file)], capture_output=True, text=True, check=False)
    assert tested.returncode != 0
    assert "OutboxStuck" in tested.stdout + tested.stderr


def test_rules_use_only_metrics_and_labels_that_exist():
    assert {rule.get("alert") or rule["record"]: found for rule in rules() if (found := mistakes(rule["expr"]))} == {}


def test_a_metric_that_does_not_exist_would_be_found():
    assert mistakes("rate(stream_sentiment_evnts_total[5m])") == ["stream_sentiment_evnts_total does not exist"]
    assert mistakes('stream_sentiment_events_total{reason="x"}') == [
        "stream_sentiment_events_total has no label reason"
    ]
    assert mistakes("sum by (reason) (rate(stream_sentiment_events_total[5m]))") == [
        "no metric here has a label reason"
    ]
    assert mistakes('sum by (job) (rate(stream_sentiment_events_total{job="a", outcome="scored"}[5m]))') == []


@pytest.mark.parametrize("alert", alerts(), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_an_alert_says_how_bad_what_and_where_the_runbook_is(alert: dict):
    assert alert["labels"]["severity"] in {"page", "ticket", "info"}
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"deploy/runbooks/{alert['alert']}.md"
    assert (ROOT / alert["annotations"]["runbook_url"]).is_file()


@pytest.mark.parametrize("name", ALERT_NAMES)
def test_an_alert_has_a_unit_test_in_which_it_fires(name: str):
    tests = "".join(path.read_text() for path in (PROMETHEUS / "tests").glob("*.test.yml"))
    assert re.search(rf'alertname="{name}"', tests)


def test_every_runbook_belongs_to_an_alert_and_is_listed():
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == set(ALERT_NAMES)
    index = (RUNBOOKS / "README.md").read_text()
    assert set(re.findall(r"\[(\w+)\]\(\1\.md\)", index)) == pages


@pytest.mark.parametrize("name", ALERT_NAMES)
def test_a_runbook_has_all_its_parts_and_queries_that_exist(name: str):
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == ["What it means for users", "Checks", "Remedy", "Drill"]
    queries = re.findall(r"```promql\n(.*?)```", page, re.DOTALL)
    assert [found for query in queries for found in mistakes(query)] == []


@pytest.mark.parametrize("name", ALERT_NAMES)
def test_a_runbook_was_followed_in_a_drill_that_exists(name: str):
    page = (RUNBOOKS / f"{name}.md").read_text()
    drill = page[page.index("## Drill") :]
    ((file, test),) = set(re.findall(r"^pytest (\S+)::(\w+)$", drill, re.MULTILINE))
    body = (ROOT / file).read_text().partition(f"\ndef {test}(")[2].partition("\ndef ")[0]
    assert name in body  # it asks for this alert


@needs_promtool
def test_the_queries_in_the_runbooks_parse(tmp_path: Path):
    queries = [
        query.strip()
        for page in sorted(RUNBOOKS.glob("*.md"))
        for query in re.findall(r"```promql\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert len(queries) >= 35
    parses(queries, tmp_path)


def parses(queries: list[str], directory: Path) -> None:
    """promtool has no command for a query alone: wrap each as a recording rule."""
    made = [{"record": f"test:query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = directory / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": made}]}))
    checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
