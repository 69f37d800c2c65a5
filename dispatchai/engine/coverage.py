"""How far the offsets of a partition may be committed.

A record whose effect is not yet in Kafka (as a snapshot of a state, as an output, as a command that was carried
out) must be read again after a crash. Whoever owes such an effect holds the record's offset here; the transport
commits no further than the lowest offset held. Nothing in here knows what is owed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

from faust.types import TP


@dataclass(slots=True)
class Coverage:
    """Offsets that are held, by partition, then by holder. Used from the application's event loop only."""

    _held: dict[TP, dict[Hashable, int]] = field(default_factory=lambda: defaultdict(dict))

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
        held = self._held.get(tp)
        return min(held.values()) if held else None

    def forget(self) -> None:
        """Drop everything: partitions were assigned anew and are read from their committed offsets."""
        self._held.clear()
