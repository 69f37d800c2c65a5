"""Folds a call's events to its state, in whatever order and however often they arrive.

`fold` is commutative and idempotent over the events of a call, so that every reader of `call-events` reaches the same
state. The end of a command and a timer that fired are events too: the state learns of them only by their records.
`control` decides which commands a state needs, `timers` when.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from dispatchai.calls.events import CommandEnded, EventPayload, EventType, StreamLost, micros, payload_of
from dispatchai.records.values import (
    CallEvent,
    CallState,
    CallStatus,
    CommandOutcome,
    CommandState,
    Micros,
    StreamStatus,
)
from dispatchai.telnyx.commands import Answer, Hangup, RecordStart, Speak, StreamingStart, Transfer
from dispatchai.telnyx.webhooks import (
    CallAnswered,
    CallHangup,
    CallInitiated,
    StreamingFailed,
    StreamingStarted,
    StreamingStopped,
    WebhookPayload,
)

SEEN_EVENTS_MAX: Final = 256
"""Event ids kept for deduplication. A call has about twenty events, and more than this only in a storm of keypad or
recording events. Then only a redelivery of the oldest is counted again, and its command has the same command_id."""

COMMANDS_MAX: Final = 64
"""Number of commands that are remembered: more than a call of several hours has."""

FAILURES_MAX: Final = 64
"""Number of stream failures that are remembered: far above any setting of how often a stream is started again."""

STRAY_AFTER_S: Final = 900.0
"""A hangup that is received this long after it happened, for a call of which nothing else is known, ends no call: it is
a redelivery, and the call's state has already expired. Carriers retry for some minutes."""

STOP_GRACE_S: Final = 1.0
"""How long a stopped stream counts as the call's end. The hangup is reported some milliseconds after the stop."""

NO_AUDIO: Final = "the caller's audio does not come in: its stream failed"
"""Why a call is degraded: the caller is not heard until a stream starts again."""

RECORD_REFUSED: Final = "not all that is known of the call could be stored: a record was too large"
"""Why a call is degraded of which Kafka refused a record (`dispatchai.engine.emitter`)."""

VALUE_MAX_CHARS: Final = 512
"""Longest number, id or cause that a state holds. The rest of a longer one is left out."""

_FAILURES_OF_ACTIONS: Final = {
    Answer.action: "the call could not be answered",
    StreamingStart.action: "the caller's audio could not be asked for",
    Transfer.action: "the call could not be transferred",
    Hangup.action: "the call could not be hung up",
    Speak.action: "nothing could be said to the caller",
    RecordStart.action: "the call could not be recorded",
}
"""What a dispatcher reads about a failed command, the most serious first."""


def fold(state: CallState | None, event: CallEvent) -> CallState:
    """The state of a call after `event`; `state` is None before its first event.

    The result does not depend on the order or repetition of events, except for the order of `seen_event_ids`. Times are
    the earliest recorded. The status only rises. Of a stream and of a command the latest record counts, by the time in
    it. If events of one leg differ in a value, which they should not, the value itself decides and not its arrival.
    Events of the leg to the human line are recorded as seen and change nothing else. No content of an event raises.
    """
    return apply(state, event, payload_of(event))


def apply(state: CallState | None, event: CallEvent, payload: EventPayload) -> CallState:
    """`fold`, for code that has already read the event's payload."""
    if state is None:
        state = CallState(
            call_control_id="",
            status=CallStatus.RINGING,
            from_number=None,
            to_number=None,
            started_at=None,
            answered_at=None,
            ended_at=None,
            hangup_cause=None,
            degraded=None,
            streams_started=0,
            stream=None,
            stream_at=None,
            stream_seen_at=None,
            stream_failed_at=(),
            first_seen_at=event.received_at,
            deadline_passed=False,
            deadline_seen_at=None,
            stray=True,
            commands=(),
            seen_event_ids=(),
            seen_action_ids=(),
        )
    # A redelivery is the same event received again: the earlier receipt counts.
    state = replace(state, first_seen_at=min(state.first_seen_at, event.received_at))
    if event.type == EventType.DEADLINE:
        seen_at = _earliest(state.deadline_seen_at, event.received_at)
        state = replace(state, deadline_passed=True, deadline_seen_at=seen_at)
    if event.type == EventType.RECORD_REFUSED:
        state = replace(state, record_refused=True)
    if event.type == EventType.HANGUP and not is_of_transfer_leg(payload):
        state = replace(state, hangup_seen_at=_earliest(state.hangup_seen_at, event.received_at))
    state = _applied(state, event, payload)
    return replace(state, stray=_is_stray(state))


