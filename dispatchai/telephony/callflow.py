"""What a call's events make of its state, which commands they call for and when its timers are due. Pure.

Decides the order of a call's life and nothing of I/O: events arrive as records, time as an argument, commands
leave as values. `fold` is commutative and idempotent over the events of a call, so that whoever reads
`call-events`, in whatever order they arrived, concludes the same state.

How a command ended is a fact as well: it is written to `call-events` as dispatchai.command, its id derived from
command, round and outcome, and the state knows of it by that record alone. What has to be done later is a timer, and a
timer that fires is a record: dispatchai.retry gives a command again that the carrier could not be told, with growing
waits for as long as the call lasts; dispatchai.stream_lost says that a stream stopped and the call went on,
dispatchai.stream_due that one which fails again and again may be started once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

import orjson

from dispatchai.records.values import (
    Action,
    ActionKind,
    CallEvent,
    CallState,
    CallStatus,
    CommandOutcome,
    CommandState,
    Micros,
    StreamStatus,
)
from dispatchai.telephony.commands import (
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

if TYPE_CHECKING:
    from dispatchai.settings import Settings

NAMESPACE: Final = UUID("5f0a4d0e-7b1c-5d0b-9c57-3c2f6d1e8a44")
"""Namespace of all derived ids. Changing it makes every command in flight a new command."""

SEEN_EVENTS_MAX: Final = 256
"""Event ids kept for deduplication. A call has about twenty events; more than this only with keypad or recording
storms, and then only a redelivery of the oldest is counted again, whose command carries the same command_id."""

SEEN_ACTIONS_MAX: Final = 64
COMMANDS_MAX: Final = 64
"""The same for a dispatcher's actions and for commands: more than a call of hours brings."""

STOP_GRACE_S: Final = 1.0
"""How long a stopped stream is taken for a call's end, whose hangup is reported some milliseconds after it."""

RESTART_WINDOW_S: Final = 60.0
"""A stream is started again at once, unless it failed within this time already: then what it goes to needs a while,
such as a gateway that is being replaced, and the waits grow as those between the rounds of a command."""

FAILURES_MAX: Final = 64
"""Failures of a stream that are remembered: far above any setting of how often it is started again."""

RETRY_FIRST_S: Final = 2.0
RETRY_FACTOR: Final = 2.0
RETRY_LONGEST_S: Final = 60.0
"""Waits of 2, 4, 8, 16, 32, 60, 60 ... s between the rounds of a command, each of which is several tries within 10 s.
A caller is waiting, so the first come soon; an outage of minutes must not be answered with a storm."""

RETRY_ASKED_MAX_S: Final = 86_400.0
"""A carrier that asks for a longer wait than this is not believed; no call lasts so long anyway."""

MICROS_PER_S: Final = 1_000_000

_INT_MAX: Final = 2**31 - 1
_LONG_MAX: Final = 2**63 - 1
"""What a state's record can hold."""


class EventType(StrEnum):
    """The event types that change a call's state. All others are only recorded as seen."""

    INITIATED = "call.initiated"
    ANSWERED = "call.answered"
    STREAMING_STARTED = "streaming.started"
    STREAMING_STOPPED = "streaming.stopped"
    STREAMING_FAILED = "streaming.failed"
    HANGUP = "call.hangup"
    STREAM_LOST = "dispatchai.stream_lost"
    STREAM_DUE = "dispatchai.stream_due"
    COMMAND = "dispatchai.command"
    RETRY = "dispatchai.retry"
    DEADLINE = "dispatchai.deadline"
    EXPIRED = "dispatchai.expired"


OWN_EVENTS: Final = "dispatchai."
"""What the types of the events begin with that the calls agent writes. They speak of a call that is known."""

NO_AUDIO: Final = "the caller's audio does not come in: its stream failed"
"""Degraded: nothing is heard of the caller until a stream starts again."""

_AIMS: Final = {
    Answer.action: "the call could not be answered",
    StreamingStart.action: "the caller's audio could not be asked for",
    Transfer.action: "the call could not be transferred",
    Hangup.action: "the call could not be hung up",
    Speak.action: "nothing could be said to the caller",
    RecordStart.action: "the call could not be recorded",
}
"""What a dispatcher is told of a command that failed, the gravest first."""


