"""The queue as a dispatcher sees it: a pure fold of the topics `live-calls` and `dispatch-queue`.

Decides which record of a call is shown, the order of the calls and how many finished ones are kept. `topic_feed` reads
and decodes the topics; `json_view` makes JSON of an entry.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from dispatchai.records import (
    CallPacket,
    CallStatus,
    DecodeError,
    LiveCall,
    Micros,
    Ranking,
    decode_as,
    decode_fields,
)

MAX_FINALS = 5_000
"""Finished calls kept in a view, the newest by created_at: a busy centre's day. Older ones are in the topic."""

UNHEARD_AFTER_S = 5.0
"""A caller who was answered, or last heard, this long ago is not heard. A stream opens within a second or two of the
answer, and starts again within as much; signals come every second."""
Order = tuple[int, Micros, str]
"""Sort key of the queue: weight (negative), created_at, call_id."""


class EntryStatus(StrEnum):
    """Whether the caller may still change what is known about the call."""

    LIVE = "LIVE"
    FINAL = "FINAL"


@dataclass(frozen=True, slots=True)
class StoredPacket:
    """A packet as its record holds it, with what the order of the queue needs: a third of its size once decoded."""

    value: bytes
    version: int
    ranking: Ranking

    @classmethod
    def read(cls, call_id: str, value: bytes) -> Self:
        """The packet in the value of a record with the key `call_id`. Raises DecodeError."""
        name, fields = decode_fields(value)
        if name != CallPacket.__name__:
            raise DecodeError(f"expected {CallPacket.__name__}, found {name}")
        if fields["call_id"] != call_id:
            raise DecodeError("the key is not the record's call_id")
        return cls(value, fields["version"], Ranking(**fields["ranking"]))

    @property
    def packet(self) -> CallPacket:
        """The packet, decoded."""
        return decode_as(CallPacket, self.value)


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known about one call: `live`, `stored` or both. Once there is a packet, it counts."""

    call_id: str
    live: LiveCall | None
    stored: StoredPacket | None
    texts: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    """JSON made of the entry, by the name of its form: made once, and kept as long as the entry."""

    @property
    def packet(self) -> CallPacket | None:
        """The packet of the call, decoded at each use."""
        return None if self.stored is None else self.stored.packet

    @property
    def status(self) -> EntryStatus:
        """FINAL as soon as there is a packet, even if there is a live entry."""
        return EntryStatus.LIVE if self.stored is None else EntryStatus.FINAL

    @property
    def shown(self) -> LiveCall | CallPacket:
        """The record that is shown."""
        shown = self.live if self.stored is None else self.stored.packet
        if shown is None:
            raise ValueError("an entry holds at least one record")
        return shown

    @property
    def ranking(self) -> Ranking:
        """The ranking of the record that is shown."""
        held = self.live if self.stored is None else self.stored
        if held is None:
            raise ValueError("an entry holds at least one record")
        return held.ranking

    @property
    def order(self) -> Order:
        """Sort key of the queue: weight descending, then created_at, then call_id. The status does not matter."""
        ranking = self.ranking
        return (-ranking.weight, ranking.created_at, self.call_id)


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the view. `number` rises by one with each change; `entry` is None when the call left the view."""

    number: int
    call_id: str
    entry: Entry | None


