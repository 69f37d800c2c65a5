"""When states become durable: in which order outputs, snapshots and commits reach Kafka.

`Checkpoint.write` is the order that exact recovery rests on (docs/guarantees.md). Agents have done the first two steps
when a checkpoint is due: `agent.apply` calls the pure step, sends its outputs, replaces the state in memory and holds
the offset of the first record that the state contains and no snapshot does.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from dispatchai.engine.emitter import Emitter
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.metrics import EngineMetrics
from dispatchai.engine.snapshots import EPOCH, SnapshotStore

ROUND_PAUSE_S: Final = 0.1
"""Pause between two rounds of snapshots: a state that changes several times within it is written once, and a broker
gets ten requests a second from them."""

SWEEP_S: Final = 5.0
"""How often states are searched that changed and were not written since the search before: a silent call asks for no
snapshot, and its offsets would hold the partition's commits back. Commits lag by ten seconds at most, or by as long as
the snapshot of a large state waits."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is to be written. `value` None is a tombstone; `covered` is its source's own note."""

    key: str
    partition: int
    value: bytes | None
    covered: Any


class SnapshotSource(ABC):
    """The states of one agent, as its checkpoint sees them."""

    def __init__(self, name: str, store: SnapshotStore) -> None:
        self.name = name
        self.store = store
        self.wake = asyncio.Event()
        """Set when a snapshot is wanted."""
        self.closing = False
        """Whether this is the last round: everything that is wanted is due."""

    @abstractmethod
    def take(self) -> Iterable[Snapshot]:
        """The snapshots that are due now. Records applied after this are covered by later ones."""

    @abstractmethod
    def written(self, snapshot: Snapshot) -> None:
        """`snapshot` was sent: release the offsets that it covers."""

    @abstractmethod
    def sweep(self) -> None:
        """Ask for a snapshot of every state whose held offsets are those of the sweep before."""

    @abstractmethod
    def reset(self) -> None:
        """Drop the states in memory: partitions were reassigned, and the store holds what counts."""


class Checkpoint:
    """Writes the snapshots of one agent's states to the changelog of its table."""

    def __init__(self, source: SnapshotSource, changelog: str, *, emitter: Emitter, metrics: EngineMetrics) -> None:
        self.source = source
        self.changelog = changelog
        """Name of the changelog topic."""
        self._emitter = emitter
        self._metrics = metrics
        self._assignment = 0
        """Counts assignments: what was taken in one must not be written in the next."""
        self._round: asyncio.Future[None] | None = None

    async def write(self) -> None:
        """Make states durable, in the order in which no crash loses a record or counts one twice.

        1. A step was called with the state and some records. It is pure.
        2. Its outputs were sent, the state was replaced in memory, and the offset of its first record is held.
        3. Take the snapshots that are due. They contain all records that were applied up to now.
        4. Wait until the broker has acknowledged every output sent so far. A snapshot says that its records need not
           be read again, so their outputs must be in Kafka before it is. Then send the snapshots.
        5. Release the offsets that the snapshots cover.
        6. Once a second the consumer flushes the producer, so that every snapshot which released an offset is stored,
           and then commits `Commits.offset`.

        A crash between two steps leaves records that are read again and skipped, since the snapshot contains them, or
        outputs that are made again with the same content. Raises AssignmentOverError if partitions were reassigned
        meanwhile: whoever owns them now reads the records again.
        """
        assignment = self._assignment
        await self._write_overwritten(assignment)
        # 3.
        taken: dict[int, list[Snapshot]] = defaultdict(list)
        for snapshot in self.source.take():
            taken[snapshot.partition].append(snapshot)
        # 4.
        await self._emitter.delivered()
        for partition, snapshots in taken.items():
            await self._send(partition, [(snapshot.key, snapshot.value) for snapshot in snapshots], assignment)
            # 5.
            for snapshot in snapshots:
                self.source.written(snapshot)

    async def _write_overwritten(self, assignment: int) -> None:
        """Write again the snapshots that a former owner's late request has overwritten in the changelog."""
        store = self.source.store
        for partition, keys in store.overwritten.items():
            await self._send(partition, [(key, store.values.get(key)) for key in keys], assignment)
            self._metrics.written_again.inc(len(keys))

    async def _send(self, partition: int, values: Sequence[tuple[str, bytes | None]], assignment: int) -> None:
        if assignment != self._assignment:
            raise AssignmentOverError
        store = self.source.store
        await self._emitter.send_batch(
            self.changelog,
            partition,
            ((key.encode(), value) for key, value in values),
            timestamp_ms=time.time_ns() // 1_000_000,
            headers=[(EPOCH, str(store.epoch(partition)).encode())],
        )
        self._metrics.snapshots(self.source.name, len(values), sum(len(value) for _, value in values if value))
        for key, value in values:
            store.put(key, value, partition)

    async def run(self) -> None:
        """Write a round whenever snapshots are wanted, until cancelled; then `close` must follow."""
        while True:
            await self.source.wake.wait()
            self.source.wake.clear()
            # A round that has begun is finished: half of it would leave offsets held for nothing.
            self._round = asyncio.ensure_future(self.write())
            with suppress(AssignmentOverError):
                await asyncio.shield(self._round)
            await asyncio.sleep(ROUND_PAUSE_S)

    async def run_sweeps(self) -> None:
        """Sweep every `SWEEP_S`, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self.source.sweep()

    async def close(self) -> None:
        """Finish the round in which `run` was cancelled, and write the snapshots wanted since.

        No effect where this process may not write: what is not covered is read again.
        """
        if not self._emitter.may_write:
            return
        self.source.closing = True
        with suppress(AssignmentOverError):
            if self._round is not None:
                await self._round
            await self.write()

    def reset(self) -> None:
        """Partitions were reassigned: discard the states, and refuse what was taken of them."""
        self._assignment += 1
        self.source.reset()

    def recovered(self) -> None:
        """The store was recovered: snapshots that are overwritten in its changelog are to be written again."""
        self.source.store.recovered()
        if self.source.store.overwritten:
            self.source.wake.set()

    def follow(self, partition: int, records: Iterable[Any]) -> None:
        """Check `records` that were written to the changelog after recovery, and repair what they overwrite."""
        if self.source.store.follow(partition, records):
            self.source.wake.set()