class Refusal(StrEnum):
    """Why a dispatcher's action has no effect."""

    REPEATED = "repeated"
    UNKNOWN_CALL = "unknown call"
    CALL_OVER = "the call is over"
    NO_CONTROL_ID = "the carrier gave no handle of the call"
    NO_HUMAN_LINE = "no HUMAN_LINE is set"
    NOTHING_TO_SAY = "no words were given and HELP_PROMPT is empty"


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
    help_prompt: str = ""
    """What a dispatcher's SPEAK without words says, in the greeting's voice and language."""
    human_line: str = ""
    """Where a dispatcher's TRANSFER goes; empty for nowhere."""
    record_format: str = ""
    """wav or mp3; empty for no recording."""
    stream_restarts_max: int = 5

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
            help_prompt=settings.help_prompt,
            human_line=settings.human_line,
            record_format=settings.record_format.value if settings.record_calls else "",
            stream_restarts_max=settings.stream_restarts_max,
        )


def _local_stream_url(settings: Settings, gateway_port: int | None) -> str:
    # An address that means "all interfaces" is one to listen on, not one to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.gateway_host, settings.gateway_host)  # noqa: S104
    port = settings.gateway_port if gateway_port is None else gateway_port
    return f"ws://[{host}]:{port}/ws" if ":" in host else f"ws://{host}:{port}/ws"


