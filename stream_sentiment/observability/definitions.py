"""The kinds of metric a table can define, each as a typed descriptor.

In: name (from the attribute), type, labels, help, buckets. Out: on `Metrics` instances, typed
prometheus_client children. Pure until `create` is called with a registry; nothing is registered at import.
Raises ValueError for a label value count that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Generic, TypeVar, cast, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from stream_sentiment.clock import Clock
from stream_sentiment.observability.phases import StateTimes

PREFIX = "stream_sentiment_"

T = TypeVar("T")
Child = TypeVar("Child")


class Kind(StrEnum):
    """Prometheus type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Domain(StrEnum):
    """Label values that are known only at run time but are few: they come from settings, rules and the
    model's manifest.

    `Metrics.declare(domain, values)` creates their children at 0, so that `rate()` has no missing first
    increase.
    """

    INPUT_TOPIC = "input topic"
    OUTPUT_TOPIC = "output topic"
    PARTITION = "input partition; the series go when it is revoked"
    RULE = "rule id"
    CORRECTION = "correction rule id"
    LABEL = "label of the model's manifest"
    LANGUAGE = "language of the manifest's reference"
    TEXT = "free, one value per process"
    BROKER = "broker, host:port"
    EVENT = "log event name"
    CONDITION = "readiness condition"


@dataclass(frozen=True, slots=True)
class Label:
    """A label and the values it may take: an enumeration, or a domain filled in at run time."""

    name: str
    values: type[StrEnum] | Domain


class Labelled(Generic[Child]):
    """A metric with labels. `labels(...)` returns the child and remembers it: about 0.1 µs, against 1.2 µs in
    the client.
    """

    def __init__(self, make: Callable[..., Child], discard: Callable[..., None], label_names: tuple[str, ...]) -> None:
        self._make = make
        self._discard = discard
        self._children: dict[tuple[object, ...], Child] = {}
        self.label_names = label_names

    def labels(self, *values: object) -> Child:
        """The child for these label values, in the order of the definition."""
        child = self._children.get(values)
        if child is None:
            # 3 and "3" are one series, so they must be one child.
            names = tuple(str(value) for value in values)
            child = self._children.get(names)
            if child is None:
                child = self._children[names] = self._make(*names)
            self._children[values] = child
        return child

    def known(self) -> list[tuple[str, ...]]:
        """Label values of every child made so far."""
        return list(dict.fromkeys(tuple(str(value) for value in values) for values in list(self._children)))

    def remove(self, *values: object) -> None:
        """Forget one child; its series leaves the next scrape. Unknown values are ignored."""
        wanted = tuple(str(value) for value in values)
        for key in [key for key in list(self._children) if tuple(str(part) for part in key) == wanted]:
            del self._children[key]
        self._discard(*wanted)


class Age:
    """A gauge in seconds that grows by itself: now minus the time it was given, 0 while there is nothing to
    wait for.

    A worker that hangs cannot report that it hangs; an age read at scrape time still tells.
    """

    __slots__ = ("_clock", "_since_ms")

    def __init__(self, gauge: Gauge, clock: Clock) -> None:
        self._clock = clock
        self._since_ms: int | None = None
        gauge.set_function(self.seconds)

    def since(self, timestamp_ms: int | None) -> None:
        """Count from this wall time in milliseconds since the epoch; None: nothing is waiting, the age is 0."""
        self._since_ms = timestamp_ms

    def seconds(self) -> float:
        """The age now; never negative, whatever the clocks of the producers say."""
        since = self._since_ms
        return 0.0 if since is None else max(0.0, (self._clock.now_ms() - since) / 1000)


class Definition(Generic[T]):
    """One row of the table. As a class attribute it is the definition, on an instance the live metric of type
    T.
    """

    def __init__(
        self,
        kind: Kind,
        help_text: str,
        labels: tuple[Label, ...],
        create: Callable[[Definition[T], CollectorRegistry, Clock], T],
        buckets: tuple[float, ...] = (),
    ) -> None:
        self.kind = kind
        self.help = help_text
        self.labels = labels
        self.buckets = buckets
        self._create = create
        self.name = ""

    def __set_name__(self, owner: type[object], name: str) -> None:
        self.name = name

    @property
    def full_name(self) -> str:
        """The name on /metrics."""
        return PREFIX + self.name

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    def create(self, registry: CollectorRegistry, clock: Clock) -> T:
        """Register the metric and create the children whose label values are all enumerated."""
        metric = self._create(self, registry, clock)
        if self.labels:
            declare(metric, self.labels, {})
        return metric

    @overload
    def __get__(self, instance: None, owner: type[object]) -> Definition[T]: ...
    @overload
    def __get__(self, instance: object, owner: type[object]) -> T: ...
    def __get__(self, instance: object | None, owner: type[object]) -> Definition[T] | T:
        # A non-data descriptor: Metrics puts the live metric under the same name into the instance's
        # __dict__, which wins.
        return self