class QueueView:
    """The calls in progress and the newest finished ones, by call_id.

    Each `put_*` takes the latest value of one key (None for a tombstone) and returns the changes it made. Values of
    one key must come in the order of their partition. The two topics and the keys may interleave in any way and lead to
    the same view, as long as no more than `max_finals` packets are held. Calls in progress are not limited here: their
    tombstones remove them.
    """

    def __init__(self, *, max_finals: int = MAX_FINALS) -> None:
        self._entries: dict[str, Entry] = {}
        self._finals = 0
        self._max_finals = max_finals
        self._by_age: list[tuple[Micros, str]] = []
        self._number = 0
        self._order: list[Order] = []
        self._live_order: list[Order] = []
        """Kept sorted: a change costs microseconds, where sorting five thousand calls for each reader costs 5 ms."""

    @property
    def number(self) -> int:
        """The number of the last change."""
        return self._number

    @property
    def final_count(self) -> int:
        """The number of finished calls in the view."""
        return self._finals

    @property
    def live_count(self) -> int:
        """The number of calls in the view without a packet."""
        return len(self._entries) - self._finals

    def get(self, call_id: str) -> Entry | None:
        """The entry of one call."""
        return self._entries.get(call_id)

    def ranked(self, limit: int | None = None) -> tuple[Entry, ...]:
        """The first `limit` entries, live and final; the one that needs a dispatcher most comes first."""
        return tuple(self._entries[call_id] for _, _, call_id in self._order[:limit])

    def live(self, limit: int | None = None) -> tuple[Entry, ...]:
        """The first `limit` calls without a packet, ranked."""
        return tuple(self._entries[call_id] for _, _, call_id in self._live_order[:limit])

    def unheard(self, now: Micros) -> int:
        """The number of calls that were answered and of whose caller nothing was heard for UNHEARD_AFTER_S.

        A live entry changes with each signal, which is once a second while a caller is heard.
        """
        since = now - round(UNHEARD_AFTER_S * 1_000_000)
        return sum(
            live.status is CallStatus.ACTIVE
            and live.answered_at is not None
            and (live.answered_at if live.audio.audio_seconds == 0 else live.updated_at) < since
            for entry in self._entries.values()
            if entry.stored is None and (live := entry.live) is not None
        )

    def continue_after(self, predecessor: QueueView) -> None:
        """Number the next changes above all changes of `predecessor`, which this view replaces."""
        self._number = max(self._number, predecessor.number)

    def put_live(self, call_id: str, live: LiveCall | None) -> list[Change]:
        """Apply a value of `live-calls`. A call that has a packet stays FINAL."""
        old = self._entries.get(call_id)
        if live == (old.live if old else None):
            return []
        return [self._set(call_id, live, old.stored if old else None)]

    def put_packet(self, call_id: str, packet: StoredPacket | None) -> list[Change]:
        """Apply a value of `dispatch-queue`. A version lower than the one held is ignored.

        A second change is the removal of the oldest packet from a full view.
        """
        old = self._entries.get(call_id)
        held = old.stored if old else None
        if packet == held or (packet and held and packet.version < held.version):
            return []
        changes = [self._set(call_id, old.live if old else None, packet)]
        if packet is not None and (held is None or held.ranking.created_at != packet.ranking.created_at):
            heapq.heappush(self._by_age, (packet.ranking.created_at, call_id))
        while self._finals > self._max_finals:
            changes += self._drop_oldest()
        if len(self._by_age) > 2 * self._max_finals + 64:  # mostly packets that were purged or changed
            self._by_age = [
                (entry.stored.ranking.created_at, entry.call_id) for entry in self._entries.values() if entry.stored
            ]
            heapq.heapify(self._by_age)
        return changes

    def _drop_oldest(self) -> list[Change]:
        created_at, call_id = heapq.heappop(self._by_age)
        entry = self._entries.get(call_id)
        if entry is None or entry.stored is None or entry.stored.ranking.created_at != created_at:
            return []
        return [self._set(call_id, entry.live, None)]

    def _set(self, call_id: str, live: LiveCall | None, packet: StoredPacket | None) -> Change:
        old = self._entries.get(call_id)
        self._finals += (packet is not None) - (old is not None and old.stored is not None)
        self._number += 1
        if old is not None:
            self._remove_from_order(old)
        if live is None and packet is None:
            del self._entries[call_id]
            return Change(self._number, call_id, None)
        entry = Entry(call_id, live, packet)
        self._entries[call_id] = entry
        insort(self._order, entry.order)
        if packet is None:
            insort(self._live_order, entry.order)
        return Change(self._number, call_id, entry)

    def _remove_from_order(self, entry: Entry) -> None:
        order = entry.order
        del self._order[bisect_left(self._order, order)]
        if entry.stored is None:
            del self._live_order[bisect_left(self._live_order, order)]
