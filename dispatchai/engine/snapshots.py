"""Snapshots of states: how they get into a table's changelog, and out of it again after a crash.

Order matters: a snapshot that covers a record says that the record need not be read again, so it is written only
after the broker has acknowledged every output made before it; and the record's offset is held in `Coverage` until
the snapshot was sent (Faust flushes the producer before it commits, so what was sent is stored).

Each snapshot carries the epoch of its writer, a number that every new owner of a partition makes higher. A process
that was expelled and does not know it yet may write an old state over a newer one; on recovery the snapshot of the
highest epoch counts, and of one epoch the last. It is then written again, because compaction would keep the old one,
which is the last in the log; so it is when an old one comes later (`latest`). What a state is and when it is due is
left to `state` and `rows`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import faust
import structlog
from faust.types import EventT

from dispatchai.engine.emitter import AssignmentOverError
from dispatchai.engine.guards import Guard
from dispatchai.engine.logs import FAUST_LOG

if TYPE_CHECKING:
    from dispatchai.engine.app import App

log = structlog.get_logger(__name__)

SNAPSHOT_PAUSE_S: Final = 0.1
"""Pause between rounds of snapshots: states that change several times within it are written once, and a broker has ten
requests a second from them."""

EPOCH: Final = "epoch"
"""Header of a snapshot: the epoch of its writer, as decimal digits."""


class SnapshotTable(faust.Table):
    """A Faust table that is written by `put` from anywhere in the event loop, at a tenth of the cost of an item
    assignment, and recovered by `load`, a fetch at a time. Key str, value bytes."""

    logger = FAUST_LOG

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epochs: dict[int, dict[str, int]] = {}
        """Epoch of the snapshot that counts, of each key that was recovered, by partition."""
        self._highest: dict[int, int] = {}
        """Highest epoch seen in each partition's changelog."""
        self._overwritten: dict[int, set[str]] = {}
        """Keys of which the changelog's last record is not the one that counts, by partition."""
        self._loaded: dict[int, int] = {}
        """Up to which offset each partition's changelog was read."""

    def _serializer_from_type(self, typ: object) -> str:
        """Keys and values are bytes as they are; Faust would read and write a str key as JSON."""
        return "raw"

    def put(self, key: str, value: bytes | None, partition: int) -> None:
        """Set or (None) delete the local copy. The changelog is the caller's to write."""
        self._overwritten.get(partition, set()).discard(key)
        store = self.data
        if value is None:
            store.data.pop(key, None)
            store._key_partition.pop(key, None)
        else:
            store.data[key] = value
            store._key_partition[key] = partition

    def load(self, partition: int, records: Iterable[aiokafka.ConsumerRecord]) -> None:
        """Recover from `records` of the changelog, in the order of their offsets."""
        epochs = self._epochs.setdefault(partition, {})
        highest = self._highest.get(partition, 0)
        compared = Guard.EPOCHS in self.app.guards
        stale: set[str] = set()
        for record in records:
            self._loaded[partition] = record.offset + 1
            key = record.key.decode()
            epoch = epoch_of(record.headers)
            if compared and epoch < epochs.get(key, 0):
                stale.add(key)
                continue
            stale.discard(key)
            epochs[key] = epoch
            highest = max(highest, epoch)
            self.put(key, record.value, partition)
        self._highest[partition] = highest
        if stale:
            self._overwrite(partition, stale)

    def follow(self, partition: int, records: Iterable[aiokafka.ConsumerRecord]) -> bool:
        """Look at `records` behind those that were loaded. Returns whether one is an earlier owner's: this process
        wrote all that is of its own epoch, and what counts is here."""
        epoch = self.epoch(partition)
        stale = {record.key.decode() for record in records if epoch_of(record.headers) < epoch}
        if stale:
            self._overwrite(partition, stale)
        return bool(stale)

    def _overwrite(self, partition: int, keys: set[str]) -> None:
        self._overwritten.setdefault(partition, set()).update(keys)
        log.warning("snapshots_overwritten", table=self.name, partition=partition, keys=len(keys))

    def loaded(self, partition: int) -> int:
        """The offset behind the last record of the changelog's `partition` that was loaded; 0 where none was."""
        return self._loaded.get(partition, 0)

    def apply_changelog_batch(self, batch: Iterable[EventT]) -> None:
        """Nothing: `load` has taken the records as they were fetched. Called by Faust."""

    def drop(self, partition: int) -> None:
        """Forget a partition that is recovered from the beginning of its changelog."""
        self._epochs.pop(partition, None)
        self._highest.pop(partition, None)
        self._overwritten.pop(partition, None)
        self._loaded.pop(partition, None)
        partition_of = self.data._key_partition
        for key in [key for key, number in partition_of.items() if number == partition]:
            self.put(key, None, partition)

    def epoch(self, partition: int) -> int:
        """The epoch of this process's snapshots of `partition`: above that of any owner before it.

        The group's generation rises with every owner, and would do, but Kafka forgets it when a group was away for
        a week. The highest epoch seen rises too, but an owner that wrote nothing left none. So it is the higher one.
        """
        return max(self.app.lease.generation, self._highest.get(partition, 0) + 1)

    @property
    def overwritten(self) -> dict[int, list[str]]:
        """Keys of which the changelog's last record is not the one that counts, by partition."""
        return {partition: sorted(keys) for partition, keys in self._overwritten.items() if keys}

    def recovered(self) -> None:
        """All of the changelogs was loaded: the epochs of keys that were deleted are not needed any more."""
        for partition, epochs in self._epochs.items():
            self._epochs[partition] = {key: epoch for key, epoch in epochs.items() if key in self.data}


