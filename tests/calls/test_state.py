"""Claims about the state of a call after its events, in any order and with any repetition."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.calls.state import SEEN_EVENTS_MAX, STRAY_AFTER_S, fold
from dispatchai.records import CallEvent, CallState, CallStatus, decode, encode
from tests.support.call_events import ANSWERED, HANGUP, INITIATED, MAIN, STREAMING, T0, S, event, folded, unordered


def test_every_order_of_the_main_events_leads_to_one_state() -> None:
    expected = unordered(folded(MAIN))
    assert expected.status is CallStatus.ENDED
    assert (expected.started_at, expected.answered_at, expected.ended_at) == (T0, T0 + S, T0 + 20_500_000)
    assert expected.hangup_cause == "normal_clearing"
    assert expected.streams_started == 1
    assert expected.from_number == "+15550101234"
    orders = list(itertools.permutations(MAIN))
    assert len(orders) == 120
    for order in orders:
        assert unordered(folded(order)) == expected


def test_an_unknown_event_is_recorded_and_changes_nothing_else() -> None:
    before = folded(MAIN[:2])
    after = fold(before, event("call.dtmf.received", 3, digit="1"))
    assert after == replace(before, seen_event_ids=(*before.seen_event_ids, "call.dtmf.received@3"))


def test_the_earliest_of_two_hangups_counts_in_either_order() -> None:
    late = event("call.hangup", 21, hangup_cause="timeout")
    for order in ([HANGUP, late], [late, HANGUP]):
        state = folded(order)
        assert (state.ended_at, state.hangup_cause) == (T0 + 20_500_000, "normal_clearing")


def test_memory_of_events_is_bounded_and_keeps_the_newest() -> None:
    state = folded(event("call.dtmf.received", n) for n in range(SEEN_EVENTS_MAX + 50))
    assert len(state.seen_event_ids) == SEEN_EVENTS_MAX
    assert state.seen_event_ids[-1] == f"call.dtmf.received@{SEEN_EVENTS_MAX + 49}"


def test_a_state_survives_encoding() -> None:
    state = folded(MAIN)
    assert decode(encode(state)) == state


kinds = st.sampled_from(
    ["call.initiated", "call.answered", "streaming.started", "streaming.stopped", "call.hangup", "call.speak.ended"]
)


@st.composite
def calls(draw: st.DrawFn) -> list[CallEvent]:
    count = draw(st.integers(1, 8))
    payloads: list[dict[str, Any]] = [{}, {"hangup_cause": "timeout"}, {"hangup_cause": "normal_clearing"}]
    made = [
        event(draw(kinds), draw(st.integers(0, 30)), event_id=f"event-{n}", **draw(st.sampled_from(payloads)))
        for n in range(count)
    ]
    timers = draw(st.sampled_from([(), ("dispatchai.deadline",), ("dispatchai.deadline", "dispatchai.expired")]))
    numbers = draw(st.lists(st.sampled_from([None, "+15550101234", "sip:a@b"]), min_size=count, max_size=count))
    made = [replace(each, from_number=number) for each, number in zip(made, numbers, strict=True)]
    return made + [replace(event(timer, 60), from_number=None) for timer in timers]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_order_and_repetition_of_events_leads_to_one_state(data: st.DataObject) -> None:
    events = data.draw(calls())
    repeats = data.draw(st.lists(st.sampled_from(events), max_size=6))
    again = [replace(each, attempt=2, received_at=each.received_at + 2 * S) for each in repeats]
    shuffled = data.draw(st.permutations(events + again))
    assert unordered(folded(shuffled)) == unordered(folded(events))


@settings(max_examples=200, deadline=None)
@given(calls())
def test_the_status_only_rises(events: list[CallEvent]) -> None:
    rank = {CallStatus.RINGING: 0, CallStatus.ACTIVE: 1, CallStatus.ENDED: 2}
    state: CallState | None = None
    before = 0
    for each in events:
        state = fold(state, each)
        assert rank[state.status] >= before
        before = rank[state.status]


# ---- what is no call -------------------------------------------------------------------------------------------------

LATE = [
    event("call.hangup", 20.5, received_s=20.5 + STRAY_AFTER_S + 1, hangup_cause="normal_clearing"),
    event("call.speak.ended", 12, received_s=9_000),
    event("call.recording.saved", 9_000),
    event("streaming.stopped", 20, received_s=9_000),
    event("streaming.failed", 20, received_s=9_000),
]


@pytest.mark.parametrize("late", LATE, ids=lambda late: late.type)
def test_a_late_event_of_an_expired_call_makes_no_call(late: CallEvent) -> None:
    assert folded([late]).stray
    assert folded([late, late]).stray


@pytest.mark.parametrize("early", [INITIATED, ANSWERED, STREAMING, HANGUP], ids=lambda early: early.type)
def test_a_call_may_become_known_by_any_event_of_its_life(early: CallEvent) -> None:
    assert not folded([early]).stray
    for late in LATE:
        assert not folded([late, early]).stray
        assert not folded([early, late]).stray


def test_calls_are_recognised_even_if_the_carriers_clock_is_hours_wrong() -> None:
    for wrong_s in (-7200, 7200):
        ringing = replace(INITIATED, occurred_at=INITIATED.occurred_at + wrong_s * S)
        assert not folded([ringing]).stray


def test_the_deadline_counts_from_when_it_was_written_first_in_either_order() -> None:
    first = event("dispatchai.deadline", 50.5, received_s=60)
    again = replace(first, received_at=first.received_at + 9 * S)
    for order in ([*MAIN, first, again], [again, *MAIN, first], [again, first, *MAIN]):
        assert folded(order).deadline_seen_at == T0 + 60 * S
