"""Limits how often the same log event is written when it happens a thousand times a second.

Whoever reaches a port can make some events happen as often as they like. Each line of such an event has the number of
events that it stands for; the metrics count them all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class LogLimits:
    """A limit for each kind of an event. There must be few kinds."""

    _by_kind: defaultdict[Hashable, LogLimit] = field(default_factory=lambda: defaultdict(LogLimit))

    def add(self, kind: Hashable) -> int:
        """Count an event of `kind`. Returns the number to log now, or 0."""
        return self._by_kind[kind].add()


KINDS_MAX: Final = 256
"""Kinds of a library's lines that are distinguished at a time."""

KIND_CHARS: Final = 40
"""Beginning of a line's template that tells its kind. What follows may hold an address in memory."""


class LimitedLines(logging.Filter):
    """A filter for the lines of libraries: lets one of each kind through in each interval.

    The line after a pause has the number of lines that it stands for as `lines`. Lines at CRITICAL always pass.
    """

    def __init__(self, intervals_s: Mapping[str, float]) -> None:
        """`intervals_s`: the interval of each limited library, by the name at the head of its loggers' names."""
        super().__init__()
        self._intervals_s = dict(intervals_s)
        self._limits: dict[tuple[str, int, str], LogLimit] = {}
        self._lock = threading.Lock()  # Faust's consumer has a thread of its own

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the line. Called by logging."""
        interval_s = self._intervals_s.get(record.name.partition(".")[0])
        if interval_s is None or record.levelno >= logging.CRITICAL:
            return True
        kind = (record.name, record.levelno, str(record.msg)[:KIND_CHARS])
        with self._lock:
            if len(self._limits) >= KINDS_MAX:
                self._limits.clear()
            count = self._limits.setdefault(kind, LogLimit(interval_s)).add()
        if count > 1:
            record.lines = count
        return count > 0
