"""Log lines as JSON, one a line, to stderr: stdout belongs to the results of commands.

In: `get_logger(component).info("event_in_snake_case", key=value)`. Out: `{"ts", "level", "event",
"component", ...}`. Never in: text of messages (fields that may hold it are dropped by name), conversation ids
(only `conv_hash`), credentials and personal data inside exception strings (masked). Writing blocks as long as
stderr does; each (event, reason) is limited to one line a second after a burst, the next line says how many
were dropped. Raises nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from stream_sentiment.observability.masking import mask

CONTENT_FIELDS = frozenset(
    {"text", "title", "body", "value", "payload", "message", "excerpt", "raw", "headers", "key", "event_data"}
)
"""Dropped whatever their value: a helpful `text=...` in a hurry must not reach a log store."""

PLAIN_FIELDS = frozenset(
    {"ts", "level", "component", "worker_id", "topic", "conv_hash", "trace_id", "model", "rules_version", "version"}
)
"""Written as they are: machine-made values in which a mask could only hit by accident."""

LINES_PER_SECOND = 1.0
BURST = 5
MAX_FRAMES = 12
"""Innermost frames of a traceback that are kept; the outer ones are always the same thread loop."""

_hash_key = secrets.token_bytes(32)
_on_suppressed: list[Callable[[str], None]] = []


def conv_hash(tenant_id: str, conversation_id: str) -> str:
    """12 hexadecimal digits of an HMAC of the conversation: to find lines of one conversation, not its id.

    The key is random per process unless `configure_logging` was given one; only then do hashes of two workers
    agree.
    """
    identity = f"{len(tenant_id)}:{tenant_id}{conversation_id}".encode()
    return hmac.new(_hash_key, identity, hashlib.sha256).hexdigest()[:12]


class RateLimit:
    """A token bucket per (event, reason). Thread-safe. Errors of a fault come by the thousand, and one a
    second is enough.
    """

    def __init__(
        self,
        per_second: float = LINES_PER_SECOND,
        burst: int = BURST,
        now: Callable[[], float] = time.monotonic,
        on_suppressed: Callable[[str], None] | None = None,
    ) -> None:
        self._rate = per_second
        self._burst = float(burst)
        self._now = now
        self.on_suppressed = on_suppressed
        self._buckets: dict[tuple[str, str], list[float]] = {}
        self._lock = threading.Lock()

    def take(self, event: str, reason: str) -> int | None:
        """Lines dropped since the last one that passed, or None: drop this one too."""
        with self._lock:
            now = self._now()
            # Reasons can come from other software: the table must not grow with them.
            if len(self._buckets) > 1000:
                self._buckets.clear()
            bucket = self._buckets.setdefault((event, reason), [self._burst, now, 0.0])
            tokens = min(self._burst, bucket[0] + (now - bucket[1]) * self._rate)
            bucket[1] = now
            if tokens < 1:
                bucket[0] = tokens
                bucket[2] += 1
                dropped = None
            else:
                bucket[0] = tokens - 1
                dropped = int(bucket[2])
                bucket[2] = 0.0
        if dropped is None and self.on_suppressed is not None:
            self.on_suppressed(event)
        return dropped

    def __call__(self, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> EventDict:
        reason = event.get("reason", event.get("fac", event.get("error_type", "")))
        dropped = self.take(str(event.get("event", "")), str(reason))
        if dropped is None:
            raise structlog.DropEvent
        if dropped:
            event["suppressed"] = dropped
        return event


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> EventDict:
    """Drop content fields, hash conversation ids, mask every other string."""
    conversation = event.pop("conversation_id", None)
    tenant = event.get("tenant_id", "")
    if conversation is not None:
        event["conv_hash"] = conv_hash(str(tenant), str(conversation))
    for name in list(event):
        if name in CONTENT_FIELDS and not isinstance(event[name], bool | int | float):
            event[name] = "<dropped>"
        elif name not in PLAIN_FIELDS:
            event[name] = _masked(event[name])
    return event


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, dict):
        return {str(name): "<dropped>" if name in CONTENT_FIELDS else _masked(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return mask(str(value))


def render_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> EventDict:
    """Replace `exc_info` by type, masked message and the innermost frames: file, line, function; never local
    values.
    """
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["error_type"] = type(error).__name__
        event["error"] = mask(str(error))
        event["trace"] = _frames(error.__traceback__)
        if error.__cause__ is not None:
            event["cause"] = mask(f"{type(error.__cause__).__name__}: {error.__cause__}")
    return event


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)[-MAX_FRAMES:]
    return [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]


def _short(filename: str) -> str:
    return "/".join(filename.replace("\\", "/").rsplit("/", 3)[1:])


def _to_json(event: Any, **_: Any) -> str:
    ordered = {name: event[name] for name in ("ts", "level", "event") if name in event} | event
    return orjson.dumps(ordered, default=lambda value: mask(str(value)), option=orjson.OPT_NON_STR_KEYS).decode()


class _Forward(logging.Handler):
    """Passes records of the standard library's loggers (redis, urllib3, librdkafka) into the same pipeline."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(component=record.name)
        fields: dict[str, Any] = {"detail": record.getMessage()}
        fac = getattr(record, "fac", None)
        if fac is not None:
            fields["reason"] = fac
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        logger.log(max(record.levelno, logging.DEBUG), "library_message", **fields)


