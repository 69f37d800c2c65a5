"""Fencing of compacted topics: the record that stays for a key must be one of the partition's latest owner.

A request that a former owner sent before it was expelled may arrive late, because its process was frozen at that
moment or the network held it. Kafka appends it, compaction would keep it, and the new owner's record would be lost. So
each record carries its writer's epoch, the owner follows its partitions of these topics, and where a record of an
earlier epoch follows one of a later epoch, it writes the later one again.

Decides which record of a key counts; outputs and snapshots alike, whatever they contain.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import aiokafka
import structlog
from aiokafka.errors import KafkaError
from faust.types import TP

from dispatchai.engine.checkpoint import Checkpoint
from dispatchai.engine.emitter import Emitter, Headers
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.metrics import EngineMetrics
from dispatchai.engine.snapshots import EPOCH, EPOCH_MAX, epoch_of, key_of
from dispatchai.engine.write_lease import Lease
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.reading import FETCH_PARTITION_BYTES, SilentKafkaError, open_reader, read_to_end
from dispatchai.process.log_limit import LogLimits

log = structlog.get_logger(__name__)

FOLLOW_MAX_WAIT_MS: Final = 500
"""How long the broker may hold a fetch of a followed topic. A late record must be seen before it can be compacted, half
a minute after it was written, and each answer costs the event loop more than the records in it."""

FOLLOW_MIN_BYTES: Final = 1_048_576

LOOK_BACK_S: Final = 40.0
"""How far back a new owner looks. Nobody followed the partition while it had no owner: for a session timeout, a
rebalance and a recovery. The clocks of two owners may differ by as much."""

LOOK_BACK_RECORDS: Final = 1_000
"""How many records of a partition it reads at least: in a quiet partition a late record, dated when it was written, may
be the only one. The embedded broker cannot find offsets by time."""

RETRY_S: Final = 1.0
"""Pause before Kafka is asked again after it did not answer."""


@dataclass(slots=True)
class Standing:
    """The records of one key: which one counts, and which one is last. Epochs are those of their writers."""

    epoch: int
    value: bytes | None
    """Of the record that counts: of the highest epoch, and among those of one epoch the last. None is a tombstone."""
    last_epoch: int
    headers: tuple[tuple[str, bytes], ...] = ()
    """Of the record that counts, without its epoch."""

    @property
    def overwritten(self) -> bool:
        """Whether the last record is not the one that counts."""
        return self.last_epoch < self.epoch


def standings(
    records: Sequence[Any], keys: Collection[bytes], known: dict[bytes, Standing], own: int = EPOCH_MAX
) -> None:
    """Fold `records` of one partition, in the order of their offsets, into the `known` standings of `keys`.

    `own` is the epoch of the partition's owner, the highest there is: a record that claims a higher one is nobody's.
    """
    for record in records:
        if record.key not in keys:
            continue
        epoch = epoch_of(record.headers)
        if epoch > own:
            epoch = 0
        standing = known.setdefault(record.key, Standing(epoch, record.value, epoch))
        standing.last_epoch = epoch
        if epoch >= standing.epoch:
            standing.epoch, standing.value = epoch, record.value
            standing.headers = tuple(header for header in record.headers if header[0] != EPOCH)


@dataclass(slots=True)
class _Suspects:
    """Keys of one partition with records of another epoch than the owner's, and the time of the oldest such record."""

    keys: set[bytes] = field(default_factory=set)
    since_ms: int = 2**63 - 1


