"""What an application writes to Kafka, past Faust's own per-message cost (100 µs and more a message).

It goes through the producer that Faust owns, so Faust's flush before each commit covers it. Nothing is written for
partitions that another process may have by now (`lease`): what is to be written then waits. When partitions are
assigned anew it is not written at all, for it follows from an assignment that is over, and who has the partitions
makes it again. And nothing is written any more when Kafka has refused something for good: a snapshot would say that it
is there, and a commit that it need not be made again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import structlog
from aiokafka.errors import KafkaError

from dispatchai.kafka.dead_letters import dead_letter_of

if TYPE_CHECKING:
    from dispatchai.engine.app import App

log = structlog.get_logger(__name__)

PENDING_MAX: Final = 20_000
"""Records without an answer beyond which an agent waits: Kafka is slow, and memory must stay bounded. Some 20 MB."""

Headers = Sequence[tuple[str, bytes]]


class AssignmentOverError(KafkaError):
    """A record was not written, because the assignment that it follows from is over, or this process has failed."""

    retriable = False


class Emitter:
    """Sends records and knows which of them the broker has not acknowledged yet."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._pending: dict[asyncio.Future[Any], int] = {}
        """Sends without an answer, and how many records each has."""
        self._records_pending = 0
        self._ahead: dict[tuple[str, int | None], asyncio.Future[None]] = {}
        """What `send_soon` was given last for each partition, until it is in the producer's buffer."""

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Put a record in the producer's buffer; waits while that is full, or while this process may not write.

        `value` None is a tombstone. If the broker will not have it after all retries the application stops: an
        output that cannot be written must not be passed over, and what led to it is read again after the restart.
        Raises AssignmentOverError if partitions were assigned anew meanwhile: what the caller is at is of no account.
        It comes after what `send_soon` was given before for the partition, if `partition` is named.
        """
        generation = self._app.lease.generation
        await self._may_write()
        producer = self._app.producer._ensure_producer()
        if (ahead := self._ahead.get((topic, partition))) is not None:
            await asyncio.wait([ahead])
            self._check(generation)
        self._sent(await producer.send(topic, value, key=key, partition=partition, headers=list(headers)), 1)
        self._app.metrics.sent(topic)
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
        """As `send` for many records of one partition, given as (key, value), at a fifth of the cost.

        All have the same headers and timestamp (milliseconds since the epoch). Waits until the batch before it to this
        partition is on its way.
        """
        generation = self._app.lease.generation
        await self._may_write()
        for sent, count in await self._send_all(topic, partition, records, timestamp_ms, headers, generation):
            self._sent(sent, count)
        self._check(generation)

    async def ready(self) -> None:
        """Wait until `send_soon` may be called. Raises AssignmentOverError as `send` does."""
        generation = self._app.lease.generation
        await self._may_write()
        if self._records_pending > PENDING_MAX:
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
        """As `send_batch` without waiting; `ready` must have come before, and nothing awaited since.

        What is sent so to one partition arrives in this order, and before what `send` is given later. Returns what is
        done when the records are in the producer's buffer, or are not written since their assignment is over.
        """
        generation = self._app.lease.generation
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

    async def _send_all(
        self,
        topic: str,
        partition: int,
        records: Iterable[tuple[bytes, bytes | None]],
        timestamp_ms: int,
        headers: Headers,
        generation: int,
    ) -> list[tuple[asyncio.Future[object], int]]:
        """Put `records` in the producer's buffer, in as many batches as they need. Returns what each becomes, and how
        many it has."""
        producer = self._app.producer._ensure_producer()
        sent: list[tuple[asyncio.Future[object], int]] = []
        own = list(headers)
        batch = producer.create_batch()

        async def send_built() -> None:
            self._check(generation)
            batch.close()
            delivery, count = await producer.send_batch(batch, topic, partition=partition), batch.record_count()
            # At once, and not when all batches are there: a commit that waits for this one comes after it.
            delivery.add_done_callback(self._fail_if_refused)
            sent.append((delivery, count))
            self._app.metrics.sent(topic, count)

        for key, value in records:
            if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=own) is None:
                # It is full: a new one takes the record.
                await send_built()
                batch = producer.create_batch()
                batch.append(timestamp=timestamp_ms, key=key, value=value, headers=own)
        if batch.record_count():
            await send_built()
        return sent

    async def _may_write(self) -> None:
        """Wait until something may be written. Raises AssignmentOverError if it is of no account by then."""
        lease = self._app.lease
        generation = lease.generation
        if not lease.open:
            await lease.wait_open()
        self._check(generation)

    def _check(self, generation: int) -> None:
        """Raise AssignmentOverError if the assignment is another one since `generation`, or the application failed."""
        if generation != self._app.lease.generation or self._app.failed.is_set():
            raise AssignmentOverError

    def _sent(self, sent: asyncio.Future[Any], records: int) -> None:
        self._pending[sent] = records
        self._records_pending += records
        sent.add_done_callback(self._on_done)

    def _on_done(self, sent: asyncio.Future[Any]) -> None:
        self._records_pending -= self._pending.pop(sent)
        self._fail_if_refused(sent)

    def _fail_if_refused(self, sent: asyncio.Future[Any]) -> None:
        if sent.cancelled():
            return
        error = sent.exception()
        if error is not None and not isinstance(error, AssignmentOverError) and not self._app.failed.is_set():
            log.error("record_not_written", error=type(error).__name__)
            self._app.metrics.send_failures.inc()
            self._app.fail(error)

    @property
    def unacknowledged(self) -> int:
        """Sends, of a record or of a batch, that the broker has not acknowledged."""
        return len(self._pending)

    async def dead_letter(self, record: aiokafka.ConsumerRecord, *, reader: str, error: Exception) -> None:
        """Write `record` to the dead-letter topic: which `reader` could not process it, where it is stored, and why.

        Whatever the record is, its dead letter fits: what is too large of it is cut, and a header says so.
        """
        log.warning(
            "dead_letter",
            reader=reader,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error=type(error).__name__,
        )
        self._app.metrics.dead_letter(reader, error)
        key, value, headers = dead_letter_of(record, reader=reader, error=error)
        await self.send(self._app.dead_letter_topic, key, value, headers=headers)

    async def delivered(self) -> None:
        """Wait until the broker has acknowledged everything sent before this call."""
        pending = list(self._pending)
        if pending:
            await asyncio.wait(pending)
