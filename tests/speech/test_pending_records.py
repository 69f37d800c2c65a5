"""After a crash a call is read again from the first record whose audio no final utterance covers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatchai.speech.pending_records import PendingRecords


def test_records_before_the_first_uncovered_frame_are_not_needed() -> None:
    pending = PendingRecords()
    pending.add("s1", 1, 50, 100)
    pending.add("s1", 51, 100, 160)
    assert pending.first_offset({"s1": 1}) == 100
    assert pending.first_offset({"s1": 50}) == 100, "the last of the first records"
    assert pending.first_offset({"s1": 51}) == 160
    assert pending.first_offset({"s1": 101}) is None


def test_a_stream_that_has_ended_needs_no_record() -> None:
    pending = PendingRecords()
    pending.add("s1", 1, 50, 100)
    pending.add("s2", 1, 50, 90)
    assert pending.first_offset({"s1": 1, "s2": 1}) == 90
    assert pending.first_offset({"s1": 1}) == 100
    assert pending.first_offset({}) is None


def test_a_stream_of_which_no_record_was_read_needs_none() -> None:
    assert PendingRecords().first_offset({"s1": 7}) is None


@given(
    st.lists(st.tuples(st.sampled_from(["s1", "s2"]), st.integers(1, 5)), max_size=20),
    st.lists(st.dictionaries(st.sampled_from(["s1", "s2"]), st.integers(1, 60)), max_size=5),
)
def test_no_record_of_an_uncovered_frame_lies_before_the_offset(
    batches: list[tuple[str, int]], coverages: list[dict[str, int]]
) -> None:
    pending, frames, last = PendingRecords(), list[tuple[str, int, int]](), {"s1": 0, "s2": 0}
    for offset, (stream, count) in enumerate(batches):
        first = last[stream] + 1
        last[stream] += count
        pending.add(stream, first, last[stream], offset)
        frames += [(stream, number, offset) for number in range(first, last[stream] + 1)]
    # Coverage only rises, and a stream that has ended stays so.
    covered = {"s1": 1, "s2": 1}
    for step in coverages:
        covered = {stream: max(covered[stream], step[stream]) for stream in covered.keys() & step.keys()}
        needed = [offset for stream, number, offset in frames if stream in covered and number >= covered[stream]]
        assert pending.first_offset(covered) == min(needed, default=None)
