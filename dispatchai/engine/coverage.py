"""How far the offsets of a partition may be committed.

A record whose effect is not durable yet (as a snapshot of a state, as an output, as a command that was carried out)
must be read again after a crash. Whoever is responsible for the effect holds the record's offset here, and the
consumer commits no further than the lowest offset held. Nothing here knows what the effects are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from faust.types import TP


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
