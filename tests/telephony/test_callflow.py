"""Claims about the call flow: what a call's events make of it, in whatever order and however often they come."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.records.codec import decode, encode
from dispatchai.records.values import CallEvent, CallState, CallStatus
from dispatchai.settings import Settings
from dispatchai.telephony.callflow import (
    SEEN_EVENTS_MAX,
    CallFlowConfig,
    due_timers,
    fold,
    next_timer_at,
    step,
    with_token,
)
from dispatchai.telephony.commands import Answer, Command, Speak, StreamingStart

CALL = "428c31b6-abf1-4b2c-9d67-0242ac120002"
S = 1_000_000
T0 = 1_772_567_551 * S
CONFIG = CallFlowConfig(
    stream_url="wss://example.com/ws",
    greeting="Please describe your emergency.",
    greeting_voice="female",
    greeting_language="en-US",
    call_deadline_s=30,
    call_expiry_s=3600,
    call_longest_s=14_400,
)


def event(kind: str, at_s: float = 0.0, *, event_id: str | None = None, **payload: Any) -> CallEvent:
    moment = T0 + round(at_s * S)
    body = {"data": {"event_type": kind, "payload": {"call_control_id": "v3:abc", "call_session_id": CALL, **payload}}}
    return CallEvent(
        event_id=event_id or f"{kind}@{at_s}",
        type=kind,
        occurred_at=moment,
        received_at=moment + 40_000,
        call_control_id="v3:abc",
        from_number="+15550101234" if kind.startswith("call.") else None,
        to_number="+15550100911" if kind.startswith("call.") else None,
        attempt=1,
        payload=json.dumps(body).encode(),
    )


INITIATED = event("call.initiated", 0, direction="incoming", state="parked")
ANSWERED = event("call.answered", 1)
STREAMING = event("streaming.started", 1.5)
STOPPED = event("streaming.stopped", 20)
HANGUP = event("call.hangup", 20.5, hangup_cause="normal_clearing")
MAIN = (INITIATED, ANSWERED, STREAMING, STOPPED, HANGUP)


def run(events: list[CallEvent] | tuple[CallEvent, ...]) -> tuple[CallState, list[Command]]:
    state: CallState | None = None
    commands: list[Command] = []
    for each in events:
        state, new = step(state, CALL, each, CONFIG)
        commands += new
    assert state is not None
    return state, commands


def unordered(state: CallState) -> CallState:
    return replace(state, seen_event_ids=tuple(sorted(state.seen_event_ids)))


def test_an_incoming_call_is_answered_then_streamed_and_greeted() -> None:
    state, commands = run([INITIATED, ANSWERED])
    assert [type(command) for command in commands] == [Answer, StreamingStart, Speak]
    assert {command.call_control_id for command in commands} == {"v3:abc"}
    assert len({command.command_id for command in commands}) == 3
    assert state.status is CallStatus.ACTIVE
    stream, greeting = commands[1:]
    assert stream.body() == {
        "command_id": stream.command_id,
        "stream_url": "wss://example.com/ws",
        "stream_track": "inbound_track",
        "stream_codec": "PCMU",
    }
    assert greeting.body() == {
        "command_id": greeting.command_id,
        "payload": "Please describe your emergency.",
        "voice": "female",
        "language": "en-US",
    }


def test_without_a_greeting_the_call_is_only_streamed() -> None:
    state, _ = step(None, CALL, INITIATED, CONFIG)
    _, commands = step(state, CALL, ANSWERED, replace(CONFIG, greeting=""))
    assert [command.action for command in commands] == ["streaming_start"]


def test_a_command_made_twice_is_one_command_to_the_carrier() -> None:
    state, _ = step(None, CALL, INITIATED, CONFIG)
    once, again = step(state, CALL, ANSWERED, CONFIG), step(state, CALL, ANSWERED, CONFIG)
    assert once == again


def test_the_token_is_put_into_the_stream_command_alone_and_is_not_shown() -> None:
    _, (answer, stream, speak) = run([INITIATED, ANSWERED])
    tokened = with_token(stream, lambda control_id: f"secret for {control_id}")
    assert tokened.body().get("stream_auth_token") == "secret for v3:abc"
    assert "secret" not in repr(tokened)
    assert with_token(answer, lambda _: "secret") == answer
    assert with_token(speak, lambda _: "secret") == speak


def test_a_call_that_we_placed_is_not_answered_and_one_without_direction_is() -> None:
    assert run([event("call.initiated", direction="outgoing")])[1] == []
    assert [type(command) for command in run([event("call.initiated")])[1]] == [Answer]


def test_all_orders_of_the_main_events_end_in_one_state() -> None:
    expected = unordered(run(MAIN)[0])
    assert expected.status is CallStatus.ENDED
    assert (expected.started_at, expected.answered_at, expected.ended_at) == (T0, T0 + S, T0 + 20_500_000)
    assert expected.hangup_cause == "normal_clearing"
    assert expected.streams_started == 1
    assert expected.from_number == "+15550101234"
    orders = list(itertools.permutations(MAIN))
    assert len(orders) == 120
    for order in orders:
        assert unordered(run(order)[0]) == expected


def test_no_order_makes_a_command_after_the_hangup_or_answers_an_answered_call() -> None:
    for order in itertools.permutations(MAIN):
        _, after_hangup = run(order[: order.index(HANGUP) + 1])
        assert run(order)[1] == after_hangup
        actions = [command.action for command in run(order)[1]]
        assert len(set(actions)) == len(actions)
        if order.index(ANSWERED) < order.index(INITIATED):
            assert "answer" not in actions


def test_a_late_answered_does_not_revive_an_ended_call() -> None:
    state, commands = run([INITIATED, HANGUP])
    revived, more = step(state, CALL, ANSWERED, CONFIG)
    assert revived.status is CallStatus.ENDED
    assert more == ()
    assert [command.action for command in commands] == ["answer"]


def test_after_the_deadline_a_late_event_makes_no_command() -> None:
    state, _ = run([INITIATED, event("dispatchai.deadline", 99)])
    assert state.deadline_passed
    assert step(state, CALL, ANSWERED, CONFIG)[1] == ()


def test_an_event_without_a_control_id_makes_no_command() -> None:
    assert step(None, CALL, replace(INITIATED, call_control_id=""), CONFIG)[1] == ()


def test_an_unknown_event_is_recorded_and_changes_nothing_else() -> None:
    before, _ = run(MAIN[:2])
    after, commands = step(before, CALL, event("call.dtmf.received", 3, digit="1"), CONFIG)
    assert commands == ()
    assert after == replace(before, seen_event_ids=(*before.seen_event_ids, "call.dtmf.received@3"))


def test_the_earliest_of_two_hangups_counts_in_either_order() -> None:
    late = event("call.hangup", 21, hangup_cause="timeout")
    for order in ([HANGUP, late], [late, HANGUP]):
        state = run(order)[0]
        assert (state.ended_at, state.hangup_cause) == (T0 + 20_500_000, "normal_clearing")


def test_memory_of_events_is_bounded_and_keeps_the_newest() -> None:
    state, _ = run([event("call.dtmf.received", n) for n in range(SEEN_EVENTS_MAX + 50)])
    assert len(state.seen_event_ids) == SEEN_EVENTS_MAX
    assert state.seen_event_ids[-1] == f"call.dtmf.received@{SEEN_EVENTS_MAX + 49}"


def test_the_state_survives_its_record() -> None:
    state = run(MAIN)[0]
    assert decode(encode(state)) == state


def test_triage_folds_to_the_same_state_as_the_calls_agent() -> None:
    state: CallState | None = None
    for each in MAIN:
        state = fold(state, each)
    assert state == run(MAIN)[0]


kinds = st.sampled_from(
    ["call.initiated", "call.answered", "streaming.started", "streaming.stopped", "call.hangup", "call.speak.ended"]
)


@st.composite
def calls(draw: st.DrawFn) -> list[CallEvent]:
    count = draw(st.integers(1, 8))
    made = [
        event(
            draw(kinds),
            draw(st.integers(0, 30)),
            event_id=f"event-{n}",
            **draw(st.sampled_from([{}, {"hangup_cause": "timeout"}, {"hangup_cause": "normal_clearing"}])),
        )
        for n in range(count)
    ]
    timers = draw(st.sampled_from([(), ("dispatchai.deadline",), ("dispatchai.deadline", "dispatchai.expired")]))
    numbers = draw(st.lists(st.sampled_from([None, "+15550101234", "sip:a@b"]), min_size=count, max_size=count))
    made = [replace(each, from_number=number) for each, number in zip(made, numbers, strict=True)]
    return made + [replace(event(timer, 60), from_number=None) for timer in timers]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_order_and_repetition_of_events_ends_in_one_state(data: st.DataObject) -> None:
    events = data.draw(calls())
    repeats = data.draw(st.lists(st.sampled_from(events), max_size=6))
    again = [replace(each, attempt=2, received_at=each.received_at + 2 * S) for each in repeats]
    shuffled = data.draw(st.permutations(events + again))
    assert unordered(run(shuffled)[0]) == unordered(run(events)[0])


@settings(max_examples=200, deadline=None)
@given(calls())
def test_the_status_only_moves_right(events: list[CallEvent]) -> None:
    rank = {CallStatus.RINGING: 0, CallStatus.ACTIVE: 1, CallStatus.ENDED: 2}
    state: CallState | None = None
    before = 0
    for each in events:
        state = fold(state, each)
        assert rank[state.status] >= before
        before = rank[state.status]


@given(payload=st.binary(max_size=200), kind=kinds)
def test_no_body_makes_it_raise(payload: bytes, kind: str) -> None:
    step(None, CALL, replace(event(kind), payload=payload), CONFIG)


def test_the_deadline_and_the_expiry_follow_the_hangup() -> None:
    state = run(MAIN)[0]
    ended = T0 + 20_500_000
    assert due_timers(state, CALL, ended + 30 * S - 1, CONFIG) == ()
    (deadline,) = due_timers(state, CALL, ended + 30 * S, CONFIG)
    assert (deadline.type, deadline.occurred_at) == ("dispatchai.deadline", ended + 30 * S)
    assert next_timer_at(state, CALL, CONFIG) == ended + 30 * S
    state = fold(state, deadline)
    assert state.deadline_passed
    assert due_timers(state, CALL, ended + 3600 * S - 1, CONFIG) == ()
    (expired,) = due_timers(state, CALL, ended + 3600 * S, CONFIG)
    assert expired.type == "dispatchai.expired"
    state = fold(state, expired)
    assert due_timers(state, CALL, ended + 99_999 * S, CONFIG) == ()
    assert next_timer_at(state, CALL, CONFIG) is None
    assert decode(encode(deadline)) == deadline


def test_a_timer_written_twice_is_one_event() -> None:
    state = run(MAIN)[0]
    early, late = (due_timers(state, CALL, T0 + s * S, CONFIG)[0] for s in (60, 70))
    assert early.event_id == late.event_id
    assert fold(fold(state, early), late) == fold(state, early)
    assert due_timers(state, "another call", T0 + 60 * S, CONFIG)[0].event_id != early.event_id


def test_a_call_that_never_hangs_up_is_given_up_after_the_longest_time() -> None:
    state = run(MAIN[:3])[0]
    longest = state.first_seen_at + 14_400 * S
    assert due_timers(state, CALL, longest - 1, CONFIG) == ()
    assert [timer.type for timer in due_timers(state, CALL, longest, CONFIG)] == [
        "dispatchai.deadline",
        "dispatchai.expired",
    ]


def test_a_hangup_dated_far_ahead_does_not_keep_a_call_forever() -> None:
    state = run([INITIATED, event("call.hangup", 10**9)])[0]
    due = due_timers(state, CALL, state.first_seen_at + (14_400 + 3600) * S, CONFIG)
    assert [timer.type for timer in due] == ["dispatchai.deadline", "dispatchai.expired"]


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"ws_public_url": "wss://calls.example.com/ws"}, "wss://calls.example.com/ws"),
        ({"gateway_host": "0.0.0.0", "gateway_port": 8001}, "ws://127.0.0.1:8001/ws"),  # noqa: S104
        ({"gateway_host": "::1", "gateway_port": 8001}, "ws://[::1]:8001/ws"),
    ],
)
def test_the_stream_url_follows_from_the_settings(environment: dict[str, Any], url: str) -> None:
    assert CallFlowConfig.from_settings(Settings(_env_file=None, **environment)).stream_url == url
