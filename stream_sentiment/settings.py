"""Every setting of the program, typed, with its unit, default and bounds.

Sources, the first that names a field wins: command-line options, environment (`STREAM_SENTIMENT_KAFKA__GROUP_ID`), secret files
(`STREAM_SENTIMENT_SECRETS_DIR`, one file a field, named `kafka__sasl_password`), the file that `STREAM_SENTIMENT_CONFIG` names (YAML
or TOML), the defaults here. `load_settings` raises `ConfigurationError` with *all* mistakes at once.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)

from stream_sentiment.errors import ConfigurationError

ENV_PREFIX = "STREAM_SENTIMENT_"
CONFIG_VARIABLE = "STREAM_SENTIMENT_CONFIG"
SECRETS_VARIABLE = "STREAM_SENTIMENT_SECRETS_DIR"

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: object) -> object:
    """`"500ms"`, `"10s"`, `"15m"`, `"24h"`, `"7d"` or a number of seconds, as a timedelta; anything else is left to pydantic."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return timedelta(seconds=value)
    if isinstance(value, str):
        match = _DURATION.match(value)
        if match:
            return timedelta(seconds=float(match[1]) * _UNIT_SECONDS[match[2]])
        try:
            return timedelta(seconds=float(value))
        except ValueError:
            raise ValueError(f"{value!r} is no duration; write for example 500ms, 10s, 15m, 24h or 7d") from None
    return value


def format_duration(value: timedelta) -> str:
    """The shortest exact form that `parse_duration` reads back."""
    milliseconds = round(value.total_seconds() * 1000)
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


class GroupProtocol(StrEnum):
    AUTO = "auto"
    CONSUMER = "consumer"
    CLASSIC = "classic"


class MissingWatermarkPolicy(StrEnum):
    """What to do when the group has committed offsets but Redis has no watermark: Redis was wiped or is the wrong one."""

    FAIL = "fail"
    CONTINUE = "continue"
    REWIND = "rewind"


#: Settings of librdkafka that would break the guarantee, load code, or run a shell.
FORBIDDEN_KAFKA_SETTINGS = {
    "plugin.library.paths": "it loads shared libraries",
    "sasl.kerberos.kinit.cmd": "it runs a shell command",
    "ssl.engine.location": "it loads a shared library",
    "enable.auto.commit": "commits follow the watermark only",
    "enable.auto.offset.store": "commits follow the watermark only",
    "group.id": "set kafka.group_id",
    "isolation.level": "input is always read committed",
    "bootstrap.servers": "set kafka.bootstrap_servers",
    "transactional.id": "it is derived from group, topic and partition",
    "enable.ssl.certificate.verification": "certificates are always verified; name your authority in kafka.ssl_ca_location",
    "ssl.endpoint.identification.algorithm": "the host name is always verified",
    "debug": "it writes credentials and records to the log",
}


