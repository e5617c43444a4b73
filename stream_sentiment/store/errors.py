"""What a call to Redis may raise: try again later, or ask a person. Nothing else leaves this package.

`StoreUnavailable` never means that a write did not happen: its reply may be what was lost. Every write is therefore one that
can be sent again with the same arguments (docs/delivery.md, step 4).
"""

from __future__ import annotations

from enum import StrEnum

from stream_sentiment.errors import ConfigurationError, ServiceUnavailable


class StoreFault(StrEnum):
    """Why Redis did not answer; the values are the label `kind` of the metric redis_errors_total."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    READONLY = "readonly"
    OOM = "oom"
    NOSCRIPT = "noscript"
    LOADING = "loading"
    OTHER = "other"


class StoreUnavailable(ServiceUnavailable):
    """Redis did not answer, or cannot take writes now: hold the batch and send the same call again."""

    def __init__(self, fault: StoreFault, detail: str) -> None:
        super().__init__(f"Redis is unavailable ({fault}): {detail}")
        self.fault = fault


class StoreRefused(ConfigurationError):
    """Redis answers and says no (credentials, ACL, a key of a foreign type): trying again cannot help."""


class Fenced(Exception):
    """Another owner has taken the partition since: drop what is cached for it and acquire again, or let it go."""

    def __init__(self, stored_token: str) -> None:
        super().__init__(f"the partition belongs to token {stored_token or '(none)'}")
        self.stored_token = stored_token
