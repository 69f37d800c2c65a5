"""The states of a keyed agent, held decoded in memory: what is owed for each, and when its snapshot is due.

What no record touches may rest: then its snapshot, a tenth as large, is all that is held.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from faust.types import TP

from dispatchai.engine.snapshots import Snapshot, SnapshotWriter

if TYPE_CHECKING:
    from dispatchai.engine.app import App

S = TypeVar("S")

SNAPSHOT_BYTES_PER_S: Final = 1024
"""A snapshot holds all of a state, and one of what was said in ten minutes costs ten milliseconds. So the larger it is
the rarer it is taken: at this pace, beyond `SNAPSHOT_BYTES_FREE`. What a crash has to read again grows with it, to a
minute's records for 60 kB, but not what it costs to keep a state."""

SNAPSHOT_BYTES_FREE: Final = 4096
"""A state of this size is written whenever it is asked for."""


@dataclass(slots=True)
class _Entry(Generic[S]):
    """A state in memory. `first_owed` is the offset of the first record, by partition, that no snapshot covers."""

    state: S | None
    partition: int
    first_owed: dict[TP, int]
    wanted: bool = False
    blocked: bool = False
    covered: bool = False
    """Whether the table holds this state as it is."""
    rested: bool = False
    """Whether it was covered at the last sweep, and not touched since."""
    due_at: float = 0.0
    """Not before this is another snapshot of it taken, by the monotonic clock."""


class States(SnapshotWriter, Generic[S]):
    """The states of one agent, by key. One writer: the agent that made it."""

    def __init__(
        self,
        app: App,
        name: str,
        *,
        encode: Callable[[S], bytes],
        decode: Callable[[bytes], S],
        partitions: int,
        rest: bool = False,
    ) -> None:
        """With `rest`, a state that no record touches between two sweeps is held as its snapshot only: for states
        that are large once decoded, and that nobody iterates over."""
        super().__init__(app, name, partitions)
        self._encode = encode
        self._decode = decode
        self._rest = rest
        self._entries: dict[str, _Entry[S]] = {}
        self._wanted: dict[str, _Entry[S]] = {}
        self._swept: dict[str, dict[TP, int]] = {}
        """What the states owed at the last sweep."""
        self._judged: dict[str, bool] = {}
        """What `judge` found of states that only the table holds, until they are touched."""
        self._again: asyncio.TimerHandle | None = None
        """Wakes the writer when one that had to wait is due."""

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

    def judge(self, counts: Callable[[S], bool]) -> Iterator[tuple[str, bool]]:
        """All keys with what `counts` says of their states: of one that rests as it said before, which spares
        decoding it. It must be the same at every call."""
        for key, entry in list(self._entries.items()):
            if entry.state is not None:
                yield key, counts(entry.state)
        for key, stored in list(self.table.data.items()):
            if key not in self._entries:
                if (judged := self._judged.get(key)) is None:
                    judged = self._judged[key] = counts(self._decode(stored))
                yield key, judged

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
            self._judged.pop(key, None)
        entry.state = state
        entry.covered = entry.rested = False
        entry.first_owed.setdefault(tp, offset)
        self.app.coverage.hold(tp, (self.name, key), offset)
        if snapshot:
            self._want(key, entry)

    def _want(self, key: str, entry: _Entry[S]) -> None:
        if not entry.wanted:
            entry.wanted = True
            self._wanted[key] = entry
            self.wake.set()

    def sweep(self) -> None:
        """Ask for a snapshot of every state that owes what it owed at the sweep before."""
        owing = {key: dict(entry.first_owed) for key, entry in self._entries.items() if entry.first_owed}
        for key, owed in owing.items():
            if self._swept.get(key) == owed:
                self._want(key, self._entries[key])
        self._swept = owing
        if self._rest:
            self._lay_down()

    def _lay_down(self) -> None:
        """Let go of the states that were covered at the sweep before and not touched since."""
        at_rest = [key for key, entry in self._entries.items() if entry.rested and not entry.blocked]
        for key in at_rest:
            del self._entries[key]
        for entry in self._entries.values():
            entry.rested = entry.covered

    def block(self, key: str) -> None:
        """Write no snapshot of `key` until `unblock`: something is owed for what its state says was done."""
        self._entries[key].blocked = True

    def unblock(self, key: str) -> None:
        """Let the snapshots of `key` be written again."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.blocked = False
            self.wake.set()

    def forget(self) -> None:
        """Drop what is in memory: partitions were assigned anew, the tables hold what counts."""
        super().forget()
        self._entries.clear()
        self._judged.clear()
        self._wanted.clear()
        self._wake_at(None)

    def take(self) -> list[Snapshot]:
        """The snapshots that are asked for and due now, but those of blocked keys."""
        now = time.monotonic()
        waiting, taken = dict[str, _Entry[S]](), []
        for key, entry in self._wanted.items():
            early = entry.due_at > now and entry.state is not None and not self.closing
            if entry.blocked or early:
                waiting[key] = entry
                continue
            entry.wanted = False
            value = None if entry.state is None else self._encode(entry.state)
            if value is not None:
                entry.due_at = now + (len(value) - SNAPSHOT_BYTES_FREE) / SNAPSHOT_BYTES_PER_S
            taken.append(Snapshot(key, entry.partition, value, (entry, entry.first_owed)))
            # What comes while the outputs are on their way is owed by the next snapshot. The offsets of this one
            # stay held until it is sent: `hold` keeps the lowest.
            entry.first_owed = {}
        self._wanted = waiting
        self._wake_at(min((entry.due_at for entry in waiting.values() if not entry.blocked), default=None))
        return taken

    def _wake_at(self, due_at: float | None) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if due_at is not None:
            self._again = asyncio.get_running_loop().call_later(due_at - time.monotonic(), self.wake.set)

    def written(self, snapshot: Snapshot) -> None:
        """Release what `snapshot` covers, but for what came since."""
        entry, covered = snapshot.covered
        for tp in covered:
            owed = entry.first_owed.get(tp)
            if owed is None:
                self.app.coverage.release(tp, (self.name, snapshot.key))
            else:
                self.app.coverage.advance(tp, (self.name, snapshot.key), owed)
        if snapshot.value is None and entry.state is None:
            self._entries.pop(snapshot.key, None)
        entry.covered = not entry.first_owed and entry.state is not None
