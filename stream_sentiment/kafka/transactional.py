"""The outbox publisher of `output.exactly_once`: a `read_committed` consumer of the output topics sees no copies.

In: outbox entries, per epoch. Out: committed transactions; the outbox is told what is delivered or has failed. The rules
(docs/delivery.md, "Once in the topic itself"):

* one transactional producer per input partition, its id made of group, topic and partition: `init_transactions` fences the last
  owner's, so that nothing of that one can become visible any more;
* then the output topics are searched from the settled positions, and what they hold already is only forgotten, not published;
* now and then new positions are settled, so that the search stays short.

`poll` and the other methods belong to the apply thread and do not block on Kafka; producers are driven by a small pool. A producer that
is fenced or broken is told to `on_broken`: the partition is then acquired anew, or another owner has it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as KafkaPartition

from stream_sentiment.kafka.copy_search import CopySearch, Positions
from stream_sentiment.kafka.outbox_record import OutboxRecord
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.outbox import Entry, Outbox
from stream_sentiment.stages import Epoch
from stream_sentiment.store.errors import StoreUnavailable
from stream_sentiment.store.redis import ApplyOutcome, StateStore

THREADS = 4
"""A transaction costs 7 to 31 ms of waiting and next to no CPU: four at a time keep 12 partitions below 100 ms."""

ENTRIES_PER_TRANSACTION = 500
KAFKA_SECONDS = 5.0
"""One attempt of a call of the transactional producer; it is repeated while it may be."""

TRANSACTION_GRACE_MS = 10_000
"""A transaction outlives the delivery time-out of its records by so much, else the broker could end it under them."""

SETTLE_SECONDS = 30.0
"""Time between settled positions: a new owner searches the outputs of about the last minute."""

RETRY_SECONDS = 1.0

_NOT_THE_RECORDS_FAULT = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT, KafkaError._MSG_TIMED_OUT})  # noqa: SLF001
"""A purge is the consequence of an abort, a time-out that of an outage: the record goes into the next transaction."""

log = get_logger("transactional")


class ProducerBroken(Exception):
    """The producer was fenced by a newer owner, or cannot go on for another reason; a new one may."""


@dataclass(slots=True)
class _Sent:
    """How a transaction ended. `refused` are the entries that Kafka did not take, each with its reason."""

    committed: bool
    refused: list[tuple[Entry, KafkaError]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Lane:
    """The way of one epoch's entries."""

    epoch: Epoch
    transactional_id: str
    producer: Producer | None = None
    present: set[str] = field(default_factory=set)
    #: End of the input partition when the producer had been opened: events read before, in this timeline or in one that Redis lost, lie
    #: below it. Until they are applied (again), their copies may lie below any position taken now.
    barrier: int = 0
    queue: deque[Entry] = field(default_factory=deque)
    under_way: list[Entry] = field(default_factory=list)
    opening: Future[tuple[set[str], int]] | None = None
    sending: Future[_Sent] | None = None
    retry_at: float = 0.0
    mark: tuple[Positions, set[str]] | None = None
    released: bool = False

    @property
    def open(self) -> bool:
        return self.opening is None and self.producer is not None


