"""Everything that the gateway writes to Kafka.

Webhooks are written one by one, and each waits for its acknowledgement. Media records go in batches, one in flight for
each partition, from partition queues that hold what Kafka has not acknowledged. The number of records held is bounded;
a record that does not fit is refused to the caller. Decides when Kafka counts as unavailable. The callers decide what
the records are.

Media batches are built here because aiokafka's `send` costs a future and a hash of the key for each record.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaError,
    KafkaTimeoutError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    UnknownProducerId,
)
from aiokafka.partitioner import DefaultPartitioner

from dispatchai.gateway.errors import GatewayError
from dispatchai.gateway.metrics import GatewayMetrics
from dispatchai.kafka.identity import ClusterChangedError, ClusterIdentity
from dispatchai.kafka.topics import Topic
from dispatchai.process.log_limit import LogLimit

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


LINGER_S: Final = 0.01
"""How long media records gather before they are sent: half a frame, and at most 100 requests a second, each of which
costs as much as 50 records."""

CHECK_TIMEOUT_S: Final = 1.0
"""A broker that does not answer a metadata request within this time is unavailable: the carrier gives a webhook 2 s in
all."""

CHECK_AGE_S: Final = 1.0
"""How long an answer of the brokers is reused, so that frequent health requests do not load them."""

WATCH_EVERY_S: Final = 5.0
"""How often the brokers are checked although nobody asks, as in the worker's stall detection."""

_FATAL: Final = (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    UnknownProducerId,
)
"""Errors after which an idempotent aiokafka producer delivers nothing any more: only a new producer helps."""


class KafkaUnavailableError(GatewayError):
    """Kafka did not take the record in time. A retry may succeed. The message has no content of the record."""


class ProducerBrokenError(GatewayError):
    """The producer cannot go on. The process has to be restarted."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The state of the brokers. Ready when they answered and know every topic, and no `problem` was found."""

    reachable: bool
    missing_topics: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def ready(self) -> bool:
        """Whether records can be stored now."""
        return self.reachable and not self.missing_topics and self.problem is None

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return {"reachable": self.reachable, "missing_topics": list(self.missing_topics), "problem": self.problem}


@dataclass(slots=True, eq=False)
class PartitionQueue:
    """One partition of `audio-frames`: the records that wait for it, in order, and the batch in flight."""

    partition: int
    waiting: deque[tuple[bytes, bytes, int]] = field(default_factory=deque)
    in_flight: list[tuple[bytes, bytes, int]] = field(default_factory=list)


