"""The guards of exact recovery, each of which can be taken away to see that it is needed.

`DISPATCHAI_ENGINE_UNSAFE` names those to be left out, comma separated. It is there for the crash test, which must
fail without any of them, and for nothing else: the process says so loudly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import structlog

log = structlog.get_logger(__name__)

VARIABLE: Final = "DISPATCHAI_ENGINE_UNSAFE"


class Guard(StrEnum):
    """What keeps recovery exact; the value names its absence."""

    COVERAGE = "stock-commits"
    """Offsets are committed no further than snapshots cover."""
    POSITIONS = "no-position-guard"
    """Positions are checked after a rebalance."""
    EPOCHS = "no-epochs"
    """A snapshot of an earlier owner never wins."""
    LEASE = "no-lease"
    """Nothing is written by a process that may have been expelled."""


def guards(environment: Mapping[str, str] = os.environ) -> frozenset[Guard]:
    """The guards that are on. Raises ValueError for a name that is none."""
    missing = {Guard(name.strip()) for name in environment.get(VARIABLE, "").split(",") if name.strip()}
    if missing:
        log.critical("engine_unsafe", missing=sorted(missing), why=f"{VARIABLE} is set: calls will be lost")
    return frozenset(Guard) - missing
