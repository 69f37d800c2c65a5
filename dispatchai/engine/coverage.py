"""How far the offsets of a partition may be committed.

A record whose effect is not yet in Kafka (as a snapshot of a state, as an output, as a command that was carried
out) must be read again after a crash. Whoever owes such an effect holds the record's offset here; the transport
commits no further than the lowest offset held. Nothing in here knows what is owed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from faust.types import TP


@dataclass(slots=True)
class Coverage:
    """Offsets that are held, by partition, then by holder. Used from the application's event loop only."""

    _held: dict[TP, dict[Hashable, int]] = field(default_factory=lambda: defaultdict(dict))
    _sources: list[Callable[[TP], int | None]] = field(default_factory=list)

    def add_source(self, floor: Callable[[TP], int | None]) -> None:
        """Ask `floor`, too, for the lowest offset that it holds of a partition: for who holds thousands."""
        self._sources.append(floor)

    def hold(self, tp: TP, holder: Hashable, offset: int) -> None:
        """Keep the commit of `tp` at or below `offset` until `release`. A holder keeps its lowest offset."""
        held = self._held[tp]
        held[holder] = min(offset, held.get(holder, offset))

    def advance(self, tp: TP, holder: Hashable, offset: int) -> None:
        """Replace what `holder` holds of `tp` by the later `offset`; earlier ones are owed no more."""
        self._held[tp][holder] = offset

    def release(self, tp: TP, holder: Hashable) -> None:
        """Owe nothing more of `tp`. Without effect for one that holds nothing."""
        self._held[tp].pop(holder, None)

    def floor(self, tp: TP) -> int | None:
        """The lowest offset of `tp` that must be read again after a crash; None when none is held."""
        floors = [floor for source in self._sources if (floor := source(tp)) is not None]
        if held := self._held.get(tp):
            floors.append(min(held.values()))
        return min(floors, default=None)

    def forget(self) -> None:
        """Drop what is held here: partitions were assigned anew and are read from their committed offsets."""
        self._held.clear()