class KafkaWriter:
    """Owns everything on its way to Kafka. `run` must be running for media records to be sent.

    `producer` is started and later stopped by the caller. Its partitioner must be aiokafka's default, so that a call's
    events and its audio have the same partition number. `max_waiting` bounds the media records that Kafka has not
    acknowledged.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        metrics: GatewayMetrics,
        *,
        max_waiting: int,
        ack_timeout_s: float,
        identity: ClusterIdentity | None = None,
    ) -> None:
        self._producer = producer
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._ack_timeout_s = ack_timeout_s
        self._partition_of = DefaultPartitioner()
        self._queues: list[PartitionQueue] = []
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._identity = identity
        self._broken = asyncio.Event()
        self._why_broken = ""
        self._checking = asyncio.Lock()
        self._readiness = Readiness(reachable=False, problem="not checked yet")
        self._identified = False
        """Whether the cluster's id was checked since Kafka was last away."""
        self._checked_at = -CHECK_AGE_S
        self._drop_log = LogLimit()
        self._failure_log = LogLimit()

    # ---- is Kafka available? -----------------------------------------------------------------------------------

    async def readiness(self) -> Readiness:
        """The state of the brokers, at most CHECK_AGE_S old."""
        async with self._checking:
            if time.monotonic() - self._checked_at >= CHECK_AGE_S:
                self._note(await self._check())
                await self._check_identity()
                self._checked_at = time.monotonic()
        return self._readiness

    def _note(self, found: Readiness) -> None:
        """Take `found` for the state of the brokers, and log whether Kafka went away or came back."""
        was_reachable, self._readiness = self._readiness.reachable, found
        if was_reachable and not found.reachable:
            self._identified = False
            log.error("kafka_unreachable", problem=found.problem, records_waiting=self._metrics.records_waiting)
        elif found.reachable and not was_reachable:
            log.info("kafka_reachable", records_waiting=self._metrics.records_waiting)

    async def _check_identity(self) -> None:
        """Break if the Kafka that has just come back is another cluster: its producer ids are not ours."""
        if self._identity is None or self._identified or not self._readiness.reachable:
            return
        try:
            await self._identity.check()
        except ClusterChangedError as error:
            self._break(str(error))
        self._identified = True

    def _break(self, why: str) -> None:
        if not self._broken.is_set():
            self._why_broken = why
            self._broken.set()

    async def watch(self) -> None:
        """Check the brokers until cancelled, so that an outage is logged even if nobody asks for the health."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            await self.readiness()

    @property
    def last_readiness(self) -> Readiness:
        """The last known state of the brokers, without asking them."""
        return self._readiness

    async def require_topics(self) -> None:
        """Return once the topics are known; at no cost when they are. Raises KafkaUnavailableError."""
        if not self._queues:
            readiness = await self.readiness()
            if not self._queues:
                missing = ", ".join(readiness.missing_topics)
                raise KafkaUnavailableError(f"missing topics: {missing}" if missing else readiness.problem or "")

    async def _check(self) -> Readiness:
        if self._broken.is_set():
            return Readiness(reachable=True, problem="the producer is broken")
        client = self._producer.client
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                # The metadata of all topics: a broker may create a topic that is asked for by name.
                cluster = await client.fetch_all_metadata()
                partitions = {
                    topic: sorted(cluster.partitions_for_topic(topic) or ())
                    for topic in (Topic.CALL_EVENTS, Topic.AUDIO_FRAMES, Topic.DEAD_LETTERS)
                }
                missing = tuple(topic for topic, found in partitions.items() if not found)
                if missing:
                    return Readiness(reachable=True, missing_topics=missing)
                for topic in partitions:
                    await self._producer.partitions_for(topic)
        except TimeoutError:
            return Readiness(reachable=False, problem="no answer from Kafka")
        except (KafkaError, OSError) as error:
            return Readiness(reachable=False, problem=f"no answer from Kafka: {type(error).__name__}")
        if partitions[Topic.CALL_EVENTS] != partitions[Topic.AUDIO_FRAMES]:
            return Readiness(
                reachable=True, problem=f"{Topic.CALL_EVENTS} and {Topic.AUDIO_FRAMES} differ in partitions"
            )
        if not self._queues:
            self._queues = [PartitionQueue(partition) for partition in partitions[Topic.AUDIO_FRAMES]]
        return Readiness(reachable=True)

    async def wait_until_broken(self) -> None:
        """Wait until the producer cannot go on, then raise ProducerBrokenError."""
        await self._broken.wait()
        raise ProducerBrokenError(self._why_broken)

    # ---- single records ----------------------------------------------------------------------------------------

    async def publish(
        self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Store one record. Returns when Kafka has acknowledged it; raises KafkaUnavailableError if it is too late.

        After that error the record may still be stored later.
        """
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                await self.require_topics()
                acknowledged = await self._producer.send(topic, value, key, headers=list(headers))
                await acknowledged
        except TimeoutError:
            raise KafkaUnavailableError("no acknowledgement in time") from None
        except KafkaError as error:
            self._note_if_broken(error)
            raise KafkaUnavailableError(type(error).__name__) from error

    # ---- media records -----------------------------------------------------------------------------------------

    def queue_of(self, key: bytes) -> PartitionQueue:
        """The queue for the records of `key`. Raises KafkaUnavailableError before the topics are known."""
        if not self._queues:
            raise KafkaUnavailableError("the topics are not known yet")
        # The producer applies the same function to the same number of partitions for call-events.
        queue: PartitionQueue = self._partition_of(key, self._queues, self._queues)
        return queue

    def put(
        self, queue: PartitionQueue, key: bytes, value: bytes, timestamp_ms: int, *, never_drop: bool = False
    ) -> bool:
        """Add one media record at the end of `queue`. False if it was dropped because too many wait.

        `never_drop` is for the records that open and close a stream, two for each socket.
        """
        if self._metrics.records_waiting >= self._max_waiting and not never_drop:
            self._metrics.frames_dropped += 1
            if dropped := self._drop_log.add():
                log.error("frames_dropped", frames=dropped, waiting_max=self._max_waiting)
            return False
        queue.waiting.append((key, value, timestamp_ms))
        self._metrics.records_waiting += 1
        if not self._wake.is_set():
            self._wake.set()
            self._empty.clear()
        return True

    async def run(self) -> None:
        """Send waiting records until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(LINGER_S)
            self._wake.clear()
            for queue in self._queues:
                if queue.waiting and not queue.in_flight:
                    await self._send(queue)

    def run_ended(self, task: asyncio.Task[None]) -> None:
        """Callback for the end of `run`'s task. Unless its owner cancelled it, the writer is broken from now on."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("kafka_writer_failed", error=type(error).__name__)
            self._break(f"the Kafka writer failed ({type(error).__name__})")

    async def drain(self, timeout_s: float) -> None:
        """Wait until Kafka has acknowledged every media record. After `timeout_s` seconds give up and log it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            log.error("media_records_undelivered", records=self._metrics.records_waiting)

    async def _send(self, queue: PartitionQueue) -> None:
        batch = self._producer.create_batch()
        while queue.waiting:
            key, value, timestamp_ms = queue.waiting[0]
            # The first record always fits; None means that the batch is full.
            if batch.append(timestamp=timestamp_ms, key=key, value=value) is None:
                break
            queue.in_flight.append(queue.waiting.popleft())
        batch.close()
        try:
            delivery = await self._producer.send_batch(batch, Topic.AUDIO_FRAMES, partition=queue.partition)
        except KafkaError as error:
            self._settle(queue, error)
        else:
            delivery.add_done_callback(partial(self._delivered, queue))

    def _delivered(self, queue: PartitionQueue, delivery: asyncio.Future[Any]) -> None:
        self._settle(queue, ProducerClosed() if delivery.cancelled() else delivery.exception())

    def _settle(self, queue: PartitionQueue, error: BaseException | None) -> None:
        """The batch in flight is stored (`error` is None), goes back to the queue, or is lost."""
        count = len(queue.in_flight)
        if error is None:
            self._metrics.records_stored += count
            self._metrics.records_waiting -= count
        elif isinstance(error, KafkaError) and (error.retriable or isinstance(error, KafkaTimeoutError)):
            queue.waiting.extendleft(reversed(queue.in_flight))
            self._metrics.records_resent += count
        else:
            self._metrics.records_failed += count
            self._metrics.records_waiting -= count
            if failed := self._failure_log.add(count):
                log.error("media_records_refused", records=failed, error=type(error).__name__)
            self._note_if_broken(error)
        queue.in_flight.clear()
        if queue.waiting:
            self._wake.set()
        if not self._metrics.records_waiting:
            self._empty.set()

    def _note_if_broken(self, error: BaseException) -> None:
        # aiokafka's sender fails with a bare KafkaError when a bug of its own ends it.
        if isinstance(error, _FATAL) or type(error) is KafkaError:
            self._break(
                f"Kafka's producer cannot go on ({type(error).__name__}): the brokers do not know what it sent before, "
                "because topics were created again, Kafka was replaced, or it lost data"
            )
