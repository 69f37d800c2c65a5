"""All records that an application writes, past Faust's own cost of 100 µs and more for each.

They go through the producer that Faust owns, so Faust's flush before each commit covers them. While the lease is closed
writes wait, because another process may own the partitions. A write that belongs to an assignment that is over is
refused: the new owner makes it again. After Kafka has refused a record for good nothing more is written: a snapshot
would say that the record is stored, and a commit that it need not be made again.

A record that is too large never gets there. It would be as large after every restart, wherever its partition goes. So
it is set aside before it is sent: its beginning goes to the dead-letter topic, `on_set_aside` is called, and the rest
goes on. `topics.yaml` sets how much the topics take, which is more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import aiokafka
import structlog
from aiokafka.errors import MessageSizeTooLargeError, ProducerClosed
from faust.exceptions import NotReady

from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.failure import Failure
from dispatchai.engine.metrics import EngineMetrics
from dispatchai.engine.write_lease import Lease
from dispatchai.kafka.dead_letters import dead_letter_of, dead_letter_of_output
from dispatchai.process.log_limit import LogLimits

log = structlog.get_logger(__name__)

IN_FLIGHT_MAX: Final = 20_000
"""Unacknowledged records beyond which an agent waits: backpressure from a slow Kafka bounds memory to some 20 MB."""

RECORD_MAX_BYTES: Final = 950_000
"""Largest record, as for dead letters: Kafka takes a batch of 1,048,588 bytes unless a topic says otherwise."""

SET_ASIDE_MAX: Final = 1_000
"""Keys whose records were set aside that are remembered, so that each is reported once: a state that has become too
large is too large at each of its snapshots."""

Headers = Sequence[tuple[str, bytes]]


class TopicTakesTooLittleError(MessageSizeTooLargeError):
    """Kafka refused a batch that the declared topics take."""

    def __str__(self) -> str:
        """What to do."""
        return (
            "a topic's max.message.bytes, or the brokers' message.max.bytes, is less than topics.yaml declares: "
            "`dispatchai doctor` names the topic"
        )


SetAside = Callable[[str, str, int | None], Awaitable[None]]
"""(topic, key, partition): a record was too large for Kafka."""


def _size(key: bytes | None, value: bytes | None, headers: Headers = ()) -> int:
    return len(key or b"") + len(value or b"") + sum(len(name) + len(content) for name, content in headers)


def _is_too_large(key: bytes | None, value: bytes | None, headers: Headers) -> bool:
    return _size(key, value, headers) > RECORD_MAX_BYTES


class Emitter:
    """Sends records, and knows which of them the broker has not acknowledged yet."""

    def __init__(
        self,
        producer: Callable[[], aiokafka.AIOKafkaProducer],
        *,
        lease: Lease,
        failure: Failure,
        metrics: EngineMetrics,
        dead_letter_topic: str,
        on_dropped: Callable[[], None],
    ) -> None:
        """`producer` returns the application's producer while it runs. `on_dropped` is called when a record came after
        that: no commit may cover it."""
        self._producer = producer
        self._on_dropped = on_dropped
        self._lease = lease
        self._failure = failure
        self._metrics = metrics
        self._dead_letter_topic = dead_letter_topic
        self._in_flight: dict[asyncio.Future[Any], int] = {}
        """Unacknowledged sends, with the number of records in each."""
        self._records_in_flight = 0
        self._ahead: dict[tuple[str, int | None], asyncio.Future[None]] = {}
        """The last `send_soon` of each partition, until its records are in the producer's buffer."""
        self._set_aside: dict[tuple[str, bytes | None], None] = {}
        """Topics and keys of the last records that were set aside."""
        self._dead_letter_log = LogLimits()
        self._set_aside_log = LogLimits()
        self.on_set_aside: SetAside | None = None
        """Called for the first record of a key that is set aside."""

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Put a record into the producer's buffer. Waits while the buffer is full or this process may not write.

        `value` None is a tombstone. If the broker refuses the record after all retries the application fails: an
        output must not be skipped, and its input is read again after the restart. If `partition` is given, the record
        follows everything that `send_soon` was given for it before. Raises AssignmentOverError if partitions were
        reassigned meanwhile: the caller's work belongs to another process now.
        """
        generation = self._lease.generation
        await self._wait_writable()
        if (ahead := self._ahead.get((topic, partition))) is not None:
            await asyncio.wait([ahead])
            self._check(generation)
        if _is_too_large(key, value, headers):
            await self._put_aside(topic, partition, key, value)
        else:
            with self._running_producer() as producer:
                sent = await producer.send(topic, value, key=key, partition=partition, headers=list(headers))
            self._sent(sent, 1)
            self._metrics.sent(topic)
        self._check(generation)

    async def send_batch(
        self,
        topic: str,
        partition: int,
        records: Iterable[tuple[bytes, bytes | None]],
        *,
        timestamp_ms: int,
        headers: Headers = (),
    ) -> None:
        """As `send`, for many records of one partition, given as (key, value), at a fifth of the cost.

        All have the same headers and timestamp (milliseconds since the epoch). Waits until the partition's previous
        batch was handed to the network.
        """
        generation = self._lease.generation
        await self._wait_writable()
        for sent, count in await self._send_all(topic, partition, records, timestamp_ms, headers, generation):
            self._sent(sent, count)
        self._check(generation)

    async def ready(self) -> None:
        """Wait until `send_soon` may be called. Raises AssignmentOverError, as `send` does."""
        generation = self._lease.generation
        await self._wait_writable()
        if self._records_in_flight > IN_FLIGHT_MAX:
            await self.delivered()
            self._check(generation)

    def send_soon(
        self,
        topic: str,
        partition: int,
        records: Sequence[tuple[bytes, bytes | None]],
        *,
        timestamp_ms: int,
        headers: Headers = (),
    ) -> asyncio.Future[None]:
        """As `send_batch`, without waiting. Call it after `ready`, with nothing awaited between the two.

        Records sent this way to one partition arrive in this order, and before those that `send` is given later. The
        future returned is done when the records are in the producer's buffer, or refused with their assignment.
        """
        generation = self._lease.generation
        before = self._ahead.get((topic, partition))
        buffered = self._ahead[topic, partition] = asyncio.get_running_loop().create_future()

        async def send_in_turn() -> None:
            try:
                if before is not None:
                    await asyncio.wait([before])
                self._check(generation)
                sent = await self._send_all(topic, partition, records, timestamp_ms, headers, generation)
            finally:
                buffered.set_result(None)
                if self._ahead[topic, partition] is buffered:
                    del self._ahead[topic, partition]
            await asyncio.gather(*(one for one, _ in sent))

        self._sent(asyncio.ensure_future(send_in_turn()), len(records))
        return buffered

    async def store(self, topic: str, records: Mapping[int, Sequence[tuple[bytes, bytes | None]]]) -> None:
        """Send `records`, (key, value) by partition, and return once Kafka has stored them.

        Raises AssignmentOverError.
        """
        generation = self._lease.generation
        await self.ready()
        now_ms = time.time_ns() // 1_000_000
        for partition, of_partition in records.items():
            self.send_soon(topic, partition, of_partition, timestamp_ms=now_ms)
        await self.delivered()
        self._check(generation)

    async def _send_all(
        self,
        topic: str,
        partition: int,
        records: Iterable[tuple[bytes, bytes | None]],
        timestamp_ms: int,
        headers: Headers,
        generation: int,
    ) -> list[tuple[asyncio.Future[object], int]]:
        """Put `records` into the producer's buffer, in as many batches as they need. Returns the delivery of each
        batch and its number of records."""
        sent: list[tuple[asyncio.Future[object], int]] = []
        own = list(headers)
        with self._running_producer() as producer:
            batch = producer.create_batch()

        async def send_built() -> None:
            self._check(generation)
            batch.close()
            with self._running_producer() as producer:
                delivery, count = await producer.send_batch(batch, topic, partition=partition), batch.record_count()
            # Now, and not after the last batch: a commit that waits for this batch must see a refusal.
            delivery.add_done_callback(self._fail_if_refused)
            sent.append((delivery, count))
            self._metrics.sent(topic, count)

        for key, value in records:
            if _is_too_large(key, value, own):
                await self._put_aside(topic, partition, key, value)
                continue
            if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=own) is None:
                # The batch is full: the record goes into a new one.
                await send_built()
                batch = producer.create_batch()
                batch.append(timestamp=timestamp_ms, key=key, value=value, headers=own)
        if batch.record_count():
            await send_built()
        return sent

    @contextmanager
    def _running_producer(self) -> Iterator[aiokafka.AIOKafkaProducer]:
        """The producer. Raises AssignmentOverError if it has stopped: the application stops, and what it still does is
        done again after the restart."""
        try:
            yield self._producer()
        except (NotReady, ProducerClosed):
            self._on_dropped()
            raise AssignmentOverError from None

    async def _put_aside(self, topic: str, partition: int | None, key: bytes | None, value: bytes | None) -> None:
        """Send the beginning of a record that is too large to the dead-letter topic instead, and report it."""
        size, known = _size(key, value), (topic, key) in self._set_aside
        if count := self._set_aside_log.add(topic):
            log.error("record_too_large", topic=topic, partition=partition, bytes=size, reported=known, records=count)
        self._metrics.set_aside(topic)
        if known or topic == self._dead_letter_topic:
            return
        self._set_aside[topic, key] = None
        if len(self._set_aside) > SET_ASIDE_MAX:
            del self._set_aside[next(iter(self._set_aside))]
        error = MessageSizeTooLargeError(f"a record of {size:,} bytes is more than {RECORD_MAX_BYTES:,}")
        letter_key, letter, headers = dead_letter_of_output(topic, partition, key, value, error=error)
        await self.send(self._dead_letter_topic, letter_key, letter, headers=headers)
        if self.on_set_aside is not None and key:
            await self.on_set_aside(topic, key.decode(errors="replace"), partition)

    async def _wait_writable(self) -> None:
        """Wait until writing is allowed. Raises AssignmentOverError if the assignment is over by then."""
        lease = self._lease
        generation = lease.generation
        if not lease.open:
            await lease.wait_open()
        self._check(generation)

    def _check(self, generation: int) -> None:
        """Raise AssignmentOverError if `generation` is over or the application has failed."""
        if generation != self._lease.generation or self._failure.has_failed:
            raise AssignmentOverError

    def _sent(self, sent: asyncio.Future[Any], records: int) -> None:
        self._in_flight[sent] = records
        self._records_in_flight += records
        sent.add_done_callback(self._on_done)

    def _on_done(self, sent: asyncio.Future[Any]) -> None:
        self._records_in_flight -= self._in_flight.pop(sent)
        self._fail_if_refused(sent)

    def _fail_if_refused(self, sent: asyncio.Future[Any]) -> None:
        if sent.cancelled():
            return
        error = sent.exception()
        if error is not None and not isinstance(error, AssignmentOverError) and not self._failure.has_failed:
            if isinstance(error, MessageSizeTooLargeError):
                error = TopicTakesTooLittleError()
            log.error("record_refused", error=type(error).__name__)
            self._metrics.send_failures.inc()
            self._failure.report(error)

    @property
    def may_write(self) -> bool:
        """Whether writing is allowed now."""
        return self._lease.open

    @property
    def unacknowledged(self) -> int:
        """Sends, each of a record or of a batch, that the broker has not acknowledged."""
        return len(self._in_flight)

    async def dead_letter(self, record: aiokafka.ConsumerRecord, *, reader: str, error: Exception) -> None:
        """Write `record` to the dead-letter topic: which `reader` could not process it, where it is stored, and why.

        Whatever the record is, its dead letter fits: what is too large of it is cut, and a header says so.
        """
        if count := self._dead_letter_log.add((reader, type(error).__name__)):
            log.warning(
                "dead_letter",
                reader=reader,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=type(error).__name__,
                records=count,
            )
        self._metrics.dead_letter(reader, error)
        key, value, headers = dead_letter_of(record, reader=reader, error=error)
        await self.send(self._dead_letter_topic, key, value, headers=headers)

    async def delivered(self) -> None:
        """Wait until the broker has acknowledged everything sent before this call."""
        in_flight = list(self._in_flight)
        if in_flight:
            await asyncio.wait(in_flight)
