"""The states of a keyed agent that keeps them in columns: one row for each key, thousands in one numpy operation.

Says which row a key has, and holds the offsets that are owed for the rows, as arrays: what `state` does for a key at
a time. What is in a row is the agent's (`Rows`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt
from faust.types import TP

from dispatchai.engine.snapshots import SNAPSHOT_PAUSE_S, Snapshot, SnapshotWriter

if TYPE_CHECKING:
    from dispatchai.engine.app import App

Ints = npt.NDArray[np.int64]

NOTHING: Final = np.iinfo(np.int64).max
"""The offset that is owed by a row that owes nothing."""

SNAPSHOT_APART_S: Final = 1.0
"""A state in columns changes with every frame: a snapshot a second is what a crash has to read again."""

ROUNDS: Final = 8
"""A state in columns is due so many rounds after its last snapshot, or soon after. What is due at once beyond an equal
share of them waits for the next round: a thousand snapshots take a tenth of a second, for which no frame is heard."""

ROUND_MIN: Final = 64
"""So many go in one round in any case."""

_ROWS_AT_FIRST: Final = 64


class Rows(Protocol):
    """Where the agent keeps its states."""

    def load(self, row: int, value: bytes) -> None:
        """Take the state of a snapshot into `row`. Raises ValueError if it cannot be read."""

    def save(self, rows: Sequence[int]) -> list[bytes | None]:
        """The states in `rows` as snapshots; None for one that there is not (any more)."""

    def clear(self, row: int) -> None:
        """Forget what is in `row`; without effect where nothing is."""


class RowStates(SnapshotWriter):
    """The states of one agent, by key. One writer: the agent that made it."""

    def __init__(self, app: App, name: str, rows: Rows, *, partitions: int) -> None:
        super().__init__(app, name, partitions)
        self._rows = rows
        self._row_of: dict[bytes | None, int] = {}
        """By key. None is no record's that has a row, but may be asked for."""
        self._keys: list[bytes] = []
        self._free: list[int] = []
        self._partition = np.zeros(_ROWS_AT_FIRST, np.int64)
        self._wanted = np.zeros(_ROWS_AT_FIRST, np.bool_)
        self._taken_at = np.full(_ROWS_AT_FIRST, -SNAPSHOT_APART_S)
        """When the last snapshot of each row was taken, by the monotonic clock."""
        self._owed: dict[TP, Ints] = {}
        """Offset of the first record of each row that no snapshot covers, taken ones included."""
        self._taken: dict[TP, Ints] = {}
        """The same for what the snapshots that are on their way cover."""
        self._swept: dict[TP, Ints] = {}
        """What the rows owed at the last sweep."""
        app.coverage.add_source(self.floor)

    def key(self, row: int) -> bytes:
        """The key of a row."""
        return self._keys[row]

    def partition(self, row: int) -> int:
        """The partition that the key of a row came from."""
        return int(self._partition[row])

    def stored(self, key: str) -> bytes | None:
        """The last snapshot of `key`, or None."""
        value: bytes | None = self.table.data.get(key)
        return value

    def find(self, keys: Sequence[bytes | None]) -> Ints:
        """The row of each of `keys`, shape (k,); -1 for one that has none."""
        row_of: Callable[[bytes | None, int], int] = self._row_of.get
        return np.fromiter(map(row_of, keys, repeat(-1)), np.int64, len(keys))

    def rows(self, tp: TP, keys: Sequence[bytes]) -> Ints:
        """As `find`; a key that has no row gets one, with what the table holds of it."""
        row_of = self._row_of
        return np.fromiter((row_of[key] if key in row_of else self._new(tp, key) for key in keys), np.int64, len(keys))

    def applied(self, tp: TP, rows: Ints, offsets: Ints) -> None:
        """Records of `tp` at `offsets` were applied to the states in `rows`; both of shape (k,), offsets rising."""
        owed = self._owed.get(tp)
        if owed is None:
            owed = self._owed[tp] = np.full(len(self._wanted), NOTHING)
        # Of several records of a row the first counts: assigned last, it stays.
        rows, offsets = rows[::-1], offsets[::-1]
        first = owed[rows] == NOTHING
        owed[rows[first]] = offsets[first]

    def want(self, rows: Ints, *, at_once: bool = False) -> None:
        """Ask for a snapshot of the states in `rows`: `at_once`, or when the last one is SNAPSHOT_APART_S ago."""
        if len(rows):
            self._wanted[rows] = True
            if at_once:
                self._taken_at[rows] = -SNAPSHOT_APART_S
            self.wake.set()

    def sweep(self) -> None:
        """Ask for a snapshot of every state that owes what it owed at the sweep before."""
        for tp, owed in self._owed.items():
            before = self._swept.get(tp, owed[:0])
            same = owed[: len(before)] == before
            self.want(np.flatnonzero(same & (owed[: len(before)] != NOTHING)))
            self._swept[tp] = owed.copy()

    def floor(self, tp: TP) -> int | None:
        """The lowest offset of `tp` that is owed; None when none is."""
        floors = [int(held[tp].min()) for held in (self._owed, self._taken) if tp in held]
        lowest = min(floors, default=NOTHING)
        return None if lowest == NOTHING else lowest

    def forget(self) -> None:
        """Drop what is in memory: partitions were assigned anew, the table holds what counts."""
        super().forget()
        for row in self._row_of.values():
            self._rows.clear(row)
        self._row_of.clear()
        self._keys.clear()
        self._free.clear()
        self._wanted[:] = False
        self._owed.clear()
        self._taken.clear()
        self._swept.clear()

    def take(self) -> list[Snapshot]:
        """The snapshots that are asked for now."""
        now = time.monotonic()
        rows = np.flatnonzero(self._wanted)
        if not self.closing:
            rows = rows[self._taken_at[rows] <= now - SNAPSHOT_APART_S]
            share = max(ROUND_MIN, -(-len(self._row_of) // ROUNDS))
            rows = np.sort(rows[np.argsort(self._taken_at[rows], kind="stable")[:share]])
        self._wanted[rows] = False
        self._taken_at[rows] = now
        if self._wanted.any():
            asyncio.get_running_loop().call_later(SNAPSHOT_PAUSE_S, self.wake.set)
        for tp, owed in self._owed.items():
            taken = self._taken.get(tp)
            if taken is None:
                taken = self._taken[tp] = np.full(len(owed), NOTHING)
            taken[rows] = np.minimum(taken[rows], owed[rows])
            owed[rows] = NOTHING
        values = self._rows.save(rows.tolist())
        return [
            Snapshot(self._keys[row].decode(), partition, value, row)
            for row, partition, value in zip(rows.tolist(), self._partition[rows].tolist(), values, strict=True)
        ]

    def written(self, snapshot: Snapshot) -> None:
        """Release what `snapshot` covers; the row of a state that is gone is free again."""
        row: int = snapshot.covered
        for taken in self._taken.values():
            taken[row] = NOTHING
        if snapshot.value is None and self._rows.save([row]) == [None] and not self._wanted[row]:
            self._rows.clear(row)
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
            self._rows.load(row, stored)
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
        for held in (self._owed, self._taken):
            for tp, offsets in held.items():
                held[tp] = np.concatenate([offsets, np.full(more, NOTHING)])
