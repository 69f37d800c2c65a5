"""All that the gateway writes to Kafka.

Webhooks go one by one and are waited for. Media records go in batches, one in flight a partition, from lanes that
hold what Kafka has not acknowledged yet; the number held is bounded, and what does not fit is refused to the caller.
Decides when Kafka counts as away. Leaves to others what the records are.

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
from dispatchai.kafka.topics import Topic
from dispatchai.process.log_limit import Throttle

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


LINGER_S: Final = 0.01
"""How long media records gather before they are sent: half a frame, and 100 requests a second at most, each of which
costs as much as 50 records."""

CHECK_TIMEOUT_S: Final = 1.0
"""A broker that does not answer a metadata request for so long is away: the carrier gives a webhook 2 s in all."""

CHECK_AGE_S: Final = 1.0
"""How long an answer of the brokers holds, so that asking for our health often does not load them."""

_BROKEN: Final = (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    UnknownProducerId,
)
"""Errors after which an idempotent aiokafka producer delivers nothing any more: only a new one helps."""


class KafkaUnavailableError(GatewayError):
    """Kafka did not take the record in time. A retry may succeed. The message has no content of the record."""


class ProducerBrokenError(GatewayError):
    """The producer cannot go on. The process has to be started anew."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the brokers said. Ready when they answered and know every topic, `call-events` and `audio-frames` alike."""

    reachable: bool
    missing_topics: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def ready(self) -> bool:
        """Whether records can be stored now."""
        return self.reachable and not self.missing_topics and self.problem is None


@dataclass(slots=True, eq=False)
class Lane:
    """One partition of `audio-frames`: what waits for it, in order, and the batch that is on its way."""

    partition: int
    waiting: deque[tuple[bytes, bytes, int]] = field(default_factory=deque)
    in_flight: list[tuple[bytes, bytes, int]] = field(default_factory=list)


