"""A real Kafka behind SASL_SSL with SCRAM and ACLs, and the certificates for it.

The plain-text listener of the test kit stays open on the loopback for the administrator (the tests); the worker uses the other one.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from stream_sentiment.local_process import free_port
from stream_sentiment.testing.kafka_admin import quiet
from stream_sentiment.testing.kafka_broker import KafkaBroker

USER, PASSWORD = "worker", "correct-horse-battery"


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_authority(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate authority: key and certificate."""
    key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
    _openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
        "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    return key, certificate


def make_server_store(directory: Path, authority: tuple[Path, Path]) -> Path:
    """Key and certificate for 127.0.0.1, in the PEM form that Kafka reads."""
    key, certificate = authority
    request, own, extensions = directory / "server.csr", directory / "server.pem", directory / "server.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl(
        "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1",
        "-keyout", str(directory / "server.key"), "-out", str(request),
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", str(request), "-CA", str(certificate), "-CAkey", str(key), "-CAcreateserial",
        "-days", "2", "-extfile", str(extensions), "-out", str(own),
    )  # fmt: skip
    store = directory / "keystore.pem"
    store.write_text((directory / "server.key").read_text() + own.read_text() + certificate.read_text())
    return store


class SecuredKafka(KafkaBroker):
    """`KafkaBroker` with a second listener: TLS, SCRAM-SHA-512, ACLs, nothing allowed by default."""

    def __init__(self, keystore: Path, directory: Path) -> None:
        super().__init__(
            directory=directory,
            format_options=("--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"),
        )
        self._keystore = keystore
        self.secured_port = free_port()

    @property
    def secured_servers(self) -> str:
        return f"127.0.0.1:{self.secured_port}"

    def _configuration(self) -> dict[str, str]:
        made = super()._configuration()
        secured = f"SASL_SSL://127.0.0.1:{self.secured_port}"
        return {
            **made,
            "listeners": f"{made['listeners']},{secured}",
            "advertised.listeners": f"{made['advertised.listeners']},{secured}",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._keystore),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }

    def _wait_for_leaders(self, timeout_s: float) -> None:
        super()._wait_for_leaders(max(timeout_s, 180.0))  # keys and SCRAM take a busy machine its time

    def allow(self, kind: ResourceType, name: str, *operations: AclOperation) -> None:
        """Add ACLs for the worker's user."""
        self._change(kind, name, operations, remove=False)

    def forbid(self, kind: ResourceType, name: str, *operations: AclOperation) -> None:
        """Remove them again."""
        self._change(kind, name, operations, remove=True)

    def _change(self, kind: ResourceType, name: str, operations: tuple[AclOperation, ...], *, remove: bool) -> None:
        admin = AdminClient(quiet({"bootstrap.servers": self.bootstrap_servers}))
        bindings = [
            AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation, AclPermissionType.ALLOW)
            for operation in operations
        ]
        if remove:
            from confluent_kafka.admin import AclBindingFilter

            filters = [
                AclBindingFilter(
                    kind, name, ResourcePatternType.LITERAL, f"User:{USER}", "*", operation, AclPermissionType.ALLOW
                )
                for operation in operations
            ]
            futures = admin.delete_acls(filters)
        else:
            futures = admin.create_acls(bindings)
        for future in futures.values():
            future.result(timeout=20)
