"""Whether an application still moves: a partition with records to read is stuck when none is processed for too long.

A process that is stuck ends, for a new one starts from the committed offsets and loses nothing. Decides what counts as
progress and as an excuse. Leaves the end of the process to `app`.

An excuse is what a new process would not mend: no records to read, a Kafka that does not answer, an agent that waits
for something with limits of its own. Time for which this process was frozen does not count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from faust.types import TP

from dispatchai.kafka.connection import KafkaConnection

CLIENT_ID: Final = "dispatchai-watch"

LOOK_S: Final = 5.0
"""How often the brokers are asked for the ends of the partitions: one small request to each, so that a partition is
found stuck at most so much later."""

LOOKS_IN_LIMIT: Final = 6
"""With a shorter limit they are asked more often."""

ASSIGNMENT_LIMITS: Final = 2
"""After so many times the limit a process that was assigned nothing is stuck, too: a join with a dead member and a
recovery fit in. aiokafka's coordination can end for good, if Kafka answers with no brokers while it starts."""

ASK_S: Final = 5.0
"""A Kafka that does not answer within this counts as away."""


class StuckError(Exception):
    """A partition is stuck. The message says which, and how far behind it is."""


@dataclass(slots=True)
class _Reading:
    """One agent on one partition. `next_offset` is that of the first record that it has not processed."""

    next_offset: int
    seen_offset: int
    """`next_offset` at the last look."""
    stalled_s: float = 0.0
    """For how long records have been waiting, as far as looks saw it."""
    idle_s: float | None = None
    """For how long there has been nothing to read, as far as looks saw it; None where there is something."""


class Watch:
    """How far each agent is in each assigned partition, and since when it has not moved. Pure: told the time."""

    def __init__(self, limit_s: float) -> None:
        """`limit_s` is how long records may wait without one being processed, in seconds."""
        self.limit_s = limit_s
        self.every_s = min(LOOK_S, limit_s / LOOKS_IN_LIMIT)
        self.kafka_reachable = False
        self._agents: dict[str, list[str]] = {}
        self._readings: dict[tuple[str, TP], _Reading] = {}
        self._ends: Mapping[TP, int] = {}
        self._excused: set[str] = set()
        self._waiting_s: float | None = 0.0
        """For how long no partitions were assigned, though Kafka is there; None while some are."""
        self.looked_at_s = 0.0
        """When `look` was last called; 0 before that."""

    def reads(self, agent: str, topics: Sequence[str]) -> None:
        """`agent` reads `topics`. To be said before the application starts."""
        for topic in topics:
            self._agents.setdefault(topic, []).append(agent)

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
        """`agent` is done with the records of `tp` before `next_offset`."""
        if (reading := self._readings.get((agent, tp))) is not None:
            reading.next_offset = next_offset

    @contextmanager
    def excused(self, agent: str) -> Iterator[None]:
        """While in here `agent` waits for something that ends by itself, and is not stuck."""
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
        """Where `tp` ended when Kafka was last asked."""
        return self._ends.get(tp)

    def idle_s(self, tp: TP) -> float:
        """For how many seconds every agent has been at the end of `tp` and nothing came, as far as looks saw it."""
        return min((one.idle_s or 0.0 for (_, place), one in self._readings.items() if place == tp), default=0.0)

    def stalls(self) -> dict[tuple[str, TP], float]:
        """For how many seconds records have been waiting for each agent and partition; 0 where all is well."""
        return {place: reading.stalled_s for place, reading in self._readings.items()}

    def look(self, now_s: float, ends: Mapping[TP, int] | None) -> StuckError | None:
        """Look at all partitions, whose `ends` Kafka just told; None where it did not answer.

        Returns what is wrong with the one that is stuck the longest, if any is.
        """
        # Two looks far apart: meanwhile this process did not run, or Kafka was slow to answer. Neither says a thing.
        elapsed_s = min(now_s - self.looked_at_s, 2 * self.every_s) if self.looked_at_s else 0.0
        self.looked_at_s = now_s
        self.kafka_reachable = ends is not None
        self._ends = ends or {}
        if self._waiting_s is not None and ends is not None:
            self._waiting_s += elapsed_s
            if self._waiting_s >= ASSIGNMENT_LIMITS * self.limit_s:
                return StuckError(f"no partitions were assigned for {self._waiting_s:.0f} s though Kafka answers")
        worst: tuple[float, str, TP, int] | None = None
        for (agent, tp), reading in self._readings.items():
            waiting = self._ends.get(tp, 0) - reading.next_offset
            moved = reading.next_offset != reading.seen_offset
            reading.seen_offset = reading.next_offset
            is_idle = tp in self._ends and waiting <= 0 and not moved
            # The first such look starts the count: what came since the one before it may have been read meanwhile.
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
        return StuckError(
            f"agent {agent} is stuck at {tp.topic}/{tp.partition}: {waiting} records wait, "
            f"none was processed for {stalled_s:.0f} s"
        )


async def run_watch(watch: Watch, connection: KafkaConnection) -> NoReturn:
    """Ask Kafka, look, again and again. Raises StuckError when a partition is stuck.

    Asks over a connection of its own: the application's may be what stands still.
    """
    asking = _Asking(connection)
    try:
        while True:
            ends = await asking.ends(watch.partitions())
            if (stuck := watch.look(time.monotonic(), ends)) is not None:
                raise stuck
            await asyncio.sleep(watch.every_s)
    finally:
        await asking.close()


class _Asking:
    """A client that asks for the ends of partitions."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._consumer: AIOKafkaConsumer | None = None

    async def ends(self, partitions: Sequence[TP]) -> Mapping[TP, int] | None:
        """The end offsets of `partitions`, or None if Kafka does not answer within ASK_S."""
        try:
            async with asyncio.timeout(ASK_S):
                consumer = await self._started()
                if partitions:
                    return {TP(*tp): end for tp, end in (await consumer.end_offsets(partitions)).items()}
                await consumer.topics()
                return {}
        except (KafkaError, OSError, TimeoutError):
            return None
        except asyncio.CancelledError:
            # aiokafka lets out the cancellation of its own requests when a connection closes under them.
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
            return None

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **self._connection.client_options(),
                client_id=CLIENT_ID,
                enable_auto_commit=False,
                request_timeout_ms=int(ASK_S * 1000),
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
