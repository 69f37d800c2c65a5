"""A record as the engine reads it, for tests without a broker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class StoredRecord:
    """A record as it is read."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 0
    timestamp_type: int = 0
    headers: Sequence[tuple[str, bytes]] = ()