def fold(state: CallState | None, event: CallEvent) -> CallState:
    """The state of a call after `event`; `state` is None before its first one.

    The result does not depend on the order or repetition of events, apart from the order of `seen_event_ids`:
    times are the earliest recorded, the status only rises, of a stream and of a command the latest by their own
    clocks count, and what differs between events of one leg (it should not) is settled by value and not by arrival.
    Events of the leg to the human line are seen and change nothing else. Never raises on an event's content.
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
            degraded=None,
            streams_started=0,
            stream=None,
            stream_at=None,
            stream_seen_at=None,
            stream_failed_at=(),
            first_seen_at=event.received_at,
            deadline_passed=False,
            commands=(),
            seen_event_ids=(),
            seen_action_ids=(),
        )
    # A redelivery is the same event received again: only its earlier receipt counts.
    state = replace(state, first_seen_at=min(state.first_seen_at, event.received_at))
    repeated = event.event_id in state.seen_event_ids
    if repeated and event.type not in _STREAM_EVENTS:
        return state
    body = _payload(event)
    if body.get("client_state") == TRANSFER_LEG_STATE and not event.type.startswith(OWN_EVENTS):
        return state if repeated else _seen(state, event)
    if (stream := _stream_of(event, body)) is not None:
        status, at = stream
        state = _with_stream(state, status, at, seen_at=event.received_at, again=repeated)
        if status in _FAILURES and not repeated:
            state = replace(state, stream_failed_at=tuple(sorted((*state.stream_failed_at, at))[-FAILURES_MAX:]))
    if not repeated:
        state = _folded(_seen(state, event), event, body)
    return replace(state, degraded=_degraded(state))


def _seen(state: CallState, event: CallEvent) -> CallState:
    return replace(state, seen_event_ids=(*state.seen_event_ids, event.event_id)[-SEEN_EVENTS_MAX:])


def _folded(state: CallState, event: CallEvent, body: dict[str, Any]) -> CallState:
    state = replace(
        state,
        call_control_id=_settled(state.call_control_id, event.call_control_id) or "",
        from_number=_settled(state.from_number, event.from_number),
        to_number=_settled(state.to_number, event.to_number),
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
        case EventType.COMMAND:
            outcome = _command_state(event, body)
            return state if outcome is None else _with_command(state, outcome)
        case EventType.HANGUP:
            ended_at, cause = _first_hangup(state, event, _text(body, "hangup_cause"))
            return replace(state, status=CallStatus.ENDED, ended_at=ended_at, hangup_cause=cause)
        case EventType.DEADLINE:
            return replace(state, deadline_passed=True)
        case _:
            return state


def step(
    state: CallState | None, call_id: str, event: CallEvent, config: CallFlowConfig
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
    after = fold(state, event)
    body = _payload(event)
    control_id = event.call_control_id or after.call_control_id
    other_leg = body.get("client_state") == TRANSFER_LEG_STATE
    if repeated or other_leg or not takes_commands(after) or not control_id:
        return after, ()

    def stream() -> StreamingStart:
        return StreamingStart(control_id, command_id(event, StreamingStart.action), config.stream_url)

    match event.type:
        case EventType.INITIATED | EventType.ANSWERED if _text(body, "direction") not in (None, "incoming"):
            return after, ()  # a leg that we placed; where no direction is stated it came to us
        case EventType.INITIATED if after.status is CallStatus.RINGING:
            return after, (Answer(control_id, command_id(event, Answer.action)),)
        case EventType.ANSWERED if state is None or state.status is CallStatus.RINGING:
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
        case EventType.STREAMING_FAILED | EventType.STREAM_LOST:
            return after, ((stream(),) if _restart_wait_s(after, config) == 0 else ())
        case EventType.STREAM_DUE:
            due = body.get("failed_at") == after.stream_at and _restart_wait_s(after, config) is not None
            return after, ((stream(),) if due else ())
        case EventType.RETRY:
            owed = _command(after, _text(body, "command_id") or "")
            if owed is None or owed.round != body.get("round") or not _is_wanted(after, owed):
                return after, ()
            again = _again(after, owed)
            return after, (() if again is None else (again,))
        case _:
            return after, ()


def act(
    state: CallState, action: Action, config: CallFlowConfig
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


def takes_commands(state: CallState) -> bool:
    """Whether the call can still be told something: not over, neither by its events nor by an answer of the carrier."""
    return (
        state.status is not CallStatus.ENDED
        and not state.deadline_passed
        and all(command.outcome is not CommandOutcome.ALREADY_ENDED for command in state.commands)
    )


def audio_comes_in(state: CallState) -> bool | None:
    """Whether the caller's audio is streamed, as far as the carrier said; None where it said nothing yet.

    A stream that stopped counts as streamed until it is known that the call went on without it.
    """
    if state.stream is None:
        return None
    if state.stream in (StreamStatus.STARTED, StreamStatus.STOPPED):
        return True
    latest = _latest(state, StreamingStart.action)
    return (
        latest is not None
        and latest.outcome is CommandOutcome.ALREADY_STREAMING
        and state.stream_seen_at is not None
        and latest.at >= state.stream_seen_at
    )


def round_of(state: CallState, command: Command) -> int:
    """Which round of `command` comes next, from 1."""
    known = _command(state, command.command_id)
    return 1 if known is None else min(known.round + 1, _INT_MAX)


def is_settled(state: CallState, command: Command) -> bool:
    """Whether `command` needs not be given (again): the carrier took or refused it, or what it wants is so."""
    known = _command(state, command.command_id)
    return known is not None and (known.request is None or not _is_wanted(state, known))


def outcome_event(command: Command, number: int, outcome: Outcome, now: Micros) -> CallEvent:
    """How round `number` of `command`, without its token, ended at `now`: as an event to be written to `call-events`.

    What the carrier could not be told is to be given again; it carries its request and when.
    """
    kind, code, wait_s = _told(outcome, number)
    return _own_event(
        EventType.COMMAND,
        _derived_id(f"{command.command_id}:{number}:{kind}"),
        occurred_at=now,
        received_at=now,
        call_control_id=command.call_control_id,
        payload={
            "command_id": command.command_id,
            "action": command.action,
            "round": number,
            "outcome": kind,
            "code": code,
            "retry_at": None if wait_s is None else now + _micros(wait_s),
            "request": None if wait_s is None else request_of(command),
        },
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
            return CommandOutcome.NOT_ANSWERED, "", _backoff_s(number)
        case Unavailable():
            asked_s = min(outcome.retry_after_s or 0.0, RETRY_ASKED_MAX_S)
            return CommandOutcome.UNAVAILABLE, "", max(_backoff_s(number), asked_s)


def _backoff_s(number: int) -> float:
    """Seconds to wait after round `number`."""
    growth = RETRY_FACTOR ** min(number - 1, 16)  # beyond which it is the longest anyway
    return min(RETRY_LONGEST_S, RETRY_FIRST_S * growth)


def command_id(cause: CallEvent | Action, action: str) -> str:
    """The command_id of `action` as called for by `cause`: a UUID, the same whenever it is derived."""
    return _derived_id(f"{cause.event_id if isinstance(cause, CallEvent) else cause.action_id}:{action}")


def timer_id(call_id: str, timer: EventType) -> str:
    """The event id of a timer that a call has one of: dispatchai.deadline, dispatchai.expired."""
    return _Timer(timer, due=0).event_id(call_id)


def _derived_id(text: str) -> str:
    return str(uuid5(NAMESPACE, text))


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
    beyond that, which a carrier's wrong clock can bring about. While the call takes commands, dispatchai.retry is due
    when a command is to be given again, dispatchai.stream_lost STOP_GRACE_S after its stream stopped,
    dispatchai.stream_due when a stream that failed repeatedly is to be started again. The event ids follow from the
    call and what the timer is about, so that a timer that is written twice is one event.
    """
    return tuple(
        _own_event(
            timer.type,
            timer.event_id(call_id),
            occurred_at=timer.due,
            received_at=now,
            call_control_id=state.call_control_id,
            payload=timer.payload,
        )
        for timer in _timers(state, config)
        if timer.due <= now and timer.event_id(call_id) not in state.seen_event_ids
    )