def _applied(state: CallState, event: CallEvent, payload: EventPayload) -> CallState:
    repeated = event.event_id in state.seen_event_ids
    if repeated and not isinstance(payload, _STREAM_PAYLOADS):
        return state
    if is_of_transfer_leg(payload):
        return state if repeated else _seen(state, event)
    if (stream := _stream_of(event, payload)) is not None:
        status, at = stream
        state = _with_stream(state, status, at, seen_at=event.received_at, again=repeated)
        if status in _FAILURES and not repeated:
            state = replace(state, stream_failed_at=tuple(sorted((*state.stream_failed_at, at))[-FAILURES_MAX:]))
    if not repeated:
        state = _with_payload(_seen(state, event), event, payload)
    return replace(state, degraded=_degraded(state))


def _seen(state: CallState, event: CallEvent) -> CallState:
    return replace(state, seen_event_ids=(*state.seen_event_ids, event.event_id)[-SEEN_EVENTS_MAX:])


def is_of_transfer_leg(payload: EventPayload) -> bool:
    """Whether an event is of the leg to the human line, and not of the caller's leg, whose life is the call's."""
    return isinstance(payload, WebhookPayload) and payload.is_transfer_leg


def _with_payload(state: CallState, event: CallEvent, payload: EventPayload) -> CallState:
    state = replace(
        state,
        call_control_id=_settled(state.call_control_id, event.call_control_id) or "",
        from_number=_settled(state.from_number, _cut(event.from_number)),
        to_number=_settled(state.to_number, _cut(event.to_number)),
    )
    match payload:
        case CallInitiated():
            return replace(state, started_at=_earliest(state.started_at, event.occurred_at))
        case CallAnswered():
            return replace(
                state,
                status=CallStatus.ENDED if state.status is CallStatus.ENDED else CallStatus.ACTIVE,
                answered_at=_earliest(state.answered_at, event.occurred_at),
            )
        case StreamingStarted():
            return replace(state, streams_started=state.streams_started + 1)
        case CommandEnded():
            return _with_command(state, _command_state(event, payload))
        case CallHangup(hangup_cause=hangup_cause):
            ended_at, cause = _first_hangup(state, event, _cut(hangup_cause))
            return replace(state, status=CallStatus.ENDED, ended_at=ended_at, hangup_cause=cause)
        case _:
            return state


def _is_stray(state: CallState) -> bool:
    """Whether nothing shows that there is, or lately was, a call: the events belong to one that has expired."""
    if state.started_at is not None or state.answered_at is not None or state.streams_started:
        return False
    return state.ended_at is None or state.first_seen_at - state.ended_at > micros(STRAY_AFTER_S)


def takes_commands(state: CallState) -> bool:
    """Whether commands still make sense: neither an event nor a reply of the carrier says that the call is over."""
    return (
        state.status is not CallStatus.ENDED
        and not state.deadline_passed
        and all(command.outcome is not CommandOutcome.ALREADY_ENDED for command in state.commands)
    )


def audio_comes_in(state: CallState) -> bool | None:
    """Whether the caller's audio is streamed, according to the carrier; None if it has not said so yet.

    A stream that stopped counts as streamed until it is known that the call went on without it. It did not go on if the
    hangup, which may be reported late, was at the moment of the stop.
    """
    if state.stream is None:
        return None
    if state.stream is StreamStatus.LOST and _stopped_with_the_call(state):
        return True
    if state.stream in (StreamStatus.STARTED, StreamStatus.STOPPED):
        return True
    latest = latest_command(state, StreamingStart.action)
    return (
        latest is not None
        and latest.outcome is CommandOutcome.ALREADY_STREAMING
        and state.stream_seen_at is not None
        and latest.at >= state.stream_seen_at
    )


def _stopped_with_the_call(state: CallState) -> bool:
    """Whether the hangup was at the moment when the stream stopped, by the carrier's clock."""
    if state.ended_at is None or state.stream_at is None:
        return False
    return state.ended_at - state.stream_at <= micros(STOP_GRACE_S)


# ---- the stream --------------------------------------------------------------------------------------------------

_STREAM_PAYLOADS: Final = (StreamingStarted, StreamingStopped, StreamingFailed, StreamLost)
_FAILURES: Final = frozenset({StreamStatus.LOST, StreamStatus.FAILED})
_STREAM_RANK: Final = {status: rank for rank, status in enumerate(StreamStatus)}


def _stream_of(event: CallEvent, payload: EventPayload) -> tuple[StreamStatus, Micros] | None:
    """The status of the stream that `event` reports, and its time; None if it reports none."""
    match payload:
        case StreamLost(stopped_at):
            # With the time of the stop: a stream that started after it is not lost.
            return None if stopped_at is None else (StreamStatus.LOST, stopped_at)
        case StreamingStarted():
            return StreamStatus.STARTED, event.occurred_at
        case StreamingStopped():
            return StreamStatus.STOPPED, event.occurred_at
        case StreamingFailed():
            return StreamStatus.FAILED, event.occurred_at
        case _:
            return None


