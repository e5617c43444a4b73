"""The one way to Redis: a pipeline of commands, sent in one piece, sent again until a deadline while Redis cannot take it.

In: commands. Out: their replies, in order. Blocks until the deadline that the caller passes, plus at most one socket
time-out. Raises `StoreUnavailable` (try again) or `StoreRefused` (ask a person); a command may have been executed before
either is raised, and is executed twice when its reply was lost: send only what may be executed twice.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from stream_sentiment.clock import Clock, SystemClock
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.store.errors import StoreFault, StoreRefused, StoreUnavailable

Command: TypeAlias = Sequence[str | bytes | int]
Reply: TypeAlias = Any  # bytes, int, None or a list of these, as RESP2 has them

_log = logging.getLogger(__name__)

CONNECT_RETRIES: Final = 1
"""How often redis-py itself repeats an attempt to connect. Its default is ten with a growing pause, over 50 s for one call:
the loop below, which knows the deadline, does the repeating."""

FIRST_PAUSE_S: Final = 0.02
LONGEST_PAUSE_S: Final = 0.5
"""Pauses between attempts double from the first to the longest, each times a random factor in [0.5, 1]: six attempts in the
first second, about three a second after that, and workers that lost the same Redis do not come back in step."""

_TRANSIENT: Final = {
    "OOM": StoreFault.OOM,
    "READONLY": StoreFault.READONLY,
    "LOADING": StoreFault.LOADING,
    "NOSCRIPT": StoreFault.NOSCRIPT,
    "MISCONF": StoreFault.OTHER,  # the last snapshot failed (disk full): writes are refused until it works again
    "NOREPLICAS": StoreFault.OTHER,  # fewer replicas than min-replicas-to-write
    "MASTERDOWN": StoreFault.OTHER,
    "CLUSTERDOWN": StoreFault.OTHER,
    "TRYAGAIN": StoreFault.OTHER,  # a slot is moving
    "BUSY": StoreFault.OTHER,  # someone's script runs for longer than busy-reply-threshold
}
# Redis 7 begins the error with the code; Redis 6 reports what a script ran into as "ERR Error running script (...): -CODE ...".
_CODE: Final = re.compile(rf"(?:^|[ -])({'|'.join(_TRANSIENT)})\b")


_SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
_ERRORS: Final = (redis.RedisError, redis.exceptions.RedisClusterException, OSError)
_REFUSALS: Final = (
    redis.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)
_pack: Any = hiredis.pack_command  # its annotation knows one-element tuples only


class Script:
    """A Lua file beside this module. EVALSHA names it by its digest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.source = files(__package__).joinpath(name).read_text(encoding="utf-8")
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Link(Protocol):
    """What `StateStore` needs of Redis. `RedisLink` is the real one; the protocol fuzz puts its own in front."""

    def exchange(
        self,
        commands: Sequence[Command],
        deadline: float,
        again: Callable[[Command, int], Command] | None = None,
    ) -> list[Reply]:
        """Replies of the commands, in order; `deadline` is on the link's monotonic clock.

        `again(command, n)` is what is sent in place of `command` after n - 1 sendings that may have been executed, their replies lost;
        without it, the same.
        """

    def close(self) -> None:
        """Closes the connections; the link can be used again and then opens new ones."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How to reach Redis. Times in seconds; files are PEM. Credentials given here win over those in the URL."""

    url: str
    username: str | None = None
    password: str | None = None
    connect_timeout: float = 1.0
    socket_timeout: float = 1.0
    ssl_ca_certs: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None