def next_timer_at(state: CallState, call_id: str, config: CallFlowConfig) -> Micros | None:
    """When the next timer that was not recorded yet is due; None when all were."""
    pending = [timer.due for timer in _timers(state, config) if timer.event_id(call_id) not in state.seen_event_ids]
    return min(pending, default=None)


@dataclass(frozen=True, slots=True)
class _Timer:
    """One timer. `about` tells it from others of its type in the call; `payload` is JSON-ready, None for nothing."""

    type: EventType
    due: Micros
    about: str = ""
    payload: dict[str, Any] | None = None

    def event_id(self, call_id: str) -> str:
        return _derived_id(f"{call_id}:{self.type}:{self.about}" if self.about else f"{call_id}:{self.type}")


def _timers(state: CallState, config: CallFlowConfig) -> Iterator[_Timer]:
    longest = state.first_seen_at + _micros(config.call_longest_s)
    if state.ended_at is None:
        yield _Timer(EventType.DEADLINE, longest)
        yield _Timer(EventType.EXPIRED, longest)
    else:
        ended = min(state.ended_at, longest)
        yield _Timer(EventType.DEADLINE, ended + _micros(config.call_deadline_s))
        yield _Timer(EventType.EXPIRED, ended + _micros(config.call_expiry_s))
    if not takes_commands(state):
        return
    for command in state.commands:
        if command.retry_at is not None and command.retry_at < longest and _is_wanted(state, command):
            yield _Timer(
                EventType.RETRY,
                command.retry_at,
                about=f"{command.command_id}:{command.round}",
                payload={"command_id": command.command_id, "round": command.round},
            )
    if state.stream is StreamStatus.STOPPED and state.stream_seen_at is not None:
        yield _Timer(
            EventType.STREAM_LOST,
            state.stream_seen_at + _micros(STOP_GRACE_S),
            about=str(state.stream_at),
            payload={"stopped_at": state.stream_at},
        )
    if (wait_s := _restart_wait_s(state, config)) and state.stream_seen_at is not None:
        yield _Timer(
            EventType.STREAM_DUE,
            state.stream_seen_at + _micros(wait_s),
            about=str(state.stream_at),
            payload={"failed_at": state.stream_at},
        )


def _own_event(
    kind: EventType,
    event_id: str,
    *,
    occurred_at: Micros,
    received_at: Micros,
    call_control_id: str,
    payload: dict[str, Any] | None,
) -> CallEvent:
    return CallEvent(
        event_id=event_id,
        type=kind,
        occurred_at=occurred_at,
        received_at=received_at,
        call_control_id=call_control_id,
        from_number=None,
        to_number=None,
        attempt=1,
        payload=b"" if payload is None else orjson.dumps(payload),
    )


