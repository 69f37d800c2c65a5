"""The records that are written to the queue together, made of assessments.

Pure: decides which entries an assessment makes, and of which none can be made. The ranking agent writes them, packets
before live entries.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from dispatchai.triage.ranking import Assessed, encode_live, encode_packet

Entries = dict[int, list[tuple[bytes, bytes | None]]]
"""Keys and values by partition; a value of None is a tombstone."""


class AssessmentRecord(Protocol):
    """The record of an assessment, as far as this needs it."""

    @property
    def timestamp(self) -> int:
        """When it was written, in milliseconds since the epoch."""


R = TypeVar("R", bound=AssessmentRecord)


def _no_entries() -> Entries:
    return defaultdict(list)


@dataclass(frozen=True, slots=True)
class StoredAssessment(Generic[R]):
    """An assessment, and the record in which it is stored."""

    partition: int
    record: R
    assessed: Assessed


@dataclass(frozen=True, slots=True)
class PacketWrite:
    """A packet to write, with its key. `assessed_at_ms`: when the assessment was written that it is made of."""

    partition: int
    key: bytes
    value: bytes
    assessed_at_ms: int


@dataclass(slots=True)
class QueueWrites(Generic[R]):
    """The entries to write."""

    packets: list[PacketWrite] = field(default_factory=list)
    """In the order of their assessments."""
    live: Entries = field(default_factory=_no_entries)
    packets_of: list[str] = field(default_factory=list)
    """Calls with a packet among these."""
    live_of: list[str] = field(default_factory=list)
    """Calls with a live entry among these."""
    shown: dict[str, int] = field(default_factory=dict)
    """Calls, with their partitions, whose place in `live-calls` is up to date once this is written, unless an entry is
    held back by then."""
    broken: list[tuple[StoredAssessment[R], Exception]] = field(default_factory=list)
    """Assessments of which no entry can be made."""

    def add_live(self, call_id: str, stored: StoredAssessment[R]) -> None:
        """The live entry of a call in progress."""
        if (value := self._made(encode_live, call_id, stored)) is not None:
            self.live[stored.partition].append((call_id.encode(), value))
        self.live_of.append(call_id)
        self.shown[call_id] = stored.partition

    def add_packet(self, call_id: str, stored: StoredAssessment[R]) -> None:
        """The packet of a call that is over, and the tombstone of its live entry."""
        if (value := self._made(encode_packet, call_id, stored)) is not None:
            self.packets.append(PacketWrite(stored.partition, call_id.encode(), value, stored.record.timestamp))
        self.packets_of.append(call_id)
        self.add_tombstone(call_id, stored.partition)

    def add_tombstone(self, call_id: str, partition: int) -> None:
        """The tombstone of a call's live entry."""
        self.live[partition].append((call_id.encode(), None))
        self.shown[call_id] = partition

    def _made(
        self, encode: Callable[[str, Assessed], bytes], call_id: str, stored: StoredAssessment[R]
    ) -> bytes | None:
        try:
            return encode(call_id, stored.assessed)
        except Exception as error:  # noqa: BLE001 - the agent never raises: it dead-letters what fails
            self.broken.append((stored, error))
            return None