def _with_stream(state: CallState, status: StreamStatus, at: Micros, *, seen_at: Micros, again: bool) -> CallState:
    """The state with a record of the stream in it: the latest by the carrier's clock, first received at `seen_at`.

    A redelivery (`again`) can only show that the known status was received earlier.
    """
    if state.stream is None or state.stream_at is None or state.stream_seen_at is None:
        return state if again else replace(state, stream=status, stream_at=at, stream_seen_at=seen_at)
    known, new = (state.stream_at, _STREAM_RANK[state.stream]), (at, _STREAM_RANK[status])
    if new == known:
        return replace(state, stream_seen_at=min(state.stream_seen_at, seen_at))
    if new < known or again:
        return state
    return replace(state, stream=status, stream_at=at, stream_seen_at=seen_at)


# ---- commands and how they ended ---------------------------------------------------------------------------------

_OUTCOME_RANK: Final = {outcome: rank for rank, outcome in enumerate(CommandOutcome)}


def _command_state(event: CallEvent, ended: CommandEnded) -> CommandState:
    return CommandState(
        command_id=ended.command_id,
        action=ended.action,
        round=ended.round,
        outcome=ended.outcome,
        code=ended.code,
        at=event.occurred_at,
        retry_at=ended.retry_at,
        request=ended.request,
    )


def _with_command(state: CallState, new: CommandState) -> CallState:
    """The state with `new` in it, unless a later round of the command is known, or a better outcome of this one."""
    by_id = {command.command_id: command for command in state.commands}
    known = by_id.get(new.command_id)
    if known is not None and _precedence(known) >= _precedence(new):
        return state
    by_id[new.command_id] = new
    newest = sorted(by_id.values(), key=lambda command: (command.at, command.command_id))[-COMMANDS_MAX:]
    return replace(state, commands=tuple(sorted(newest, key=lambda command: command.command_id)))


def _precedence(command: CommandState) -> tuple[int, int, Micros, Micros, str, str, str]:
    # Records differ in round and outcome only, unless one was written by hand: then its values decide.
    return (
        command.round,
        _OUTCOME_RANK[command.outcome],
        command.at,
        command.retry_at or 0,
        command.action,
        command.code,
        command.request or "",
    )


def find_command(state: CallState, command_id: str) -> CommandState | None:
    """How the latest known round of the command ended; None if none is known."""
    return next((command for command in state.commands if command.command_id == command_id), None)


def latest_command(state: CallState, action: str) -> CommandState | None:
    """How the newest command of this action ended; None if there is none."""
    return max(
        (command for command in state.commands if command.action == action),
        key=lambda command: (command.at, command.command_id),
        default=None,
    )


def is_wanted(state: CallState, command: CommandState) -> bool:
    """Whether the aim of `command` has not been reached in another way."""
    if command.outcome is CommandOutcome.NOT_ANSWERED and state.answered_at is None:
        return False  # it is sent again on call.answered
    match command.action:
        case Answer.action:
            return state.answered_at is None
        case StreamingStart.action:
            return not audio_comes_in(state) and command == latest_command(state, StreamingStart.action)
        case Hangup.action:
            return state.status is not CallStatus.ENDED
        case _:
            return True


def _degraded(state: CallState) -> str | None:
    """The most serious reason why the call is degraded; None if it is not."""
    if audio_comes_in(state) is False:
        return NO_AUDIO
    for action, failure in _FAILURES_OF_ACTIONS.items():
        latest = latest_command(state, action)
        if latest is None or not is_wanted(state, latest):
            continue
        match latest.outcome:
            case CommandOutcome.UNAVAILABLE:
                return f"{failure}: the carrier cannot be reached"
            case CommandOutcome.REJECTED if action != Hangup.action:  # a hangup is refused if the call is over already
                return f"{failure}: the carrier refused ({latest.code})"
            case _:
                continue
    return RECORD_REFUSED if state.record_refused else None


# ---- values ------------------------------------------------------------------------------------------------------


def _earliest(known: Micros | None, new: Micros) -> Micros:
    return new if known is None else min(known, new)


def _cut(text: str | None) -> str | None:
    return text if text is None else text[:VALUE_MAX_CHARS]


def _settled(known: str | None, new: str | None) -> str | None:
    """The smaller of two values that are present: a choice that does not depend on their order of arrival."""
    return min(filter(None, (known, new)), default=None)


def _first_hangup(state: CallState, event: CallEvent, cause: str | None) -> tuple[Micros, str | None]:
    """Time and cause of the earliest hangup. At equal times a stated cause precedes none, then the alphabet decides."""
    if state.ended_at is None:
        return event.occurred_at, cause
    hangups = ((state.ended_at, state.hangup_cause), (event.occurred_at, cause))
    return min(hangups, key=lambda hangup: (hangup[0], hangup[1] is None, hangup[1] or ""))
