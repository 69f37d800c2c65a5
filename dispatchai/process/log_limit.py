"""Keeps the log readable when the same failure happens a thousand times a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

LOG_INTERVAL_S: Final = 1.0
"""The same failure is logged once in this time, with its number since the last line."""


@dataclass(slots=True)
class Throttle:
    """Lets one log line through in each interval, and counts the events that it held back."""

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
