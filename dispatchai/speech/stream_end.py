"""Decides when a stream without an END record is over.

A stream whose gateway was killed has no END. Its frames must not hold their partition's offsets until the call expires,
so the stream is ended once the call's deadline has passed and all audio of the call has been read. That is the case
when audio was read that came in `SILENT_S` after the deadline, or when the partition has been idle for `SILENT_S`. A
partition is read in its order, so an END that is in the log is read before that, however far behind the reader is, and
the order in which topics were read does not change which streams are ended. A call that still speaks, beyond
`CALL_LONGEST_S`, is not ended.

Pure: times are arguments. `call_sessions` ends the streams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

SILENT_S: Final = 5.0
"""A stream that sent nothing for this long after its call's deadline sends no more: a live one has 50 frames a second,
and the deadline itself comes `CALL_DEADLINE_S` after the hangup."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The deadline of a call, as it was read."""

    recorded_ms: int
    """When it was recorded, in ms since the epoch. Not when it was due: a call that hung up while no process ran, or
    under a wrong clock, may have received audio since then."""
    read_s: float
    """When it was read here, in seconds of any steady clock."""


D = TypeVar("D", bound=Deadline)


@dataclass(slots=True)
class _AudioRead:
    """Times of the first and the last record read of a partition's audio, in ms since the epoch."""

    first_ms: int
    last_ms: int


class OverdueCalls(Generic[D]):
    """Calls whose deadline has passed, each until it is known that all of its audio was read. By partition."""

    def __init__(self) -> None:
        self._deadlines: dict[int, dict[str, D]] = {}
        self._audio: dict[int, _AudioRead] = {}

    @property
    def call_ids(self) -> set[str]:
        """The calls that wait."""
        return {call_id for waiting in self._deadlines.values() for call_id in waiting}

    @property
    def partitions(self) -> list[int]:
        """The partitions in which calls may wait."""
        return list(self._deadlines)

    def add(self, partition: int, call_id: str, deadline: D) -> bool:
        """Let a call wait. Returns False, and changes nothing, if it waits already: its first deadline counts."""
        waiting = self._deadlines.setdefault(partition, {})
        return waiting.setdefault(call_id, deadline) is deadline

    def remove(self, partition: int, call_id: str, deadline: D) -> bool:
        """Let a call wait no longer. Returns False, and changes nothing, if it does not wait with this deadline."""
        waiting = self._deadlines.get(partition, {})
        if waiting.get(call_id) is not deadline:
            return False
        del waiting[call_id]
        return True

    def discard(self, partition: int, call_id: str) -> D | None:
        """Let a call wait no longer, whatever its deadline. Returns the deadline, or None if it did not wait."""
        return self._deadlines.get(partition, {}).pop(call_id, None)

    def audio_read(self, partition: int, first_ms: int, last_ms: int) -> None:
        """Audio records of `partition` were read, whose first and last have these times in ms since the epoch."""
        read = self._audio.setdefault(partition, _AudioRead(first_ms, last_ms))
        read.last_ms = max(read.last_ms, last_ms)

    def due(self, partition: int, now_s: float, idle_s: float) -> list[tuple[str, D]]:
        """The calls of `partition`, with their deadlines, of which no audio is unread.

        `now_s` is the time on the clock of `Deadline.read_s`; `idle_s` says for how long all audio of the partition
        has been read with nothing new.
        """
        return [
            (call_id, deadline)
            for call_id, deadline in self._deadlines.get(partition, {}).items()
            if self._is_all_read(partition, deadline, now_s, idle_s)
        ]

    def _is_all_read(self, partition: int, deadline: Deadline, now_s: float, idle_s: float) -> bool:
        read = self._audio.get(partition)
        if read is not None and max(read.first_ms, deadline.recorded_ms) <= read.last_ms - SILENT_S * 1000:
            return True
        return now_s - deadline.read_s >= SILENT_S and idle_s >= SILENT_S

    def reset(self) -> None:
        """Drop everything: partitions were reassigned."""
        self._deadlines.clear()
        self._audio.clear()


def still_speaks(heard_ms: int, deadline: Deadline) -> bool:
    """Whether a call goes on after its deadline. `heard_ms` is the time of its last record, in ms since the epoch."""
    return heard_ms > deadline.recorded_ms
