"""Shares the event loop between media and everything else: media gets a few milliseconds of each iteration.

Decides when media is processed. The rest of the gateway (webhooks, Kafka's answers, health) runs whenever the event
loop comes to it, and the loop comes to all of it between two slices of media. A gateway that falls behind with its
frames therefore still answers webhooks, and the frames wait at their sockets.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

SLICE_S: Final = 0.003
"""The most that media takes of one iteration of the event loop: 150 frames. A webhook needs about eight iterations from
its first byte to its answer, so frames delay it by at most 25 of the 300 ms in which the carrier should see the
answer."""


class Work(Protocol):
    """Something that has media to process."""

    def process_piece(self) -> bool:
        """Process a small piece, well below SLICE_S. Returns whether there is more."""


class FairQueue:
    """Round-robin over the work that was added, one slice in each iteration of the event loop.

    `slice_s` is the length of a slice; `clock` is in seconds.
    """

    def __init__(self, slice_s: float = SLICE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._slice_s = slice_s
        self._clock = clock
        self._ready: deque[Work] = deque()
        self._scheduled = False

    def add(self, work: Work) -> None:
        """Queue `work`. It must not be added again before its `process_piece` has returned False."""
        self._ready.append(work)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run_slice)

    def _run_slice(self) -> None:
        until = self._clock() + self._slice_s
        ready = self._ready
        try:
            while ready:
                work = ready.popleft()
                if work.process_piece():
                    ready.append(work)
                if self._clock() >= until:
                    break
        finally:
            self._scheduled = bool(ready)
            if ready:
                # The loop reads its sockets and runs all other callbacks before it comes to this one.
                asyncio.get_running_loop().call_soon(self._run_slice)
