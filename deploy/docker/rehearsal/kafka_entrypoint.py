"""Start Kafka with KAFKA_SOME_SETTING as some.setting, as the official image does; formats an empty data directory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

NOT_SETTINGS = {"KAFKA_HEAP_OPTS"}


def main() -> None:
    settings = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in os.environ.items()
        if name.startswith("KAFKA_") and name not in NOT_SETTINGS
    }
    configuration = Path("/tmp/server.properties")  # noqa: S108 (inside a container)
    configuration.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    java = ["java", *os.environ.get("KAFKA_HEAP_OPTS", "").split(), "-cp", "/opt/kafka/libs/*"]
    format_command = ["kafka.tools.StorageTool", "format", "-t", "cmVoZWFyc2FsLWNsdXN0ZQ", "-c", str(configuration)]
    subprocess.run([*java, *format_command, "--ignore-formatted"], check=True)
    os.execvp("java", [*java, "kafka.Kafka", str(configuration)])  # noqa: S606 (the container is one process)


if __name__ == "__main__":
    main()
