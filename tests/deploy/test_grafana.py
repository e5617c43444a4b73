"""The dashboards: the rules of Grafana's dashboard linter, restated, and queries that only ask for what exists."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.deploy.promql import ROOT, mistakes
from tests.deploy.test_prometheus import parses

GRAFANA = ROOT / "deploy/grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards", GRAFANA / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def concrete(query: str) -> str:
    """The query with Grafana's variables filled in."""
    return query.replace("$__rate_interval", "1m").replace("$job", ".+").replace("$instance", ".+")


def test_the_dashboards_are_what_the_generator_writes():
    for name, text in generator().build().items():
        assert (GRAFANA / "dashboards" / name).read_text() == text, "run: python deploy/grafana/build.py"


def test_there_are_the_three_dashboards_under_fixed_addresses():
    assert {name: dashboard["uid"] for name, dashboard in DASHBOARDS.items()} == {
        "overview": "stream-sentiment-overview",
        "pipeline": "stream-sentiment-pipeline",
        "model": "stream-sentiment-model",
    }


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_the_variables_and_cannot_be_edited(name: str):
    dashboard = DASHBOARDS[name]
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for variable in (variables["job"], variables["instance"]):
        assert variable["datasource"]["uid"] == "$datasource"
        assert variable["label"]
        assert variable["multi"] is True
        assert variable["allValue"] == ".+"
    assert dashboard["editable"] is False
    assert {annotation["name"] for annotation in dashboard["annotations"]["list"]} == {
        "Start or new version",
        "Rebalance",
    }


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str):
    panels = DASHBOARDS[name]["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "$datasource"}
    unit = panel["options"]["yAxis"]["unit"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]["unit"]
    assert unit in {"s", "ops", "short", "none", "percentunit", "bytes", "Bps"}


@pytest.mark.parametrize("panel", PANELS)
def test_a_query_is_bound_to_the_variables_and_asks_for_what_exists(panel: dict[str, Any]):
    assert panel["targets"]
    for target in panel["targets"]:
        query = target["expr"]
        assert mistakes(concrete(query)) == []
        selectors = re.findall(r"\b((?:stream_sentiment|process)_\w+)(\{[^}]*\})?", re.sub(r'"[^"]*"', '""', query))
        for name, matchers in selectors:
            assert "job=~" in matchers, name
            assert "instance=~" in matchers, name
        # A fixed window is for ratios over an hour or more and for deriv; a rate over what is seen follows the zoom.
        for window in re.findall(r"\brate\([^\[]*\[([^\]]+)\]", query):
            assert window in {"$__rate_interval", "1h", "1w"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)")
def test_every_query_parses(tmp_path: Path):
    queries = [concrete(target["expr"]) for param in PANELS for target in param.values[0]["targets"]]
    queries += [
        concrete(annotation["expr"])
        for dashboard in DASHBOARDS.values()
        for annotation in dashboard["annotations"]["list"]
    ]
    assert len(queries) > 50
    parses(queries, tmp_path)


def test_grafana_finds_the_datasource_and_the_dashboards():
    (datasource,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (datasource["type"], datasource["editable"]) == ("prometheus", False)
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/stream-sentiment.yml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounts = [volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"]]
    assert ["./deploy/grafana/dashboards", provider["options"]["path"]] in mounts
    assert ["./deploy/grafana/provisioning", "/etc/grafana/provisioning"] in mounts
