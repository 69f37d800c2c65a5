"""The events that a call's life is made of, as `call-events` has them: their types, what is read of them, and those
that this program writes itself.

Decides the names and ids of the program's own events. Leaves what they mean to `fold`, `timers` and `step`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid5

import orjson

from dispatchai.records.values import CallEvent, Micros

NAMESPACE: Final = UUID("5f0a4d0e-7b1c-5d0b-9c57-3c2f6d1e8a44")
"""Namespace of all derived ids. Changing it makes every command in flight a new command."""

MICROS_PER_S: Final = 1_000_000

_LONG_MAX: Final = 2**63 - 1
"""What a record can hold."""


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


def derived_id(text: str) -> str:
    """The id of what `text` describes: a UUID, the same whenever it is derived."""
    return str(uuid5(NAMESPACE, text))


def own_event(
    kind: EventType,
    event_id: str,
    *,
    occurred_at: Micros,
    received_at: Micros,
    call_control_id: str,
    payload: dict[str, Any] | None,
) -> CallEvent:
    """An event of this program's own. `payload` is JSON-ready."""
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


# ---- what an event says ------------------------------------------------------------------------------------------


def payload_of(event: CallEvent) -> dict[str, Any]:
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


def text_in(body: dict[str, Any], name: str) -> str | None:
    """The string `name`; None where it is missing or empty."""
    value = body.get(name)
    return value if isinstance(value, str) and value else None


def micros_in(body: dict[str, Any], name: str) -> Micros | None:
    """The time `name`; None where it is missing or none that a record can hold."""
    value = body.get(name)
    return value if type(value) is int and 0 <= value <= _LONG_MAX else None


def micros(seconds: float) -> Micros:
    """`seconds` in the unit of the records' times."""
    return round(seconds * MICROS_PER_S)
