"""Which commands to the carrier a call needs: for its events, for a dispatcher's actions, and again after a failure.

Decides the sequence of a call's commands. Does no I/O: events are records, time is an argument, commands are values.
Anything to be done later is a timer (`timers`): dispatchai.retry sends a command again that the carrier could not be
given, with growing waits for as long as the call lasts; dispatchai.stream_lost reports that a stream stopped while the
call went on; dispatchai.stream_due starts a stream again that failed repeatedly.
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
"""Number of a dispatcher's actions that are remembered: more than a call of several hours has."""

RETRY_AFTER_MAX_S: Final = 86_400.0
"""The longest wait that the carrier may ask for. No call lasts that long."""


class Refusal(StrEnum):
    """Why a dispatcher's action has no effect."""

    REPEATED = "repeated"
    UNKNOWN_CALL = "unknown call"
    CALL_OVER = "the call is over"
    NO_CONTROL_ID = "the carrier gave no call control id"
    NO_HUMAN_LINE = "no HUMAN_LINE is set"
    NOTHING_TO_SAY = "no text was given and HELP_PROMPT is empty"


def step(
    state: CallState | None, call_id: str, event: CallEvent, config: CallControlConfig
) -> tuple[CallState, tuple[Command, ...]]:
    """`fold`, and the commands that `event` calls for. `call_id` is the key of the record.

    On call.initiated: answer. On call.answered: stream, record if configured, greet, and send again the commands that
    came too early. A stream that fails or is lost is started again up to `stream_restarts_max` times, each time under a
    new command_id: at once, or on dispatchai.stream_due if it had failed shortly before. On dispatchai.retry the
    command that it names is sent again under its own command_id.

    A repeated event calls for no command. Neither does an event of a call whose control id is unknown, or of a call
    that is over according to an event or to the carrier's reply to a command. The command_id follows from event and
    action, so that a command made twice (after a crash) is one command to the carrier. A StreamingStart is returned
    without its token: see `with_token`.
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
                _rebuilt(after, command)
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
            repeated_command = _rebuilt(after, failed)
            return after, (() if repeated_command is None else (repeated_command,))
        case _:
            return after, ()


def act(
    state: CallState, action: Action, config: CallControlConfig
) -> tuple[CallState, tuple[Command, ...], Refusal | None]:
    """The commands for a dispatcher's `action`: SPEAK, TRANSFER or HANGUP; other kinds are not call control.

    Returns the state with the action recorded as seen, the commands, and the reason where the action was refused. The
    command_id follows from action and command, so that an action sent twice has effect once.
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
"""The kinds of actions that become commands."""


def round_of(state: CallState, command: Command) -> int:
    """The number of the next round of `command`, from 1."""
    known = find_command(state, command.command_id)
    return 1 if known is None else min(known.round + 1, ROUND_MAX)


def is_settled(state: CallState, command: Command) -> bool:
    """Whether `command` need not be sent (again): the carrier accepted or refused it, or its aim is reached."""
    known = find_command(state, command.command_id)
    return known is not None and (known.request is None or not is_wanted(state, known))


def outcome_event(command: Command, number: int, outcome: Outcome, now: Micros) -> CallEvent:
    """The event for `call-events` that round `number` of `command`, without its token, ended at `now`.

    If the command must be sent again, the event has its request and the time of the next round.
    """
    kind, code, wait_s = _recorded(outcome, number)
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


def _recorded(outcome: Outcome, number: int) -> tuple[CommandOutcome, str, float | None]:
    """Kind and code of `outcome`, and the seconds until the next round if there is one."""
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
            requested_s = min(outcome.retry_after_s or 0.0, RETRY_AFTER_MAX_S)
            return CommandOutcome.UNAVAILABLE, "", max(backoff_s(number), requested_s)


def command_id(cause: CallEvent | Action, action: str) -> str:
    """The command_id of `action` for `cause`: a UUID, the same whenever it is derived."""
    return derived_id(f"{cause.event_id if isinstance(cause, CallEvent) else cause.action_id}:{action}")


def with_token(command: Command, token_for: Callable[[str], str]) -> Command:
    """`command` ready to be sent: a StreamingStart gets the token that `token_for` makes for its control id."""
    match command:
        case StreamingStart():
            return replace(command, stream_auth_token=token_for(command.call_control_id))
        case _:
            return command


def _speak(control_id: str, command_id: str, words: str, config: CallControlConfig) -> Speak:
    return Speak(control_id, command_id, payload=words, voice=config.greeting_voice, language=config.greeting_language)


def _rebuilt(state: CallState, failed: CommandState) -> Command | None:
    return command_from(failed.action, state.call_control_id, failed.request or "")
