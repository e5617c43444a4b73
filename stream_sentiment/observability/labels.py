"""Every enumerated label value. Closed sets: a value that is not here cannot become a series."""

from __future__ import annotations

from enum import StrEnum


class EventKind(StrEnum):
    """What a consumed record is."""

    CHAT = "chat"
    REVIEW = "review"
    HEARTBEAT = "heartbeat"


class Outcome(StrEnum):
    """The one end of each consumed record; the sum over outcomes equals the records consumed."""

    SCORED = "scored"
    SKIPPED = "skipped"
    DEAD_LETTERED = "dead_lettered"
    DUPLICATE = "duplicate"
    STALE = "stale"


class Invalid(StrEnum):
    """Why a record cannot be an event: `events.incoming.InvalidReason`, which a test compares with this."""

    JSON = "json"
    ENCODING = "encoding"
    SCHEMA = "schema"
    TOO_LARGE = "too_large"
    UNSUPPORTED_VERSION = "unsupported_version"
    FRAMING = "framing"
    CONTENT_ENCODING = "content_encoding"


class Skipped(StrEnum):
    """Why a valid event is not scored: `events.incoming.SkippedReason`, and the roles that are never scored."""

    TOMBSTONE = "tombstone"
    UNSUPPORTED_EVENT_TYPE = "unsupported_event_type"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"
    LANGUAGE_UNSUPPORTED = "language_unsupported"
    EMPTY_TEXT = "empty_text"
    NOT_A_CUSTOMER = "not_a_customer"


class DeadLetter(StrEnum):
    """Class of a dead letter. decode, schema and too_large are the producer's doing; the other two are ours."""

    DECODE = "decode"
    SCHEMA = "schema"
    TOO_LARGE = "too_large"
    POISON_MODEL = "poison_model"
    STATE_CONFLICT = "state_conflict"


class DeadLetterResult(StrEnum):
    """failed: refused by the broker for now; the entry stays in the outbox and is sent again."""

    ACK = "ack"
    FAILED = "failed"


class TruncatedBy(StrEnum):
    CHARS = "chars"
    TOKENS = "tokens"


class SkewDirection(StrEnum):
    FUTURE = "future"
    PAST = "past"


class Stage(StrEnum):
    """A step of the road, timed once per batch."""

    POLL = "poll"
    DECODE = "decode"
    TOKENIZE = "tokenize"
    QUEUE = "queue"
    INFER = "infer"
    STATE = "state"
    PRODUCE = "produce"
    COMMIT = "commit"


class ConsumerState(StrEnum):
    """What the poll thread, which owns the Kafka consumer, is doing."""

    POLL = "poll"
    WORK = "work"
    BACKPRESSURE = "backpressure"
    DLQ = "dlq"
    CALLBACK = "callback"
    COMMIT = "commit"
    IDLE = "idle"


class PipelineThread(StrEnum):
    """The threads behind the poll thread."""

    SCORE = "score"
    APPLY = "apply"


class ThreadState(StrEnum):
    """What a pipeline thread is doing: waiting for input or output, or one of its own steps.

    infer: the apply thread waits for the model, which runs on a pool of its own. store: it waits for Redis.
    publish: it waits for Kafka to take the scored events.
    """

    WAIT_INPUT = "wait_input"
    WAIT_OUTPUT = "wait_output"
    TOKENIZE = "tokenize"
    INFER = "infer"
    FOLD = "fold"
    STORE = "store"
    PUBLISH = "publish"
    WORK = "work"


class FlushTrigger(StrEnum):
    """Why a batch was closed."""

    SIZE = "size"
    TOKENS = "tokens"
    TIME = "time"
    DRAIN = "drain"
    REVOKE = "revoke"


class InferenceError(StrEnum):
    OOM = "oom"
    PROVIDER = "provider"
    SHAPE = "shape"
    OTHER = "other"


class RedisOp(StrEnum):
    """A round trip to Redis."""

    APPLY = "apply"
    READ = "read"
    PING = "ping"
    ACQUIRE = "acquire"
    FORGET = "forget"


class RedisError(StrEnum):
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    READONLY = "readonly"
    OOM = "oom"
    NOSCRIPT = "noscript"
    LOADING = "loading"
    OTHER = "other"


class StateResult(StrEnum):
    """What the store did with a folded event."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    STALE = "stale"
    EXPIRED = "expired"


class Dependency(StrEnum):
    """What the pipeline stops for. Kafka is not among them: its client retries, and failed deliveries are counted."""

    REDIS = "redis"


class PredictionHead(StrEnum):
    """A head that gives a message one label."""

    POLARITY = "polarity"
    EMOTION = "emotion"


class Distribution(StrEnum):
    """What of the predictions is compared with the reference."""

    LABELS = "labels"
    CONFIDENCE = "confidence"


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class EscalationAction(StrEnum):
    OPENED = "opened"
    UPDATED = "updated"
    RESOLVED = "resolved"


class ProduceResult(StrEnum):
    ACK = "ack"
    ERROR = "error"
    TIMEOUT = "timeout"


class Rebalance(StrEnum):
    ASSIGN = "assign"
    REVOKE = "revoke"
    LOST = "lost"


class CommitResult(StrEnum):
    OK = "ok"
    RETRY = "retry"
    FENCED = "fenced"
    FAILED = "failed"


class HeartbeatStage(StrEnum):
    """How far the newest canary event has come."""

    CONSUMED = "consumed"
    APPLIED = "applied"


class ReloadResult(StrEnum):
    """What became of a changed rule file. refused: the rules before it stay in force."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


class TimerResult(StrEnum):
    """What was found where a timer fell due.

    obsolete: nothing is due any more, by other rules or because the state has expired. failed: looked at again an hour later.
    """

    FIRED = "fired"
    OBSOLETE = "obsolete"
    FAILED = "failed"


class SwapResult(StrEnum):
    """What became of a changed model bundle. refused: the model before it stays in force. rolled_back: it failed after the switch."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


class ShadowResult(StrEnum):
    """What became of a message of the shadow model's share."""

    COMPARED = "compared"
    DROPPED = "dropped"
    FAILED = "failed"


class ShadowHead(StrEnum):
    """The heads that a shadow model is compared in."""

    POLARITY = "polarity"
    EMOTION = "emotion"
    SIGNALS = "signals"