class KafkaSettings(_Section):
    """How to reach Kafka, and how to read from it."""

    bootstrap_servers: str = Field("localhost:9092", min_length=1, description="host:port, separated by commas")
    group_id: str = Field(
        "stream-sentiment",
        min_length=1,
        max_length=200,
        description="consumer group; also part of every Redis key",
    )
    group_protocol: GroupProtocol = Field(
        GroupProtocol.AUTO,
        description="auto: KIP-848 where the broker has it, else classic with cooperative-sticky",
    )
    remote_assignor: Literal["uniform", "range"] | None = Field(
        None,
        description="who shares out the partitions under KIP-848: range shares each topic by itself, uniform all together; "
        "unset: the broker's choice",
    )
    group_instance_id: str | None = Field(None, description="static membership; leave unset with autoscaling")
    client_id: str = Field("stream-sentiment", min_length=1)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: Path | None = Field(None, description="PEM file of the certificate authority")
    ssl_certificate_location: Path | None = Field(None, description="PEM file of the client certificate")
    ssl_key_location: Path | None = Field(None, description="PEM file of the client key")
    ssl_key_password: SecretStr | None = None
    session_timeout: Duration = Field(timedelta(seconds=45), ge=timedelta(seconds=1), le=timedelta(minutes=30))
    max_poll_interval: Duration = Field(timedelta(minutes=5), ge=timedelta(seconds=5), le=timedelta(hours=1))
    start_from: Literal["earliest", "latest"] = Field(
        "earliest", description="where a group without commits and without a watermark starts"
    )
    extra: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="further librdkafka settings, by their own names; may hold secrets",
    )

    @field_validator("group_id")
    @classmethod
    def _group_fits_into_a_redis_hash_tag(cls, value: str) -> str:
        if "{" in value or "}" in value:
            raise ValueError("must not contain { or }: it is part of a Redis hash tag")
        return value

    @field_validator("extra")
    @classmethod
    def _no_forbidden_settings(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in FORBIDDEN_KAFKA_SETTINGS:
                raise ValueError(f"{name} may not be set: {FORBIDDEN_KAFKA_SETTINGS[name]}")
            if name.startswith("test.mock."):
                raise ValueError(f"{name} may not be set: it replaces the cluster by a mock")
        return value

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> Self:
        if self.security_protocol.startswith("SASL") and self.sasl_mechanism is None:
            raise ValueError(f"sasl_mechanism is needed with security_protocol {self.security_protocol}")
        if self.sasl_mechanism in {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} and not (
            self.sasl_username and self.sasl_password
        ):
            raise ValueError(f"sasl_username and sasl_password are needed with sasl_mechanism {self.sasl_mechanism}")
        return self


class TopicSettings(_Section):
    """Topic names. Set an input topic to an empty string to leave it out."""

    chat_messages: str = "chat.messages"
    product_reviews: str = "product.reviews"
    scored: str = Field("sentiment.scored", min_length=1)
    conversation_state: str = Field("conversation.state", min_length=1)
    escalations: str = Field("escalation.events", min_length=1)
    dead_letters: str = Field("sentiment.dlq", min_length=1)

    @model_validator(mode="after")
    def _inputs_and_outputs_differ(self) -> Self:
        if not self.inputs():
            raise ValueError("chat_messages and product_reviews are both empty: there is nothing to read")
        names = [*self.inputs(), self.scored, self.conversation_state, self.escalations, self.dead_letters]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is used twice; every topic needs a name of its own")
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", name):
                raise ValueError(f"{name!r} is no topic name: 1 to 249 of A-Z a-z 0-9 . _ -")
        return self

    def inputs(self) -> dict[str, str]:
        """Input topic -> kind of the events in it (chat, review)."""
        pairs = ((self.chat_messages, "chat"), (self.product_reviews, "review"))
        return {topic: kind for topic, kind in pairs if topic}


class RedisSettings(_Section):
    """Where conversation state, watermarks and the outbox live. The server must run with maxmemory-policy noeviction."""

    url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        description="redis://, rediss:// (TLS), unix://, redis+sentinel://host:26379,host:26379/master-name/0 or rediss+sentinel://",
    )
    cluster: bool = Field(False, description="true when the URL leads to a Redis Cluster")
    prefix: str = Field("ss", pattern=r"^[A-Za-z0-9._:-]{1,40}$", description="first part of every key")
    timeout: Duration = Field(
        timedelta(seconds=1),
        ge=timedelta(milliseconds=50),
        le=timedelta(seconds=30),
        description="of one call",
    )
    ssl_ca_location: Path | None = Field(None, description="PEM file of the certificate authority; unset: the system's")
    ssl_certificate_location: Path | None = Field(None, description="PEM file of the client certificate")
    ssl_key_location: Path | None = Field(None, description="PEM file of the client key")
    missing_watermark: MissingWatermarkPolicy = Field(
        MissingWatermarkPolicy.FAIL,
        description="Redis has no watermark though the group has commits: fail; continue from the commit with empty state; "
        "rewind to the oldest offset and fold again",
    )
    ignore_partition_count: bool = Field(
        False,
        description="start even though a topic's partition count changed (state of moved keys is stranded)",
    )

    @model_validator(mode="after")
    def _tls_files_go_with_tls(self) -> Self:
        given = [name for name in ("ca", "certificate", "key") if getattr(self, f"ssl_{name}_location") is not None]
        scheme = self.url.get_secret_value().partition(":")[0]
        if given and not scheme.startswith("rediss"):
            raise ValueError(
                f"ssl_{given[0]}_location is set and url is {scheme}://, which is not encrypted; use rediss://"
            )
        if (self.ssl_certificate_location is None) != (self.ssl_key_location is None):
            raise ValueError("ssl_certificate_location and ssl_key_location go together")
        return self


