"""What goes wrong on the simulated line, and when. Pure: a seed and a call's number give the same faults each time.

Decides which frames are sent at which moment and how a stream ends. A new kind of fault is a new field here and
the one place that asks for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Faults of each call. Rates are chances of a frame, 0 to 1. The default is a line without faults."""

    seed: int = 0
    duplicate_rate: float = 0.0
    """The frame is sent twice."""
    swap_rate: float = 0.0
    """The frame is sent after its successor."""
    loss_rate: float = 0.0
    """The frame is never sent. Its chunk number is used up."""
    missing_stop: bool = False
    """The stream ends by a closed socket, without `stop`."""
    close_after_frames: int | None = None
    """After this many frames of the call its socket is cut, without a closing handshake."""

    def __post_init__(self) -> None:
        for name in ("duplicate_rate", "swap_rate", "loss_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a chance: 0 to 1")

    def dice(self, call_number: int) -> random.Random:
        """The randomness of call `call_number`."""
        return random.Random(f"{self.seed}:{call_number}")  # noqa: S311 - repeatable on purpose


NO_FAULTS = Faults()


def slots(count: int, faults: Faults, dice: random.Random) -> Iterator[tuple[int, ...]]:
    """For each of `count` moments, 20 ms apart, which frames (0 to count-1) are sent then, in this order.

    Without faults moment n sends frame n. A swapped frame goes out with its successor; the last one has none.
    """
    held: tuple[int, ...] = ()
    for index in range(count):
        lost, twice, later = (
            dice.random() < rate for rate in (faults.loss_rate, faults.duplicate_rate, faults.swap_rate)
        )
        copies = () if lost else (index, index) if twice else (index,)
        if later and not held and index + 1 < count:
            held = copies
            yield ()
        else:
            yield copies + held
            held = ()