class _LibrdkafkaLogger(logging.Logger):
    """What confluent-kafka's `logger` argument wants. Its messages read `FAC|client|[thread] text`; FAC is
    the reason.
    """

    def handle(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        record.fac = message.split(" ", 1)[0][:24]
        super().handle(record)


def kafka_logger(client: str = "kafka") -> logging.Logger:
    """A logger to give as `logger=` to confluent_kafka.Consumer or Producer: librdkafka's lines as ours,
    rate-limited.
    """
    logger = _LibrdkafkaLogger(f"librdkafka.{client}", logging.INFO)
    logger.addHandler(_Forward())
    return logger


def configure_logging(
    level: str = "info",
    format: Literal["json", "console"] = "json",
    *,
    hash_key: bytes | None = None,
    worker_id: str | None = None,
    output: TextIO | None = None,
) -> None:
    """Set up the logging of this process; call it once, in main.

    level: debug, info, warning or error. hash_key: makes `conv_hash` comparable between workers. output: default stderr.
    """
    global _hash_key
    if hash_key:
        _hash_key = hash_key
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=(output or sys.stderr).isatty())
    )
    number = logging.getLevelNamesMapping()[level.upper()]
    # Not by contextvars: threads start with an empty context, and the lines that matter come from threads.
    constant = {} if worker_id is None else {"worker_id": worker_id}

    def add_constant(_logger: Any, _method: str, event: EventDict) -> EventDict:
        return {**constant, **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            render_exception,
            RateLimit(on_suppressed=_suppressed),
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            add_constant,
            redact,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=output or sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward())
    root.setLevel(max(number, logging.WARNING))
    threading.excepthook = _log_thread_death


def count_suppressed(count: Callable[[str], None]) -> None:
    """Have `count(event)` called for each line that the rate limit drops; replaces the counter before."""
    _on_suppressed[:] = [count]


def _suppressed(event: str) -> None:
    for count in _on_suppressed:
        count(event)


def _log_thread_death(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or args.exc_value is None:
        return
    name = args.thread.name if args.thread is not None else ""
    get_logger("worker").critical("thread_died", reason=name, exc_info=args.exc_value)


def get_logger(component: str) -> FilteringBoundLogger:
    """A logger whose lines carry this component (poll, score, apply, outbox, store ...)."""
    return cast(FilteringBoundLogger, structlog.get_logger(component=component))
