"""In a compacted topic the last record of a key stays, so it must be the one of the partition's latest owner.

A request that a former owner sent before it was expelled may arrive afterwards: its process was frozen at that moment,
or the network held it. Kafka appends it, compaction would keep it, and what the new owner wrote would be gone. So each
record carries the epoch of its writer, the owner follows its partitions of these topics, and where a record of an
earlier epoch lies behind one of a later it writes the later one again.

Decides which record counts. What is in it, and whether it is an output or a snapshot, is left to others.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import structlog
from aiokafka.errors import KafkaError
from faust.types import TP

from dispatchai.engine.emitter import AssignmentOverError
from dispatchai.engine.guards import Guard
from dispatchai.engine.snapshots import EPOCH, epoch_of
from dispatchai.kafka.reading import true_ends

if TYPE_CHECKING:
    from dispatchai.engine.app import App

log = structlog.get_logger(__name__)

FOLLOW_MAX_WAIT_MS: Final = 500
"""How long the broker may hold back what is followed: it must be seen before it can be compacted, half a minute after
it was written, and each answer costs the event loop more than what is in it."""

FOLLOW_MIN_BYTES: Final = 1_048_576

LOOK_BACK_S: Final = 40.0
"""A new owner looks so far back: nobody followed the partition since its owner was gone, and that is a session timeout,
a rebalance and a recovery. Also what the clocks of two owners may differ by."""

LOOK_BACK_RECORDS: Final = 1_000
"""And so many records of a partition in any case: in a quiet one a late record, whose time is that of its writing, is
all there is; and the embedded broker does not find offsets by time."""

AGAIN_S: Final = 1.0
"""Pause before Kafka is asked again after it did not answer."""


@dataclass(slots=True)
class Standing:
    """What was read of one key: which record counts, and which is the last. Epochs are those of the writers."""

    epoch: int
    value: bytes | None
    """Of the record that counts: that of the highest epoch, of one epoch the last. None is a tombstone."""
    last_epoch: int

    @property
    def overwritten(self) -> bool:
        """Whether the last record is not the one that counts."""
        return self.last_epoch < self.epoch


def standings(records: Sequence[Any], keys: Collection[bytes], known: dict[bytes, Standing]) -> None:
    """Take `records` of one partition, in the order of their offsets, into what is `known` of `keys`."""
    for record in records:
        if record.key not in keys:
            continue
        epoch = epoch_of(record.headers)
        standing = known.setdefault(record.key, Standing(epoch, record.value, epoch))
        standing.last_epoch = epoch
        if epoch >= standing.epoch:
            standing.epoch, standing.value = epoch, record.value


@dataclass(slots=True)
class _Suspects:
    """Keys of one partition that an earlier owner wrote, or so it seems, and when it made the oldest of these."""

    keys: set[bytes] = field(default_factory=set)
    since_ms: int = 2**63 - 1


class Latest:
    """Writes to compacted topics, and sees to it that the latest owner's record of a key is the last.

    Changelogs are followed too: what is overwritten there their own writers write again.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._locks: dict[str, asyncio.Lock] = {}
        """By topic; who holds it alone writes there."""
        self._next: dict[TP, int] = {}
        """Where following goes on, of each partition that is followed."""

    def add(self, topic: str) -> None:
        """`topic` is compacted, partitioned as what the application reads, and written by it alone."""
        self._locks[topic] = asyncio.Lock()

    async def send(self, topic: str, records: Mapping[int, Sequence[tuple[bytes, bytes | None]]]) -> None:
        """Put `records`, (key, value) by partition, in the producer's buffer, for a topic that was added. What is sent
        in one call arrives before what is sent in a later one. `records` may not be empty. Raises AssignmentOverError.
        """
        generation = self._app.lease.generation
        async with self._locks[topic]:
            buffered = await self._send(topic, records)
        await asyncio.wait(buffered)
        self._check(generation)

    async def _send(
        self, topic: str, records: Mapping[int, Sequence[tuple[bytes, bytes | None]]]
    ) -> list[asyncio.Future[None]]:
        await self._app.emitter.ready()
        now_ms = time.time_ns() // 1_000_000
        return [
            self._app.emitter.send_soon(
                topic,
                partition,
                of_partition,
                timestamp_ms=now_ms,
                headers=[(EPOCH, str(self._app.epoch(partition)).encode())],
            )
            for partition, of_partition in records.items()
        ]

    async def run(self) -> None:
        """Follow the partitions of this process, until cancelled."""
        if Guard.EPOCHS not in self._app.guards:
            return
        while True:
            try:
                await self._app.lease.wait_open()
                await self._follow(self._app.lease.generation)
            except AssignmentOverError:
                continue
            except KafkaError as error:
                log.warning("following_interrupted", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(AGAIN_S)

    async def _follow(self, generation: int) -> None:
        """Follow what belongs to this process in `generation`. Raises AssignmentOverError at its end; KafkaError."""
        async with self._reader(min_bytes=FOLLOW_MIN_BYTES) as reader:
            await self._find_positions(reader)
            while True:
                fetched = await reader.getmany(timeout_ms=FOLLOW_MAX_WAIT_MS)
                self._check(generation)
                suspects = dict(self._suspects(fetched))
                for topic in {tp.topic for tp in suspects}:
                    await self._mend(topic, {tp: found for tp, found in suspects.items() if tp.topic == topic})
                    self._check(generation)
                self._next |= {TP(*tp): records[-1].offset + 1 for tp, records in fetched.items()}

    def _check(self, generation: int) -> None:
        """Raise AssignmentOverError if the assignment is another one than that of `generation`."""
        if generation != self._app.lease.generation:
            raise AssignmentOverError

    async def _find_positions(self, reader: aiokafka.AIOKafkaConsumer) -> None:
        """Set `reader` to where following goes on, or begins."""
        changelogs = self._app.changelogs
        assigned = self._app.consumer.assignment()
        numbers = {tp.partition for tp in assigned if tp.topic not in changelogs}
        followed = [TP(topic, number) for topic in (*changelogs, *self._locks) for number in sorted(numbers)]
        self._next = {tp: offset for tp, offset in self._next.items() if tp in followed}
        fresh = [tp for tp in followed if tp not in self._next and tp.topic in self._locks]
        now_ms = time.time_ns() // 1_000_000
        self._next |= await self._before(reader, dict.fromkeys(fresh, now_ms))
        for tp in followed:
            if (snapshots := changelogs.get(tp.topic)) is not None:  # recovery has read what lies before
                self._next[tp] = max(self._next.get(tp, 0), snapshots.table.loaded(tp.partition))
        reader.assign(followed)
        for tp, offset in self._next.items():
            reader.seek(tp, offset)

    async def _before(self, reader: aiokafka.AIOKafkaConsumer, times_ms: Mapping[TP, int]) -> dict[TP, int]:
        """The offset to read from, for all that was written since `LOOK_BACK_S` before a time. Raises KafkaError."""
        if not times_ms:
            return {}
        ends = await reader.end_offsets(list(times_ms))
        starts = {TP(*tp): max(0, end - LOOK_BACK_RECORDS) for tp, end in ends.items()}
        if not self._app.connection.embedded:
            asked = {tp: max(0, at_ms - int(LOOK_BACK_S * 1000)) for tp, at_ms in times_ms.items()}
            for tp, place in (await reader.offsets_for_times(asked)).items():
                if place is not None:
                    starts[TP(*tp)] = min(starts[TP(*tp)], place.offset)
        return starts

    def _suspects(self, fetched: Mapping[Any, Sequence[Any]]) -> Iterator[tuple[TP, _Suspects]]:
        """Of outputs the keys that seem to be an earlier owner's; what comes of changelogs is told to their writers."""
        changelogs = self._app.changelogs
        for partition, records in fetched.items():
            tp = TP(*partition)
            if (snapshots := changelogs.get(tp.topic)) is not None:
                snapshots.follow(tp.partition, records)
                continue
            found, own = _Suspects(), self._app.epoch(tp.partition)
            for record in records:
                if epoch_of(record.headers) < own:
                    found.keys.add(record.key)
                    found.since_ms = min(found.since_ms, record.timestamp)
            if found.keys:
                yield tp, found

    async def _mend(self, topic: str, suspects: Mapping[TP, _Suspects]) -> None:
        """Write again what was overwritten of `suspects`. Raises AssignmentOverError, KafkaError."""
        if not any(await self._overwritten(suspects)):
            return
        async with self._locks[topic]:
            # What this process wrote counts too, once it is there; meanwhile it writes nothing else.
            await self._app.emitter.delivered()
            for tp, key, standing in await self._overwritten(suspects):
                log.warning("record_overwritten", topic=topic, partition=tp.partition, key=key.decode())
                self._app.metrics.written_again.inc()
                await self._send(topic, {tp.partition: [(key, standing.value)]})

    async def _overwritten(self, suspects: Mapping[TP, _Suspects]) -> list[tuple[TP, bytes, Standing]]:
        """Of `suspects` the keys whose last record is not the one that counts. Raises KafkaError."""
        known: dict[TP, dict[bytes, Standing]] = defaultdict(dict)
        async with self._reader(min_bytes=1) as reader:
            starts = await self._before(reader, {tp: found.since_ms for tp, found in suspects.items()})
            ends = await true_ends(self._app.connection, await reader.end_offsets(list(suspects)))
            left = {tp for tp in suspects if starts[tp] < ends[tp]}
            reader.assign(list(left))
            for tp in left:
                reader.seek(tp, starts[tp])
            while left:
                for partition, records in (await reader.getmany(timeout_ms=FOLLOW_MAX_WAIT_MS)).items():
                    tp = TP(*partition)
                    standings(records, suspects[tp].keys, known[tp])
                for tp in list(left):
                    if await reader.position(tp) >= ends[tp]:
                        left.discard(tp)
        return [
            (tp, key, standing) for tp, keys in known.items() for key, standing in keys.items() if standing.overwritten
        ]

    @asynccontextmanager
    async def _reader(self, *, min_bytes: int) -> AsyncIterator[aiokafka.AIOKafkaConsumer]:
        """A consumer of no group, which waits for `min_bytes` or `FOLLOW_MAX_WAIT_MS`."""
        async with aiokafka.AIOKafkaConsumer(
            **self._app.connection.client_options(),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FOLLOW_MAX_WAIT_MS,
            fetch_min_bytes=min_bytes,
        ) as reader:
            yield reader
