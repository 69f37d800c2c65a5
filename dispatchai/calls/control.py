"""Which commands to the carrier a call calls for: by its events, by a dispatcher's actions, and again where one failed.

Decides the order of a call's life and nothing of I/O: events arrive as records, time as an argument, commands leave as
values. What has to be done later is a timer (`timers`): dispatchai.retry gives a command again that the carrier could
not be told, with growing waits for as long as the call lasts; dispatchai.stream_lost says that a stream stopped and
the call went on, dispatchai.stream_due that one which fails again and again may be started once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import Final

from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.events import (
    ROUND_MAX,
    CommandEnded,
    EventType,
    RetryDue,
    StreamDue,
    StreamLost,
    derived_id,
    micros,
    own_event,
    payload_of,
)
from dispatchai.calls.state import apply, find_command, is_of_transfer_leg, is_wanted, takes_commands
from dispatchai.calls.timers import backoff_s, restart_wait_s
from dispatchai.records.values import (
    Action,
    ActionKind,
    CallEvent,
    CallState,
    CallStatus,
    CommandOutcome,
    CommandState,
    Micros,
)
from dispatchai.telnyx.commands import (
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
from dispatchai.telnyx.webhooks import CallAnswered, CallInitiated, StreamingFailed

SEEN_ACTIONS_MAX: Final = 64
"""A dispatcher's actions that are remembered: more than a call of hours brings."""

RETRY_ASKED_MAX_S: Final = 86_400.0
"""A carrier that asks for a longer wait than this is not believed; no call lasts so long anyway."""


class Refusal(StrEnum):
    """Why a dispatcher's action has no effect."""

    REPEATED = "repeated"
    UNKNOWN_CALL = "unknown call"
    CALL_OVER = "the call is over"
    NO_CONTROL_ID = "the carrier gave no handle of the call"
    NO_HUMAN_LINE = "no HUMAN_LINE is set"
    NOTHING_TO_SAY = "no words were given and HELP_PROMPT is empty"


def step(
    state: CallState | None, call_id: str, event: CallEvent, config: CallControlConfig
) -> tuple[CallState, tuple[Command, ...]]:
    """`fold`, and the commands that `event` calls for.

    Answer on call.initiated; on call.answered stream, record if asked for, greet, and give again what came too early.
    A stream that fails or is lost is started again up to `stream_restarts_max` times, each time under a new command_id:
    at once, or on dispatchai.stream_due where it failed a short while before already.
    On dispatchai.retry the command it names is given again under its own.

    A repeated event calls for nothing, nor does any event of a call that is over, by what the carrier said of it in an
    event or in answer to a command, or whose control id is unknown. The command_id follows from event and action, so
    that a command made twice (after a crash) is one command to the carrier. A StreamingStart leaves without its
    token: see `with_token`. `call_id` is the key of the record.
    """
    repeated = state is not None and event.event_id in state.seen_event_ids
    payload = payload_of(event)
    after = apply(state, event, payload)
    control_id = event.call_control_id or after.call_control_id
    if repeated or is_of_transfer_leg(payload) or not takes_commands(after) or not control_id:
        return after, ()

    def stream() -> StreamingStart:
        return StreamingStart(control_id, command_id(event, StreamingStart.action), config.stream_url)

    match payload:
        case CallInitiated(incoming=False) | CallAnswered(incoming=False):
            return after, ()
        case CallInitiated() if after.status is CallStatus.RINGING:
            return after, (Answer(control_id, command_id(event, Answer.action)),)
        case CallAnswered() if state is None or state.status is CallStatus.RINGING:
            commands: list[Command] = [stream()]
            if config.record_format:
                commands.append(RecordStart(control_id, command_id(event, RecordStart.action), config.record_format))
            if config.greeting:
                commands.append(_speak(control_id, command_id(event, Speak.action), config.greeting, config))
            early = (
                _again(after, command)
                for command in after.commands
                if command.outcome is CommandOutcome.NOT_ANSWERED and command.action != StreamingStart.action
            )
            return after, (*commands, *(command for command in early if command is not None))
        case StreamingFailed() | StreamLost():
            return after, ((stream(),) if restart_wait_s(after, config) == 0 else ())
        case StreamDue(failed_at):
            due = failed_at == after.stream_at and restart_wait_s(after, config) is not None
            return after, ((stream(),) if due else ())
        case RetryDue(command_id=retried, round=number):
            failed = find_command(after, retried or "")
            if failed is None or failed.round != number or not is_wanted(after, failed):
                return after, ()
            again = _again(after, failed)
            return after, (() if again is None else (again,))
        case _:
            return after, ()