class RedisLink:
    """A pool of connections to one Redis, to the master that Sentinel names, or to a Cluster. Safe to use from several threads."""

    def __init__(
        self,
        options: LinkOptions,
        scripts: Sequence[Script] = (),
        *,
        clock: Clock | None = None,
        on_fault: Callable[[StoreFault], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Opens no connection. `on_fault` is called once per failed attempt, from the calling thread (a metric).

        Raises ConfigurationError for a URL that names no Redis.
        """
        self._scripts = scripts
        self._clock = clock or SystemClock()
        self._on_fault = on_fault
        self._sleep = sleep
        self._options = options
        self._client: Any = None
        self._connecting = threading.Lock()
        _check(options.url)

    @property
    def client(self) -> Any:
        """The redis-py client, made at first use: that of a Cluster asks for the nodes at once, and may fail to."""
        with self._connecting:
            if self._client is None:
                self._client = _client(self._options)
            return self._client

    def exchange(
        self,
        commands: Sequence[Command],
        deadline: float,
        again: Callable[[Command, int], Command] | None = None,
    ) -> list[Reply]:
        """One round trip; more while Redis cannot take some of the commands, which alone are sent again.

        The first attempt is made even where the deadline has passed.
        """
        replies: list[Reply] = [None] * len(commands)
        pending = list(range(len(commands)))
        pause = FIRST_PAUSE_S
        scripts_loaded = False
        sending = [1] * len(commands)
        while pending:
            due = [commands[i] if again is None or sending[i] == 1 else again(commands[i], sending[i]) for i in pending]
            failure: StoreUnavailable | None = None
            unanswered: list[int] = []
            try:
                answers = self._round_trip(due)
            except _ERRORS as error:
                failure = _translate(error)
                unanswered = pending
                for i in pending:
                    sending[i] += 1
            else:
                for i, answer in zip(pending, answers, strict=True):
                    if isinstance(answer, Exception):
                        failure = _translate(answer)
                        unanswered.append(i)
                        # An error reply says that nothing was done; a Cluster's pipeline reports lost connections here, too.
                        sending[i] += not isinstance(answer, redis.ResponseError)
                    else:
                        replies[i] = answer
            pending = unanswered
            if failure is None:
                continue
            if self._on_fault is not None:
                self._on_fault(failure.fault)
            if failure.fault is StoreFault.NOSCRIPT and not scripts_loaded:
                scripts_loaded = self._load_scripts()
                continue
            if failure.fault is StoreFault.READONLY:
                # A failover made this server a replica: only a new connection asks DNS or Sentinel who the master is now.
                self.close()
            remaining = deadline - self._clock.monotonic()
            if remaining <= 0:
                raise failure
            _log.debug("redis attempt failed: %s", failure)
            self._sleep(min(pause * random.uniform(0.5, 1.0), remaining))
            pause = min(pause * 2, LONGEST_PAUSE_S)
            scripts_loaded = False
        return replies

    def info(self, deadline: float) -> dict[str, dict[str, str]]:
        """INFO of every server that takes writes: address to fields, as text."""
        client = self.client
        if not isinstance(client, RedisCluster):
            [raw] = self.exchange([("INFO",)], deadline)
            return {redact_url(self._options.url): _fields(raw)}
        try:
            servers: dict[str, dict[str, Any]] = client.info(target_nodes=RedisCluster.PRIMARIES)
        except _ERRORS as error:
            raise _translate(error) from error
        return {address: {name: str(value) for name, value in fields.items()} for address, fields in servers.items()}

    def config(self, name: str, deadline: float) -> dict[str, str]:
        """CONFIG GET of one parameter from every server that takes writes, by address; a server that does not know it is left out."""
        client = self.client
        if not isinstance(client, RedisCluster):
            [pairs] = self.exchange([("CONFIG", "GET", name)], deadline)
            return {redact_url(self._options.url): pairs[1].decode()} if pairs else {}
        try:
            found: Any = client.config_get(name, target_nodes=RedisCluster.PRIMARIES)
        except _ERRORS as error:
            raise _translate(error) from error
        return {address: str(values[name]) for address, values in found.items() if name in values}

    def close(self) -> None:
        """Drops the idle connections, so that the next call opens new ones; those in use by other threads stay."""
        with self._connecting:
            if isinstance(self._client, RedisCluster):
                self._client.close()
                self._client = None
            elif self._client is not None:
                self._client.connection_pool.disconnect(inuse_connections=False)

    def _round_trip(self, commands: Sequence[Command]) -> list[Reply]:
        client = self.client
        if isinstance(client, RedisCluster):
            pipeline: Any = client.pipeline()  # type: ignore[no-untyped-call]
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute(raise_on_error=False))
        pool = client.connection_pool
        connection = pool.get_connection()
        try:
            # One buffer, one system call: redis-py's own pipeline makes one per command (5 us of CPU per message against 3.5).
            connection.send_packed_command([b"".join([_pack(tuple(command)) for command in commands])])
            replies: list[Reply] = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except redis.ResponseError as error:
                    replies.append(error)
            return replies
        except BaseException:
            # An unread reply would answer the next caller's command.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _load_scripts(self) -> bool:
        try:
            for script in self._scripts:
                self.client.script_load(script.source)
        except _ERRORS as error:
            _translate(error)
            return False
        return True


def redact_url(url: str) -> str:
    """The URL without its password, for logs and reports."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    credentials, _, hosts = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials.partition(':')[0]}:***@{hosts}"))