def _speak(control_id: str, command_id: str, words: str, config: CallFlowConfig) -> Speak:
    return Speak(control_id, command_id, payload=words, voice=config.greeting_voice, language=config.greeting_language)


# ---- the stream --------------------------------------------------------------------------------------------------

_STREAM_EVENTS: Final = {
    EventType.STREAMING_STARTED: StreamStatus.STARTED,
    EventType.STREAMING_STOPPED: StreamStatus.STOPPED,
    EventType.STREAM_LOST: StreamStatus.LOST,
    EventType.STREAMING_FAILED: StreamStatus.FAILED,
}
_FAILURES: Final = frozenset({StreamStatus.LOST, StreamStatus.FAILED})
_STREAM_RANK: Final = {status: rank for rank, status in enumerate(StreamStatus)}


def _stream_of(event: CallEvent, body: dict[str, Any]) -> tuple[StreamStatus, Micros] | None:
    """What `event` says of the stream, and of which moment; None where it says nothing of it."""
    match event.type:
        case EventType.STREAM_LOST:
            # Of the moment of the stop: a stream that started since then is not lost.
            stopped_at = _micros_in(body, "stopped_at")
            return None if stopped_at is None else (StreamStatus.LOST, stopped_at)
        case EventType.STREAMING_STARTED | EventType.STREAMING_STOPPED | EventType.STREAMING_FAILED:
            return _STREAM_EVENTS[EventType(event.type)], event.occurred_at
        case _:
            return None


def _with_stream(state: CallState, status: StreamStatus, at: Micros, *, seen_at: Micros, again: bool) -> CallState:
    """The state with what was recorded of the stream: the latest by the carrier's clock, first received at `seen_at`.

    A redelivery (`again`) only tells an earlier receipt of what is known.
    """
    if state.stream is None or state.stream_at is None or state.stream_seen_at is None:
        return state if again else replace(state, stream=status, stream_at=at, stream_seen_at=seen_at)
    known, new = (state.stream_at, _STREAM_RANK[state.stream]), (at, _STREAM_RANK[status])
    if new == known:
        return replace(state, stream_seen_at=min(state.stream_seen_at, seen_at))
    if new < known or again:
        return state
    return replace(state, stream=status, stream_at=at, stream_seen_at=seen_at)


def _restart_wait_s(state: CallState, config: CallFlowConfig) -> float | None:
    """How long after its failure the stream is to be started again; None where it is not to be."""
    if audio_comes_in(state) is not False or state.stream_at is None:
        return None
    if len(state.stream_failed_at) > config.stream_restarts_max:
        return None
    since = state.stream_at - _micros(RESTART_WINDOW_S)
    recent = sum(since < at <= state.stream_at for at in state.stream_failed_at)
    return _backoff_s(recent - 1) if recent > 1 else 0.0


# ---- commands and how they ended ---------------------------------------------------------------------------------

_OUTCOME_RANK: Final = {outcome: rank for rank, outcome in enumerate(CommandOutcome)}


def _command_state(event: CallEvent, body: dict[str, Any]) -> CommandState | None:
    """What a dispatchai.command says; None where it is none."""
    match body:
        case {
            "command_id": str() as command_id,
            "action": str() as action,
            "round": int() as number,
            "outcome": str() as outcome,
            "code": str() as code,
            "request": (str() | None) as request,
        } if type(number) is int and 1 <= number <= _INT_MAX and outcome in _OUTCOMES:
            retry_at = _micros_in(body, "retry_at")
            kind = CommandOutcome(outcome)
            return CommandState(command_id, action, number, kind, code, event.occurred_at, retry_at, request)
        case _:
            return None


_OUTCOMES: Final = frozenset(outcome.value for outcome in CommandOutcome)


