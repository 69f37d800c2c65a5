"""Which records of a call must be read again after a crash: those of audio that no final utterance covers.

Pure: knows frame numbers and offsets, and nothing of how they came to be covered (`session` decides that).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Records:
    """Records of one stream that were read together: numbers of the first and last frame, offset of the first."""

    first: int
    last: int
    offset: int


class PendingRecords:
    """The records of one call's streams, each stream's from its first uncovered frame on."""

    def __init__(self) -> None:
        self._streams: dict[str, deque[_Records]] = {}

    def add(self, stream_id: str, first: int, last: int, offset: int) -> None:
        """The frames `first` to `last` of a stream were read; their records begin at `offset`."""
        self._streams.setdefault(stream_id, deque()).append(_Records(first, last, offset))

    def first_offset(self, uncovered: Mapping[str, int]) -> int | None:
        """The offset at or before the first record that must be read again; None if there is none.

        `uncovered` has the first uncovered frame number of each stream that has not ended. Discards the records
        before it.
        """
        for stream_id in list(self._streams):
            records = self._streams[stream_id]
            needed_from = uncovered.get(stream_id)
            while records and (needed_from is None or records[0].last < needed_from):
                records.popleft()
            if not records:
                del self._streams[stream_id]
        return min((records[0].offset for records in self._streams.values()), default=None)
