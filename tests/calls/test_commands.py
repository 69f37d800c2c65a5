"""Claims about which commands a call's events call for."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.calls.commands import step, with_token
from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.state import fold
from dispatchai.records import CallEvent, CallState, CallStatus
from dispatchai.settings import Settings
from dispatchai.telnyx.commands import Answer, Command, Speak, StreamingStart
from tests.support.call_events import ANSWERED, CALL, CONFIG, HANGUP, INITIATED, MAIN, event


def run(events: list[CallEvent] | tuple[CallEvent, ...]) -> tuple[CallState, list[Command]]:
    state: CallState | None = None
    commands: list[Command] = []
    for each in events:
        state, new = step(state, CALL, each, CONFIG)
        commands += new
    assert state is not None
    return state, commands


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


def test_only_the_stream_command_gets_the_token_and_its_repr_hides_it() -> None:
    _, (answer, stream, speak) = run([INITIATED, ANSWERED])
    tokened = with_token(stream, lambda control_id: f"secret for {control_id}")
    assert tokened.body().get("stream_auth_token") == "secret for v3:abc"
    assert "secret" not in repr(tokened)
    assert with_token(answer, lambda _: "secret") == answer
    assert with_token(speak, lambda _: "secret") == speak


def test_a_leg_that_we_placed_is_not_answered_and_one_without_direction_is() -> None:
    assert run([event("call.initiated", direction="outgoing")])[1] == []
    assert [type(command) for command in run([event("call.initiated")])[1]] == [Answer]


def test_in_no_order_a_command_follows_the_hangup_or_an_answered_call_is_answered() -> None:
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


def test_fold_and_step_reach_the_same_state() -> None:
    state: CallState | None = None
    for each in MAIN:
        state = fold(state, each)
    assert state == run(MAIN)[0]


@given(payload=st.binary(max_size=200), kind=st.sampled_from([each.type for each in MAIN]))
def test_no_body_raises(payload: bytes, kind: str) -> None:
    step(None, CALL, replace(event(kind), payload=payload), CONFIG)


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"ws_public_url": "wss://calls.example.com/ws"}, "wss://calls.example.com/ws"),
        ({"gateway_host": "0.0.0.0", "gateway_port": 8001}, "ws://127.0.0.1:8001/ws"),  # noqa: S104
        ({"gateway_host": "::1", "gateway_port": 8001}, "ws://[::1]:8001/ws"),
    ],
)
def test_the_stream_url_follows_from_the_settings(environment: dict[str, Any], url: str) -> None:
    assert CallControlConfig.from_settings(Settings(_env_file=None, **environment)).stream_url == url
