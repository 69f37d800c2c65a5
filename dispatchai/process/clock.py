"""The clock of this machine, for whoever stamps a record. Pure steps are told the time instead."""

from __future__ import annotations

import time

from dispatchai.records import Micros


def now_micros() -> Micros:
    """The time in microseconds since the epoch, UTC."""
    return time.time_ns() // 1000
