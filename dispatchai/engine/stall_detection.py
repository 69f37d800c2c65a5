"""Whether an application makes progress: a partition is stalled when records wait and none is processed for too long.

A stalled process ends, because a new one starts from the committed offsets and loses nothing. Decides what counts as
progress and as an excuse; `app` ends the process.

An excuse is anything that a new process would not cure: no records to read, a Kafka that does not answer, an agent that
waits for something with time limits of its own. Time during which this process was frozen does not count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from faust.types import TP

from dispatchai.engine.errors import StalledError
from dispatchai.kafka.clients import make_consumer
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.identity import ClusterIdentity

log = structlog.get_logger(__name__)

CHECK_S: Final = 5.0
"""How often the brokers are asked for the end offsets: one small request to each. A stall is found so much later."""

CHECKS_IN_LIMIT: Final = 6
"""With a shorter limit they are asked more often."""

ASSIGNMENT_LIMITS: Final = 2
"""After so many times the limit a process without an assignment counts as stalled too: a join with a dead member and a
recovery take less. aiokafka's coordination can end for good if Kafka lists no brokers while it starts."""

REQUEST_TIMEOUT_S: Final = 5.0
"""A Kafka that does not answer within this counts as unreachable."""


@dataclass(slots=True)
class _Reading:
    """One agent on one partition. `next_offset` is that of the first record that it has not processed."""

    next_offset: int
    seen_offset: int
    """`next_offset` at the last check."""
    stalled_s: float = 0.0
    """How long records have been waiting, as far as checks saw it."""
    idle_s: float | None = None
    """How long there has been nothing to read, as far as checks saw it; None while there is something."""


class StallDetector:
    """How far each agent is in each assigned partition, and how long it has made no progress. Pure: time is given."""

    def __init__(self, limit_s: float) -> None:
        """`limit_s` is how long records may wait without one being processed, in seconds."""
        self.limit_s = limit_s
        self.every_s = min(CHECK_S, limit_s / CHECKS_IN_LIMIT)
        self.kafka_reachable = False
        self._agents: dict[str, list[str]] = {}
        self._readings: dict[tuple[str, TP], _Reading] = {}
        self._ends: Mapping[TP, int] = {}
        self._excused: set[str] = set()
        self._topics: Set[str] | None = None
        self._waiting_s: float | None = 0.0
        """How long no partitions have been assigned although Kafka answers; None while some are."""
        self.checked_at_s = 0.0
        """When `check` was last called; 0 before that."""

    def reads(self, agent: str, topics: Sequence[str]) -> None:
        """`agent` reads `topics`. Call it before the application starts."""
        for topic in topics:
            self._agents.setdefault(topic, []).append(agent)

    def found(self, topics: Set[str]) -> None:
        """Kafka has these topics now."""
        self._topics = topics

    @property
    def missing_topics(self) -> tuple[str, ...]:
        """The topics that agents read and that did not exist when Kafka was last asked. Their records cannot come."""
        return () if self._topics is None else tuple(topic for topic in self._agents if topic not in self._topics)

    def begin(self, offsets: Mapping[TP, int]) -> None:
        """The partitions of `offsets`, and no others, are read from these offsets on."""
        self._ends = {}
        self._waiting_s = None
        self._readings = {
            (agent, tp): _Reading(offset, offset)
            for tp, offset in offsets.items()
            for agent in self._agents.get(tp.topic, ())
        }

    def revoked(self) -> None:
        """No partition is read until `begin`."""
        self._readings = {}
        self._waiting_s = 0.0

    def processed(self, agent: str, tp: TP, next_offset: int) -> None:
        """`agent` has processed the records of `tp` before `next_offset`."""
        if (reading := self._readings.get((agent, tp))) is not None:
            reading.next_offset = next_offset

    @contextmanager
    def excused(self, agent: str) -> Iterator[None]:
        """Inside this context `agent` waits for something that ends by itself, and does not count as stalled."""
        self._excused.add(agent)
        try:
            yield
        finally:
            self._excused.discard(agent)

    def partitions(self) -> list[TP]:
        """The partitions that are read now."""
        return list({tp: None for _, tp in self._readings})

    def next_offset(self, tp: TP) -> int | None:
        """The first offset of `tp` that not every agent has processed; None if none reads it."""
        return min((reading.next_offset for (_, place), reading in self._readings.items() if place == tp), default=None)

    def end(self, tp: TP) -> int | None:
        """The end offset of `tp` when Kafka was last asked."""
        return self._ends.get(tp)

    def idle_s(self, tp: TP) -> float:
        """For how many seconds every agent has been at the end of `tp` with nothing new, as far as checks saw it."""
        return min((one.idle_s or 0.0 for (_, place), one in self._readings.items() if place == tp), default=0.0)

    def stalls(self) -> dict[tuple[str, TP], float]:
        """For how many seconds records have been waiting, by agent and partition; 0 where there is progress."""
        return {place: reading.stalled_s for place, reading in self._readings.items()}

    def check(self, now_s: float, ends: Mapping[TP, int] | None) -> StalledError | None:
        """Check all partitions against the end offsets that Kafka just reported; None if it did not answer.

        Returns the longest stall, if there is one.
        """
        # Two checks far apart: this process did not run, or Kafka was slow to answer. Neither is a stall.
        elapsed_s = min(now_s - self.checked_at_s, 2 * self.every_s) if self.checked_at_s else 0.0
        if self.checked_at_s and self.kafka_reachable and ends is None:
            log.error("kafka_unreachable")
        elif self.checked_at_s and not self.kafka_reachable and ends is not None:
            log.info("kafka_reachable")
        self.checked_at_s = now_s
        self.kafka_reachable = ends is not None
        self._ends = ends or {}
        if self._waiting_s is not None and ends is not None:
            self._waiting_s += elapsed_s
            if self._waiting_s >= ASSIGNMENT_LIMITS * self.limit_s:
                return StalledError(f"no partitions were assigned for {self._waiting_s:.0f} s though Kafka answers")
        worst: tuple[float, str, TP, int] | None = None
        for (agent, tp), reading in self._readings.items():
            waiting = self._ends.get(tp, 0) - reading.next_offset
            moved = reading.next_offset != reading.seen_offset
            reading.seen_offset = reading.next_offset
            is_idle = tp in self._ends and waiting <= 0 and not moved
            # The first such check starts the count: records that came since the one before may have been read.
            reading.idle_s = (0.0 if reading.idle_s is None else reading.idle_s + elapsed_s) if is_idle else None
            if waiting <= 0 or moved or agent in self._excused:
                reading.stalled_s = 0.0
                continue
            reading.stalled_s += elapsed_s
            if reading.stalled_s >= self.limit_s and (worst is None or reading.stalled_s > worst[0]):
                worst = (reading.stalled_s, agent, tp, waiting)
        if worst is None:
            return None
        stalled_s, agent, tp, waiting = worst
        return StalledError(
            f"agent {agent} is stalled at {tp.topic}/{tp.partition}: {waiting} records wait, "
            f"none was processed for {stalled_s:.0f} s"
        )


