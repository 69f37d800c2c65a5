"""How far the offsets of a partition may be committed.

A record whose effect is not durable yet (as a snapshot of a state, as an output, as a command that was carried out)
must be read again after a crash. Whoever is responsible for the effect holds the record's offset here, and the
consumer commits no further than the lowest offset held. Nothing here knows what the effects are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

from faust.types import TP

from dispatchai.engine.failure import Failure
from dispatchai.engine.stall_detection import StallDetector
from dispatchai.engine.write_lease import Lease


@dataclass(slots=True)
class Coverage:
    """The offsets that are held, by partition, then by holder. Used from the application's event loop only."""

    _held: dict[TP, dict[Hashable, int]] = field(default_factory=lambda: defaultdict(dict))
    _sources: list[Callable[[TP], int | None]] = field(default_factory=list)

    def add_source(self, floor: Callable[[TP], int | None]) -> None:
        """Also ask `floor` for the lowest offset that it holds of a partition: for a holder of thousands of offsets."""
        self._sources.append(floor)

    def hold(self, tp: TP, holder: Hashable, offset: int) -> None:
        """Keep commits of `tp` at or below `offset` until `release`. A holder keeps its lowest offset."""
        held = self._held[tp]
        held[holder] = min(offset, held.get(holder, offset))

    def advance(self, tp: TP, holder: Hashable, offset: int) -> None:
        """Replace the offset that `holder` holds of `tp` by the later `offset`: everything before it is durable."""
        self._held[tp][holder] = offset

    def release(self, tp: TP, holder: Hashable) -> None:
        """Hold nothing of `tp` for `holder` any more. No effect on a holder that holds nothing."""
        self._held[tp].pop(holder, None)

    def floor(self, tp: TP) -> int | None:
        """The lowest offset of `tp` that must be read again after a crash; None if no offset is held."""
        floors = [floor for source in self._sources if (floor := source(tp)) is not None]
        if held := self._held.get(tp):
            floors.append(min(held.values()))
        return min(floors, default=None)

    def reset(self) -> None:
        """Drop all offsets held here: partitions were reassigned and are read from their committed offsets."""
        self._held.clear()


class Commits:
    """How far the source partitions of an application may be committed, and whether a commit still counts."""

    def __init__(self, stalls: StallDetector, coverage: Coverage, lease: Lease, failure: Failure) -> None:
        self._stalls = stalls
        self._coverage = coverage
        self._lease = lease
        self._failure = failure
        self._sought: Mapping[TP, int] = {}
        self._generation = 0
        """In which the offsets of the commit in progress were computed."""
        self.records_dropped = False
        """Whether unsent records of this assignment were dropped: no commit may cover them."""

    def sought(self, offsets: Mapping[TP, int]) -> None:
        """Partitions are read from `offsets` on."""
        self._sought = offsets

    def assigned(self) -> None:
        """A new assignment begins; nothing of it was dropped."""
        self.records_dropped = False

    def drop(self) -> None:
        """Records of this assignment were dropped unsent."""
        self.records_dropped = True

    def begin(self) -> None:
        """Offsets for a commit are about to be computed."""
        self._generation = self._lease.generation

    def offset(self, tp: TP) -> int | None:
        """Step 6 of `Checkpoint.write`: the offset of `tp` to commit, or None if there is nothing to commit.

        It lies behind everything that every agent has processed, but not beyond an offset that is held. None too if
        nothing was processed since the partition was sought: its former owner's last commit may have come after this
        process asked for the committed offset, and must not be undone.
        """
        processed = self._stalls.next_offset(tp)
        if processed is None:
            return None
        floor = self._coverage.floor(tp)
        offset = processed if floor is None else min(processed, floor)
        return offset if offset > self._sought.get(tp, 0) else None

    @property
    def valid(self) -> bool:
        """Whether the offsets computed since `begin` may be committed.

        Not after a rebalance, and not if outputs that they cover were dropped or refused.
        """
        same = self._generation == self._lease.generation
        return same and not self.records_dropped and not self._failure.has_failed
