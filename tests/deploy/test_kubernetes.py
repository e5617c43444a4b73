"""The Kubernetes manifests: valid by schema, restricted, and in step with the settings and the other files of deploy/."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_sentiment.settings import ENV_PREFIX, Settings
from tests.deploy.promql import ROOT
from tests.deploy.test_compose import SPECIAL, names_a_setting

KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ["cpu", "gpu", "keda", "monitoring"]

needs_validator = pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed"
)


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def base() -> dict[str, dict[str, Any]]:
    """The objects of the base by kind."""
    listed = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["resources"]
    return {
        document["kind"]: document
        for name in listed
        for document in documents((KUBERNETES / "base" / name).read_text())
    }


@cache
def kubectl_minor() -> int:
    """Of 1.x; 0 without kubectl."""
    if shutil.which("kubectl") is None:
        return 0
    told = subprocess.run(
        ["kubectl", "version", "--client", "-o", "json"], capture_output=True, text=True, check=False
    ).stdout
    return int(re.sub(r"\D", "", json.loads(told)["clientVersion"]["minor"]))


def rendered(overlay: str) -> list[dict[str, Any]]:
    if kubectl_minor() < 21:  # Debian 12 has 1.20, with a kustomize that knows no `patches`
        pytest.skip("kubectl 1.21 or newer is not installed: overlays cannot be rendered")
    made = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    return documents(made.stdout)


def worker_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (deployment,) = [document for document in objects if document["kind"] == "Deployment"]
    return deployment["spec"]["template"]["spec"]["containers"][0]


@needs_validator
@pytest.mark.parametrize("kind", ["Deployment", "ConfigMap", "Service", "NetworkPolicy", "PodDisruptionBudget"])
def test_an_object_of_the_base_is_valid_and_has_no_unknown_field(kind: str):
    import kubernetes_validate

    kubernetes_validate.validate(base()[kind], "1.32", strict=True)


@needs_validator
def test_a_misspelt_field_would_be_found():
    import kubernetes_validate

    deployment = base()["Deployment"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.32", strict=True)


@needs_validator
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_and_its_own_kinds_are_valid(overlay: str):
    import kubernetes_validate

    custom = {"ScaledObject", "PodMonitor", "PrometheusRule"}
    for document in rendered(overlay):
        if document["kind"] not in custom:
            kubernetes_validate.validate(document, "1.32", strict=True)


@pytest.mark.parametrize("file", sorted(KUBERNETES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_a_file_is_yaml_without_repeated_keys(file: Path):
    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), keys
        return dict(loader.construct_pairs(node, deep=True))

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert list(yaml.load_all(file.read_text(), Strict))


def test_every_variable_names_a_setting_that_exists():
    names = set(base()["ConfigMap"]["data"])
    gpu = yaml.safe_load((KUBERNETES / "overlays/gpu/deployment.yaml").read_text())
    names |= {variable["name"] for variable in gpu["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert [name for name in sorted(names - SPECIAL) if not names_a_setting(name)] == []
    assert all(name.startswith(ENV_PREFIX) for name in names)


def test_every_secret_file_names_a_setting_that_exists():
    example = yaml.safe_load((KUBERNETES / "secret.example.yaml").read_text())
    assert [name for name in example["stringData"] if not names_a_setting(ENV_PREFIX + name.upper())] == []
    resources = yaml.safe_load((KUBERNETES / "base/kustomization.yaml").read_text())["resources"]
    assert not any("secret" in name for name in resources)


def test_the_pod_meets_the_restricted_standard_that_its_namespace_enforces():
    pod = base()["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert not any(key in pod for key in ("hostNetwork", "hostPID", "hostIPC"))
    assert "ports" in container
    assert all("hostPort" not in port for port in container["ports"])
    assert base()["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_grace_period_is_the_drain_and_a_quarter_of_a_minute():
    pod = base()["Deployment"]["spec"]["template"]["spec"]
    drain = int(base()["ConfigMap"]["data"]["STREAM_SENTIMENT_WORKER__DRAIN_TIMEOUT"].removesuffix("s"))
    assert pod["terminationGracePeriodSeconds"] == drain + 15
    assert "lifecycle" not in pod["containers"][0]


def test_only_its_own_loops_decide_whether_a_pod_is_restarted():
    container = base()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["startupProbe"]["httpGet"]["path"] == "/startupz"
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300
    stall = Settings.model_fields["worker"].annotation.model_fields["stall_timeout"].default  # type: ignore[union-attr]
    assert stall.total_seconds() >= 30


def test_nobody_but_prometheus_comes_in_and_only_names_kafka_and_redis_go_out():
    policy = base()["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [9464]
    assert all(rule["from"] for rule in policy["ingress"])
    assert all(rule["to"] for rule in policy["egress"])
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 9092, 9093, 6379}


def test_the_gpu_overlay_asks_for_one_gpu_and_refuses_to_run_without():
    container = worker_of(rendered("gpu"))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "STREAM_SENTIMENT_MODEL__DEVICE", "value": "cuda"} in container["env"]
    assert container["image"].endswith("-gpu")


def test_the_autoscaler_never_goes_to_zero_and_watches_the_groups_own_lag():
    scaled = yaml.safe_load((KUBERNETES / "overlays/keda/scaledobject.yaml").read_text())["spec"]
    config = base()["ConfigMap"]["data"]
    (trigger,) = scaled["triggers"]
    assert scaled["minReplicaCount"] >= 1
    assert trigger["metadata"]["consumerGroup"] == config["STREAM_SENTIMENT_KAFKA__GROUP_ID"]
    assert trigger["metadata"]["bootstrapServers"] == config["STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS"]
    assert trigger["metadata"]["excludePersistentLag"] == "true"
    down = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 300


def test_rules_and_dashboards_for_the_operator_are_those_of_the_other_folders():
    spec = importlib.util.spec_from_file_location("operator_rules", KUBERNETES / "overlays/monitoring/rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = KUBERNETES / "overlays/monitoring"
    hint = "run: python deploy/kubernetes/overlays/monitoring/rules.py"
    assert (folder / "prometheusrule.yaml").read_text() == module.prometheus_rule(), hint
    assert (folder / "dashboards.yaml").read_text() == module.dashboards(), hint


def test_the_job_label_is_the_one_that_the_alerts_name():
    monitor = yaml.safe_load((KUBERNETES / "overlays/monitoring/podmonitor.yaml").read_text())
    labels = base()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels[monitor["spec"]["jobLabel"]] == "stream-sentiment"
