"""Which fetched records may be handed to agents: those at the position that was sought, and what follows without a gap.

Faust resumes the partitions of a rebalance before it seeks to the committed offsets, and a fetch in flight in its
consumer's thread can deliver records from the old position or undo the seek (seen in about one rebalance in five).
Then records would be skipped or read twice, and no commit would tell. So positions are not believed but checked.
Pure: who fetches and seeks is the transport.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from faust.types import TP

SEEKS_PER_OFFSET: Final = 3
"""A position that is still wrong after so many seeks is not a race: the log was truncated, and reading goes on."""


class Verdict(Enum):
    """What is to be done with a run of records."""

    TAKE = auto()
    """Hand it over, from `Admission.first_offset` on."""
    DROP = auto()
    """Drop it: it was read before, or belongs to an assignment that is over."""
    SEEK = auto()
    """Drop it and seek to `Admission.first_offset`: records before it were skipped."""
    TRUNCATED = auto()
    """Hand it over: what lies before it is gone from the log. To be said loudly."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The verdict on a run, and the offset that it names."""

    verdict: Verdict
    first_offset: int


@dataclass(slots=True)
class Positions:
    """The next offset of each source partition, from the seek after an assignment on."""

    _expected: dict[TP, int] = field(default_factory=dict)
    _handed: dict[TP, tuple[int, int]] = field(default_factory=dict)
    _seeks: dict[TP, tuple[int, int]] = field(default_factory=dict)
    """Offset that was sought again, and how often."""
    _dropped: set[TP] = field(default_factory=set)
    """Partitions of which records came while no position was known."""

    def revoked(self) -> None:
        """Partitions are being revoked: what is fetched until the next seek is of no assignment."""
        self._expected.clear()
        self._handed.clear()
        self._seeks.clear()
        self._dropped.clear()

    def sought(self, offsets: Mapping[TP, int]) -> dict[TP, int]:
        """All assigned partitions were sought to `offsets`.

        Returns those that must be sought once more: records of them were dropped meanwhile, perhaps behind the seek,
        and where nothing follows nobody would notice.
        """
        again = {tp: offsets[tp] for tp in self._dropped if tp in offsets}
        self.revoked()
        self._expected.update(offsets)
        return again

    def confirm(self, read: Mapping[TP, int | None]) -> dict[TP, int]:
        """Compare what was handed over with `read`, the last offset that reached the streams of each partition.

        Returns the partitions that must be sought again, with the offsets: a run of them did not reach the streams.
        """
        lost = {tp: first for tp, (first, last) in self._handed.items() if read.get(tp) != last}
        self._expected.update(lost)
        self._handed.clear()
        return lost

    def admit(self, tp: TP, first: int, last: int) -> Admission:
        """Judge a run of records of `tp` with offsets `first` to `last`."""
        expected = self._expected.get(tp)
        if expected is None:
            self._dropped.add(tp)
            return Admission(Verdict.DROP, first)
        if last < expected:
            return Admission(Verdict.DROP, first)
        if first > expected:
            offset, seeks = self._seeks.get(tp, (expected, 0))
            seeks = seeks if offset == expected else 0
            if seeks < SEEKS_PER_OFFSET:
                self._seeks[tp] = (expected, seeks + 1)
                return Admission(Verdict.SEEK, expected)
        self._seeks.pop(tp, None)
        taken_from = max(first, expected)
        self._handed[tp] = (taken_from, last)
        self._expected[tp] = last + 1
        return Admission(Verdict.TRUNCATED if first > expected else Verdict.TAKE, taken_from)
