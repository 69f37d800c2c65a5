"""Claims about call control: how commands end, what is given again, what a dispatcher's actions do, when a call is
degraded. The steps are pure; the agent runs on both brokers against a carrier on loopback."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiokafka
import orjson
import pytest
import structlog
from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from agents import calls
from dispatchai.calls.config import CallFlowConfig
from dispatchai.calls.control import Refusal, act, command_id, is_settled, outcome_event, round_of, step, with_token
from dispatchai.calls.events import EventType
from dispatchai.calls.state import COMMANDS_MAX, NO_AUDIO, STOP_GRACE_S, fold, takes_commands
from dispatchai.calls.timers import RETRY_LONGEST_S, due_timers
from dispatchai.engine.app import App, create_app
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import (
    Action,
    ActionKind,
    CallEvent,
    CallState,
    CallStatus,
    CommandOutcome,
    StreamStatus,
    decode,
    encode,
)
from dispatchai.settings import Settings
from dispatchai.telnyx.client import RetryPolicy, TelnyxClient
from dispatchai.telnyx.commands import (
    TRANSFER_LEG_STATE,
    AlreadyEnded,
    AlreadyStreaming,
    Answer,
    Command,
    Done,
    Hangup,
    NotAnswered,
    Outcome,
    RecordStart,
    Rejected,
    Speak,
    StreamingStart,
    Transfer,
    Unavailable,
    command_from,
    request_of,
)
from dispatchai.triage.step import NO_STATE, fold_event
from tests.support.call_events import (
    ANSWERED,
    CALL,
    CONFIG,
    FAILED,
    HANGUP,
    INITIATED,
    MAIN,
    STOPPED,
    STREAMING,
    T0,
    S,
    event,
    folded,
    unordered,
)

AWAY = Unavailable(5, "503")


@dataclass
class Call:
    """One call under the pure steps, as the agent drives them: commands are kept, outcomes and timers are told it."""

    config: CallFlowConfig = CONFIG
    state: CallState | None = None
    given: list[Command] = field(default_factory=list)
    events: list[CallEvent] = field(default_factory=list)

    @property
    def now(self) -> CallState:
        assert self.state is not None
        return self.state

    @property
    def actions(self) -> list[str]:
        return [command.action for command in self.given]

    def take(self, *events: CallEvent) -> tuple[Command, ...]:
        """The commands that `events` call for."""
        commands: tuple[Command, ...] = ()
        for each in events:
            self.events.append(each)
            self.state, called_for = step(self.state, CALL, each, self.config)
            commands += called_for
        self.given.extend(commands)
        return commands

    def ends(self, command: Command, outcome: Outcome, at_s: float) -> tuple[Command, ...]:
        """Record that the next round of `command` ended with `outcome`."""
        return self.take(outcome_event(command, round_of(self.now, command), outcome, T0 + round(at_s * S)))

    def tick(self, at_s: float) -> tuple[Command, ...]:
        """Record the timers that are due."""
        return self.take(*due_timers(self.now, CALL, T0 + round(at_s * S), self.config))

    def acts(self, kind: ActionKind, text: str | None = None, action_id: str = "action-1") -> Refusal | None:
        """A dispatcher's action; its commands are kept too."""
        self.state, commands, refusal = act(self.now, action(kind, text, action_id), self.config)
        self.given.extend(commands)
        return refusal


def action(kind: ActionKind, text: str | None = None, action_id: str = "action-1") -> Action:
    return Action(action_id, kind, "dispatcher 7", T0, text, None, None)


def ringing() -> Call:
    call = Call()
    call.take(INITIATED)
    return call


def active(config: CallFlowConfig = CONFIG) -> Call:
    call = Call(config)
    call.take(INITIATED, ANSWERED, STREAMING)
    return call


# ---- recording ---------------------------------------------------------------------------------------------------


