"""Limits how often the same log event is written when it happens a thousand times a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

LOG_INTERVAL_S: Final = 1.0
"""The least time between two lines about the same event. The second line has the number of events since the first."""


@dataclass(slots=True)
class LogLimit:
    """Lets one log line through in each interval and counts the events in between."""

    interval_s: float = LOG_INTERVAL_S
    _next: float = 0.0
    _held: int = 0

    def add(self, count: int = 1) -> int:
        """Count `count` events. Returns the number to log now, or 0."""
        self._held += count
        now = time.monotonic()
        if now < self._next:
            return 0
        self._next = now + self.interval_s
        held, self._held = self._held, 0
        return held
