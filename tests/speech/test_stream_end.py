"""A stream without END is over once its call's deadline has passed and all audio of the call has been read."""

from __future__ import annotations

from dispatchai.speech.stream_end import SILENT_S, Deadline, OverdueCalls, still_speaks

RECORDED_MS = 1_772_567_551_000
SILENT_MS = round(SILENT_S * 1000)
READ_S = 100.0
DEADLINE = Deadline(RECORDED_MS, READ_S)


def overdue(*audio: tuple[int, int]) -> OverdueCalls[Deadline]:
    """One overdue call in partition 1, of whose audio these spans were read: (first, last), in ms from DEADLINE."""
    calls = OverdueCalls[Deadline]()
    assert calls.add(1, "call", DEADLINE)
    for first_ms, last_ms in audio:
        calls.audio_read(1, RECORDED_MS + first_ms, RECORDED_MS + last_ms)
    return calls


def is_due(calls: OverdueCalls[Deadline], *, now_s: float = READ_S, idle_s: float = 0.0) -> bool:
    return calls.due(1, now_s, idle_s) == [("call", DEADLINE)]


def test_audio_from_long_enough_after_the_deadline_says_that_all_before_it_was_read() -> None:
    assert not is_due(overdue((-60_000, SILENT_MS - 1)))
    assert is_due(overdue((-60_000, SILENT_MS)))
    assert is_due(overdue((-60_000, -50_000), (-50_000, SILENT_MS)))


def test_older_records_do_not_undo_what_was_read() -> None:
    assert is_due(overdue((-60_000, SILENT_MS), (-60_000, -59_000)))


def test_a_reader_that_starts_after_the_deadline_needs_as_much_audio_before_it_knows() -> None:
    begin = 30_000
    assert not is_due(overdue((begin, begin + SILENT_MS - 1)))
    assert is_due(overdue((begin, begin + SILENT_MS)))


def test_a_partition_that_is_idle_for_long_enough_has_no_more_audio() -> None:
    assert is_due(overdue(), now_s=READ_S + SILENT_S, idle_s=SILENT_S)
    assert not is_due(overdue(), now_s=READ_S + SILENT_S - 0.1, idle_s=SILENT_S), "idle before the deadline was read"
    assert not is_due(overdue(), now_s=READ_S + SILENT_S, idle_s=SILENT_S - 0.1), "there was audio to read"


def test_audio_of_one_partition_says_nothing_of_another() -> None:
    calls = overdue()
    calls.audio_read(2, RECORDED_MS - 60_000, RECORDED_MS + SILENT_MS)
    assert not is_due(calls)


def test_the_first_deadline_of_a_call_counts() -> None:
    calls = overdue()
    later = Deadline(RECORDED_MS + 1, READ_S + 1)
    assert not calls.add(1, "call", later)
    assert not calls.remove(1, "call", later), "it does not wait with that one"
    assert calls.remove(1, "call", DEADLINE)
    assert not calls.remove(1, "call", DEADLINE)
    assert calls.add(1, "call", later)
    assert calls.discard(1, "call") is later
    assert calls.discard(1, "call") is None


def test_calls_wait_until_they_are_removed_or_all_are_discarded() -> None:
    calls = overdue((-60_000, SILENT_MS))
    calls.add(2, "other", DEADLINE)
    assert is_due(calls)
    assert is_due(calls)
    assert calls.call_ids == {"call", "other"}
    assert calls.partitions == [1, 2]
    calls.reset()
    assert not calls.call_ids
    calls.add(1, "call", DEADLINE)
    assert not is_due(calls), "what was read of a former assignment counts no more"


def test_a_call_with_audio_from_after_its_deadline_still_speaks() -> None:
    assert still_speaks(RECORDED_MS + 1, DEADLINE)
    assert not still_speaks(RECORDED_MS, DEADLINE)