class ModelSettings(_Section):
    """The model bundle and what runs it."""

    path: Path | None = Field(None, description="bundle directory; unset: the bundle that comes with the package")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda refuses to start without CUDA; auto falls back to cpu"
    )
    threads: int | None = Field(
        None, ge=1, le=256, description="inference threads; unset: the CPUs this process may use"
    )
    token_budget: int = Field(256, ge=32, le=131_072, description="tokens (padding included) in one micro-batch")
    watch: Duration = Field(
        timedelta(seconds=5),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="how often a running worker looks for a changed bundle at model.path; 0: only on SIGHUP",
    )
    shadow: Path | None = Field(
        None, description="bundle of a second model that scores a share silently and is compared with the first"
    )
    shadow_share: float = Field(0.1, ge=0, le=1, description="share of the messages that the second model scores")
    drift_window: int = Field(
        2_000, ge=10, le=100_000, description="messages of a language that are compared with the bundle's reference"
    )
    drift_minimum: int = Field(500, ge=10, le=100_000, description="messages below which nothing is said about drift")
    stub: bool = Field(False, description="score without a model, for measuring the rest; never in production")

    @model_validator(mode="after")
    def _the_window_can_reach_the_minimum(self) -> Self:
        if self.drift_minimum > self.drift_window:
            raise ValueError(f"drift_minimum {self.drift_minimum} is more than drift_window {self.drift_window} holds")
        return self


class CorrectionSettings(_Section):
    """Rules after the model: docs/corrections.md."""

    enabled: bool = Field(True, description="false: what the model says is what is published")
    rules: dict[str, bool] = Field(
        default_factory=dict, description="rule id: true or false, against what the model's manifest says"
    )
    phrases: Path | None = Field(None, description="YAML file of phrases that tenants have set to a polarity")


class RuleSettings(_Section):
    """The escalation rules."""

    path: Path | None = Field(None, description="YAML file; unset: the rules that come with the package")
    watch: Duration = Field(
        timedelta(seconds=2),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="how often a running worker looks for a changed file; 0: only on SIGHUP",
    )


class IntakeSettings(_Section):
    """Reading, decoding and batching of input events."""

    window_events: int = Field(512, ge=1, le=65_536, description="events in one arrival window at most")
    window_bytes: int = Field(4 << 20, ge=1 << 16, le=1 << 30, description="bytes in one arrival window at most")
    window_wait: Duration = Field(
        timedelta(milliseconds=20),
        ge=timedelta(0),
        le=timedelta(seconds=10),
        description="oldest event waits at most",
    )
    windows_in_flight: int = Field(
        4, ge=1, le=64, description="windows between intake and Redis; beyond that intake holds, then pauses"
    )
    hold: Duration = Field(
        timedelta(seconds=1),
        ge=timedelta(0),
        le=timedelta(seconds=60),
        description="back-pressure: hold this long before pausing partitions",
    )
    max_event_bytes: int = Field(256 * 1024, ge=1024, le=16 << 20, description="larger records are dead letters")
    max_text_chars: int = Field(10_000, ge=1, le=100_000, description="longer texts are cut and marked")
    languages: tuple[str, ...] = Field(
        ("zh", "en"), min_length=1, description="primary language subtags that the model scores"
    )
    default_language: str = Field("", description="language of events that name none; empty: guessed from the script")


class OutputSettings(_Section):
    """What is published, and how."""

    scored: bool = Field(True, description="publish sentiment.scored")
    conversation_state: bool = Field(True, description="publish conversation.state")
    exactly_once: bool = Field(
        False,
        description="one fenced transactional producer per input partition for escalations and dead letters",
    )
    delivery_timeout: Duration = Field(timedelta(seconds=30), ge=timedelta(seconds=1), le=timedelta(minutes=10))
    linger: Duration = Field(timedelta(milliseconds=5), ge=timedelta(0), le=timedelta(seconds=1))
    excerpts: bool = Field(False, description="masked excerpts of at most 120 characters in escalations")
    dead_letter_bodies: bool = Field(True, description="false: only the hash of a dead letter's value is kept")


class WorkerSettings(_Section):
    """The process."""

    drain_timeout: Duration = Field(
        timedelta(seconds=25),
        ge=timedelta(seconds=1),
        le=timedelta(minutes=10),
        description="one deadline for a graceful stop",
    )
    timers: bool = Field(
        True,
        description="fire what falls due in a conversation (no answer, expiry) while nobody writes; "
        "false: with its next event",
    )
    timer_grace: Duration = Field(
        timedelta(seconds=2),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="a timer waits so long for an answer that is on its way",
    )
    commit_interval: Duration = Field(timedelta(seconds=1), ge=timedelta(milliseconds=100), le=timedelta(minutes=1))
    stall_timeout: Duration = Field(
        timedelta(minutes=2),
        ge=timedelta(seconds=5),
        le=timedelta(hours=1),
        description="a loop silent for longer is not live",
    )


class HttpSettings(_Section):
    """The metrics and health endpoint of one worker process."""

    host: str = Field("127.0.0.1", description="0.0.0.0 inside containers only")
    port: int = Field(
        9464,
        ge=0,
        le=65_535,
        description="0: any free port, printed at start; -n workers use port, port + 1, ...",
    )


