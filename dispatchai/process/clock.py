"""The clock of this machine, for code that stamps records. Pure steps get the time as an argument instead."""

from __future__ import annotations

import time

from dispatchai.records import Micros


def now_micros() -> Micros:
    """The time in microseconds since the epoch, UTC."""
    return time.time_ns() // 1000
