"""The events of a call's life as `call-events` has them: their types, their payloads, and the events of this program.

Decides the form, the names and the ids of the program's own events. `telnyx.webhooks` reads the carrier's; `state`,
`timers` and `control` decide what an event means.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid5

import orjson

from dispatchai.records.values import CallEvent, CommandOutcome, Micros
from dispatchai.telnyx.webhooks import OWN_TYPES, WebhookPayload, WebhookType, parse_payload

NAMESPACE: Final = UUID("5f0a4d0e-7b1c-5d0b-9c57-3c2f6d1e8a44")
"""Namespace of all derived ids. Changing it makes every command in flight a new command."""

MICROS_PER_S: Final = 1_000_000

ROUND_MAX: Final = 2**31 - 1
"""The largest number of a round that a record can hold."""

NAME_MAX_CHARS: Final = 512
REQUEST_MAX_CHARS: Final = 8_192
"""Longest id, action or code, and longest request, of a command that ended: a state holds up to 64 of them. This
program writes none as long."""

_LONG_MAX: Final = 2**63 - 1
"""The largest time that a record can hold."""


class EventType(StrEnum):
    """The event types that change a call's state. All others are only recorded as seen."""

    INITIATED = WebhookType.CALL_INITIATED
    ANSWERED = WebhookType.CALL_ANSWERED
    STREAMING_STARTED = WebhookType.STREAMING_STARTED
    STREAMING_STOPPED = WebhookType.STREAMING_STOPPED
    STREAMING_FAILED = WebhookType.STREAMING_FAILED
    HANGUP = WebhookType.CALL_HANGUP
    STREAM_LOST = "dispatchai.stream_lost"
    STREAM_DUE = "dispatchai.stream_due"
    COMMAND = "dispatchai.command"
    RETRY = "dispatchai.retry"
    DEADLINE = "dispatchai.deadline"
    EXPIRED = "dispatchai.expired"
    RECORD_REFUSED = "dispatchai.record_refused"
    PURGED = "dispatchai.purged"


OWN_EVENTS: Final = OWN_TYPES
"""Prefix of the types of the events that the calls agent writes. They are about a call that is known."""


# ---- the program's own events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommandEnded:
    """dispatchai.command: how a round of a command ended. `retry_at` and `request` are set if another round follows."""

    command_id: str
    action: str
    round: int
    outcome: CommandOutcome
    code: str
    retry_at: Micros | None
    request: str | None


@dataclass(frozen=True, slots=True)
class RetryDue:
    """dispatchai.retry: the next round after `round` of a command is due."""

    command_id: str | None
    round: int | None


@dataclass(frozen=True, slots=True)
class StreamLost:
    """dispatchai.stream_lost: the stream that stopped at `stopped_at` was not ended by the call's end."""

    stopped_at: Micros | None


@dataclass(frozen=True, slots=True)
class StreamDue:
    """dispatchai.stream_due: the stream that failed at `failed_at` is to be started again."""

    failed_at: Micros | None


@dataclass(frozen=True, slots=True)
class PacketPurged:
    """dispatchai.purged: the packet of an ended call, in `version`, leaves the queue. Says nothing about the call."""

    version: int | None


OwnPayload = CommandEnded | RetryDue | StreamLost | StreamDue | PacketPurged
"""The payload of an own event, in JSON an object of these fields. A deadline and an expiry have none. None stands for
a field that cannot be read; a CommandEnded with such a field is no payload at all."""

EventPayload = WebhookPayload | OwnPayload | None


def own_event(
    kind: EventType,
    event_id: str,
    *,
    occurred_at: Micros,
    received_at: Micros,
    call_control_id: str,
    payload: OwnPayload | None,
) -> CallEvent:
    """An event of this program."""
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


def derived_id(text: str) -> str:
    """The id of what `text` describes: a UUID, the same whenever it is derived."""
    return str(uuid5(NAMESPACE, text))


# ---- reading an event --------------------------------------------------------------------------------------------


def payload_of(event: CallEvent) -> EventPayload:
    """The payload of the event. No content of it raises."""
    if not event.type.startswith(OWN_EVENTS):
        return parse_payload(event.type, event.payload)
    try:
        parsed: Any = orjson.loads(event.payload)
    except orjson.JSONDecodeError:
        parsed = None
    body = parsed if isinstance(parsed, dict) else {}
    match event.type:
        case EventType.COMMAND:
            return _command_ended(body)
        case EventType.RETRY:
            command_id, number = body.get("command_id"), body.get("round")
            return RetryDue(
                command_id if isinstance(command_id, str) else None, number if type(number) is int else None
            )
        case EventType.STREAM_LOST:
            return StreamLost(_long_in(body, "stopped_at"))
        case EventType.STREAM_DUE:
            return StreamDue(_long_in(body, "failed_at"))
        case EventType.PURGED:
            return PacketPurged(_long_in(body, "version"))
        case _:
            return None


def _command_ended(body: dict[str, Any]) -> CommandEnded | None:
    match body:
        case {
            "command_id": str() as command_id,
            "action": str() as action,
            "round": int() as number,
            "outcome": str() as outcome,
            "code": str() as code,
            "request": (str() | None) as request,
        } if (
            type(number) is int
            and 1 <= number <= ROUND_MAX
            and outcome in _OUTCOMES
            and max(len(command_id), len(action), len(code)) <= NAME_MAX_CHARS
            and len(request or "") <= REQUEST_MAX_CHARS
        ):
            retry_at = _long_in(body, "retry_at")
            return CommandEnded(command_id, action, number, CommandOutcome(outcome), code, retry_at, request)
        case _:
            return None


_OUTCOMES: Final = frozenset(outcome.value for outcome in CommandOutcome)


def _long_in(body: dict[str, Any], name: str) -> Micros | None:
    """The time or version `name`; None where it is missing or is none that a record can hold."""
    value = body.get(name)
    return value if type(value) is int and 0 <= value <= _LONG_MAX else None


def micros(seconds: float) -> Micros:
    """`seconds` in the unit of the records' times."""
    return round(seconds * MICROS_PER_S)