class Outbox:
    """Owns what is on its way to Kafka. `run` must be running for media records to be sent.

    `producer` is started and later stopped by the caller; its partitioner must be aiokafka's default, so that a
    call's events and its audio are in the same partition number. `max_waiting` bounds the media records that Kafka
    has not acknowledged.
    """

    def __init__(
        self, producer: AIOKafkaProducer, metrics: GatewayMetrics, *, max_waiting: int, ack_timeout_s: float
    ) -> None:
        self._producer = producer
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._ack_timeout_s = ack_timeout_s
        self._partition_of = DefaultPartitioner()
        self._lanes: list[Lane] = []
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._broken = asyncio.Event()
        self._checking = asyncio.Lock()
        self._readiness = Readiness(reachable=False, problem="not asked yet")
        self._checked_at = -CHECK_AGE_S
        self._dropped = Throttle()
        self._failed = Throttle()

    # ---- is Kafka there? ---------------------------------------------------------------------------------------

    async def readiness(self) -> Readiness:
        """What the brokers say now, or said less than CHECK_AGE_S ago."""
        async with self._checking:
            if time.monotonic() - self._checked_at >= CHECK_AGE_S:
                self._readiness = await self._check()
                self._checked_at = time.monotonic()
        return self._readiness

    async def prepare(self) -> None:
        """Return once the topics are known; at no cost when they are. Raises KafkaUnavailableError."""
        if not self._lanes:
            readiness = await self.readiness()
            if not self._lanes:
                missing = ", ".join(readiness.missing_topics)
                raise KafkaUnavailableError(f"missing topics: {missing}" if missing else readiness.problem or "")

    async def _check(self) -> Readiness:
        if self._broken.is_set():
            return Readiness(reachable=True, problem="the producer is broken")
        client = self._producer.client
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                # All topics are asked for and not ours by name: a broker may create a topic that is asked for by name.
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
        if not self._lanes:
            self._lanes = [Lane(partition) for partition in partitions[Topic.AUDIO_FRAMES]]
        return Readiness(reachable=True)

    async def broken(self) -> None:
        """Wait until the producer cannot go on, then raise ProducerBrokenError."""
        await self._broken.wait()
        raise ProducerBrokenError("Kafka's producer cannot go on: start the process anew")

    # ---- one record, waited for --------------------------------------------------------------------------------

    async def publish(
        self, topic: str, key: bytes | None, value: bytes, headers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Store one record. Returns when Kafka acknowledged it; raises KafkaUnavailableError when it did not in time.

        After that error the record may still be stored later.
        """
        try:
            async with asyncio.timeout(self._ack_timeout_s):
                await self.prepare()
                acknowledged = await self._producer.send(topic, value, key, headers=list(headers))
                await acknowledged
        except TimeoutError:
            raise KafkaUnavailableError("no acknowledgement in time") from None
        except KafkaError as error:
            self._note_if_broken(error)
            raise KafkaUnavailableError(type(error).__name__) from error

    # ---- media records -----------------------------------------------------------------------------------------

    def lane(self, key: bytes) -> Lane:
        """Where the records of `key` wait. Raises KafkaUnavailableError before the topics are known."""
        if not self._lanes:
            raise KafkaUnavailableError("the topics are not known yet")
        # The same function over the same number of partitions as the producer uses for call-events.
        lane: Lane = self._partition_of(key, self._lanes, self._lanes)
        return lane

    def put(self, lane: Lane, key: bytes, value: bytes, timestamp_ms: int, *, must: bool = False) -> bool:
        """Queue one media record behind those of its lane. False if it was left out because too many wait.

        `must` is for the records that open and close a stream: two for each socket, never left out.
        """
        if self._metrics.records_waiting >= self._max_waiting and not must:
            self._metrics.frames_dropped += 1
            if dropped := self._dropped.add():
                log.error("frames dropped: too many wait for Kafka", frames=dropped, waiting=self._max_waiting)
            return False
        lane.waiting.append((key, value, timestamp_ms))
        self._metrics.records_waiting += 1
        if not self._wake.is_set():
            self._wake.set()
            self._empty.clear()
        return True

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(LINGER_S)
            self._wake.clear()
            for lane in self._lanes:
                if lane.waiting and not lane.in_flight:
                    await self._send(lane)

    def stopped(self, task: asyncio.Task[None]) -> None:
        """The task of `run` has ended. If not by its owner, nothing is sent any more."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("media records are not sent any more", error=type(error).__name__)
            self._broken.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait until Kafka has acknowledged every media record; give up after `timeout_s` seconds and say so."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            log.error("media records not delivered at the stop", records=self._metrics.records_waiting)

    async def _send(self, lane: Lane) -> None:
        batch = self._producer.create_batch()
        while lane.waiting:
            key, value, timestamp_ms = lane.waiting[0]
            # The first record always fits; None says that the batch is full.
            if batch.append(timestamp=timestamp_ms, key=key, value=value) is None:
                break
            lane.in_flight.append(lane.waiting.popleft())
        batch.close()
        try:
            delivery = await self._producer.send_batch(batch, Topic.AUDIO_FRAMES, partition=lane.partition)
        except KafkaError as error:
            self._settle(lane, error)
        else:
            delivery.add_done_callback(partial(self._delivered, lane))

    def _delivered(self, lane: Lane, delivery: asyncio.Future[Any]) -> None:
        self._settle(lane, ProducerClosed() if delivery.cancelled() else delivery.exception())

    def _settle(self, lane: Lane, error: BaseException | None) -> None:
        """The batch in flight is stored (None), to be sent again, or lost."""
        count = len(lane.in_flight)
        if error is None:
            self._metrics.records_stored += count
            self._metrics.records_waiting -= count
        elif isinstance(error, KafkaError) and (error.retriable or isinstance(error, KafkaTimeoutError)):
            lane.waiting.extendleft(reversed(lane.in_flight))
            self._metrics.records_resent += count
        else:
            self._metrics.records_failed += count
            self._metrics.records_waiting -= count
            if failed := self._failed.add(count):
                log.error("media records refused by Kafka", records=failed, error=type(error).__name__)
            self._note_if_broken(error)
        lane.in_flight.clear()
        if lane.waiting:
            self._wake.set()
        if not self._metrics.records_waiting:
            self._empty.set()

    def _note_if_broken(self, error: BaseException) -> None:
        # aiokafka's sender fails with a bare KafkaError when it ends by a bug of its own.
        if isinstance(error, _BROKEN) or type(error) is KafkaError:
            self._broken.set()
