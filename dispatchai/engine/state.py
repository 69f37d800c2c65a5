"""The states of a keyed agent: held decoded in memory, written as snapshots to a table's changelog.

Order matters: a snapshot that covers a record says that the record need not be read again, so it is written only
after the broker has acknowledged every output made before it; and the record's offset is held in `Coverage` until
the snapshot was sent (Faust flushes the producer before it commits, so what was sent is stored).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import faust
from faust.types import TP

from dispatchai.engine.logs import FAUST_LOG

if TYPE_CHECKING:
    from dispatchai.engine.app import App

S = TypeVar("S")

SNAPSHOT_PAUSE_S = 0.02
"""Pause between rounds of snapshots: states that change several times within it are written once."""


class SnapshotTable(faust.Table):
    """A Faust table that is written by `put` from anywhere in the event loop, at a tenth of the cost of an item
    assignment. Key str, value bytes."""

    logger = FAUST_LOG

    def _serializer_from_type(self, typ: object) -> str:
        """Keys and values are bytes as they are; Faust would read and write a str key as JSON."""
        return "raw"

    def put(self, key: str, value: bytes | None, partition: int) -> None:
        """Set or (None) delete the local copy. The changelog is the caller's to write."""
        store = self.data
        if value is None:
            store.data.pop(key, None)
            store._key_partition.pop(key, None)
        else:
            store.data[key] = value
            store._key_partition[key] = partition


@dataclass(slots=True)
class _Entry(Generic[S]):
    """A state in memory. `first_owed` is the offset of the first record, by partition, that no snapshot covers."""

    state: S | None
    partition: int
    first_owed: dict[TP, int]
    wanted: bool = False
    blocked: bool = False


class States(Generic[S]):
    """The states of one agent, by key. One writer: the agent that made it."""

    def __init__(
        self, app: App, name: str, *, encode: Callable[[S], bytes], decode: Callable[[bytes], S], partitions: int
    ) -> None:
        self.name = name
        self._app = app
        self._encode = encode
        self._decode = decode
        self._entries: dict[str, _Entry[S]] = {}
        self._wanted: dict[str, _Entry[S]] = {}
        self._wake = asyncio.Event()
        self._generation = 0
        self._round: asyncio.Future[None] | None = None
        self.table: SnapshotTable = app.Table(name, key_type=str, value_type=bytes, partitions=partitions, default=None)

    def get(self, key: str) -> S | None:
        """The state of `key`, or None. Without effect on memory, so a view may ask while tables recover."""
        entry = self._entries.get(key)
        if entry is not None:
            return entry.state
        stored = self.table.data.get(key)
        return None if stored is None else self._decode(stored)

    def __iter__(self) -> Iterator[tuple[str, S]]:
        """All keys with their states: those in memory, then those that only the table holds."""
        for key, entry in list(self._entries.items()):
            if entry.state is not None:
                yield key, entry.state
        for key, stored in list(self.table.data.items()):
            if key not in self._entries:
                yield key, self._decode(stored)

    def partition_of(self, key: str) -> int | None:
        """The partition that `key` came from, or None for an unknown key."""
        entry = self._entries.get(key)
        return entry.partition if entry is not None else self.table.data._key_partition.get(key)

    def put(self, key: str, state: S | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        """Set the state of `key` as it is after the records of `tp` from `offset` on; None deletes it.

        `snapshot` asks for a snapshot soon; without it one that was asked for earlier still comes, and the offsets
        are held until then.
        """
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(None, tp.partition, {})
        entry.state = state
        entry.first_owed.setdefault(tp, offset)
        self._app.coverage.hold(tp, (self.name, key), offset)
        if snapshot and not entry.wanted:
            entry.wanted = True
            self._wanted[key] = entry
            self._wake.set()

    def block(self, key: str) -> None:
        """Write no snapshot of `key` until `unblock`: something is owed for what its state says was done."""
        self._entries[key].blocked = True

    def unblock(self, key: str) -> None:
        """Let the snapshots of `key` be written again."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.blocked = False
            self._wake.set()

    def forget(self) -> None:
        """Drop what is in memory: partitions were assigned anew, the tables hold what counts."""
        self._generation += 1
        self._entries.clear()
        self._wanted.clear()

    async def run(self) -> None:
        """Write the snapshots that are asked for, until cancelled; then `close` must follow."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            # A round that was begun is finished: half of it would leave offsets held for nothing.
            self._round = asyncio.ensure_future(self.write_wanted())
            await asyncio.shield(self._round)
            await asyncio.sleep(SNAPSHOT_PAUSE_S)

    async def close(self) -> None:
        """Finish the round that `run` was cancelled in, and write what was asked for since."""
        if self._round is not None:
            await self._round
        await self.write_wanted()

    async def write_wanted(self) -> None:
        """Write the snapshots that are asked for now, but those of blocked keys."""
        generation = self._generation
        wanted = {key: entry for key, entry in self._wanted.items() if not entry.blocked}
        self._wanted = {key: entry for key, entry in self._wanted.items() if entry.blocked}
        captured: list[tuple[str, _Entry[S], bytes | None, dict[TP, int]]] = []
        for key, entry in wanted.items():
            entry.wanted = False
            captured.append((key, entry, None if entry.state is None else self._encode(entry.state), entry.first_owed))
            # What comes while the outputs are on their way is owed by the next snapshot. The offsets of this one
            # stay held until it is sent: `hold` keeps the lowest.
            entry.first_owed = {}
        await self._app.emitter.delivered()
        for key, entry, value, covered in captured:
            if generation != self._generation:
                return
            await self._app.emitter.send(
                self.table.changelog_topic.get_topic_name(), key.encode(), value, partition=entry.partition
            )
            self.table.put(key, value, entry.partition)
            for tp in covered:
                owed = entry.first_owed.get(tp)
                if owed is None:
                    self._app.coverage.release(tp, (self.name, key))
                else:
                    self._app.coverage.advance(tp, (self.name, key), owed)
            if value is None and entry.state is None:
                self._entries.pop(key, None)
