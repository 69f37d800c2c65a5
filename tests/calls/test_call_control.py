"""Claims about call control: how commands end, which are sent again, what a dispatcher's actions do, when a call is
degraded."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from dispatchai.calls.commands import Refusal, command_id, is_settled, outcome_event, round_of, with_token
from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.events import EventType
from dispatchai.calls.state import COMMANDS_MAX, NO_AUDIO, takes_commands
from dispatchai.calls.timers import RETRY_LONGEST_S, due_timers
from dispatchai.records import ActionKind, CallEvent, CallStatus, CommandOutcome, decode, encode
from dispatchai.settings import Settings
from dispatchai.telnyx.commands import (
    TRANSFER_LEG_STATE,
    AlreadyEnded,
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
from tests.calls.driver import AWAY, Call, action, active, ringing
from tests.support.call_events import ANSWERED, CALL, CONFIG, FAILED, HANGUP, INITIATED, T0, S, event, folded, unordered

# ---- recording ---------------------------------------------------------------------------------------------------


def test_a_call_is_recorded_on_two_channels_if_configured() -> None:
    call = active(replace(CONFIG, record_format="mp3"))
    assert call.actions == ["answer", "streaming_start", "record_start", "speak"]
    record = call.given[2]
    assert record.body() == {"command_id": record.command_id, "channels": "dual", "format": "mp3"}
    assert "record_start" not in active().actions


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, ""), ({"record_calls": True}, "mp3"), ({"record_format": "wav"}, "")]
)
def test_recording_is_off_until_it_is_switched_on(environment: dict[str, Any], expected: str) -> None:
    assert CallControlConfig.from_settings(Settings(_env_file=None, **environment)).record_format == expected


# ---- a dispatcher's actions ---------------------------------------------------------------------------------------


def test_speak_says_the_dispatchers_words_or_the_help_prompt() -> None:
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
    # After a crash that lost the state, it is still the same command to the carrier.
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
def test_an_action_that_is_not_possible_is_refused_and_changes_nothing(
    call: list[CallEvent], config: CallControlConfig, kind: ActionKind, why: Refusal
) -> None:
    driven = Call(config)
    driven.take(*call)
    state, given = driven.state, list(driven.given)
    assert driven.acts(kind) is why
    assert (driven.state, driven.given) == (state, given)


@pytest.mark.parametrize("kind", sorted(set(ActionKind) - {"SPEAK", "TRANSFER", "HANGUP"}))
def test_other_actions_are_not_call_control(kind: ActionKind) -> None:
    call = active()
    before = (call.now, list(call.given))
    assert call.acts(kind, "a note") is None
    assert (call.now, call.given) == before


@pytest.mark.parametrize("line", ["+15551234567", "sip:desk@pbx.example.com", "sips:1001@10.0.0.7:5061"])
def test_the_human_line_is_a_number_or_a_sip_address(line: str) -> None:
    assert CallControlConfig.from_settings(Settings(_env_file=None, human_line=line)).human_line == line


@pytest.mark.parametrize("line", ["5551234567", "+1555", "+1555123456789012", "desk@example.com", "sip:a b@c", "tel:1"])
def test_a_human_line_that_no_carrier_can_reach_is_refused_at_startup(line: str) -> None:
    with pytest.raises(ValidationError, match="HUMAN_LINE"):
        Settings(_env_file=None, human_line=line)


def test_the_text_of_a_speak_command_is_not_in_its_repr() -> None:
    assert "secret plan" not in repr(Speak("v3:a", "c", "a secret plan", "female", "en-US"))


def test_events_of_the_leg_to_the_human_line_change_nothing_of_the_call() -> None:
    call = active()
    call.acts(ActionKind.TRANSFER)
    before = call.now
    leg: dict[str, Any] = {"client_state": TRANSFER_LEG_STATE, "call_control_id": "v3:aaa"}
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


def test_a_command_that_did_not_reach_the_carrier_is_sent_again_as_long_as_the_call_lasts() -> None:
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
        assert call.tick(now + wait_s + 5) == (), "it is in flight"
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
def test_an_absurd_wait_raises_no_error(asked_s: float) -> None:
    call = ringing()
    call.ends(call.given[0], Unavailable(1, "429", asked_s), 10)
    assert decode(encode(call.now)) == call.now


@pytest.mark.parametrize("last", [HANGUP, event("dispatchai.deadline", 30)])
def test_after_the_call_no_command_is_sent_again(last: CallEvent) -> None:
    call = ringing()
    call.ends(call.given[0], AWAY, 10)
    (retry,) = due_timers(call.now, CALL, T0 + 12 * S, CONFIG)
    call.take(last)
    assert call.take(retry) == ()
    assert EventType.RETRY not in {timer.type for timer in due_timers(call.now, CALL, T0 + 9_999 * S, CONFIG)}


def test_a_call_that_never_ends_gets_no_retries_after_its_longest_time() -> None:
    call = ringing()
    call.ends(call.given[0], AWAY, 14_399)
    due = due_timers(call.now, CALL, T0 + 14_500 * S, CONFIG)
    assert [timer.type for timer in due] == ["dispatchai.deadline"]


def test_an_answer_that_took_effect_after_all_is_not_sent_again() -> None:
    call = ringing()
    (answer,) = call.given
    call.ends(answer, AWAY, 10)
    call.take(ANSWERED)
    assert call.now.degraded is None
    assert is_settled(call.now, answer)
    assert "answer" not in {command.action for command in call.tick(100)}


def test_a_command_that_came_too_early_is_sent_again_under_its_id_when_the_call_is_answered() -> None:
    call = ringing()
    call.acts(ActionKind.SPEAK, "We see you.")
    early = call.given[-1]
    call.ends(early, NotAnswered(), 0.5)
    assert call.tick(500) == (), "it waits for call.answered and not for a time"
    assert is_settled(call.now, early)
    assert call.now.degraded is None
    given = call.take(ANSWERED)
    assert [each.action for each in given] == ["streaming_start", "speak", "speak"]
    assert given[-1] == early


def test_a_command_refused_as_too_early_in_an_answered_call_is_sent_again_after_a_wait() -> None:
    call = active()
    speak = call.given[-1]
    call.ends(speak, NotAnswered(), 2)
    assert call.tick(3.9) == ()
    assert call.tick(4.0) == (speak,)


def test_a_call_that_the_carrier_reports_as_over_gets_no_more_commands_and_waits_for_its_hangup() -> None:
    call = ringing()
    call.ends(call.given[0], AlreadyEnded(), 1)
    reported_over = call.now
    assert reported_over.status is CallStatus.RINGING
    assert reported_over.ended_at is None
    assert reported_over.degraded is None
    assert call.take(ANSWERED) == ()
    assert call.acts(ActionKind.SPEAK) is Refusal.CALL_OVER
    assert call.take(HANGUP) == ()
    assert call.now.status is CallStatus.ENDED


def test_a_refused_command_is_not_sent_again_and_degrades_the_call() -> None:
    call = active()
    call.acts(ActionKind.TRANSFER)
    call.ends(call.given[-1], Rejected(422, "10015", "Bad Request"), 3)
    assert call.now.degraded == "the call could not be transferred: the carrier refused (10015)"
    assert call.tick(9_000) == ()
    # A later transfer that succeeds counts.
    call.acts(ActionKind.TRANSFER, None, "action-2")
    call.ends(call.given[-1], Done(1), 5)
    assert call.now.degraded is None


def test_a_hangup_of_a_call_that_is_over_does_not_degrade_it() -> None:
    call = active()
    call.acts(ActionKind.HANGUP)
    call.ends(call.given[-1], Rejected(404, "10005", "Resource not found"), 3)
    assert call.now.degraded is None


def test_the_most_serious_reason_is_shown() -> None:
    call = active()
    call.ends(call.given[-1], Rejected(422, "90012", "Voice"), 2)
    assert call.now.degraded == "nothing could be said to the caller: the carrier refused (90012)"
    call.take(FAILED)
    assert call.now.degraded == NO_AUDIO


def test_a_stream_token_is_in_no_record() -> None:
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
    """A worker that died between the command and its record sends the command again."""
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
def test_a_command_is_rebuilt_from_its_record(command: Command) -> None:
    assert command_from(command.action, "v3:a", request_of(command)) == command


@pytest.mark.parametrize("request_", ["", "[]", "{", '{"command_id":"c"}', '{"command_id":"c","to":1}', '{"x":"y"}'])
def test_an_invalid_request_makes_no_command(request_: str) -> None:
    assert command_from("transfer", "v3:a", request_) is None
    assert command_from("dial", "v3:a", '{"command_id":"c"}') is None