def test_a_call_is_recorded_on_two_channels_where_that_is_asked_for() -> None:
    call = active(replace(CONFIG, record_format="mp3"))
    assert call.actions == ["answer", "streaming_start", "record_start", "speak"]
    record = call.given[2]
    assert record.body() == {"command_id": record.command_id, "channels": "dual", "format": "mp3"}
    assert "record_start" not in active().actions


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, ""), ({"record_calls": True}, "mp3"), ({"record_format": "wav"}, "")]
)
def test_recording_is_off_until_it_is_switched_on(environment: dict[str, Any], expected: str) -> None:
    assert CallFlowConfig.from_settings(Settings(_env_file=None, **environment)).record_format == expected


# ---- a dispatcher's actions ---------------------------------------------------------------------------------------


def test_speak_says_the_dispatchers_words_or_that_help_is_being_arranged() -> None:
    call = active()
    assert call.acts(ActionKind.SPEAK, "An ambulance is on its way.", "one") is None
    assert call.acts(ActionKind.SPEAK, None, "two") is None
    said = [command.body()["payload"] for command in call.given if isinstance(command, Speak)][1:]
    assert said == ["An ambulance is on its way.", "Help is being arranged."]


def test_transfer_goes_to_the_human_line_and_hangup_ends_the_call() -> None:
    call = active()
    call.acts(ActionKind.TRANSFER, None, "one")
    call.acts(ActionKind.HANGUP, None, "two")
    transfer, hangup = call.given[-2:]
    assert transfer.body() == {
        "command_id": transfer.command_id,
        "to": "+15550100999",
        "target_leg_client_state": TRANSFER_LEG_STATE,
    }
    assert isinstance(hangup, Hangup)


def test_an_action_sent_twice_is_one_command() -> None:
    call = active()
    before = len(call.given)
    assert call.acts(ActionKind.SPEAK, "Stay calm.") is None
    assert call.acts(ActionKind.SPEAK, "Stay calm.") is Refusal.REPEATED
    assert len(call.given) == before + 1
    # And after a crash that lost the state it is the same command to the carrier.
    again = active()
    again.acts(ActionKind.SPEAK, "Stay calm.")
    assert again.given[-1].command_id == call.given[-1].command_id == command_id(action(ActionKind.SPEAK), "speak")


