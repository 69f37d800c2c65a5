"""The states of a keyed agent, decoded in memory, each with the offsets it holds and the time its snapshot is due.

A state that no record touches may be evicted: its snapshot, a tenth as large, is then all that is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog
from faust.types import TP

from dispatchai.engine.checkpoint import Snapshot, SnapshotSource
from dispatchai.engine.commits import Coverage
from dispatchai.engine.snapshots import SnapshotStore
from dispatchai.process.log_limit import LogLimit

log = structlog.get_logger(__name__)

S = TypeVar("S")

SNAPSHOT_BYTES_PER_S: Final = 1024
"""A snapshot contains the whole state, and one of ten minutes of talk costs ten milliseconds. So a larger state is
written less often: at this rate, beyond `SNAPSHOT_BYTES_FREE`. A crash then has to read more again, up to a minute's
records for 60 kB, but the cost of keeping the state does not grow."""

SNAPSHOT_BYTES_FREE: Final = 4096
"""A state of up to this size is written whenever a snapshot is wanted."""


@dataclass(slots=True)
class _Entry(Generic[S]):
    """A state in memory. `first_held` is the offset of the first record, by partition, that no snapshot covers."""

    state: S | None
    partition: int
    first_held: dict[TP, int]
    wanted: bool = False
    blocked: bool = False
    covered: bool = False
    """Whether the store holds this state as it is."""
    idle: bool = False
    """Whether it was covered at the last sweep and not touched since."""
    due_at: float = 0.0
    """No further snapshot of it is taken before this time of the monotonic clock."""


class KeyedStates(SnapshotSource, Generic[S]):
    """The states of one agent, by key. One writer: the agent that owns them."""

    def __init__(
        self,
        name: str,
        store: SnapshotStore,
        coverage: Coverage,
        *,
        encode: Callable[[S], bytes],
        decode: Callable[[bytes], S],
        evict: bool = False,
    ) -> None:
        """With `evict`, a state that no record touches between two sweeps is kept as its snapshot only: for states
        that are large once decoded, and that nobody iterates over."""
        super().__init__(name, store)
        self._coverage = coverage
        self._encode = encode
        self._decode = decode
        self._evict = evict
        self._entries: dict[str, _Entry[S]] = {}
        self._wanted: dict[str, _Entry[S]] = {}
        self._swept: dict[str, dict[TP, int]] = {}
        """The offsets that the states held at the last sweep."""
        self._matches: dict[str, bool] = {}
        """The result of `match` for states that only the store holds, until they are touched."""
        self._unreadable: set[str] = set()
        """Keys whose snapshots could not be decoded, each logged once."""
        self._unreadable_log = LogLimit()
        self._alarm: asyncio.TimerHandle | None = None
        """Wakes the checkpoint when a postponed snapshot is due."""

    def get(self, key: str) -> S | None:
        """The state of `key`, or None. Does not change memory, so a view may ask while tables recover."""
        entry = self._entries.get(key)
        if entry is not None:
            return entry.state
        stored = self.store.values.get(key)
        return None if stored is None else self._decode(stored)

    def __iter__(self) -> Iterator[tuple[str, S]]:
        """All keys with their states: those in memory, then those that only the store holds."""
        for key, entry in list(self._entries.items()):
            if entry.state is not None:
                yield key, entry.state
        for key, stored in list(self.store.values.items()):
            if key not in self._entries and (state := self._readable(key, stored)) is not None:
                yield key, state

    def _readable(self, key: str, stored: bytes) -> S | None:
        """The state in a snapshot, or None if it cannot be decoded: who goes through all states must see the others.

        Records of that key are dead-lettered, as `get` raises.
        """
        try:
            return self._decode(stored)
        except ValueError as error:
            if key not in self._unreadable:
                self._unreadable.add(key)
                if count := self._unreadable_log.add():
                    log.error(
                        "snapshot_unreadable", table=self.name, key=key, error=type(error).__name__, snapshots=count
                    )
            return None

    def match(self, predicate: Callable[[S], bool]) -> Iterator[tuple[str, bool]]:
        """All keys, each with whether `predicate` holds for its state.

        The result for an evicted state is remembered, which saves decoding it; so `predicate` must be the same in
        every call.
        """
        for key, entry in list(self._entries.items()):
            if entry.state is not None:
                yield key, predicate(entry.state)
        for key, stored in list(self.store.values.items()):
            if key not in self._entries:
                if (matches := self._matches.get(key)) is None:
                    state = self._readable(key, stored)
                    matches = self._matches[key] = state is not None and predicate(state)
                yield key, matches

    def partition_of(self, key: str) -> int | None:
        """The partition of `key`, or None for an unknown key."""
        entry = self._entries.get(key)
        return entry.partition if entry is not None else self.store.partition_of(key)

    def put(self, key: str, state: S | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        """Set the state of `key` as it is after the records of `tp` from `offset` on; None deletes it.

        `snapshot` asks for a snapshot soon. Without it a snapshot that was wanted earlier still comes, and the offsets
        are held until then.
        """
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(None, tp.partition, {})
            self._matches.pop(key, None)
        entry.state = state
        entry.covered = entry.idle = False
        entry.first_held.setdefault(tp, offset)
        self._coverage.hold(tp, (self.name, key), offset)
        if snapshot:
            self._want(key, entry)

    def _want(self, key: str, entry: _Entry[S]) -> None:
        if not entry.wanted:
            entry.wanted = True
            self._wanted[key] = entry
            self.wake.set()

    def sweep(self) -> None:
        """Ask for a snapshot of every state whose held offsets are those of the sweep before; evict idle states."""
        holding = {key: dict(entry.first_held) for key, entry in self._entries.items() if entry.first_held}
        for key, held in holding.items():
            if self._swept.get(key) == held:
                self._want(key, self._entries[key])
        self._swept = holding
        if self._evict:
            self._evict_idle()

    def _evict_idle(self) -> None:
        """Evict the states that were covered at the sweep before and not touched since."""
        idle = [key for key, entry in self._entries.items() if entry.idle and not entry.blocked]
        for key in idle:
            del self._entries[key]
        for entry in self._entries.values():
            entry.idle = entry.covered

    def block(self, key: str) -> None:
        """Write no snapshot of `key` until `unblock`: an effect that its state counts as done is still pending."""
        self._entries[key].blocked = True

    def unblock(self, key: str) -> None:
        """Allow snapshots of `key` again."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.blocked = False
            self.wake.set()

    def reset(self) -> None:
        """Drop the states in memory: partitions were reassigned, and the store holds what counts."""
        self._entries.clear()
        self._matches.clear()
        self._unreadable.clear()
        self._wanted.clear()
        self._wake_at(None)

    def take(self) -> list[Snapshot]:
        """The snapshots that are wanted and due now, except those of blocked keys."""
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
            taken.append(Snapshot(key, entry.partition, value, (entry, entry.first_held)))
            # Records that arrive while the outputs are in flight belong to the next snapshot. The offsets of this one
            # stay held until it is sent: `hold` keeps the lowest.
            entry.first_held = {}
        self._wanted = waiting
        self._wake_at(min((entry.due_at for entry in waiting.values() if not entry.blocked), default=None))
        return taken

    def _wake_at(self, due_at: float | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if due_at is not None:
            self._alarm = asyncio.get_running_loop().call_later(due_at - time.monotonic(), self.wake.set)

    def written(self, snapshot: Snapshot) -> None:
        """Release the offsets that `snapshot` covers, except those held since it was taken."""
        entry, covered = snapshot.covered
        for tp in covered:
            held = entry.first_held.get(tp)
            if held is None:
                self._coverage.release(tp, (self.name, snapshot.key))
            else:
                self._coverage.advance(tp, (self.name, snapshot.key), held)
        if snapshot.value is None and entry.state is None:
            self._entries.pop(snapshot.key, None)
        entry.covered = not entry.first_held and entry.state is not None