class TransactionalPublisher:
    """`outbox.Publisher` with one fenced transactional producer per input partition."""

    def __init__(
        self,
        store: StateStore,
        outbox: Outbox,
        *,
        client_config: Mapping[str, Any],
        producer_config: Mapping[str, Any],
        group: str,
        topics: Iterable[str],
        on_broken: Callable[[Epoch, str], None],
        logger: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            client_config: addresses and security (`kafka.clients.common_config`).
            producer_config: an idempotent producer's (`kafka.clients.producer_config`).
            topics: the output topics that carry outbox entries.
            on_broken: told, on the apply thread, the epoch whose producer cannot go on, and why.
        """
        self._store = store
        self._outbox = outbox
        self._group = group
        self._on_broken = on_broken
        self._logger = logger
        self._clock = clock
        delivery_timeout_ms = int(producer_config.get("delivery.timeout.ms", 30_000))
        self._producer_config = {
            **producer_config,
            "transaction.timeout.ms": delivery_timeout_ms + TRANSACTION_GRACE_MS,
        }
        self._search = CopySearch(client_config, group, list(topics), logger)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="transactions")
        self._lanes: dict[Epoch, _Lane] = {}
        self._measuring: Future[Positions] | None = None
        self._next_settle = clock() + SETTLE_SECONDS

    # -- outbox.Publisher, on the apply thread -------------------------------------------------------------------------

    def acquire(self, epoch: Epoch, entries: Mapping[str, OutboxRecord]) -> set[str]:
        """Starts to fence and to search; entries wait in the lane until that is done."""
        topic, partition = epoch.partition
        lane = self._lanes[epoch] = _Lane(epoch, f"{self._group}:{topic}:{partition}")
        lane.opening = self._pool.submit(self._open, lane)
        return set()

    def send(self, entry: Entry) -> None:
        """Queues the entry, or reports it delivered where the topic holds it already."""
        lane = self._lanes.get(entry.epoch)
        if lane is None:
            return  # released: the next owner finds it in Redis
        if lane.open and entry.record.event_id() in lane.present:
            self._outbox.delivered(entry)
        else:
            lane.queue.append(entry)

    def poll(self, timeout: float) -> None:
        """Takes in what the pool has finished, starts transactions, settles; waits up to `timeout` where there is nothing to do."""
        self._advance()
        if timeout > 0:
            jobs: list[Future[Any]] = [
                job for lane in self._lanes.values() for job in (lane.opening, lane.sending) if job is not None
            ]
            if jobs:
                wait(jobs, timeout, FIRST_COMPLETED)
                self._advance()
            else:
                time.sleep(timeout)
        self._settle()

    def release(self, epochs: Iterable[Epoch]) -> None:
        """Transactions under way end by themselves, or are fenced; what is queued the next owner finds in Redis."""
        for epoch in epochs:
            lane = self._lanes.pop(epoch, None)
            if lane is not None:
                lane.released = True
                lane.queue.clear()
                self._pool.submit(_drop_producer, lane)

    def close(self) -> None:
        """Ends the pool; waits for transactions under way."""
        self.release(list(self._lanes))
        self._pool.shutdown(wait=True, cancel_futures=False)

    # -- the apply thread's part ---------------------------------------------------------------------------------------

    def _advance(self) -> None:
        for lane in list(self._lanes.values()):
            if lane.opening is not None and lane.opening.done():
                self._opened(lane)
            if lane.sending is not None and lane.sending.done():
                self._sent(lane)
            if lane.open and lane.sending is None and lane.queue and self._clock() >= lane.retry_at:
                lane.under_way = _next_entries(lane.queue)
                lane.sending = self._pool.submit(self._send, lane, lane.under_way)

    def _opened(self, lane: _Lane) -> None:
        job, lane.opening = lane.opening, None
        assert job is not None
        try:
            lane.present, lane.barrier = job.result()
        except ProducerBroken as error:
            self._broken(lane, str(error))
            return
        queued, lane.queue = lane.queue, deque()
        for entry in queued:
            self.send(entry)
        topic, partition = lane.epoch.partition
        log.info("producer_opened", topic=topic, partition=partition, found=len(lane.present), queued=len(lane.queue))

    def _sent(self, lane: _Lane) -> None:
        job, lane.sending = lane.sending, None
        assert job is not None
        entries, lane.under_way = lane.under_way, []
        try:
            result = job.result()
        except ProducerBroken as error:
            self._broken(lane, str(error))
            return
        if result.committed:
            for entry in entries:
                self._outbox.delivered(entry)
            return
        # The others were aborted with them: first in line again, in their order.
        refused = {entry for entry, _ in result.refused}
        lane.queue.extendleft(entry for entry in reversed(entries) if entry not in refused)
        for entry, refusal in result.refused:
            self._outbox.failed(entry, refusal)
        if not refused:
            lane.retry_at = self._clock() + RETRY_SECONDS

    def _broken(self, lane: _Lane, reason: str) -> None:
        log.warning(
            "producer_broken", topic=lane.epoch.partition.topic, partition=lane.epoch.partition.partition, reason=reason
        )
        self.release([lane.epoch])
        self._on_broken(lane.epoch, "producer_broken")

    def _settle(self) -> None:
        """Takes output positions; once all entries of that time are forgotten, stores them."""
        if self._measuring is not None:
            if not self._measuring.done():
                return
            job, self._measuring = self._measuring, None
            if job.exception() is None:
                for epoch, lane in self._lanes.items():
                    # Timers of a timeline that Redis lost are still to be redone, too.
                    redone = epoch.watermark >= lane.barrier and epoch.timers_through >= lane.barrier
                    if lane.open and lane.mark is None and redone:
                        lane.mark = (job.result(), self._outbox.unsettled(epoch))
        elif self._clock() >= self._next_settle and self._lanes:
            self._next_settle = self._clock() + SETTLE_SECONDS
            self._measuring = self._pool.submit(self._search.ends)
        for epoch, lane in list(self._lanes.items()):
            if lane.mark is not None and epoch.alive:
                self._store_mark(epoch, lane)

    def _store_mark(self, epoch: Epoch, lane: _Lane) -> None:
        assert lane.mark is not None
        positions, before = lane.mark
        known = self._outbox.unsettled(epoch)
        if before & known:
            return
        try:
            outcome = self._store.settle(
                epoch.partition, epoch.token, epoch.watermark, encode_positions(positions), known
            )
        except StoreUnavailable:
            return  # the next poll tries again
        lane.mark = None
        if outcome is ApplyOutcome.OK:
            # Copies of entries that are still to come can only be our own.
            lane.present.clear()
        else:
            self._broken(lane, f"settle: {outcome}")

    # -- the pool's part -----------------------------------------------------------------------------------------------

    def _open(self, lane: _Lane) -> tuple[set[str], int]:
        """Fences the last owner's producer, then reads what it has published; returns ids and the barrier."""
        config = {**self._producer_config, "transactional.id": lane.transactional_id}
        producer = Producer(config, logger=self._logger) if self._logger else Producer(config)
        while not lane.released:
            try:
                producer.init_transactions(KAFKA_SECONDS)
                break
            except KafkaException as error:
                self._wait_or_break(error, "init_transactions")
        while not lane.released:
            try:
                # The ends are taken after the fence: nothing of an older producer can become visible above them.
                ends = self._search.ends()
                topic, partition = lane.epoch.partition
                barrier = self._search.end_offsets([KafkaPartition(topic, partition)])[topic][partition]
                settled = decode_positions(lane.epoch.settled)
                present = self._search.ids(settled, ends, cancelled=lambda: lane.released)
            except (KafkaException, TimeoutError) as error:
                log.warning("copy_search_failed", reason=str(error))
                time.sleep(RETRY_SECONDS)
                continue
            if not lane.released:
                lane.producer = producer
                return present, barrier
        raise ProducerBroken("released while it was opened")

    def _send(self, lane: _Lane, entries: list[Entry]) -> _Sent:
        """One transaction with these entries."""
        producer = lane.producer
        assert producer is not None
        refusals: list[tuple[Entry, KafkaError]] = []
        try:
            producer.begin_transaction()
            for entry in entries:
                _produce(producer, entry, refusals)
                if refusals:
                    break
            if not refusals:
                self._repeat(lane, lambda: producer.commit_transaction(KAFKA_SECONDS), "commit_transaction")
                return _Sent(committed=True)
        except _MustAbort as error:
            log.warning("transaction_aborted", reason=str(error))
        except KafkaException as error:
            if not error.args[0].txn_requires_abort():
                raise ProducerBroken(error.args[0].str()) from error
        self._abort(lane, producer)
        return _Sent(committed=False, refused=refusals)

    def _abort(self, lane: _Lane, producer: Producer) -> None:
        try:
            self._repeat(lane, lambda: producer.abort_transaction(KAFKA_SECONDS), "abort_transaction")
        except _MustAbort as error:
            raise ProducerBroken(str(error)) from error

    def _repeat(self, lane: _Lane, call: Callable[[], object], name: str) -> None:
        """Repeats a call of the transactional API for as long as it says that it may be repeated, and the lane is ours."""
        while True:
            try:
                call()
                return
            except KafkaException as error:
                if error.args[0].txn_requires_abort():
                    raise _MustAbort(error.args[0].str()) from error
                self._wait_or_break(error, name)
                if lane.released:
                    raise ProducerBroken(f"released during {name}") from error

    def _wait_or_break(self, error: KafkaException, name: str) -> None:
        cause = error.args[0]
        if not cause.retriable():
            raise ProducerBroken(f"{name}: {cause.str()}") from error
        log.warning("transaction_call_repeated", call=name, reason=cause.name())
        time.sleep(0.1)


class _MustAbort(Exception):
    """The transaction can only be aborted; its records may be sent again in a new one."""


def _next_entries(queue: deque[Entry]) -> list[Entry]:
    """The entries of one transaction; one that must go alone goes alone."""
    entries = [queue.popleft()]
    while queue and len(entries) < ENTRIES_PER_TRANSACTION and not entries[0].alone and not queue[0].alone:
        entries.append(queue.popleft())
    return entries


def _produce(producer: Producer, entry: Entry, refusals: list[tuple[Entry, KafkaError]]) -> None:
    record = entry.record

    def report(error: KafkaError | None, _message: Message) -> None:
        if error is not None and error.code() not in _NOT_THE_RECORDS_FAULT:
            refusals.append((entry, error))

    while True:
        try:
            producer.produce(
                record.topic, value=record.value, key=record.key, headers=list(record.headers), on_delivery=report
            )
            return
        except BufferError:
            producer.poll(0.05)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            refusals.append((entry, error.args[0]))
            return


def _drop_producer(lane: _Lane) -> None:
    # Destroying a client waits for its threads: not on the apply thread.
    lane.producer = None


def encode_positions(positions: Positions) -> bytes:
    """JSON, topic -> partition -> offset."""
    return orjson.dumps(positions, option=orjson.OPT_NON_STR_KEYS)


def decode_positions(encoded: bytes) -> Positions:
    """The positions of `encode_positions`; nothing settled yet: none."""
    decoded: dict[str, dict[str, int]] = orjson.loads(encoded) if encoded else {}
    return {
        topic: {int(partition): offset for partition, offset in partitions.items()}
        for topic, partitions in decoded.items()
    }
