"""When a packet leaves the queue, and what a process remembers of the queue."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.effects import follow
from dispatchai.calls.events import EventType, PacketPurged, payload_of
from dispatchai.records import AssessmentKind, PacketStatus, encode
from dispatchai.settings import Settings
from dispatchai.triage import purging
from dispatchai.triage.purging import KeepFor, QueueEntries, QueueEntry, purge_due_at, purged_event, queue_entry
from dispatchai.triage.ranking import packet
from dispatchai.triage.step import NO_STATE, fold_event, fold_signal, step
from tests.support.recorded_call import RULES, assessment, event, signal

HOUR = 3_600_000_000
KEEP = KeepFor(closed_s=24 * 3600.0, open_s=72 * 3600.0)
ENDED = 1_000 * HOUR
CONFIG = CallControlConfig.from_settings(Settings(_env_file=None))


def entry(call_id: str, due_at: int, version: int = 1) -> QueueEntry:
    return QueueEntry(0, call_id, version, due_at)


def test_an_open_packet_stays_for_72_hours_after_the_calls_end_and_a_closed_one_for_24() -> None:
    assert purge_due_at(PacketStatus.OPEN, ENDED, ENDED + 1, KEEP) == ENDED + 72 * HOUR
    closed: PacketStatus = "CLOSED"  # type: ignore[assignment]  # no version closes packets yet
    assert purge_due_at(closed, ENDED, ENDED + 50 * HOUR, KEEP) == ENDED + 24 * HOUR


def test_an_open_packet_that_comes_days_after_its_call_is_shown_before_it_leaves() -> None:
    """No process ran for four days, or the carrier's clock is four days behind."""
    assessed = ENDED + 96 * HOUR
    assert purge_due_at(PacketStatus.OPEN, ENDED, assessed, KEEP) == assessed + 71 * HOUR


def test_a_carriers_clock_in_the_future_keeps_no_packet_for_ever() -> None:
    assert purge_due_at(PacketStatus.OPEN, ENDED + 10**6 * HOUR, ENDED, KEEP) == ENDED + 72 * HOUR


def test_the_entry_of_a_packet_has_its_version_and_the_time_of_its_calls_end() -> None:
    final = packet("call", assessment(AssessmentKind.FINAL, version=3))
    found = queue_entry(5, b"call", encode(final), final.ranking.created_at, KEEP)
    assert found == QueueEntry(5, "call", 3, final.ranking.created_at + 72 * HOUR)


def test_the_same_purge_is_the_same_event_and_that_of_another_version_another() -> None:
    first, again = purged_event(entry("call", ENDED), ENDED + 1), purged_event(entry("call", ENDED), ENDED + 2)
    assert first.type == EventType.PURGED
    assert (first.event_id, first.occurred_at) == (again.event_id, ENDED)
    assert purged_event(entry("call", ENDED, 2), ENDED).event_id != first.event_id
    assert payload_of(first) == PacketPurged(1)
    assert payload_of(replace(first, payload=b"[]")) == PacketPurged(None)


def test_a_purge_makes_no_call_and_changes_none() -> None:
    purged = purged_event(entry("call", ENDED), ENDED)
    assert follow(None, "call", [purged], CONFIG) == (None, ())
    known, _ = follow(None, "call", [event("call.initiated", call="call")], CONFIG)
    assert known is not None
    assert follow(known, "call", [purged, purged], CONFIG) == (known, ())

    assert step(None, [purged], rules=RULES) == step(None, [], rules=RULES)
    for state in (
        NO_STATE,
        fold_event(NO_STATE, event("call.initiated", call="call")),
        fold_signal(NO_STATE, signal(1)),
    ):
        assert fold_event(state, purged) == state


def test_what_is_due_comes_first_come_first_served_and_again_only_if_it_stays() -> None:
    entries = QueueEntries()
    for number in (3, 1, 2):
        entries.put(b"%d" % number, entry(f"{number}", number * HOUR))
    assert entries.due(HOUR - 1, 10) == []
    assert [one.call_id for one in entries.due(3 * HOUR, 2)] == ["1", "2"]
    assert [one.call_id for one in entries.due(3 * HOUR, 2)] == ["3"]
    assert entries.due(3 * HOUR, 2) == []
    entries.put(b"1", None)
    again = 3 * HOUR + round(purging.AGAIN_S * 1e6)
    assert {one.call_id for one in entries.due(again, 10)} == {"2", "3"}, "their tombstones were lost"


def test_a_packet_that_comes_back_after_its_purge_is_purged_again() -> None:
    entries = QueueEntries()
    entries.put(b"call", entry("call", HOUR))
    assert entries.due(HOUR, 1) == [entry("call", HOUR)]
    entries.put(b"call", None)
    entries.put(b"call", entry("call", HOUR, version=3))
    assert entries.due(HOUR, 1) == [entry("call", HOUR, version=3)]


@pytest.mark.parametrize("limit", [4, 100])
def test_of_too_many_entries_those_due_first_are_kept_and_the_queue_is_read_again_for_the_others(limit: int) -> None:
    queue = {b"%d" % number: entry(f"{number}", (number * 7919) % 1000) for number in range(500)}
    purged: list[str] = []
    for _ in range(1000):
        entries = QueueEntries(limit)
        for key, one in queue.items():
            entries.put(key, one)
            assert len(entries) <= limit + limit // 4
        while not entries.must_read_again and (due := entries.due(HOUR, 50)):
            for one in due:
                purged.append(one.call_id)
                del queue[one.call_id.encode()]
                entries.put(one.call_id.encode(), None)
        if not entries.must_read_again:
            break
    assert not queue
    assert len(purged) == len(set(purged)) == 500


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.integers(0, 100)), max_size=40), st.integers(1, 100))
def test_in_any_order_exactly_the_due_entries_are_named(puts: list[tuple[str, int | None]], now: int) -> None:
    entries, last = QueueEntries(), dict[str, int | None]()
    for key, due_at in puts:
        entries.put(key.encode(), None if due_at is None else entry(key, due_at))
        last[key] = due_at
        entries.due(-1, 10)  # a look while nothing is due must not hide anything
    due = entries.due(now, 10)
    assert {one.call_id for one in due} == {key for key, at in last.items() if at is not None and at <= now}
    assert [one.due_at for one in due] == sorted(one.due_at for one in due)
