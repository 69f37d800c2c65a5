"""Claims about the streams of a call, and about its state after any order, repetition and loss of its events."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.calls.commands import is_settled, outcome_event
from dispatchai.calls.events import EventType, own_event
from dispatchai.calls.state import NO_AUDIO, STOP_GRACE_S, fold, takes_commands
from dispatchai.calls.timers import RETRY_LONGEST_S, due_timers
from dispatchai.records import ActionKind, CallEvent, CallStatus, StreamStatus, decode, encode
from dispatchai.telnyx.commands import (
    TRANSFER_LEG_STATE,
    AlreadyEnded,
    AlreadyStreaming,
    Answer,
    Done,
    NotAnswered,
    Outcome,
    Rejected,
    StreamingStart,
    Unavailable,
)
from dispatchai.triage.step import NO_STATE, fold_event
from tests.calls.driver import AWAY, Call, active, ringing
from tests.support.call_events import CALL, CONFIG, FAILED, HANGUP, MAIN, STOPPED, T0, S, event, folded, unordered

# ---- the stream ----------------------------------------------------------------------------------------------------


def test_a_stream_that_fails_is_started_again_a_bounded_number_of_times_each_under_its_own_id() -> None:
    call = active(replace(CONFIG, stream_restarts_max=2))
    at = 100.0
    for _ in range(2):
        (stream,) = call.take(event("streaming.failed", at))
        assert stream.action == "streaming_start"
        assert call.now.degraded == NO_AUDIO
        call.ends(stream, Done(1), at + 0.1)
        call.take(event("streaming.started", at + 0.3))
        assert call.now.degraded is None
        at += 100
    assert call.take(event("streaming.failed", at)) == ()
    assert call.tick(at + 90) == ()
    assert (call.now.degraded, len(call.now.stream_failed_at)) == (NO_AUDIO, 3)
    streams = [command.command_id for command in call.given if isinstance(command, StreamingStart)]
    assert len(streams) == len(set(streams)) == 3


def test_a_stream_that_fails_repeatedly_is_started_again_after_growing_waits() -> None:
    """As while a gateway is being replaced: the stream is started at once, then after growing waits, then no more."""
    call = active()
    at, waits = 10.0, []
    given = call.take(event("streaming.failed", at))
    while given:
        call.ends(given[0], Done(1), at)
        at += 0.1
        assert call.take(event("streaming.failed", at)) == (), "not at once this time"
        due = min(
            (
                timer.occurred_at
                for timer in due_timers(call.now, CALL, T0 + 9_000 * S, CONFIG)
                if timer.type == EventType.STREAM_DUE
            ),
            default=None,
        )
        if due is None:
            break
        wait_s = (due - T0) / S - at - 0.04  # the delay of the webhook
        assert call.tick(at + 0.04 + wait_s - 0.01) == ()
        given = call.tick(at + 0.041 + wait_s)
        waits.append(round(wait_s, 3))
        at += wait_s + 0.1
    assert waits == [2, 4, 8, 16]
    assert call.now.degraded == NO_AUDIO


def test_a_timer_for_a_stream_that_came_back_starts_nothing() -> None:
    call = active()
    call.take(FAILED, event("streaming.failed", 10.5))
    (due,) = due_timers(call.now, CALL, T0 + 13 * S, CONFIG)
    assert due.type == EventType.STREAM_DUE
    call.take(event("streaming.started", 11))
    assert call.take(due) == ()


def test_a_stream_that_stops_is_started_again_only_if_the_call_goes_on() -> None:
    call = active()
    assert call.take(STOPPED) == ()
    assert call.now.degraded is None, "it may be the call's end, whose hangup comes next"
    seen = STOPPED.received_at / S - T0 / S
    assert call.tick(seen + STOP_GRACE_S - 0.01) == ()
    (stream,) = call.tick(seen + STOP_GRACE_S)
    assert stream.action == "streaming_start"
    assert call.now.stream is StreamStatus.LOST
    assert call.now.degraded == NO_AUDIO
    assert call.tick(seen + 60) == (), "it was recorded"
    call.take(event("streaming.started", 22))
    assert call.now.degraded is None


@pytest.mark.parametrize(("hung_up_s", "degraded"), [(0.001, None), (STOP_GRACE_S, None), (5.0, NO_AUDIO)])
def test_a_hangup_that_arrives_late_explains_why_the_stream_stopped(hung_up_s: float, degraded: str | None) -> None:
    (lost,) = due_timers(fold(active().now, STOPPED), CALL, T0 + 30 * S, CONFIG)
    stopped_s = (STOPPED.occurred_at - T0) / S
    hangup = event("call.hangup", stopped_s + hung_up_s)
    for order in itertools.permutations([STOPPED, hangup, lost]):
        call = active()
        call.take(*order)
        assert call.now.degraded == degraded


def test_the_stop_of_an_ended_call_starts_nothing() -> None:
    call = active()
    (lost,) = [*due_timers(fold(call.now, STOPPED), CALL, T0 + 30 * S, CONFIG)]
    for order in itertools.permutations([STOPPED, HANGUP, lost]):
        call = active()
        after_hangup = call.take(*order[: order.index(HANGUP) + 1]), call.take(*order[order.index(HANGUP) + 1 :])
        assert after_hangup[1] == ()


def test_a_failure_that_arrives_late_starts_nothing_when_the_stream_is_back() -> None:
    call = active()
    call.take(event("streaming.started", 12))
    assert call.take(FAILED) == ()
    assert call.now.degraded is None


def test_a_stream_that_the_carrier_already_sends_is_not_degraded() -> None:
    call = active()
    (stream,) = call.take(FAILED)
    call.ends(stream, AlreadyStreaming(), 10.5)
    assert call.now.degraded is None
    call.take(event("streaming.failed", 11))
    assert call.now.degraded == NO_AUDIO


def test_a_lost_stream_is_detected_by_our_clock_when_the_carriers_is_wrong() -> None:
    call = active()
    stop = event("streaming.stopped", 500)
    call.take(replace(stop, received_at=T0 + 20 * S))
    assert [command.action for command in call.tick(21)] == ["streaming_start"]


def test_only_the_newest_stream_command_is_sent_again() -> None:
    call = active()
    (first,) = call.take(FAILED)
    call.ends(first, Unavailable(1, "429", 100.0), 20)
    call.take(event("streaming.failed", 21))
    (second,) = call.tick(23.5)
    assert second != first
    call.ends(second, AWAY, 33)
    assert call.tick(200) == (second,)


def test_an_outdated_timer_does_nothing() -> None:
    call = ringing()
    (answer,) = call.given
    call.ends(answer, AWAY, 10)
    (retry,) = due_timers(call.now, CALL, T0 + 12 * S, CONFIG)
    call.take(outcome_event(answer, 2, AWAY, T0 + 22 * S))
    assert call.take(retry) == (), "the second round has ended meanwhile"

    call = active()
    call.take(FAILED, event("streaming.failed", 10.5))
    (due,) = due_timers(call.now, CALL, T0 + 13 * S, CONFIG)
    call.take(event("streaming.failed", 11))
    assert call.take(due) == (), "it failed again meanwhile, and that wait counts"


# ---- any order, any repetition, any loss ---------------------------------------------------------------------------


def story() -> list[CallEvent]:
    """A call in which much goes wrong, with the outcomes and timers that the agent would have recorded."""
    call = ringing()
    call.ends(call.given[-1], AWAY, 10)
    call.tick(12)
    call.take(event("call.answered", 13))
    for command in call.given[-2:]:
        call.ends(command, Done(1), 13.5)
    call.take(event("streaming.started", 13.7), event("streaming.failed", 16))
    call.ends(call.given[-1], AWAY, 27)
    call.tick(29)
    call.ends(call.given[-1], AlreadyStreaming(), 29.2)
    call.take(event("streaming.stopped", 33))
    call.tick(35)
    call.tick(38)
    call.take(event("streaming.started", 38.5), event("streaming.failed", 39))
    call.tick(44)
    call.take(event("call.dtmf.received", 35.5, digit="1"), event("streaming.started", 45))
    call.acts(ActionKind.TRANSFER)
    call.ends(call.given[-1], Rejected(422, "10015", "Bad Request"), 47)
    leg: dict[str, Any] = {"client_state": TRANSFER_LEG_STATE}
    call.take(event("call.initiated", 48, direction="outgoing", **leg), event("call.hangup", 49, **leg))
    call.take(event("streaming.stopped", 50), event("call.hangup", 50.2, hangup_cause="normal_clearing"))
    at = T0 + 51 * S
    refused = EventType.RECORD_REFUSED
    call.take(own_event(refused, "refused", occurred_at=at, received_at=at, call_control_id="", payload=None))
    call.tick(90)
    return call.events


STORY = story()


def test_the_story_has_every_kind_of_event() -> None:
    kinds = {each.type for each in STORY}
    # EXPIRED ends the state, and PURGED is about the packet, which outlives it.
    assert kinds >= set(EventType) - {EventType.EXPIRED, EventType.PURGED}
    state = unordered(folded(STORY))
    assert (state.status, len(state.stream_failed_at)) == (CallStatus.ENDED, 3)
    assert state.degraded == "the call could not be transferred: the carrier refused (10015)"


@settings(max_examples=400)
@given(st.data())
def test_any_order_repetition_and_loss_of_a_calls_events_leads_to_one_state(data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(STORY), min_size=1, unique_by=lambda each: each.event_id))
    repeats = data.draw(st.lists(st.sampled_from(kept), max_size=8))
    again = [replace(each, attempt=2, received_at=each.received_at + 2 * S) for each in repeats]
    shuffled = data.draw(st.permutations(kept + again))
    assert unordered(folded(shuffled)) == unordered(folded(kept))
    # The step reaches the same state, and its commands are bounded.
    call = Call()
    call.take(*shuffled)
    assert unordered(call.now) == unordered(folded(kept))
    starts = [command for command in call.given if isinstance(command, StreamingStart)]
    assert len({command.command_id for command in starts}) <= 1 + CONFIG.stream_restarts_max


def test_every_order_of_the_main_events_leads_to_one_state_without_a_command_after_the_hangup() -> None:
    expected = unordered(folded(MAIN))
    assert (expected.status, expected.stream, expected.degraded) == (CallStatus.ENDED, StreamStatus.STOPPED, None)
    orders = list(itertools.permutations(MAIN))
    assert len(orders) == 120
    for order in orders:
        call = Call()
        call.take(*order[: order.index(HANGUP) + 1])
        before = list(call.given)
        call.take(*order[order.index(HANGUP) + 1 :])
        assert call.given == before
        assert unordered(call.now) == expected


@settings(max_examples=200)
@given(st.data())
def test_a_whole_call_with_a_failing_carrier_never_repeats_a_command_that_succeeded(data: st.DataObject) -> None:
    """Webhooks in any order, random outcomes, timers in between: an id is sent again only after a failed round."""
    possible: list[Outcome] = [
        *(Done(1), AWAY, NotAnswered()),
        *(AlreadyEnded(), AlreadyStreaming(), Rejected(422, "1", "")),
    ]
    outcomes = st.sampled_from(possible)
    call = Call()
    rounds: dict[str, int] = defaultdict(int)
    now = 50.0
    for each in data.draw(st.permutations([*MAIN, FAILED, event("streaming.started", 11)])):
        pending = list(call.take(each))
        while pending:
            command = pending.pop(0)
            if not takes_commands(call.now) or is_settled(call.now, command):
                continue
            rounds[command.command_id] += 1
            now += 1
            pending += call.ends(command, data.draw(outcomes), now)
            if data.draw(st.booleans()):
                now += RETRY_LONGEST_S
                pending += call.tick(now)
    for recorded in call.now.commands:
        assert recorded.round == rounds[recorded.command_id]
    assert unordered(call.now) == unordered(folded(call.events))
    assert decode(encode(call.now)) == call.now


@given(
    payload=st.binary(max_size=100)
    | st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "command_id",
                        "action",
                        "round",
                        "outcome",
                        "code",
                        "retry_at",
                        "request",
                        "stopped_at",
                        "failed_at",
                    ]
                ),
                inner | st.sampled_from(["DONE", "UNAVAILABLE", 1, "answer"]),
            )
        ),
        max_leaves=12,
    ).map(orjson.dumps),
    kind=st.sampled_from([EventType.COMMAND, EventType.RETRY, EventType.STREAM_LOST, EventType.STREAM_DUE]),
)
def test_no_content_of_an_own_event_raises(payload: bytes, kind: EventType) -> None:
    call = active()
    call.take(replace(event(kind, 5), payload=payload))
    due_timers(call.now, CALL, T0 + 99 * S, CONFIG)
    assert decode(encode(call.now)) == call.now


def test_an_own_event_of_an_expired_call_makes_no_call_in_triage() -> None:
    late = outcome_event(Answer("v3:abc", "c"), 1, Done(1), T0)
    assert fold_event(NO_STATE, late) == NO_STATE