class LogSettings(_Section):
    """Structured logs on stderr; never text of messages."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class _SecretFiles(NestedSecretsSettingsSource):
    """Secret files, one per field; absent unless a directory is named."""


class Settings(BaseSettings):
    """All settings; immutable once loaded."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        validate_default=True,
        nested_model_default_partial_update=True,
    )

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    topics: TopicSettings = Field(default_factory=TopicSettings)
    redis: RedisSettings = Field(default_factory=RedisSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    corrections: CorrectionSettings = Field(default_factory=CorrectionSettings)
    rules: RuleSettings = Field(default_factory=RuleSettings)
    intake: IntakeSettings = Field(default_factory=IntakeSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    http: HttpSettings = Field(default_factory=HttpSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: list[PydanticBaseSettingsSource] = [init_settings, env_settings]
        secrets = os.environ.get(SECRETS_VARIABLE)
        if secrets:
            if not Path(secrets).is_dir():
                raise ConfigurationError(f"{SECRETS_VARIABLE} names {secrets}, which is no directory")
            sources.append(
                _SecretFiles(
                    file_secret_settings,
                    secrets_dir=secrets,
                    secrets_prefix="",
                    env_prefix="",
                    secrets_nested_delimiter="__",
                )
            )
        config = os.environ.get(CONFIG_VARIABLE)
        if config:
            sources.append(_config_file(settings_cls, Path(config)))
        return tuple(sources)


def _config_file(settings_cls: type[BaseSettings], path: Path) -> PydanticBaseSettingsSource:
    if not path.is_file():
        raise ConfigurationError(f"{CONFIG_VARIABLE} names {path}, which is no file")
    try:
        if path.suffix in {".yaml", ".yml"}:
            return YamlConfigSettingsSource(settings_cls, yaml_file=path)
        if path.suffix == ".toml":
            return TomlConfigSettingsSource(settings_cls, toml_file=path)
    except Exception as error:  # the YAML and TOML parsers share no base class
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    raise ConfigurationError(f"{path}: the configuration file must end in .yaml, .yml or .toml")


def _unknown_environment(known: type[BaseModel]) -> list[str]:
    """Variables with our prefix that name no setting: almost always a typing mistake, which pydantic-settings passes over."""
    reserved = {CONFIG_VARIABLE, SECRETS_VARIABLE}
    problems = []
    for name in sorted(os.environ):
        upper = name.upper()
        if not upper.startswith(ENV_PREFIX) or upper in reserved or upper.startswith(ENV_PREFIX + "TEST_"):
            continue
        section, _, field = upper.removeprefix(ENV_PREFIX).lower().partition("__")
        info = known.model_fields.get(section)
        if info is None:
            if "__" in upper:
                problems.append(f"{name}: there is no section {section!r}; sections: {', '.join(known.model_fields)}")
            continue
        fields = getattr(info.annotation, "model_fields", {})
        first = field.partition("__")[0]
        if field and first not in fields:
            problems.append(f"{name}: there is no field {first!r} in {section}; fields: {', '.join(fields)}")
    return problems


def load_settings(**overrides: Any) -> Settings:
    """Settings from all sources; `overrides` are nested dictionaries by section and win over everything.

    Raises:
        ConfigurationError: with every mistake, one a line, each naming the setting as in the environment.
    """
    problems = _unknown_environment(Settings)
    settings: Settings | None = None
    try:
        settings = Settings(**overrides)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False, include_context=False):
            path = "__".join(str(part) for part in detail["loc"]) or "settings"
            name = ENV_PREFIX + path.upper()
            message = detail["msg"].removeprefix("Value error, ")
            if not any(problem.startswith(name + ":") for problem in problems):
                problems.append(f"{name}: {message}")
    except ConfigurationError:
        raise
    except Exception as error:  # SettingsError and parser errors of the sources share no base class
        problems.append(str(error))
    if problems or settings is None:
        count = len(problems)
        raise ConfigurationError(
            f"{count} mistake{'s' if count != 1 else ''} in the settings:\n" + "\n".join(f"  {p}" for p in problems)
        )
    return settings


def redacted(settings: Settings) -> dict[str, Any]:
    """The settings as JSON-able values, secrets replaced: passwords wholly, URLs only where they carry one."""
    data = settings.model_dump(mode="json")
    data["redis"]["url"] = redact_url(settings.redis.url.get_secret_value())
    secret_words = ("password", "secret", "token", "key.pem", "jaas")
    for name in data["kafka"]["extra"]:
        if any(word in name for word in secret_words):
            data["kafka"]["extra"][name] = "**********"
    return data


def redact_url(url: str) -> str:
    """`redis://user:password@host` with the password starred out."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:**********@", url)
