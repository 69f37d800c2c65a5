"""Takes care that media leaves room: of each turn of the event loop it gets a few milliseconds.

Decides when media is worked on. Everything else of the gateway (webhooks, Kafka's answers, health) runs whenever the
event loop comes to it, and between two turns of media it comes to all of it. So a gateway that is behind with its
frames still answers webhooks, and what it is behind with waits at its sockets.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

TURN_S: Final = 0.003
"""What media takes of one turn of the event loop at most: 150 frames. A webhook needs about eight turns from its first
byte to its answer, so frames delay it by 25 ms at most, of the 300 that the carrier should see."""


class Work(Protocol):
    """Something that has media to work on."""

    def take(self) -> bool:
        """Do a small part of it, well below TURN_S. Returns whether there is more."""


class Turns:
    """Works on what was added, in turn, as far as one turn of the event loop allows. `clock` is in seconds."""

    def __init__(self, turn_s: float = TURN_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._turn_s = turn_s
        self._clock = clock
        self._ready: deque[Work] = deque()
        self._scheduled = False

    def add(self, work: Work) -> None:
        """`work` has something to do. It must not be added again before its `take` said that there is no more."""
        self._ready.append(work)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        until = self._clock() + self._turn_s
        ready = self._ready
        try:
            while ready:
                work = ready.popleft()
                if work.take():
                    ready.append(work)
                if self._clock() >= until:
                    break
        finally:
            self._scheduled = bool(ready)
            if ready:
                # The loop reads its sockets and runs all other callbacks before it comes to this one.
                asyncio.get_running_loop().call_soon(self._turn)
