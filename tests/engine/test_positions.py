"""Records reach the agents from the position that was sought, each once and without a gap, whatever a fetch brings."""

from __future__ import annotations

from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.engine.positions import SEEKS_PER_OFFSET, Positions, Verdict

TP0 = TP("frames", 0)


def test_nothing_is_taken_between_revocation_and_seek() -> None:
    positions = Positions()
    assert positions.admit(TP0, 0, 9).verdict is Verdict.DROP
    positions.sought({TP0: 0})
    assert positions.admit(TP0, 0, 9).verdict is Verdict.TAKE
    positions.revoked()
    assert positions.admit(TP0, 10, 19).verdict is Verdict.DROP


def test_a_partition_whose_records_were_dropped_before_the_seek_was_known_is_sought_once_more() -> None:
    positions = Positions()
    positions.revoked()
    positions.admit(TP0, 5, 9)
    assert positions.sought({TP0: 5, TP("frames", 1): 3}) == {TP0: 5}
    assert positions.admit(TP0, 5, 9).verdict is Verdict.TAKE
    assert positions.sought({TP0: 10}) == {}


def test_a_run_that_begins_earlier_is_cut_and_one_that_ends_earlier_dropped() -> None:
    positions = Positions()
    positions.sought({TP0: 5})
    assert positions.admit(TP0, 0, 4).verdict is Verdict.DROP
    assert positions.admit(TP0, 3, 8).first_offset == 5


def test_a_run_that_begins_later_is_sought_again_and_taken_as_truncated_only_in_the_end() -> None:
    positions = Positions()
    positions.sought({TP0: 5})
    for _ in range(SEEKS_PER_OFFSET):
        admission = positions.admit(TP0, 7, 9)
        assert (admission.verdict, admission.first_offset) == (Verdict.SEEK, 5)
    assert positions.admit(TP0, 7, 9).verdict is Verdict.TRUNCATED
    assert positions.admit(TP0, 10, 11).verdict is Verdict.TAKE


def test_a_run_that_did_not_reach_the_streams_is_expected_again() -> None:
    positions = Positions()
    positions.sought({TP0: 0})
    positions.admit(TP0, 0, 9)
    assert positions.confirm({TP0: 0}) == {TP0: 0}
    assert positions.admit(TP0, 10, 19).verdict is Verdict.SEEK
    assert positions.admit(TP0, 0, 9).verdict is Verdict.TAKE
    assert positions.confirm({TP0: 9}) == {}
    assert positions.admit(TP0, 10, 19).verdict is Verdict.TAKE


@given(st.integers(0, 20), st.data())
def test_whatever_is_fetched_is_handed_over_once_and_in_order(start: int, data: st.DataObject) -> None:
    """A fetcher whose position is thrown back and forth, as by seeks that race with fetches."""
    positions = Positions()
    positions.sought({TP0: start})
    end, at = 60, data.draw(st.integers(0, 40))
    taken: list[int] = []
    for _ in range(300):
        if at >= end:
            at = start if not taken else taken[-1] + 1
            if at >= end:
                break
        last = min(end - 1, at + data.draw(st.integers(0, 9)))
        admission = positions.admit(TP0, at, last)
        match admission.verdict:
            case Verdict.TAKE:
                taken += range(admission.first_offset, last + 1)
                positions.confirm({TP0: last})
                at = last + 1
            case Verdict.SEEK:
                at = admission.first_offset
            case Verdict.DROP:
                at = last + 1
            case Verdict.TRUNCATED:
                raise AssertionError("the log was not truncated")
    assert taken == list(range(start, end))
