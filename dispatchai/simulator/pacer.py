"""One timer for the frames of all calls: all that are due at about the same time are woken together.

Decides the resolution of that time. A timer for each frame would cost the event loop more than sending the frame.
"""

from __future__ import annotations

import asyncio
import heapq
from math import ceil
from typing import Final

GRAIN_S: Final = 0.001
"""Resolution of the timer. A millisecond is inaudible, and 300 calls share at most 1000 wake-ups a second."""


class Pacer:
    """Wakes waiters at their times. To be used from one event loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0

    async def until(self, moment: float) -> None:
        """Wait until `moment` of the loop's clock: never less, and at most about GRAIN_S longer."""
        woken = asyncio.get_running_loop().create_future()
        self._count += 1  # breaks ties between equal moments: futures have no order
        heapq.heappush(self._waiting, (moment, self._count, woken))
        if self._timer is None or ceil(moment / GRAIN_S) * GRAIN_S < self._wakes_at:
            self._set_timer()
        await woken

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._wakes_at = ceil(self._waiting[0][0] / GRAIN_S) * GRAIN_S
            self._timer = asyncio.get_running_loop().call_at(self._wakes_at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        # The loop may wake early, by up to its clock's resolution: the intended time counts.
        now = max(self._wakes_at, asyncio.get_running_loop().time())
        while self._waiting and self._waiting[0][0] <= now:
            _, _, woken = heapq.heappop(self._waiting)
            if not woken.done():  # cancelled with its call
                woken.set_result(None)
        self._set_timer()