def _fields(info: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in info.decode(errors="replace").splitlines() if ":" in line)
    return {name: value.strip() for name, _, value in pairs}


def _check(url: str) -> None:
    if urlsplit(url).scheme not in _SCHEMES:
        raise ConfigurationError(
            f"{redact_url(url)!r} is no Redis URL: use redis://host:6379/0, rediss:// for TLS, unix:///path, "
            "redis+sentinel://host:26379,host:26379/master-name/0 or redis+cluster://host:6379,host:6379"
        )


def _client(options: LinkOptions) -> Any:
    """A client for the URL; typed as Any, as the parts of redis-py that are used here are not annotated."""
    parts = urlsplit(options.url)
    scheme, _, mode = parts.scheme.partition("+")
    settings: dict[str, Any] = {
        "socket_timeout": options.socket_timeout,
        "socket_connect_timeout": options.connect_timeout,
        "retry": Retry(NoBackoff(), CONNECT_RETRIES),
        "protocol": 2,
    }
    for name in ("username", "password"):
        value = getattr(options, name) or (unquote(getattr(parts, name)) if getattr(parts, name) else None)
        if value:
            settings[name] = value
    if scheme != "unix":
        settings["socket_keepalive"] = True
    if scheme == "rediss":
        in_url = dict(parse_qsl(parts.query))
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if value := getattr(options, name) or in_url.get(name):
                settings[name] = value
    if not mode:
        # from_url lets the URL's credentials win; ours are in `settings`.
        bare = options.url.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1) if "@" in parts.netloc else options.url
        try:
            return redis.Redis.from_url(bare, **settings)
        except ValueError as error:
            raise ConfigurationError(f"{redact_url(options.url)!r} is no Redis URL: {error}") from error
    default_port = 26379 if mode == "sentinel" else 6379
    hosts = _hosts(parts.netloc.rpartition("@")[2], default_port, options.url)
    if scheme == "rediss":
        settings["ssl"] = True
    if mode == "cluster":
        node: Any = ClusterNode
        return RedisCluster(startup_nodes=[node(host, port) for host, port in hosts], **settings)
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ConfigurationError("a redis+sentinel:// URL ends with the master's name, e.g. .../mymaster/0")
    if database:
        settings["db"] = int(database)
    sentinel_settings = {k: v for k, v in settings.items() if k not in ("username", "password", "db")}
    make: Any = Sentinel
    sentinel = make(hosts, sentinel_kwargs=sentinel_settings, **settings)
    return sentinel.master_for(service)


def _hosts(netloc: str, default_port: int, url: str) -> list[tuple[str, int]]:
    hosts = []
    for item in netloc.split(","):
        try:
            part = urlsplit(f"//{item}")
            hosts.append((part.hostname or "localhost", part.port or default_port))
        except ValueError as error:
            raise ConfigurationError(f"{redact_url(url)!r}: {item!r} is no host:port") from error
    return hosts


def _translate(error: Exception) -> StoreUnavailable:
    """The error as one of ours; raises StoreRefused for those that trying again cannot help."""
    if isinstance(error, _REFUSALS):
        raise StoreRefused(f"Redis refuses this user: {error}. Check user, password and ACL") from error
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        raise StoreRefused(f"the certificate of Redis is not trusted: {error}. Name its CA by ssl_ca_certs") from error
    if isinstance(error, redis.ResponseError | redis.exceptions.BusyLoadingError):
        code = _code_of(error)
        if code is None:
            raise StoreRefused(f"Redis refuses the command: {error}") from error
        return _unavailable(_TRANSIENT[code], error)
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return _unavailable(StoreFault.TIMEOUT, error)
    return _unavailable(StoreFault.CONNECTION, error)


def _unavailable(fault: StoreFault, error: Exception) -> StoreUnavailable:
    failure = StoreUnavailable(fault, str(error))
    failure.__cause__ = error
    return failure


def _code_of(error: Exception) -> str | None:
    """The code of a passing condition, or None. redis-py cuts the code off where it has a class for it."""
    for kind, code in (
        (redis.exceptions.NoScriptError, "NOSCRIPT"),
        (redis.exceptions.ReadOnlyError, "READONLY"),
        (redis.exceptions.OutOfMemoryError, "OOM"),
        (redis.exceptions.BusyLoadingError, "LOADING"),
        (redis.exceptions.MasterDownError, "MASTERDOWN"),
        (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
        (redis.exceptions.TryAgainError, "TRYAGAIN"),
    ):
        if isinstance(error, kind):
            return code
    match = _CODE.search(str(error))
    return match[1] if match else None
