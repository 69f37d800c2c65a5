"""Puts the frames of one track back in order, as far as a small buffer can.

Decides which frame goes out when, and which never does. Pure: no clock, no I/O, no log. The owner decides how long
frames may be held while no more arrive.
Source: Telnyx media streaming ("order of events is not guaranteed and the chunk number can be used to reorder").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Generic, TypeVar

T = TypeVar("T")

DEPTH: Final = 4
"""Frames held while an earlier one is missing: 80 ms of 20 ms frames. A larger buffer would delay every gap by more."""

_REMEMBERED_GAPS: Final = 64
"""Sequence numbers given up that are remembered, to distinguish a late frame from a duplicate."""


class Arrival(Enum):
    """How a frame arrived."""

    IN_ORDER = auto()
    EARLY = auto()
    """An earlier one is missing: the frame is held, or the gap is given up."""
    REORDERED = auto()
    """It fills a gap that later frames waited for."""
    DUPLICATE = auto()
    """It arrived before: it is dropped."""
    LATE = auto()
    """Its gap was given up: it is dropped."""


@dataclass(slots=True)
class ReorderBuffer(Generic[T]):
    """One track. Its output has strictly rising sequence numbers; a jump between two is a gap.

    `next` is the lowest sequence number that has neither gone out nor been given up.
    """

    depth: int = DEPTH
    next: int = 1
    on_gap: Callable[[int], None] | None = None
    """Called with the number of sequence numbers given up, each time."""
    _held: dict[int, T] = field(default_factory=dict)
    _gaps: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_GAPS))

    def push(self, sequence: int, item: T) -> tuple[Arrival, list[tuple[int, T]]]:
        """Take one frame. Returns how it arrived, and the frames that go out now with their sequence numbers."""
        if sequence == self.next and not self._held:
            self.next = sequence + 1
            return Arrival.IN_ORDER, [(sequence, item)]
        if sequence < self.next:
            if sequence in self._gaps:
                self._gaps.remove(sequence)
                return Arrival.LATE, []
            return Arrival.DUPLICATE, []
        if sequence in self._held:
            return Arrival.DUPLICATE, []
        arrival = Arrival.REORDERED if sequence < max(self._held, default=0) else Arrival.EARLY
        self._held[sequence] = item
        if sequence != self.next:
            if len(self._held) <= self.depth:
                return arrival, []
            self._give_up_until(min(self._held))
        return arrival, self._release()

    @property
    def holds(self) -> bool:
        """Whether frames wait for an earlier one."""
        return bool(self._held)

    def flush(self) -> list[tuple[int, T]]:
        """Give up everything that is missing. Returns all held frames, in order."""
        released: list[tuple[int, T]] = []
        while self._held:
            self._give_up_until(min(self._held))
            released += self._release()
        return released

    def _give_up_until(self, sequence: int) -> None:
        self._gaps.extend(range(max(self.next, sequence - _REMEMBERED_GAPS), sequence))
        if self.on_gap is not None and sequence > self.next:
            self.on_gap(sequence - self.next)
        self.next = sequence

    def _release(self) -> list[tuple[int, T]]:
        released: list[tuple[int, T]] = []
        while self.next in self._held:
            released.append((self.next, self._held.pop(self.next)))
            self.next += 1
        return released
