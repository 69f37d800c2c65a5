"""Whether this process may still write for its partitions.

A process that is stopped or starved for longer than the session timeout is expelled from its consumer group, and
another process takes its partitions. When it resumes it is a zombie: it does not know that yet, and would write old
states over those of its successor. So it writes only while the group coordinator must still count it as a member: for
one session timeout from the moment when it *sent* the last heartbeat that was answered. The monotonic clock runs on
while a process is stopped, so the first check after it resumes finds the lease expired.

The idea is that of a leader's lease in replicated state machines. The lease only says when writing is allowed; the
emitter and the producer ask it. `late_writes` handles requests that were in flight when the lease ran out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lease:
    """The lease of one group member. Times are seconds of `clock`. Used from the application's event loop only."""

    length_s: float
    clock: Callable[[], float] = time.monotonic
    generation: int = 0
    """The group's generation whose assignment this process follows; 0 before the first."""
    _until: float = 0.0
    _revoked: bool = True
    _opened: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def valid(self) -> bool:
        """Whether nobody else can own the partitions."""
        return self.left_s > 0

    @property
    def left_s(self) -> float:
        """Seconds until it expires without another heartbeat; negative once it has expired."""
        return self._until - self.clock()

    @property
    def open(self) -> bool:
        """Whether agents may write: the lease is valid and no rebalance is in progress."""
        return self.valid and not self._revoked

    def revoked(self) -> None:
        """A rebalance began: what agents produce from now on belongs to no assignment."""
        self._revoked = True

    def assigned(self, generation: int, at: float) -> None:
        """`generation` assigned partitions, which this process learned at `at`."""
        self.generation = generation
        self._until = at + self.length_s

    def resumed(self) -> None:
        """The rebalance is over, and the states are those of the assignment."""
        self._revoked = False
        self._opened.set()

    def renewed(self, generation: int, at: float) -> None:
        """A heartbeat of `generation`, sent at `at`, was answered. One of another generation proves nothing."""
        if generation == self.generation:
            self._until = max(self._until, at + self.length_s)
            self._opened.set()

    async def wait_open(self) -> None:
        """Wait until agents may write."""
        while not self.open:
            self._opened.clear()
            await self._opened.wait()