def _with_command(state: CallState, new: CommandState) -> CallState:
    """The state with `new` in it, unless a later round of the command is known, or a better outcome of the same."""
    by_id = {command.command_id: command for command in state.commands}
    known = by_id.get(new.command_id)
    if known is not None and _precedence(known) >= _precedence(new):
        return state
    by_id[new.command_id] = new
    newest = sorted(by_id.values(), key=lambda command: (command.at, command.command_id))[-COMMANDS_MAX:]
    return replace(state, commands=tuple(sorted(newest, key=lambda command: command.command_id)))


def _precedence(command: CommandState) -> tuple[int, int, Micros, Micros, str, str, str]:
    # Beyond round and outcome nothing differs, unless a record was written by hand: then its value decides.
    return (
        command.round,
        _OUTCOME_RANK[command.outcome],
        command.at,
        command.retry_at or 0,
        command.action,
        command.code,
        command.request or "",
    )


def _command(state: CallState, command_id: str) -> CommandState | None:
    return next((command for command in state.commands if command.command_id == command_id), None)


def _latest(state: CallState, action: str) -> CommandState | None:
    return max(
        (command for command in state.commands if command.action == action),
        key=lambda command: (command.at, command.command_id),
        default=None,
    )


def _again(state: CallState, owed: CommandState) -> Command | None:
    return command_from(owed.action, state.call_control_id, owed.request or "")


def _is_wanted(state: CallState, command: CommandState) -> bool:
    """Whether what `command` was to bring about is not so by another way."""
    if command.outcome is CommandOutcome.NOT_ANSWERED and state.answered_at is None:
        return False  # its time comes with call.answered
    match command.action:
        case Answer.action:
            return state.answered_at is None
        case StreamingStart.action:
            return not audio_comes_in(state) and command == _latest(state, StreamingStart.action)
        case Hangup.action:
            return state.status is not CallStatus.ENDED
        case _:
            return True


def _degraded(state: CallState) -> str | None:
    """Why the call is worse off than it should be, the gravest reason; None when nothing is wrong."""
    if audio_comes_in(state) is False:
        return NO_AUDIO
    for action, aim in _AIMS.items():
        latest = _latest(state, action)
        if latest is None or not _is_wanted(state, latest):
            continue
        match latest.outcome:
            case CommandOutcome.UNAVAILABLE:
                return f"{aim}: the carrier cannot be reached"
            case CommandOutcome.REJECTED if action != Hangup.action:  # refused of a call that is gone already
                return f"{aim}: the carrier refused ({latest.code})"
            case _:
                continue
    return None


# ---- values ------------------------------------------------------------------------------------------------------


def _micros(seconds: float) -> Micros:
    return round(seconds * MICROS_PER_S)


def _earliest(known: Micros | None, new: Micros) -> Micros:
    return new if known is None else min(known, new)


def _settled(known: str | None, new: str | None) -> str | None:
    """The smaller of two values that are there: a choice that does not depend on which came first."""
    return min(filter(None, (known, new)), default=None)


def _first_hangup(state: CallState, event: CallEvent, cause: str | None) -> tuple[Micros, str | None]:
    """Time and cause of the earliest hangup. At one same time a stated cause goes before none, then by the alphabet."""
    if state.ended_at is None:
        return event.occurred_at, cause
    hangups = ((state.ended_at, state.hangup_cause), (event.occurred_at, cause))
    return min(hangups, key=lambda hangup: (hangup[0], hangup[1] is None, hangup[1] or ""))


def _payload(event: CallEvent) -> dict[str, Any]:
    """What the event says beside its envelope: the webhook's payload, or all of an event of our own. Empty if none."""
    try:
        body: Any = orjson.loads(event.payload)
    except orjson.JSONDecodeError:
        return {}
    if not event.type.startswith(OWN_EVENTS):
        body = _field(_field(body, "data"), "payload")
    return body if isinstance(body, dict) else {}


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _text(body: dict[str, Any], name: str) -> str | None:
    """The string `name`; None where it is missing or empty."""
    value = body.get(name)
    return value if isinstance(value, str) and value else None


def _micros_in(body: dict[str, Any], name: str) -> Micros | None:
    """The time `name`; None where it is missing or none that a record can hold."""
    value = body.get(name)
    return value if type(value) is int and 0 <= value <= _LONG_MAX else None