def epoch_of(headers: Iterable[tuple[str, bytes]]) -> int:
    """The epoch of a snapshot's writer; 0 where the header is missing or is no number."""
    for name, value in headers:
        if name == EPOCH and value.isdigit():
            return int(value)
    return 0


SWEEP_S: Final = 5.0
"""How often states are looked for that were changed and not written since the look before: a call that is silent asks
for no snapshot, and what it owes would hold the partition's commits back. They lag by ten seconds at the most, or as
long as the snapshot of a large state waits."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is on its way. `value` None is a tombstone; `covered` is for whoever took it."""

    key: str
    partition: int
    value: bytes | None
    covered: Any


class SnapshotWriter(ABC):
    """Writes the snapshots of one agent's states to the changelog of `table`, in rounds."""

    def __init__(self, app: App, name: str, partitions: int) -> None:
        self.name = name
        self.app = app
        self.table: SnapshotTable = app.Table(name, key_type=str, value_type=bytes, partitions=partitions, default=None)
        self.wake = asyncio.Event()
        """To be set when a snapshot is wanted."""
        self.closing = False
        """Whether this is the last round: what is wanted is due."""
        self._generation = 0
        self._round: asyncio.Future[None] | None = None

    @abstractmethod
    def take(self) -> Iterable[Snapshot]:
        """The snapshots that are wanted now. What is applied from here on is owed by later ones."""

    @abstractmethod
    def written(self, snapshot: Snapshot) -> None:
        """`snapshot` was sent: the offsets that it covers are owed no more."""

    @abstractmethod
    def sweep(self) -> None:
        """Ask for a snapshot of every state that owes what it owed at the sweep before."""

    def forget(self) -> None:
        """Drop what is in memory: partitions were assigned anew, the table holds what counts."""
        self._generation += 1

    def recovered(self) -> None:
        """The table was recovered: what was overwritten in its changelog is to be written again."""
        self.table.recovered()
        if self.table.overwritten:
            self.wake.set()

    def follow(self, partition: int, records: Iterable[aiokafka.ConsumerRecord]) -> None:
        """Write again what `records` of the changelog, which came after its recovery, have overwritten."""
        if self.table.follow(partition, records):
            self.wake.set()

    async def run_sweeps(self) -> None:
        """Sweep now and then, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    async def run(self) -> None:
        """Write the snapshots that are asked for, until cancelled; then `close` must follow."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            # A round that was begun is finished: half of it would leave offsets held for nothing.
            self._round = asyncio.ensure_future(self.write_wanted())
            with suppress(AssignmentOverError):
                await asyncio.shield(self._round)
            await asyncio.sleep(SNAPSHOT_PAUSE_S)

    async def close(self) -> None:
        """Finish the round that `run` was cancelled in, and write what was asked for since.

        Without effect where this process may not write: what is not covered is read again.
        """
        if not self.app.lease.open:
            if self._round is not None:
                self._round.cancel()
            return
        self.closing = True
        with suppress(AssignmentOverError):
            if self._round is not None:
                await self._round
            await self.write_wanted()

    async def write_wanted(self) -> None:
        """One round: take what is wanted, wait for the outputs, write. Raises AssignmentOverError."""
        generation = self._generation
        for partition, keys in self.table.overwritten.items():
            await self._send(partition, [(key, self.table.data.get(key)) for key in keys], generation)
            self.app.metrics.written_again.inc(len(keys))
        by_partition: dict[int, list[Snapshot]] = defaultdict(list)
        for snapshot in self.take():
            by_partition[snapshot.partition].append(snapshot)
        await self.app.emitter.delivered()
        for partition, snapshots in by_partition.items():
            await self._send(partition, [(snapshot.key, snapshot.value) for snapshot in snapshots], generation)
            for snapshot in snapshots:
                self.written(snapshot)

    async def _send(self, partition: int, values: Sequence[tuple[str, bytes | None]], generation: int) -> None:
        """Write `values` by key to the changelog's `partition`. Raises AssignmentOverError."""
        if generation != self._generation:
            raise AssignmentOverError
        await self.app.emitter.send_batch(
            self.table.changelog_topic.get_topic_name(),
            partition,
            ((key.encode(), value) for key, value in values),
            timestamp_ms=time.time_ns() // 1_000_000,
            headers=[(EPOCH, str(self.table.epoch(partition)).encode())],
        )
        self.app.metrics.snapshots(self.name, len(values), sum(len(value) for _, value in values if value))
        for key, value in values:
            self.table.put(key, value, partition)
