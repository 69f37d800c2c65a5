"""Whether this process may still write for the partitions that it was assigned.

A process that was stopped (or starved) for longer than the session timeout was expelled from its group: another one
has its partitions. When it goes on it does not know that yet, and would write what it had in mind over what its
successor wrote since. So it may write only while the group coordinator must still count it as a member: from the
moment when the last heartbeat that was answered was *sent*, for one session timeout. The monotonic clock goes on
while a process is stopped, so the first look after it went on finds the lease expired.

The same idea as a leader's lease in replicated state machines. Decides when; who asks is `emit` and the transport.
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
    enforced: bool = True
    """Without it the lease is always valid and open: for the crash test, to see what is lost then."""
    generation: int = 0
    """Generation of the group, by Kafka's count, whose assignment this process follows; 0 before the first."""
    _until: float = 0.0
    _revoked: bool = True
    _opened: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def valid(self) -> bool:
        """Whether no one else can have the partitions."""
        return not self.enforced or self.left_s > 0

    @property
    def left_s(self) -> float:
        """For how many seconds it is valid without another heartbeat; below 0, since when it is not."""
        return self._until - self.clock()

    @property
    def open(self) -> bool:
        """Whether agents may write: the lease is valid, and no rebalance is under way."""
        return not self.enforced or (self.valid and not self._revoked)

    def revoked(self) -> None:
        """A rebalance began: what agents make from now on belongs to no assignment."""
        self._revoked = True

    def assigned(self, generation: int, at: float) -> None:
        """Partitions were assigned by `generation`, of which this process learned at `at`."""
        self.generation = generation
        self._until = at + self.length_s

    def resumed(self) -> None:
        """The rebalance is over and the states are those of the assignment."""
        self._revoked = False
        self._opened.set()

    def renewed(self, generation: int, at: float) -> None:
        """A heartbeat of `generation` that was sent at `at` was answered. One of another generation says nothing."""
        if generation == self.generation:
            self._until = max(self._until, at + self.length_s)
            self._opened.set()

    async def wait_open(self) -> None:
        """Wait until agents may write."""
        while not self.open:
            self._opened.clear()
            await self._opened.wait()
