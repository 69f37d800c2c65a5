"""What a call's events make of its state, which commands they call for and when its timers are due. Pure.

Decides the order of a call's life and nothing of I/O: events arrive as records, time as an argument, commands
leave as values. `fold` is commutative and idempotent over the events of a call, so that whoever reads
`call-events`, in whatever order they arrived, concludes the same state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

import orjson

from dispatchai.records.values import CallEvent, CallState, CallStatus, Micros
from dispatchai.telephony.commands import Answer, Command, Speak, StreamingStart

if TYPE_CHECKING:
    from dispatchai.settings import Settings

NAMESPACE: Final = UUID("5f0a4d0e-7b1c-5d0b-9c57-3c2f6d1e8a44")
"""Namespace of all derived ids. Changing it makes every command in flight a new command."""

SEEN_EVENTS_MAX: Final = 256
"""Event ids kept for deduplication. A call has about ten events; more than this only with keypad or recording
storms, and then only a redelivery of the oldest is counted again, whose command carries the same command_id."""

MICROS_PER_S: Final = 1_000_000


class EventType(StrEnum):
    """The event types that change a call's state. All others are only recorded as seen."""

    INITIATED = "call.initiated"
    ANSWERED = "call.answered"
    STREAMING_STARTED = "streaming.started"
    HANGUP = "call.hangup"
    DEADLINE = "dispatchai.deadline"
    EXPIRED = "dispatchai.expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFlowConfig:
    """What the call flow can be told. Durations in seconds."""

    stream_url: str
    greeting: str
    greeting_voice: str
    greeting_language: str
    call_deadline_s: float
    call_expiry_s: float
    call_longest_s: float

    @classmethod
    def from_settings(cls, settings: Settings, *, gateway_port: int | None = None) -> CallFlowConfig:
        """The configuration that `settings` asks for; `gateway_port` where the gateway was given a free port."""
        return cls(
            stream_url=settings.ws_public_url or _local_stream_url(settings, gateway_port),
            greeting=settings.greeting,
            greeting_voice=settings.greeting_voice,
            greeting_language=settings.greeting_language,
            call_deadline_s=settings.call_deadline_s,
            call_expiry_s=settings.call_expiry_s,
            call_longest_s=settings.call_longest_s,
        )


def _local_stream_url(settings: Settings, gateway_port: int | None) -> str:
    # An address that means "all interfaces" is one to listen on, not one to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.gateway_host, settings.gateway_host)  # noqa: S104
    port = settings.gateway_port if gateway_port is None else gateway_port
    return f"ws://[{host}]:{port}/ws" if ":" in host else f"ws://{host}:{port}/ws"


def fold(state: CallState | None, event: CallEvent) -> CallState:
    """The state of a call after `event`; `state` is None before its first one.

    The result does not depend on the order or repetition of events, apart from the order of `seen_event_ids`:
    times are the earliest recorded, the status only rises, and what differs between events of one leg (it should
    not) is settled by value and not by arrival. Never raises on an event's content.
    """
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
            streams_started=0,
            first_seen_at=event.received_at,
            deadline_passed=False,
            seen_event_ids=(),
        )
    # A redelivery is the same event received again: only its earlier receipt counts.
    state = replace(state, first_seen_at=min(state.first_seen_at, event.received_at))
    if event.event_id in state.seen_event_ids:
        return state
    state = replace(
        state,
        call_control_id=_settled(state.call_control_id, event.call_control_id) or "",
        from_number=_settled(state.from_number, event.from_number),
        to_number=_settled(state.to_number, event.to_number),
        seen_event_ids=(*state.seen_event_ids, event.event_id)[-SEEN_EVENTS_MAX:],
    )
    match event.type:
        case EventType.INITIATED:
            return replace(state, started_at=_earliest(state.started_at, event.occurred_at))
        case EventType.ANSWERED:
            return replace(
                state,
                status=CallStatus.ENDED if state.status is CallStatus.ENDED else CallStatus.ACTIVE,
                answered_at=_earliest(state.answered_at, event.occurred_at),
            )
        case EventType.STREAMING_STARTED:
            return replace(state, streams_started=state.streams_started + 1)
        case EventType.HANGUP:
            ended_at, cause = _first_hangup(state, event)
            return replace(state, status=CallStatus.ENDED, ended_at=ended_at, hangup_cause=cause)
        case EventType.DEADLINE:
            return replace(state, deadline_passed=True)
        case _:
            return state