def act(
    state: CallState, action: Action, config: CallControlConfig
) -> tuple[CallState, tuple[Command, ...], Refusal | None]:
    """What a dispatcher's `action` calls for: SPEAK, TRANSFER or HANGUP; other kinds are no call control.

    Returns the state, in which the action is seen, the commands, and why there are none where it was refused. The
    command_id follows from action and command, so that an action sent twice is one.
    """

    def refused(why: Refusal) -> tuple[CallState, tuple[Command, ...], Refusal | None]:
        return state, (), why

    if action.kind not in CALL_CONTROL:
        return state, (), None
    if action.action_id in state.seen_action_ids:
        return refused(Refusal.REPEATED)
    if not takes_commands(state):
        return refused(Refusal.CALL_OVER)
    if not state.call_control_id:
        return refused(Refusal.NO_CONTROL_ID)
    command: Command
    match action.kind:
        case ActionKind.SPEAK:
            words = action.text or config.help_prompt
            if not words:
                return refused(Refusal.NOTHING_TO_SAY)
            command = _speak(state.call_control_id, command_id(action, Speak.action), words, config)
        case ActionKind.TRANSFER:
            if not config.human_line:
                return refused(Refusal.NO_HUMAN_LINE)
            command = Transfer(state.call_control_id, command_id(action, Transfer.action), config.human_line)
        case _:
            command = Hangup(state.call_control_id, command_id(action, Hangup.action))
    seen = (*state.seen_action_ids, action.action_id)[-SEEN_ACTIONS_MAX:]
    return replace(state, seen_action_ids=seen), (command,), None


CALL_CONTROL: Final = frozenset({ActionKind.SPEAK, ActionKind.TRANSFER, ActionKind.HANGUP})
"""The kinds of actions that `act` makes commands of."""


def round_of(state: CallState, command: Command) -> int:
    """Which round of `command` comes next, from 1."""
    known = find_command(state, command.command_id)
    return 1 if known is None else min(known.round + 1, ROUND_MAX)


def is_settled(state: CallState, command: Command) -> bool:
    """Whether `command` needs not be given (again): the carrier took or refused it, or what it wants is so."""
    known = find_command(state, command.command_id)
    return known is not None and (known.request is None or not is_wanted(state, known))


def outcome_event(command: Command, number: int, outcome: Outcome, now: Micros) -> CallEvent:
    """How round `number` of `command`, without its token, ended at `now`: as an event to be written to `call-events`.

    What the carrier could not be told is to be given again; it carries its request and when.
    """
    kind, code, wait_s = _told(outcome, number)
    return own_event(
        EventType.COMMAND,
        derived_id(f"{command.command_id}:{number}:{kind}"),
        occurred_at=now,
        received_at=now,
        call_control_id=command.call_control_id,
        payload=CommandEnded(
            command_id=command.command_id,
            action=command.action,
            round=number,
            outcome=kind,
            code=code,
            retry_at=None if wait_s is None else now + micros(wait_s),
            request=None if wait_s is None else request_of(command),
        ),
    )


def _told(outcome: Outcome, number: int) -> tuple[CommandOutcome, str, float | None]:
    """Kind and code of `outcome`, and seconds until the next round where there is one."""
    match outcome:
        case Done():
            return CommandOutcome.DONE, "", None
        case AlreadyEnded():
            return CommandOutcome.ALREADY_ENDED, "", None
        case AlreadyStreaming():
            return CommandOutcome.ALREADY_STREAMING, "", None
        case Rejected():
            return CommandOutcome.REJECTED, outcome.code or str(outcome.status), None
        case NotAnswered():
            return CommandOutcome.NOT_ANSWERED, "", backoff_s(number)
        case Unavailable():
            asked_s = min(outcome.retry_after_s or 0.0, RETRY_ASKED_MAX_S)
            return CommandOutcome.UNAVAILABLE, "", max(backoff_s(number), asked_s)


def command_id(cause: CallEvent | Action, action: str) -> str:
    """The command_id of `action` as called for by `cause`: a UUID, the same whenever it is derived."""
    return derived_id(f"{cause.event_id if isinstance(cause, CallEvent) else cause.action_id}:{action}")


def with_token(command: Command, token_for: Callable[[str], str]) -> Command:
    """`command` ready to be sent: a StreamingStart is given the token that `token_for` makes for its control id."""
    match command:
        case StreamingStart():
            return replace(command, stream_auth_token=token_for(command.call_control_id))
        case _:
            return command


def _speak(control_id: str, command_id: str, words: str, config: CallControlConfig) -> Speak:
    return Speak(control_id, command_id, payload=words, voice=config.greeting_voice, language=config.greeting_language)


def _again(state: CallState, failed: CommandState) -> Command | None:
    return command_from(failed.action, state.call_control_id, failed.request or "")