async def detect_stalls(
    detector: StallDetector, connection: KafkaConnection, client_id: str, identity: ClusterIdentity
) -> NoReturn:
    """Ask Kafka for the end offsets and check, again and again.

    Raises StalledError when a partition is stalled, and ClusterChangedError when a Kafka that was away comes back as
    another cluster.
    Uses a connection of its own: the application's may be what stalls.
    """
    offsets = _EndOffsets(connection, client_id)
    try:
        while True:
            was_away = not detector.kafka_reachable
            ends = await offsets.of(detector.partitions())
            if ends is not None:
                detector.found(offsets.topics)
            if was_away and ends is not None:
                await identity.check()
            if (stalled := detector.check(time.monotonic(), ends)) is not None:
                raise stalled
            await asyncio.sleep(detector.every_s)
    finally:
        await offsets.close()


class _EndOffsets:
    """A client that asks for end offsets."""

    def __init__(self, connection: KafkaConnection, client_id: str) -> None:
        self._connection = connection
        self._client_id = client_id
        self._consumer: AIOKafkaConsumer | None = None
        self.topics: Set[str] = frozenset()
        """The topics that Kafka had at the last answer."""

    async def of(self, partitions: Sequence[TP]) -> Mapping[TP, int] | None:
        """The end offsets of `partitions`, or None if Kafka does not answer within REQUEST_TIMEOUT_S."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                consumer = await self._started()
                self.topics = await consumer.topics()
                if not partitions:
                    return {}
                return {TP(*tp): end for tp, end in (await consumer.end_offsets(partitions)).items()}
        except (KafkaError, OSError, TimeoutError):
            return None
        except asyncio.CancelledError:
            # aiokafka leaks the cancellation of its own requests when their connection closes.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return None

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = make_consumer(
                self._connection,
                client_id=self._client_id,
                enable_auto_commit=False,
                request_timeout_ms=int(REQUEST_TIMEOUT_S * 1000),
            )
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self._consumer

    async def close(self) -> None:
        """Leave Kafka."""
        if self._consumer is not None:
            await self._consumer.stop()