def step(
    state: CallState | None, call_id: str, event: CallEvent, config: CallFlowConfig
) -> tuple[CallState, tuple[Command, ...]]:
    """`fold`, and the commands that `event` calls for: answer on call.initiated, stream and greet on call.answered.

    A repeated event calls for nothing, nor does any event of a call that is over or whose control id is unknown.
    The command_id follows from event and action, so that a command made twice (after a crash) is one command to the
    carrier. A StreamingStart leaves without its token: see `with_token`. `call_id` is the key of the record.
    """
    repeated = state is not None and event.event_id in state.seen_event_ids
    after = fold(state, event)
    over = after.status is CallStatus.ENDED or after.deadline_passed
    control_id = event.call_control_id or after.call_control_id
    if repeated or over or not control_id:
        return after, ()
    match event.type:
        case EventType.INITIATED | EventType.ANSWERED if not _is_incoming(event):
            return after, ()
        case EventType.INITIATED if after.status is CallStatus.RINGING:
            return after, (Answer(control_id, command_id(event, Answer.action)),)
        case EventType.ANSWERED if state is None or state.status is CallStatus.RINGING:
            stream = StreamingStart(control_id, command_id(event, StreamingStart.action), config.stream_url)
            if not config.greeting:
                return after, (stream,)
            greeting = Speak(
                control_id,
                command_id(event, Speak.action),
                payload=config.greeting,
                voice=config.greeting_voice,
                language=config.greeting_language,
            )
            return after, (stream, greeting)
        case _:
            return after, ()


def command_id(event: CallEvent, action: str) -> str:
    """The command_id of `action` as called for by `event`: a UUID, the same whenever it is derived."""
    return str(uuid5(NAMESPACE, f"{event.event_id}:{action}"))


def with_token(command: Command, token_for: Callable[[str], str]) -> Command:
    """`command` ready to be sent: a StreamingStart is given the token that `token_for` makes for its control id."""
    match command:
        case StreamingStart():
            return replace(command, stream_auth_token=token_for(command.call_control_id))
        case _:
            return command


def due_timers(state: CallState, call_id: str, now: Micros, config: CallFlowConfig) -> tuple[CallEvent, ...]:
    """The timers of a call that are due at `now` and were not recorded yet, as events to be written to `call-events`.

    dispatchai.deadline is due `call_deadline_s` after the hangup, dispatchai.expired `call_expiry_s` after it. A call
    that never hung up gets both `call_longest_s` after its first event; so does one whose hangup carries a time
    beyond that, which a carrier's wrong clock can bring about. The event ids follow from call and timer, so that a
    timer that is written twice is one event.
    """
    return tuple(
        CallEvent(
            event_id=timer_id(call_id, timer),
            type=timer,
            occurred_at=due,
            received_at=now,
            call_control_id=state.call_control_id,
            from_number=None,
            to_number=None,
            attempt=1,
            payload=b"",
        )
        for timer, due in _timers(state, config)
        if due <= now and timer_id(call_id, timer) not in state.seen_event_ids
    )


def next_timer_at(state: CallState, call_id: str, config: CallFlowConfig) -> Micros | None:
    """When the next timer that was not recorded yet is due; None when all were."""
    pending = [due for timer, due in _timers(state, config) if timer_id(call_id, timer) not in state.seen_event_ids]
    return min(pending, default=None)


def timer_id(call_id: str, timer: EventType) -> str:
    """The event id of a call's timer."""
    return str(uuid5(NAMESPACE, f"{call_id}:{timer}"))


def _timers(state: CallState, config: CallFlowConfig) -> tuple[tuple[EventType, Micros], tuple[EventType, Micros]]:
    longest = state.first_seen_at + _micros(config.call_longest_s)
    if state.ended_at is None:
        return (EventType.DEADLINE, longest), (EventType.EXPIRED, longest)
    ended = min(state.ended_at, longest)
    return (
        (EventType.DEADLINE, ended + _micros(config.call_deadline_s)),
        (EventType.EXPIRED, ended + _micros(config.call_expiry_s)),
    )


def _micros(seconds: float) -> Micros:
    return round(seconds * MICROS_PER_S)


def _earliest(known: Micros | None, new: Micros) -> Micros:
    return new if known is None else min(known, new)


def _settled(known: str | None, new: str | None) -> str | None:
    """The smaller of two values that are there: a choice that does not depend on which came first."""
    return min(filter(None, (known, new)), default=None)


def _first_hangup(state: CallState, event: CallEvent) -> tuple[Micros, str | None]:
    """Time and cause of the earliest hangup. At one same time a stated cause goes before none, then by the alphabet."""
    cause = _payload_text(event, "hangup_cause")
    if state.ended_at is None:
        return event.occurred_at, cause
    hangups = ((state.ended_at, state.hangup_cause), (event.occurred_at, cause))
    return min(hangups, key=lambda hangup: (hangup[0], hangup[1] is None, hangup[1] or ""))


def _is_incoming(event: CallEvent) -> bool:
    """Whether the leg came to us. Where no direction is stated it is taken for incoming: we place no calls."""
    return _payload_text(event, "direction") in (None, "incoming")


def _payload_text(event: CallEvent, name: str) -> str | None:
    """The string `name` of the webhook's payload; None where it is missing or empty, or the body is no webhook."""
    try:
        body: Any = orjson.loads(event.payload)
    except orjson.JSONDecodeError:
        return None
    match body:
        case {"data": {"payload": {**fields}}}:
            value = fields.get(name)
            return value if isinstance(value, str) and value else None
        case _:
            return None
