"""Which fetched records agents may have: those at the position that was sought, and those that follow without a gap.

Faust resumes the partitions of a rebalance before it seeks to the committed offsets, and a fetch in flight in its
consumer thread can deliver records from the old position or undo the seek (seen in about one rebalance in five;
related reports: faust-streaming issues 216 and 502). Records would then be skipped or read twice, and no commit would
show it. So positions are checked. This is pure: `source` fetches and seeks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from faust.types import TP

SEEKS_PER_OFFSET: Final = 3
"""A position that is still wrong after so many seeks is no race: the log was truncated, and reading goes on."""


class Verdict(Enum):
    """What to do with a run of records."""

    TAKE = auto()
    """Hand it over, from `Admission.first_offset` on."""
    DROP = auto()
    """Drop it: it was read before, or belongs to an assignment that is over."""
    SEEK = auto()
    """Drop it and seek to `Admission.first_offset`: records before it were skipped."""
    TRUNCATED = auto()
    """Hand it over and report it: the records before it are gone from the log."""


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
    """Partitions whose records arrived while no position was known."""

    def revoked(self) -> None:
        """Partitions are being revoked: records fetched before the next seek belong to no assignment."""
        self._expected.clear()
        self._handed.clear()
        self._seeks.clear()
        self._dropped.clear()

    def sought(self, offsets: Mapping[TP, int]) -> dict[TP, int]:
        """All assigned partitions were sought to `offsets`.

        Returns those that must be sought once more: records of them were dropped meanwhile, perhaps from behind the
        seek, and if nothing follows nobody would notice.
        """
        again = {tp: offsets[tp] for tp in self._dropped if tp in offsets}
        self.revoked()
        self._expected.update(offsets)
        return again

    def confirm(self, read: Mapping[TP, int | None]) -> dict[TP, int]:
        """Compare the runs that were handed over with `read`, the last offset of each partition in the streams.

        Returns the partitions to seek again, with their offsets: a run of theirs did not reach the streams.
        """
        lost = {tp: first for tp, (first, last) in self._handed.items() if read.get(tp) != last}
        self._expected.update(lost)
        self._handed.clear()
        return lost

    def admit(self, tp: TP, first: int, last: int) -> Admission:
        """The verdict on a run of records of `tp` with offsets `first` to `last`."""
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
