"""What a Redis is and whether it keeps its part of the guarantee: for `check` and for a worker's start.

In: a link and a scratch key. Out: a `ServerReport` with one finding per condition of docs/delivery.md that does not hold, each with its
remedy. Blocks as the link does; raises what it raises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from stream_sentiment.store.connection import RedisLink
from stream_sentiment.store.errors import StoreRefused

OLDEST_TESTED: Final = (6, 2)
FULL_SHARE: Final = 0.9
"""Above this share of maxmemory a burst of new conversations can end in refused writes, which stops every partition."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition that does not hold. A `problem` breaks the guarantee, a `warning` weakens it."""

    severity: Literal["problem", "warning"]
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One server (of a Cluster: one primary). None where Redis would not say."""

    address: str
    version: str | None
    role: str | None
    policy: str | None
    append_only: bool | None
    load_truncated: bool | None
    """aof-load-truncated. None also where this user may not run CONFIG GET, as the shipped ACL has it."""
    maxmemory: int | None
    """In bytes; 0: no limit."""
    used_memory: int | None
    findings: tuple[Finding, ...]


def describe(link: RedisLink, scratch_key: str, deadline: float) -> list[ServerReport]:
    """Writes and reads `scratch_key` (it lives for a second), asks INFO, and judges. One report per server."""
    link.exchange([("SET", scratch_key, "1", "PX", 1000), ("GET", scratch_key)], deadline)
    try:
        servers = link.info(deadline)
    except StoreRefused as error:
        finding = Finding(
            "warning", f"INFO is refused: {error}", "grant this user +info, or check the settings by hand"
        )
        return [ServerReport("", None, None, None, None, None, None, None, (finding,))]
    try:
        truncated = link.config("aof-load-truncated", deadline)
    except StoreRefused:
        truncated = {}
    return [_judge(address, info, truncated.get(address)) for address, info in servers.items()]


def _judge(address: str, info: dict[str, str], load_truncated: str | None) -> ServerReport:
    version, role, policy = info.get("redis_version"), info.get("role"), info.get("maxmemory_policy")
    append_only = None if "aof_enabled" not in info else info["aof_enabled"] == "1"
    maxmemory, used = _int(info.get("maxmemory")), _int(info.get("used_memory"))
    findings = []
    if policy not in (None, "noeviction"):
        findings.append(
            Finding(
                "problem",
                f"maxmemory-policy is {policy}: a full Redis would drop conversations and watermarks without a word",
                "CONFIG SET maxmemory-policy noeviction, and in redis.conf",
            )
        )
    if append_only is False:
        findings.append(
            Finding(
                "warning",
                "appendonly is off: a restart of Redis loses what the last snapshot does not hold, "
                "and workers redo it from Kafka",
                "appendonly yes and appendfsync everysec in redis.conf",
            )
        )
    if append_only and load_truncated == "yes":
        findings.append(
            Finding(
                "warning",
                "aof-load-truncated is yes: a file torn inside a script loads without complaint and comes back, at the second start, "
                "as half a script",
                "aof-load-truncated no in redis.conf; then Redis refuses such a file, and redis-check-aof --fix cuts it",
            )
        )
    if role == "slave":
        findings.append(
            Finding(
                "problem",
                "this server is a replica and refuses writes",
                "give the master's address, or a redis+sentinel:// URL that asks for it",
            )
        )
    if version and _release(version) < OLDEST_TESTED:
        findings.append(
            Finding(
                "warning",
                f"Redis {version} is older than the oldest tested, {'.'.join(map(str, OLDEST_TESTED))}",
                "use Redis 7 or newer, or Valkey",
            )
        )
    if maxmemory and used is not None and used > FULL_SHARE * maxmemory:
        findings.append(
            Finding(
                "warning",
                f"{used / maxmemory:.0%} of maxmemory is in use: at 100 % Redis refuses writes and every partition waits",
                "raise maxmemory, or shorten the states' time to live",
            )
        )
    return ServerReport(
        address,
        version,
        role,
        policy,
        append_only,
        None if load_truncated is None else load_truncated == "yes",
        maxmemory,
        used,
        tuple(findings),
    )


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _int(text: str | None) -> int | None:
    return int(text) if text else None