@pytest.mark.parametrize(
    ("call", "config", "kind", "why"),
    [
        ([INITIATED, ANSWERED, HANGUP], CONFIG, ActionKind.SPEAK, Refusal.CALL_OVER),
        ([INITIATED, event("dispatchai.deadline", 9)], CONFIG, ActionKind.HANGUP, Refusal.CALL_OVER),
        ([INITIATED], replace(CONFIG, human_line=""), ActionKind.TRANSFER, Refusal.NO_HUMAN_LINE),
        ([INITIATED], replace(CONFIG, help_prompt=""), ActionKind.SPEAK, Refusal.NOTHING_TO_SAY),
        ([replace(INITIATED, call_control_id="")], CONFIG, ActionKind.HANGUP, Refusal.NO_CONTROL_ID),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_no_trace(
    call: list[CallEvent], config: CallFlowConfig, kind: ActionKind, why: Refusal
) -> None:
    driven = Call(config)
    driven.take(*call)
    state, given = driven.state, list(driven.given)
    assert driven.acts(kind) is why
    assert (driven.state, driven.given) == (state, given)


@pytest.mark.parametrize("kind", sorted(set(ActionKind) - {"SPEAK", "TRANSFER", "HANGUP"}))
def test_other_actions_are_no_call_control(kind: ActionKind) -> None:
    call = active()
    before = (call.now, list(call.given))
    assert call.acts(kind, "a note") is None
    assert (call.now, call.given) == before


@pytest.mark.parametrize("line", ["+15551234567", "sip:desk@pbx.example.com", "sips:1001@10.0.0.7:5061"])
def test_the_human_line_is_a_number_or_a_sip_address(line: str) -> None:
    assert CallFlowConfig.from_settings(Settings(_env_file=None, human_line=line)).human_line == line


@pytest.mark.parametrize("line", ["5551234567", "+1555", "+1555123456789012", "desk@example.com", "sip:a b@c", "tel:1"])
def test_a_human_line_that_no_carrier_could_reach_is_refused_at_the_start(line: str) -> None:
    with pytest.raises(ValidationError, match="HUMAN_LINE"):
        Settings(_env_file=None, human_line=line)


def test_what_is_said_is_in_no_repr() -> None:
    assert "secret plan" not in repr(Speak("v3:a", "c", "a secret plan", "female", "en-US"))


def test_events_of_the_leg_to_the_human_line_change_nothing_of_the_call() -> None:
    call = active()
    call.acts(ActionKind.TRANSFER)
    before = call.now
    leg = {"client_state": TRANSFER_LEG_STATE, "call_control_id": "v3:aaa"}
    legs = [
        replace(event(kind, at, **leg), call_control_id="v3:aaa")
        for kind, at in (("call.initiated", 12), ("call.answered", 13), ("call.hangup", 14))
    ]
    for order in itertools.permutations(legs):
        call.state = before
        assert call.take(*order) == ()
        assert replace(call.now, seen_event_ids=before.seen_event_ids) == before
    assert takes_commands(call.now), "a human line that did not pick up does not end the call"


# ---- how commands end ----------------------------------------------------------------------------------------------


def test_what_the_carrier_could_not_be_told_is_told_again_for_as_long_as_the_call_lasts() -> None:
    call = ringing()
    (answer,) = call.given
    now, waits = 10.0, []
    for number in range(1, 9):
        assert round_of(call.now, answer) == number
        assert call.ends(answer, AWAY, now) == ()
        assert call.now.degraded == "the call could not be answered: the carrier cannot be reached"
        due = min(timer.occurred_at for timer in due_timers(call.now, CALL, T0 + 99_999 * S, CONFIG))
        wait_s = (due - T0) / S - now
        assert call.tick(now + wait_s - 0.001) == ()
        assert call.tick(now + wait_s) == (answer,)
        assert call.tick(now + wait_s + 5) == (), "it is under way"
        waits.append(wait_s)
        now += wait_s + 10
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]
    call.ends(answer, Done(1), now)
    assert call.now.degraded is None
    assert call.tick(now + 2 * RETRY_LONGEST_S) == ()


def test_the_wait_that_the_carrier_asks_for_is_kept() -> None:
    call = ringing()
    call.ends(call.given[0], Unavailable(1, "429", 300.0), 10)
    assert call.tick(309) == ()
    assert [command.action for command in call.tick(310)] == ["answer"]


@pytest.mark.parametrize("asked_s", [float("inf"), 1e300])
def test_an_absurd_wait_is_no_error(asked_s: float) -> None:
    call = ringing()
    call.ends(call.given[0], Unavailable(1, "429", asked_s), 10)
    assert decode(encode(call.now)) == call.now


@pytest.mark.parametrize("last", [HANGUP, event("dispatchai.deadline", 30)])
def test_after_the_call_nothing_is_told_again(last: CallEvent) -> None:
    call = ringing()
    call.ends(call.given[0], AWAY, 10)
    (retry,) = due_timers(call.now, CALL, T0 + 12 * S, CONFIG)
    call.take(last)
    assert call.take(retry) == ()
    assert EventType.RETRY not in {timer.type for timer in due_timers(call.now, CALL, T0 + 9_999 * S, CONFIG)}


def test_a_call_that_never_ends_is_not_retried_beyond_its_longest_time() -> None:
    call = ringing()
    call.ends(call.given[0], AWAY, 14_399)
    due = due_timers(call.now, CALL, T0 + 14_500 * S, CONFIG)
    assert [timer.type for timer in due] == ["dispatchai.deadline"]


def test_an_answer_that_got_through_after_all_is_not_given_again() -> None:
    call = ringing()
    (answer,) = call.given
    call.ends(answer, AWAY, 10)
    call.take(ANSWERED)
    assert call.now.degraded is None
    assert is_settled(call.now, answer)
    assert "answer" not in {command.action for command in call.tick(100)}


def test_what_came_too_early_is_given_again_under_its_id_when_the_call_is_answered() -> None:
    call = ringing()
    call.acts(ActionKind.SPEAK, "We see you.")
    early = call.given[-1]
    call.ends(early, NotAnswered(), 0.5)
    assert call.tick(500) == (), "its time comes with call.answered and not with a clock"
    assert is_settled(call.now, early)
    assert call.now.degraded is None
    given = call.take(ANSWERED)
    assert [each.action for each in given] == ["streaming_start", "speak", "speak"]
    assert given[-1] == early


def test_not_answered_of_an_answered_call_is_given_again_after_a_wait() -> None:
    call = active()
    speak = call.given[-1]
    call.ends(speak, NotAnswered(), 2)
    assert call.tick(3.9) == ()
    assert call.tick(4.0) == (speak,)


def test_a_call_that_the_carrier_says_is_over_gets_no_more_commands_and_is_not_ended_by_that() -> None:
    call = ringing()
    call.ends(call.given[0], AlreadyEnded(), 1)
    assert call.now.status is CallStatus.RINGING
    assert call.now.ended_at is None
    assert call.now.degraded is None
    assert call.take(ANSWERED) == ()
    assert call.acts(ActionKind.SPEAK) is Refusal.CALL_OVER
    assert call.take(HANGUP) == ()
    assert call.now.status is CallStatus.ENDED


def test_a_refused_command_is_not_given_again_and_the_dispatcher_is_told() -> None:
    call = active()
    call.acts(ActionKind.TRANSFER)
    call.ends(call.given[-1], Rejected(422, "10015", "Bad Request"), 3)
    assert call.now.degraded == "the call could not be transferred: the carrier refused (10015)"
    assert call.tick(9_000) == ()
    # A later transfer that succeeds is what counts.
    call.acts(ActionKind.TRANSFER, None, "action-2")
    call.ends(call.given[-1], Done(1), 5)
    assert call.now.degraded is None


def test_a_hangup_that_met_a_call_that_is_gone_degrades_nothing() -> None:
    call = active()
    call.acts(ActionKind.HANGUP)
    call.ends(call.given[-1], Rejected(404, "10005", "Resource not found"), 3)
    assert call.now.degraded is None


def test_the_gravest_reason_is_shown() -> None:
    call = active()
    call.ends(call.given[-1], Rejected(422, "90012", "Voice"), 2)
    assert call.now.degraded == "nothing could be said to the caller: the carrier refused (90012)"
    call.take(FAILED)
    assert call.now.degraded == NO_AUDIO


def test_the_token_of_a_stream_is_in_no_record() -> None:
    call = Call()
    _, stream, _ = call.take(INITIATED, ANSWERED)
    call.ends(stream, AWAY, 10)
    (again,) = call.tick(12)
    assert again == stream
    assert with_token(again, lambda _: "the secret").body()["stream_auth_token"] == "the secret"
    assert not any(b"auth_token" in encode(each) for each in call.events)


def test_an_outcome_recorded_twice_is_one_event_and_another_outcome_is_another() -> None:
    (answer,) = ringing().given
    done = outcome_event(answer, 1, Done(1), T0)
    assert outcome_event(answer, 1, Done(2), T0 + S).event_id == done.event_id
    others = [outcome_event(answer, 2, Done(1), T0), outcome_event(answer, 1, AWAY, T0)]
    assert len({each.event_id for each in [done, *others]}) == 3


@pytest.mark.parametrize("first", [AWAY, Rejected(422, "10015", "already answered")])
def test_of_two_outcomes_of_one_round_the_better_counts_in_either_order(first: Outcome) -> None:
    """A worker that died between the command and its record gives the command again."""
    (answer,) = ringing().given
    both = [outcome_event(answer, 1, first, T0 + 2 * S), outcome_event(answer, 1, Done(1), T0 + S)]
    one, other = unordered(folded([INITIATED, *both])), unordered(folded([INITIATED, *reversed(both)]))
    assert one == other
    assert one.commands[0].outcome is CommandOutcome.DONE


def test_memory_of_commands_is_bounded_and_keeps_the_newest() -> None:
    call = active()
    for number in range(COMMANDS_MAX + 20):
        call.ends(Speak("v3:abc", f"command-{number:03}", "Hello", "female", "en-US"), Done(1), 10 + number)
    ids = {command.command_id for command in call.now.commands}
    assert ids == {f"command-{number:03}" for number in range(20, COMMANDS_MAX + 20)}


COMMANDS: list[Command] = [
    Answer("v3:a", "c-1"),
    StreamingStart("v3:a", "c-2", "wss://h/ws"),
    RecordStart("v3:a", "c-3", "wav"),
    Speak("v3:a", "c-4", "Hello", "female", "en-US"),
    Transfer("v3:a", "c-5", "+15550100999"),
    Hangup("v3:a", "c-6"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.action)
def test_a_command_is_made_again_from_its_record(command: Command) -> None:
    assert command_from(command.action, "v3:a", request_of(command)) == command


@pytest.mark.parametrize("request_", ["", "[]", "{", '{"command_id":"c"}', '{"command_id":"c","to":1}', '{"x":"y"}'])
def test_a_request_that_makes_no_command_makes_none(request_: str) -> None:
    assert command_from("transfer", "v3:a", request_) is None
    assert command_from("dial", "v3:a", '{"command_id":"c"}') is None


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


def test_a_gateway_that_is_being_replaced_is_waited_for() -> None:
    """The stream fails as often as it is started: at once first, then after growing waits, and then no more."""
    call = active()
    at, waits = 10.0, []
    given = call.take(event("streaming.failed", at))
    while given:
        call.ends(given[0], Done(1), at)
        at += 0.1
        assert call.take(event("streaming.failed", at)) == (), "not at once again"
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
        wait_s = (due - T0) / S - at - 0.04  # received so much later
        assert call.tick(at + 0.04 + wait_s - 0.01) == ()
        given = call.tick(at + 0.041 + wait_s)
        waits.append(round(wait_s, 3))
        at += wait_s + 0.1
    assert waits == [2, 4, 8, 16]
    assert call.now.degraded == NO_AUDIO


def test_a_wait_for_a_stream_that_came_back_starts_nothing() -> None:
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
def test_a_hangup_that_is_told_late_tells_why_the_stream_stopped(hung_up_s: float, degraded: str | None) -> None:
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


def test_a_failure_that_is_told_late_starts_nothing_when_the_stream_is_back() -> None:
    call = active()
    call.take(event("streaming.started", 12))
    assert call.take(FAILED) == ()
    assert call.now.degraded is None


def test_a_carrier_that_streams_already_is_believed() -> None:
    call = active()
    (stream,) = call.take(FAILED)
    call.ends(stream, AlreadyStreaming(), 10.5)
    assert call.now.degraded is None
    call.take(event("streaming.failed", 11))
    assert call.now.degraded == NO_AUDIO


def test_a_stream_of_a_carrier_whose_clock_is_wrong_is_found_lost_by_ours() -> None:
    call = active()
    stop = event("streaming.stopped", 500)
    call.take(replace(stop, received_at=T0 + 20 * S))
    assert [command.action for command in call.tick(21)] == ["streaming_start"]


def test_only_the_newest_stream_command_is_given_again() -> None:
    call = active()
    (first,) = call.take(FAILED)
    call.ends(first, Unavailable(1, "429", 100.0), 20)
    call.take(event("streaming.failed", 21))
    (second,) = call.tick(23.5)
    assert second != first
    call.ends(second, AWAY, 33)
    assert call.tick(200) == (second,)


def test_a_timer_that_was_overtaken_does_nothing() -> None:
    call = ringing()
    (answer,) = call.given
    call.ends(answer, AWAY, 10)
    (retry,) = due_timers(call.now, CALL, T0 + 12 * S, CONFIG)
    call.take(outcome_event(answer, 2, AWAY, T0 + 22 * S))
    assert call.take(retry) == (), "the second round was given meanwhile"

    call = active()
    call.take(FAILED, event("streaming.failed", 10.5))
    (due,) = due_timers(call.now, CALL, T0 + 13 * S, CONFIG)
    call.take(event("streaming.failed", 11))
    assert call.take(due) == (), "it failed once more meanwhile, and that wait counts"


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
    leg = {"client_state": TRANSFER_LEG_STATE}
    call.take(event("call.initiated", 48, direction="outgoing", **leg), event("call.hangup", 49, **leg))
    call.take(event("streaming.stopped", 50), event("call.hangup", 50.2, hangup_cause="normal_clearing"))
    call.tick(90)
    return call.events


STORY = story()


def test_the_story_has_every_kind_of_event() -> None:
    kinds = {each.type for each in STORY}
    assert kinds >= set(EventType) - {EventType.EXPIRED}
    state = unordered(folded(STORY))
    assert (state.status, len(state.stream_failed_at)) == (CallStatus.ENDED, 3)
    assert state.degraded == "the call could not be transferred: the carrier refused (10015)"


@settings(max_examples=400)
@given(st.data())
def test_any_order_repetition_and_loss_of_a_calls_events_ends_in_one_state(data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(STORY), min_size=1, unique_by=lambda each: each.event_id))
    repeats = data.draw(st.lists(st.sampled_from(kept), max_size=8))
    again = [replace(each, attempt=2, received_at=each.received_at + 2 * S) for each in repeats]
    shuffled = data.draw(st.permutations(kept + again))
    assert unordered(folded(shuffled)) == unordered(folded(kept))
    # And so by the step, whatever it is told to do on the way; the commands are bounded.
    call = Call()
    call.take(*shuffled)
    assert unordered(call.now) == unordered(folded(kept))
    starts = [command for command in call.given if isinstance(command, StreamingStart)]
    assert len({command.command_id for command in starts}) <= 1 + CONFIG.stream_restarts_max


def test_all_orders_of_the_main_events_end_in_one_state_without_a_command_after_the_hangup() -> None:
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
def test_a_whole_call_at_a_failing_carrier_never_has_two_commands_of_one_meaning(data: st.DataObject) -> None:
    """Webhooks in any order, outcomes at random, timers in between: an id is given again only after a failed round."""
    outcomes = st.sampled_from(
        [Done(1), AWAY, NotAnswered(), AlreadyEnded(), AlreadyStreaming(), Rejected(422, "1", "")]
    )
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
    for command in call.now.commands:
        assert command.round == rounds[command.command_id]
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
def test_no_content_of_our_own_events_makes_it_raise(payload: bytes, kind: EventType) -> None:
    call = active()
    call.take(replace(event(kind, 5), payload=payload))
    due_timers(call.now, CALL, T0 + 99 * S, CONFIG)
    assert decode(encode(call.now)) == call.now


def test_facts_of_a_call_that_triage_gave_up_make_no_call_of_it() -> None:
    late = outcome_event(Answer("v3:abc", "c"), 1, Done(1), T0)
    assert fold_event(NO_STATE, late) == NO_STATE


# ---- the agent -----------------------------------------------------------------------------------------------------

PATIENCE_S = 60.0
QUICK = RetryPolicy(attempts=1, first_delay_s=0.001, connect_s=1.0, total_s=2.0, budget_s=5.0)


@dataclass
class Carrier:
    """Takes commands. `replies` are the (status, error code) of the next command of an action, then all succeed."""

    url: str = ""
    replies: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.Response:
        name = request.match_info["action"]
        async with self.changed:
            self.asked.append((request.match_info["id"], name, await request.json()))
            self.changed.notify_all()
        if not self.replies[name]:
            return web.json_response({"data": {"result": "ok"}})
        status, code = self.replies[name].pop(0)
        return web.json_response({"errors": [{"code": code, "title": "refused"}]}, status=status)

    def actions(self, control_id: str) -> list[str]:
        return [name for asked, name, _ in self.asked if asked == control_id]

    async def until(self, control_id: str, actions: list[str]) -> list[dict[str, Any]]:
        """Wait until a call was told `actions`; what it was told."""
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(lambda: len(self.actions(control_id)) >= len(actions))
        assert self.actions(control_id) == actions
        return [body for asked, _, body in self.asked if asked == control_id]


@dataclass
class Running:
    """The calls agent on a broker, and the carrier it commands."""

    broker: KafkaConnection
    app: App
    states: KeyedStates[CallState]
    carrier: Carrier
    producer: aiokafka.AIOKafkaProducer

    async def tell(self, call_id: str, *records: CallEvent | Action) -> None:
        for record in records:
            topic = Topic.CALL_EVENTS if isinstance(record, CallEvent) else Topic.DISPATCH_ACTIONS
            await self.producer.send_and_wait(topic, encode(record), call_id.encode())

    async def until(self, call_id: str, true: Callable[[CallState], bool]) -> CallState:
        async with asyncio.timeout(PATIENCE_S):
            while (state := self.states.get(call_id)) is None or not true(state):  # noqa: ASYNC110 - in memory
                await asyncio.sleep(0.02)
        return state


@asynccontextmanager
async def running(broker: KafkaConnection, folder: Path, config: CallFlowConfig) -> AsyncIterator[Running]:
    carrier = Carrier()
    application = web.Application()
    application.add_routes([web.post("/v2/calls/{id}/actions/{action}", carrier.handle)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    carrier.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v2"
    partitions = Topics.load().partitions
    app_id = f"test-{uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**broker.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"{app_id}-{calls.NAME}-changelog", partitions, 1)])
    finally:
        await admin.close()
    app = create_app(
        app_id,
        broker,
        dead_letter_topic=Topic.DEAD_LETTERS,
        partitions=partitions,
        web_host="127.0.0.1",
        web_port=free_port(),
        data_dir=folder,
    )
    client = TelnyxClient(carrier.url, SecretStr("KEY-of-the-test"), policy=QUICK)
    states = calls.make(app, partitions, config=config, client=client, token_for=lambda call, leg: "")
    app.on_close.append(client.close)
    try:
        async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
            await app.start()
            try:
                yield Running(broker, app, states, carrier, producer)
            finally:
                await app.stop()
    finally:
        await runner.cleanup()


def live(kind: str, call: str, at_s: float = 0.0, **payload: Any) -> CallEvent:
    """An event of a call that goes on now."""
    shift = time.time_ns() // 1000 - T0
    made = event(kind, at_s, event_id=f"{call}:{kind}@{at_s}", **payload)
    return replace(
        made,
        call_control_id=f"v3:{call}",
        occurred_at=made.occurred_at + shift,
        received_at=made.received_at + shift,
    )


async def test_a_dispatchers_actions_reach_the_carrier_once_and_an_ended_call_gets_none(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    call, other = f"call-{uuid4().hex[:8]}", f"other-{uuid4().hex[:8]}"
    leg = f"v3:{call}"
    async with running(broker, tmp_path, CONFIG) as agent:
        await agent.tell(call, live("call.initiated", call, direction="incoming"), live("call.answered", call, 0.1))
        told = ["answer", "streaming_start", "speak"]
        await agent.carrier.until(leg, told)
        await agent.until(call, lambda state: len(state.commands) == 3)
        with structlog.testing.capture_logs() as lines:
            speak = action(ActionKind.SPEAK, "A private word.", f"{call}-1")
            await agent.tell(call, speak, speak, action(ActionKind.TRANSFER, None, f"{call}-2"))
            told += ["speak", "transfer"]
            bodies = await agent.carrier.until(leg, told)
            await agent.tell(other, action(ActionKind.HANGUP, None, f"{other}-1"))
            await agent.until(call, lambda state: len(state.commands) == 5)
            await agent.tell(call, live("call.hangup", call, 1))
            await agent.until(call, lambda state: state.status is CallStatus.ENDED)
            await agent.tell(call, action(ActionKind.HANGUP, None, f"{call}-3"))
            async with asyncio.timeout(PATIENCE_S):
                while len([line for line in lines if line["event"] == "action_refused"]) < 3:  # noqa: ASYNC110 - in memory
                    await asyncio.sleep(0.02)
        assert agent.carrier.actions(leg) == told
        assert agent.carrier.actions(f"v3:{other}") == []
    assert bodies[3] == {
        "command_id": command_id(speak, "speak"),
        "payload": "A private word.",
        "voice": "female",
        "language": "en-US",
    }
    assert bodies[4]["to"] == "+15550100999"
    refused = {(line["action_id"], str(line["reason"])) for line in lines if line["event"] == "action_refused"}
    assert refused == {(f"{call}-1", "repeated"), (f"{other}-1", "unknown call"), (f"{call}-3", "the call is over")}
    assert "private" not in repr(lines)
    assert "+15550100999" not in repr(lines)


async def test_a_carrier_that_is_away_is_asked_again_and_a_failing_stream_is_started_again(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    call = f"call-{uuid4().hex[:8]}"
    leg = f"v3:{call}"
    async with running(broker, tmp_path, replace(CONFIG, greeting="", stream_restarts_max=1)) as agent:
        agent.carrier.replies["answer"] = [(503, "10000")]
        await agent.tell(call, live("call.initiated", call, direction="incoming"))
        state = await agent.until(call, lambda state: state.degraded is not None)
        assert state.commands[0].outcome is CommandOutcome.UNAVAILABLE
        # The next round comes by a timer; it is a record like any other.
        bodies = await agent.carrier.until(leg, ["answer", "answer"])
        assert bodies[0] == bodies[1]
        state = await agent.until(call, lambda state: state.degraded is None)
        assert [(one.round, one.outcome) for one in state.commands] == [(2, CommandOutcome.DONE)]

        agent.carrier.replies["streaming_start"] = [(422, "90034")]
        await agent.tell(call, live("call.answered", call, 0.1))
        bodies = await agent.carrier.until(leg, ["answer"] * 2 + ["streaming_start"] * 2)
        assert bodies[2] == bodies[3], "what came too early is given again as it was"
        await agent.tell(call, live("streaming.started", call, 0.2), live("streaming.failed", call, 3))
        bodies = await agent.carrier.until(leg, ["answer"] * 2 + ["streaming_start"] * 3)
        assert bodies[4]["command_id"] != bodies[3]["command_id"]
        await agent.tell(call, live("streaming.failed", call, 4))
        state = await agent.until(call, lambda state: len(state.stream_failed_at) == 2)
        assert state.degraded == NO_AUDIO

        # Once the carrier says that the call is over, it is told nothing more, hangup or not.
        agent.carrier.replies["speak"] = [(422, "90018")]
        await agent.tell(
            call, action(ActionKind.SPEAK, None, f"{call}-1"), action(ActionKind.HANGUP, None, f"{call}-2")
        )
        await agent.until(call, lambda state: not takes_commands(state))
        assert agent.carrier.actions(leg)[5:] in (["speak"], ["speak", "hangup"])
        assert (await agent.until(call, lambda _: True)).status is CallStatus.ACTIVE
