"""The states of a keyed agent in columns: one row for each key, thousands of rows in one numpy operation.

Assigns rows to keys and holds offsets for rows, as arrays: what `keyed_state` does for one key at a time. The agent
owns the content of the rows (`Columns`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
from faust.types import TP

from dispatchai.engine.checkpoint import ROUND_PAUSE_S, Snapshot, SnapshotSource
from dispatchai.engine.commits import Coverage
from dispatchai.engine.snapshots import SnapshotStore

Ints = npt.NDArray[np.int64]

NONE_HELD: Final = np.iinfo(np.int64).max
"""The offset of a row that holds none."""

SNAPSHOT_APART_S: Final = 1.0
"""A columnar state changes with every frame: a crash has to read up to a second again."""

ROUNDS: Final = 8
"""A columnar state is due this many rounds after its last snapshot, or soon after. Of the snapshots that are due at
once, those beyond an equal share wait for the next round: a thousand snapshots take a tenth of a second, during which
no frame is processed."""

ROUND_MIN: Final = 64
"""At least so many go into one round."""

_INITIAL_ROWS: Final = 64


class Columns(Protocol):
    """Where the agent keeps its states."""

    def load(self, row: int, value: bytes) -> None:
        """Load the state of a snapshot into `row`. Raises ValueError if it cannot be decoded."""

    def save(self, rows: Sequence[int]) -> list[bytes | None]:
        """The states in `rows` as snapshots; None for a state that does not exist (any more)."""

    def clear(self, row: int) -> None:
        """Clear `row`. No effect on an empty row."""


class ColumnarStates(SnapshotSource):
    """The states of one agent, by key. One writer: the agent that owns them."""

    def __init__(self, name: str, store: SnapshotStore, coverage: Coverage, columns: Columns) -> None:
        super().__init__(name, store)
        self._columns = columns
        self._row_of: dict[bytes | None, int] = {}
        """By key. No row has the key None, but it may be looked up."""
        self._keys: list[bytes] = []
        self._free: list[int] = []
        self._partition = np.zeros(_INITIAL_ROWS, np.int64)
        self._wanted = np.zeros(_INITIAL_ROWS, np.bool_)
        self._taken_at = np.full(_INITIAL_ROWS, -SNAPSHOT_APART_S)
        """When the last snapshot of each row was taken, in seconds of the monotonic clock."""
        self._held: dict[TP, Ints] = {}
        """Offset of the first record of each row that no snapshot covers, not even one that was taken."""
        self._taken: dict[TP, Ints] = {}
        """The same for the records that snapshots in flight cover."""
        self._swept: dict[TP, Ints] = {}
        """The offsets that the rows held at the last sweep."""
        coverage.add_source(self.floor)

    def key(self, row: int) -> bytes:
        """The key of a row."""
        return self._keys[row]

    def partition(self, row: int) -> int:
        """The partition that the key of a row came from."""
        return int(self._partition[row])

    def stored(self, key: str) -> bytes | None:
        """The last snapshot of `key`, or None."""
        return self.store.values.get(key)

    def find(self, keys: Sequence[bytes | None]) -> Ints:
        """The row of each of `keys`, shape (k,); -1 for one that has none."""
        row_of: Callable[[bytes | None, int], int] = self._row_of.get
        return np.fromiter(map(row_of, keys, repeat(-1)), np.int64, len(keys))

    def rows(self, tp: TP, keys: Sequence[bytes]) -> Ints:
        """As `find`, but a key that has no row gets one, with its stored state."""
        row_of = self._row_of
        return np.fromiter((row_of[key] if key in row_of else self._new(tp, key) for key in keys), np.int64, len(keys))

    def applied(self, tp: TP, rows: Ints, offsets: Ints) -> None:
        """Records of `tp` at `offsets` were applied to the states in `rows`; both of shape (k,), offsets rising."""
        held = self._held.get(tp)
        if held is None:
            held = self._held[tp] = np.full(len(self._wanted), NONE_HELD)
        # Of several records of a row the first counts: it is assigned last.
        rows, offsets = rows[::-1], offsets[::-1]
        first = held[rows] == NONE_HELD
        held[rows[first]] = offsets[first]

    def want(self, rows: Ints, *, at_once: bool = False) -> None:
        """Ask for a snapshot of the states in `rows`: `at_once`, or SNAPSHOT_APART_S after the last one."""
        if len(rows):
            self._wanted[rows] = True
            if at_once:
                self._taken_at[rows] = -SNAPSHOT_APART_S
            self.wake.set()

    def sweep(self) -> None:
        """Ask for a snapshot of every state whose held offset is that of the sweep before."""
        for tp, held in self._held.items():
            before = self._swept.get(tp, held[:0])
            same = held[: len(before)] == before
            self.want(np.flatnonzero(same & (held[: len(before)] != NONE_HELD)))
            self._swept[tp] = held.copy()

    def floor(self, tp: TP) -> int | None:
        """The lowest offset of `tp` that is held; None if none is."""
        floors = [int(held[tp].min()) for held in (self._held, self._taken) if tp in held]
        lowest = min(floors, default=NONE_HELD)
        return None if lowest == NONE_HELD else lowest

    def reset(self) -> None:
        """Drop the states in memory: partitions were reassigned, and the store holds what counts."""
        for row in self._row_of.values():
            self._columns.clear(row)
        self._row_of.clear()
        self._keys.clear()
        self._free.clear()
        self._wanted[:] = False
        self._held.clear()
        self._taken.clear()
        self._swept.clear()

    def take(self) -> list[Snapshot]:
        """The snapshots that are wanted and due now."""
        now = time.monotonic()
        rows = np.flatnonzero(self._wanted)
        if not self.closing:
            rows = rows[self._taken_at[rows] <= now - SNAPSHOT_APART_S]
            share = max(ROUND_MIN, -(-len(self._row_of) // ROUNDS))
            rows = np.sort(rows[np.argsort(self._taken_at[rows], kind="stable")[:share]])
        self._wanted[rows] = False
        self._taken_at[rows] = now
        if self._wanted.any():
            asyncio.get_running_loop().call_later(ROUND_PAUSE_S, self.wake.set)
        for tp, held in self._held.items():
            taken = self._taken.get(tp)
            if taken is None:
                taken = self._taken[tp] = np.full(len(held), NONE_HELD)
            taken[rows] = np.minimum(taken[rows], held[rows])
            held[rows] = NONE_HELD
        values = self._columns.save(rows.tolist())
        return [
            Snapshot(self._keys[row].decode(), partition, value, row)
            for row, partition, value in zip(rows.tolist(), self._partition[rows].tolist(), values, strict=True)
        ]

    def written(self, snapshot: Snapshot) -> None:
        """Release the offsets that `snapshot` covers; the row of a deleted state is free again."""
        row: int = snapshot.covered
        for taken in self._taken.values():
            taken[row] = NONE_HELD
        if snapshot.value is None and self._columns.save([row]) == [None] and not self._wanted[row]:
            self._columns.clear(row)
            del self._row_of[self._keys[row]]
            self._free.append(row)

    def _new(self, tp: TP, key: bytes) -> int:
        if not self._free:
            self._free.append(len(self._keys))
            self._keys.append(b"")
            if len(self._keys) > len(self._wanted):
                self._grow(2 * len(self._wanted))
        row = self._free[-1]
        stored = self.stored(key.decode())
        if stored is not None:
            self._columns.load(row, stored)
        self._free.pop()
        self._keys[row] = key
        self._row_of[key] = row
        self._partition[row] = tp.partition
        self._taken_at[row] = -SNAPSHOT_APART_S
        return row

    def _grow(self, size: int) -> None:
        more = size - len(self._wanted)
        self._wanted = np.concatenate([self._wanted, np.zeros(more, np.bool_)])
        self._taken_at = np.concatenate([self._taken_at, np.full(more, -SNAPSHOT_APART_S)])
        self._partition = np.concatenate([self._partition, np.zeros(more, np.int64)])
        for held in (self._held, self._taken):
            for tp, offsets in held.items():
                held[tp] = np.concatenate([offsets, np.full(more, NONE_HELD)])
