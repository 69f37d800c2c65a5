"""Claims about when something is due in a call although no event arrives."""

from __future__ import annotations

from dataclasses import replace

from dispatchai.calls.state import fold
from dispatchai.calls.timers import due_timers
from dispatchai.records import decode, encode
from tests.support.call_events import CALL, CONFIG, INITIATED, MAIN, T0, S, event, folded


def test_the_deadline_follows_the_hangup_and_the_expiry_the_deadline() -> None:
    state = folded(MAIN)
    over = T0 + 50_500_000
    assert due_timers(state, CALL, over - 1, CONFIG) == ()
    (deadline,) = due_timers(state, CALL, over, CONFIG)
    assert (deadline.type, deadline.occurred_at) == ("dispatchai.deadline", over)
    state = fold(state, deadline)
    assert state.deadline_passed
    assert due_timers(state, CALL, over + 3600 * S - 1, CONFIG) == ()
    (expired,) = due_timers(state, CALL, over + 3600 * S, CONFIG)
    assert expired.type == "dispatchai.expired"
    state = fold(state, expired)
    assert due_timers(state, CALL, over + 99_999 * S, CONFIG) == ()
    assert decode(encode(deadline)) == deadline


def test_after_a_long_stop_a_call_is_kept_until_its_unread_records_can_be_read() -> None:
    state = folded(MAIN)
    morning = T0 + 50_000 * S
    (deadline,) = due_timers(state, CALL, morning, CONFIG)
    state = fold(state, deadline)
    assert due_timers(state, CALL, morning + 3600 * S - 1, CONFIG) == ()
    (expired,) = due_timers(state, CALL, morning + 3600 * S, CONFIG)
    assert (expired.type, expired.occurred_at) == ("dispatchai.expired", morning + 3600 * S)


def test_a_call_whose_deadline_was_stored_by_an_older_version_expires_too() -> None:
    (deadline,) = due_timers(folded(MAIN), CALL, T0 + 60 * S, CONFIG)
    state = replace(fold(folded(MAIN), deadline), deadline_seen_at=None)
    (expired,) = due_timers(state, CALL, deadline.occurred_at + 3600 * S, CONFIG)
    assert expired.type == "dispatchai.expired"


def test_a_state_that_is_no_call_has_no_deadline_and_expires() -> None:
    stray = folded([event("call.hangup", 20.5, received_s=9_000)])
    (expired,) = due_timers(stray, CALL, stray.first_seen_at + 99_999 * S, CONFIG)
    assert (expired.type, expired.occurred_at) == ("dispatchai.expired", stray.first_seen_at + 3600 * S)
    # If it turns out to be a call, it has a deadline.
    known = fold(stray, INITIATED)
    assert [timer.type for timer in due_timers(known, CALL, T0 + 99_999 * S, CONFIG)] == ["dispatchai.deadline"]


def test_a_timer_written_twice_is_one_event() -> None:
    state = folded(MAIN)
    early, late = (due_timers(state, CALL, T0 + s * S, CONFIG)[0] for s in (60, 70))
    assert early.event_id == late.event_id
    assert fold(fold(state, early), late) == fold(state, early)
    assert due_timers(state, "another call", T0 + 60 * S, CONFIG)[0].event_id != early.event_id


def test_a_call_that_never_hangs_up_ends_after_the_longest_time() -> None:
    state = folded(MAIN[:3])
    longest = state.first_seen_at + 14_400 * S
    assert due_timers(state, CALL, longest - 1, CONFIG) == ()
    (deadline,) = due_timers(state, CALL, longest, CONFIG)
    assert deadline.type == "dispatchai.deadline"
    state = fold(state, deadline)
    assert due_timers(state, CALL, longest + 3600 * S - 1, CONFIG) == ()
    assert [timer.type for timer in due_timers(state, CALL, longest + 3600 * S, CONFIG)] == ["dispatchai.expired"]


def test_a_hangup_dated_far_ahead_does_not_keep_a_call_forever() -> None:
    state = folded([INITIATED, event("call.hangup", 10**9)])
    longest = state.first_seen_at + 14_400 * S
    (deadline,) = due_timers(state, CALL, longest + 30 * S, CONFIG)
    assert deadline.type == "dispatchai.deadline"
    due = due_timers(fold(state, deadline), CALL, longest + 3630 * S, CONFIG)
    assert [timer.type for timer in due] == ["dispatchai.expired"]
