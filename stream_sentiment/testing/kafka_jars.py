"""The jars of Apache Kafka, resolved once by Maven into a cache directory.

In: `mvn` and `java` on PATH. Out: a directory of jars for `java -cp '<directory>/*'`. The first call downloads about 43 MB and blocks
for as long as that takes; later calls only look. Raises `ServiceUnavailable` with the reason. `STREAM_SENTIMENT_KAFKA_JARS` names a
directory to use instead; then Maven is not needed.

`python -m stream_sentiment.testing` resolves them and prints the directory (for images and CI).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from stream_sentiment.errors import ServiceUnavailable

__all__ = ["JARS_VARIABLE", "KAFKA_VERSION", "kafka_jars"]

KAFKA_VERSION = "4.1.0"
JARS_VARIABLE = "STREAM_SENTIMENT_KAFKA_JARS"

_COPY_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"

#: Seconds that Maven may take; measured 5 s with a warm and 46 s with an empty local repository.
_MAVEN_TIMEOUT_S = 600

# slf4j-simple is not needed to run, but without a binding a broker that fails to start says nothing at all.
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>stream-sentiment</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""


def kafka_jars() -> Path:
    """The directory with the jars of `KAFKA_VERSION`; downloads them when it is not there yet."""
    if named := os.environ.get(JARS_VARIABLE):
        directory = Path(named)
        if not any(directory.glob("kafka_2.13-*.jar")):
            raise ServiceUnavailable(f"{JARS_VARIABLE}={named} holds no kafka_2.13-*.jar")
        return directory
    directory = _cache_directory() / f"kafka-{KAFKA_VERSION}"
    if not directory.is_dir():
        _download(directory)
    return directory


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stream-sentiment"


def _download(target: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceUnavailable(f"mvn is not on PATH (needed once, to download Apache Kafka; or set {JARS_VARIABLE})")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Into a directory beside the target, then one rename: two runs at once, or one cut short, leave no half-filled cache.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="kafka-download-") as work:
        Path(work, "pom.xml").write_text(_POM, encoding="utf-8")
        libs = Path(work, "libs")
        # --strict-checksums: a jar whose checksum does not match is refused, not warned about.
        command = [
            maven,
            "-q",
            "-B",
            "--strict-checksums",
            _COPY_GOAL,
            "-DincludeScope=runtime",
            f"-DoutputDirectory={libs}",
        ]
        try:
            done = subprocess.run(
                command, cwd=work, capture_output=True, text=True, timeout=_MAVEN_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise ServiceUnavailable(f"Maven did not resolve Apache Kafka within {_MAVEN_TIMEOUT_S} s") from None
        if done.returncode:
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("[ERROR]")]
            raise ServiceUnavailable("Maven could not resolve Apache Kafka: " + " ".join(lines[:3]))
        try:
            libs.rename(target)
        except OSError:
            if not target.is_dir():  # else another run was faster, and its jars are as good
                raise