class FencedTopics:
    """Writes to compacted topics, and keeps the latest owner's record of each key the last one.

    Changelogs are followed too; their checkpoints write overwritten snapshots again.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        lease: Lease,
        emitter: Emitter,
        metrics: EngineMetrics,
        checkpoints: Callable[[], Mapping[str, Checkpoint]],
        assignment: Callable[[], set[TP]],
    ) -> None:
        """`checkpoints` returns the checkpoint of each changelog topic, `assignment` the partitions assigned now."""
        self._connection = connection
        self._lease = lease
        self._emitter = emitter
        self._metrics = metrics
        self._checkpoints = checkpoints
        self._assignment = assignment
        self._locks: dict[str, asyncio.Lock] = {}
        """By topic; only the holder writes there."""
        self._next: dict[TP, int] = {}
        """The next offset to follow, of each partition that is followed."""
        self._overwritten_log = LogLimits()

    def add(self, topic: str) -> None:
        """Fence `topic`: compacted, co-partitioned with the source topics, written by this application alone."""
        self._locks[topic] = asyncio.Lock()

    def epoch(self, partition: int) -> int:
        """The epoch of this process's records in `partition`: no earlier owner's was as high."""
        stores = (checkpoint.source.store for checkpoint in self._checkpoints().values())
        return max((store.epoch(partition) for store in stores), default=self._lease.generation)

    async def send(
        self, topic: str, records: Mapping[int, Sequence[tuple[bytes, bytes | None]]], headers: Headers = ()
    ) -> None:
        """Put `records`, (key, value) by partition, into the producer's buffer, for a topic that was added.

        All get `headers` beside their epoch. Records of one call arrive before those of a later call. `records` must
        not be empty. Raises AssignmentOverError.
        """
        generation = self._lease.generation
        async with self._locks[topic]:
            buffered = await self._send(topic, records, headers)
        await asyncio.wait(buffered)
        self._check(generation)

    async def _send(
        self, topic: str, records: Mapping[int, Sequence[tuple[bytes, bytes | None]]], headers: Headers
    ) -> list[asyncio.Future[None]]:
        await self._emitter.ready()
        now_ms = time.time_ns() // 1_000_000
        return [
            self._emitter.send_soon(
                topic,
                partition,
                of_partition,
                timestamp_ms=now_ms,
                headers=[(EPOCH, str(self.epoch(partition)).encode()), *headers],
            )
            for partition, of_partition in records.items()
        ]

    async def run(self) -> None:
        """Follow the partitions of this process, until cancelled."""
        while True:
            try:
                await self._lease.wait_open()
                await self._follow(self._lease.generation)
            except AssignmentOverError:
                continue
            except (KafkaError, SilentKafkaError) as error:
                log.warning("following_interrupted", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_S)

    async def _follow(self, generation: int) -> None:
        """Follow this process's partitions in `generation`. Raises AssignmentOverError at its end; KafkaError."""
        async with self._reader(min_bytes=FOLLOW_MIN_BYTES) as reader:
            await self._find_positions(reader)
            while True:
                fetched = await reader.getmany(timeout_ms=FOLLOW_MAX_WAIT_MS)
                # These records may be a later owner's. Only a lease that is open, or renewed, shows that there is none.
                await self._lease.wait_open()
                self._check(generation)
                suspects = dict(self._suspects(fetched))
                for topic in {tp.topic for tp in suspects}:
                    await self._repair(topic, {tp: found for tp, found in suspects.items() if tp.topic == topic})
                    self._check(generation)
                self._next |= {TP(*tp): records[-1].offset + 1 for tp, records in fetched.items()}

    def _check(self, generation: int) -> None:
        """Raise AssignmentOverError if `generation` is over."""
        if generation != self._lease.generation:
            raise AssignmentOverError

    async def _find_positions(self, reader: aiokafka.AIOKafkaConsumer) -> None:
        """Set `reader` to where following starts or continues."""
        checkpoints = self._checkpoints()
        numbers = {tp.partition for tp in self._assignment() if tp.topic not in checkpoints}
        followed = [TP(topic, number) for topic in (*checkpoints, *self._locks) for number in sorted(numbers)]
        self._next = {tp: offset for tp, offset in self._next.items() if tp in followed}
        fresh = [tp for tp in followed if tp not in self._next and tp.topic in self._locks]
        now_ms = time.time_ns() // 1_000_000
        self._next |= await self._before(reader, dict.fromkeys(fresh, now_ms))
        for tp in followed:
            if (checkpoint := checkpoints.get(tp.topic)) is not None:  # recovery has read everything before this
                self._next[tp] = max(self._next.get(tp, 0), checkpoint.source.store.loaded(tp.partition))
        reader.assign(followed)
        for tp, offset in self._next.items():
            reader.seek(tp, offset)

    async def _before(self, reader: aiokafka.AIOKafkaConsumer, times_ms: Mapping[TP, int]) -> dict[TP, int]:
        """The offset from which all records since `LOOK_BACK_S` before a time are read. Raises KafkaError."""
        if not times_ms:
            return {}
        ends = await reader.end_offsets(list(times_ms))
        starts = {TP(*tp): max(0, end - LOOK_BACK_RECORDS) for tp, end in ends.items()}
        if not self._connection.embedded:
            asked = {tp: max(0, at_ms - int(LOOK_BACK_S * 1000)) for tp, at_ms in times_ms.items()}
            for tp, place in (await reader.offsets_for_times(asked)).items():
                if place is not None:
                    starts[TP(*tp)] = min(starts[TP(*tp)], place.offset)
        return starts

    def _suspects(self, fetched: Mapping[Any, Sequence[Any]]) -> Iterator[tuple[TP, _Suspects]]:
        """The output keys with records of another epoch; changelog records go to their checkpoints."""
        checkpoints = self._checkpoints()
        for partition, records in fetched.items():
            tp = TP(*partition)
            if (checkpoint := checkpoints.get(tp.topic)) is not None:
                checkpoint.follow(tp.partition, records)
                continue
            found, own = _Suspects(), self.epoch(tp.partition)
            for record in records:
                if epoch_of(record.headers) != own and key_of(record) is not None:
                    found.keys.add(record.key)
                    found.since_ms = min(found.since_ms, record.timestamp)
            if found.keys:
                yield tp, found

    async def _repair(self, topic: str, suspects: Mapping[TP, _Suspects]) -> None:
        """Write the overwritten records of `suspects` again. Raises AssignmentOverError, KafkaError."""
        if not any(await self._overwritten(suspects)):
            return
        async with self._locks[topic]:
            # This process's own records count too, once they are stored; meanwhile it writes nothing else.
            await self._emitter.delivered()
            for tp, key, standing in await self._overwritten(suspects):
                if count := self._overwritten_log.add(topic):
                    name = key.decode(errors="replace")
                    log.warning("record_overwritten", topic=topic, partition=tp.partition, key=name, records=count)
                self._metrics.written_again.inc()
                await self._send(topic, {tp.partition: [(key, standing.value)]}, standing.headers)

    async def _overwritten(self, suspects: Mapping[TP, _Suspects]) -> list[tuple[TP, bytes, Standing]]:
        """The keys of `suspects` whose last record is not the one that counts. Raises KafkaError."""
        known: dict[TP, dict[bytes, Standing]] = defaultdict(dict)
        async with self._reader(min_bytes=1) as reader:
            starts = await self._before(reader, {tp: found.since_ms for tp, found in suspects.items()})
            async for record in read_to_end(self._connection, reader, starts):
                tp = TP(record.topic, record.partition)
                standings([record], suspects[tp].keys, known[tp], self.epoch(tp.partition))
        return [
            (tp, key, standing) for tp, keys in known.items() for key, standing in keys.items() if standing.overwritten
        ]

    def _reader(self, *, min_bytes: int) -> AbstractAsyncContextManager[aiokafka.AIOKafkaConsumer]:
        """A consumer without a group, whose fetches wait for `min_bytes` or `FOLLOW_MAX_WAIT_MS`."""
        return open_reader(
            self._connection,
            fetch_max_wait_ms=FOLLOW_MAX_WAIT_MS,
            fetch_min_bytes=min_bytes,
            max_partition_fetch_bytes=FETCH_PARTITION_BYTES,
        )
