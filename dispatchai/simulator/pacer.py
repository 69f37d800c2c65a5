"""One clock for the frames of all calls: who waits for a moment is woken together with all others of that moment.

Decides how fine moments are told apart. A timer a frame would cost the event loop more than sending the frame.
"""

from __future__ import annotations

import asyncio
import heapq
from math import ceil
from typing import Final

GRAIN_S: Final = 0.001
"""Moments within a millisecond are one: nobody hears it, and 300 calls then share at most 1000 wakings a second."""


class Pacer:
    """Use from one event loop."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0

    async def until(self, moment: float) -> None:
        """Waits until `moment` of the loop's clock: never less, at most about a grain more."""
        woken = asyncio.get_running_loop().create_future()
        self._count += 1  # tells futures of one moment apart: they have no order
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
        # The loop may wake up to its clock's resolution early: what was meant is what counts.
        now = max(self._wakes_at, asyncio.get_running_loop().time())
        while self._waiting and self._waiting[0][0] <= now:
            _, _, woken = heapq.heappop(self._waiting)
            if not woken.done():  # cancelled with its call
                woken.set_result(None)
        self._set_timer()