def declare(metric: object, labels: tuple[Label, ...], known: dict[Domain, Sequence[str]]) -> None:
    """Create the children of `metric` for all combinations of enumerated and known label values, if all are
    known.
    """
    if not isinstance(metric, Labelled):
        return
    axes: list[Sequence[str]] = []
    for label in labels:
        if isinstance(label.values, Domain):
            if label.values not in known:
                return
            axes.append(known[label.values])
        else:
            axes.append([str(member) for member in label.values])
    for values in product(*axes):
        metric.labels(*values)


def _labelled(parent: Counter | Gauge | Histogram, names: tuple[str, ...]) -> Labelled[object]:
    return Labelled(parent.labels, parent.remove, names)


def counter(help_text: str) -> Definition[Counter]:
    """A counter without labels."""
    return Definition(
        Kind.COUNTER, help_text, (), lambda d, registry, _: Counter(d.full_name, d.help, registry=registry)
    )


def counters(help_text: str, *labels: Label) -> Definition[Labelled[Counter]]:
    """A counter with labels."""

    def create(d: Definition[Labelled[Counter]], registry: CollectorRegistry, _: Clock) -> Labelled[Counter]:
        parent = Counter(d.full_name, d.help, d.label_names, registry=registry)
        return cast(Labelled[Counter], _labelled(parent, d.label_names))

    return Definition(Kind.COUNTER, help_text, labels, create)


def gauge(help_text: str) -> Definition[Gauge]:
    """A gauge without labels."""
    return Definition(Kind.GAUGE, help_text, (), lambda d, registry, _: Gauge(d.full_name, d.help, registry=registry))


def gauges(help_text: str, *labels: Label) -> Definition[Labelled[Gauge]]:
    """A gauge with labels."""

    def create(d: Definition[Labelled[Gauge]], registry: CollectorRegistry, _: Clock) -> Labelled[Gauge]:
        parent = Gauge(d.full_name, d.help, d.label_names, registry=registry)
        return cast(Labelled[Gauge], _labelled(parent, d.label_names))

    return Definition(Kind.GAUGE, help_text, labels, create)


def age(help_text: str) -> Definition[Age]:
    """A gauge in seconds since a given moment, read at scrape time."""
    return Definition(
        Kind.GAUGE,
        help_text,
        (),
        lambda d, registry, clock: Age(Gauge(d.full_name, d.help, registry=registry), clock),
    )


def ages(help_text: str, *labels: Label) -> Definition[Labelled[Age]]:
    """Ages with labels."""

    def create(d: Definition[Labelled[Age]], registry: CollectorRegistry, clock: Clock) -> Labelled[Age]:
        parent = Gauge(d.full_name, d.help, d.label_names, registry=registry)
        return Labelled(lambda *values: Age(parent.labels(*values), clock), parent.remove, d.label_names)

    return Definition(Kind.GAUGE, help_text, labels, create)


def histogram(help_text: str, buckets: tuple[float, ...]) -> Definition[Histogram]:
    """A histogram without labels."""

    def create(d: Definition[Histogram], registry: CollectorRegistry, _: Clock) -> Histogram:
        return Histogram(d.full_name, d.help, buckets=d.buckets, registry=registry)

    return Definition(Kind.HISTOGRAM, help_text, (), create, buckets)


def histograms(help_text: str, buckets: tuple[float, ...], *labels: Label) -> Definition[Labelled[Histogram]]:
    """A histogram with labels."""

    def create(d: Definition[Labelled[Histogram]], registry: CollectorRegistry, _: Clock) -> Labelled[Histogram]:
        parent = Histogram(d.full_name, d.help, d.label_names, buckets=d.buckets, registry=registry)
        return cast(Labelled[Histogram], _labelled(parent, d.label_names))

    return Definition(Kind.HISTOGRAM, help_text, labels, create, buckets)


def state_times(help_text: str, states: type[StrEnum], threads: type[StrEnum] | None = None) -> Definition[StateTimes]:
    """A counter of seconds per state of one thread, or of several with a label `thread`."""
    labels = (Label("state", states),) if threads is None else (Label("thread", threads), Label("state", states))

    def create(d: Definition[StateTimes], registry: CollectorRegistry, _: Clock) -> StateTimes:
        names = ("",) if threads is None else tuple(str(thread) for thread in threads)
        return StateTimes(d.full_name, d.help, names, tuple(str(state) for state in states), registry)

    return Definition(Kind.COUNTER, help_text, labels, create)
