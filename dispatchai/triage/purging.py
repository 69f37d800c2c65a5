"""When a packet leaves the queue, and which packets a process knows to be in it.

Decides how long a packet stays: the queue is for what somebody has to act on, and for what was just finished. Every
version of a packet stays in `packets`. Pure: the times are recorded ones, and `now` is an argument.
`agents.queue_purge` reads the queue and records what is due.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dispatchai.calls.events import EventType, PacketPurged, derived_id, micros, own_event
from dispatchai.records import CallEvent, CallPacket, DecodeError, Micros, PacketStatus, decode_only

UNSEEN_S: Final = 3600.0
"""An open packet of a call that ended longer ago than this, when it was assessed, counts from its assessment less this:
no process ran for days, or the carrier's clock is behind. It must be seen before it leaves."""

ENTRIES_MAX: Final = 20_000
"""Entries of the queue that one process keeps in memory, some 5 MB; three days of a busy centre have a third of it."""

AGAIN_S: Final = 60.0
"""An entry whose purge was recorded and that is still there after this time is recorded again."""

_FIELDS: Final = ("version", "status", "ranking")


@dataclass(frozen=True, slots=True)
class KeepFor:
    """How long after its call's end a packet stays in the queue: once somebody closed it, and while nobody did."""

    closed_s: float
    open_s: float


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A packet in the queue, as far as its purge is concerned."""

    partition: int
    call_id: str
    version: int
    due_at: Micros


def queue_entry(partition: int, key: bytes, value: bytes, assessed_at: Micros, keep: KeepFor) -> QueueEntry:
    """The entry of the record in `dispatch-queue`. Raises DecodeError or UnicodeDecodeError."""
    fields = decode_only(CallPacket.__name__, value, _FIELDS)
    due_at = purge_due_at(PacketStatus(fields["status"]), fields["ranking"]["created_at"], assessed_at, keep)
    return QueueEntry(partition, key.decode(), fields["version"], due_at)


def purge_due_at(status: PacketStatus, ended_at: Micros, assessed_at: Micros, keep: KeepFor) -> Micros:
    """When a packet leaves the queue whose call ended at `ended_at`, which may be wrong, as it is the carrier's."""
    ended_at = min(ended_at, assessed_at)
    if status is PacketStatus.OPEN:
        return max(ended_at, assessed_at - micros(UNSEEN_S)) + micros(keep.open_s)
    return ended_at + micros(keep.closed_s)


def purged_event(entry: QueueEntry, now: Micros) -> CallEvent:
    """dispatchai.purged of `entry`, to be written to `call-events`; the same event however often it is written."""
    return own_event(
        EventType.PURGED,
        derived_id(f"{entry.call_id}:{EventType.PURGED}:{entry.version}"),
        occurred_at=entry.due_at,
        received_at=now,
        call_control_id="",
        payload=PacketPurged(entry.version),
    )


class QueueEntries:
    """The packets in the queue that are due first, by call. Keeps about `limit` of them at most."""

    def __init__(self, limit: int = ENTRIES_MAX) -> None:
        self._limit = limit
        self._entries: dict[bytes, QueueEntry] = {}
        self._asked: dict[bytes, Micros] = {}
        """When the purge of an entry was asked for last."""
        self._next_due: Micros = 0
        """Nothing is due before this time."""
        self.left_out = False
        """Whether entries were left out because there are too many."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def must_read_again(self) -> bool:
        """Whether entries were left out that have their turn now: the queue is to be read from its beginning."""
        return self.left_out and len(self._entries) <= self._limit // 2

    def put(self, key: bytes, entry: QueueEntry | None) -> None:
        """The packet of the call `key` is in the queue now, or (None) is not."""
        self._asked.pop(key, None)
        if entry is None:
            self._entries.pop(key, None)
            return
        self._entries[key] = entry
        self._next_due = min(self._next_due, entry.due_at)
        if len(self._entries) > self._limit + self._limit // 4:
            first = heapq.nsmallest(self._limit, self._entries.items(), key=lambda item: item[1].due_at)
            self._entries = dict(first)
            self._asked = {key: at for key, at in self._asked.items() if key in self._entries}
            self.left_out = True

    def due(self, now: Micros, most: int) -> list[QueueEntry]:
        """The entries to be purged now, at most `most`. One that stays in the queue is due again after AGAIN_S."""
        if now < self._next_due:
            return []
        times = {key: self._due_at(key, entry) for key, entry in self._entries.items()}
        keys = heapq.nsmallest(most, (key for key, at in times.items() if at <= now), key=times.__getitem__)
        for key in keys:
            self._asked[key] = now
            times[key] = now + micros(AGAIN_S)
        self._next_due = min(times.values(), default=now)
        return [self._entries[key] for key in keys]

    def _due_at(self, key: bytes, entry: QueueEntry) -> Micros:
        asked_at = self._asked.get(key)
        return entry.due_at if asked_at is None else asked_at + micros(AGAIN_S)


class QueueContent:
    """What was read of the queue, record by record: the entries, and the packets that may not be purged."""

    def __init__(self, keep: KeepFor, copied: Mapping[int, int]) -> None:
        """`copied`: the offsets before which every packet is in `packets` because it was copied, by partition."""
        self.entries = QueueEntries()
        self.not_copied: set[bytes] = set()
        """Calls whose packets may not be in `packets`, and are left alone; ENTRIES_MAX of them at most."""
        self._keep = keep
        self._copied = copied

    def put(
        self, partition: int, offset: int, written_ms: int, key: bytes, value: bytes | None, assessed_ms: int | None
    ) -> None:
        """Fold one record, which was written and whose packet was assessed at these times, in ms since the epoch.

        `assessed_ms` is None for a record of a version that did not write to `packets`. One that cannot be read is left
        alone: nobody can say when it is due.
        """
        self.not_copied.discard(key)
        entry = None
        if value is not None and assessed_ms is None and offset >= self._copied.get(partition, 0):
            if len(self.not_copied) < ENTRIES_MAX:
                self.not_copied.add(key)
        elif value is not None:
            assessed_at = 1000 * (written_ms if assessed_ms is None else assessed_ms)
            with contextlib.suppress(DecodeError, UnicodeDecodeError):
                entry = queue_entry(partition, key, value, assessed_at, self._keep)
        self.entries.put(key, entry)
