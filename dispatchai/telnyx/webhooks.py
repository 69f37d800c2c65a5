"""Telnyx's webhooks as typed values: the envelope of every event, and the payload of each event the program uses.

Decides what is well formed and which call an event belongs to. Pure: no clock, no state, no log. `signatures` decides
whether a webhook is genuine; the gateway and `calls` decide what to do with it.

Source: Telnyx Voice API v2, webhooks. Unknown fields are ignored; a field of a wrong type counts as absent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import orjson

from dispatchai.records import Micros
from dispatchai.telnyx import json_text
from dispatchai.telnyx.commands import TRANSFER_LEG_STATE
from dispatchai.telnyx.errors import TelnyxError
from dispatchai.telnyx.fields import as_object, as_text, call_id_of, identifier

OWN_TYPES: Final = "dispatchai."
"""Prefix of the event types that this program writes itself. A webhook must not fire a call's timers."""

UNKNOWN_TYPE: Final = "unknown"
"""Event type recorded where Telnyx gave none."""

MAX_TEXT_CHARS: Final = 256
"""Longest phone number, SIP address or time that is kept. RFC 3261 sets no limit; real ones are below 100."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class WebhookType(StrEnum):
    """The events whose payload the program uses. Every other event is recorded all the same."""

    CALL_INITIATED = "call.initiated"
    CALL_ANSWERED = "call.answered"
    CALL_HANGUP = "call.hangup"
    STREAMING_STARTED = "streaming.started"
    STREAMING_STOPPED = "streaming.stopped"
    STREAMING_FAILED = "streaming.failed"


class EnvelopeError(TelnyxError, ValueError):
    """A webhook that no retry can make usable. `best_known_id` is any identifier found in it, else empty."""

    def __init__(self, reason: str, best_known_id: str = "") -> None:
        super().__init__(reason)
        self.best_known_id = best_known_id


# ---- the envelope ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Webhook:
    """The envelope of one event.

    `event_id` is Telnyx's. Where Telnyx gave none it is a digest of the event without its delivery attempt, so that a
    redelivery has the same id. `occurred_at` is None where Telnyx gave no readable time. `attempt` counts from 1.
    `repaired` says that text in the body could not be read as it came (`json_text`).
    """

    event_id: str
    type: str
    occurred_at: Micros | None
    call_id: str
    call_control_id: str
    from_number: str | None
    to_number: str | None
    attempt: int
    repaired: bool = False


def parse_webhook(body: bytes) -> Webhook:
    """The envelope of the event in `body`. Raises EnvelopeError if `body` is no JSON object or names no call."""
    try:
        envelope, repaired = json_text.load(body)
    except json_text.NotJsonError as error:
        raise EnvelopeError(str(error)) from None
    data = as_object(as_object(envelope).get("data"))
    payload = as_object(data.get("payload"))
    event_id = identifier(data.get("id"))
    call_control_id = identifier(payload.get("call_control_id"))
    call_id = call_id_of(payload.get("call_session_id"), call_control_id)
    if call_id is None:
        leg = identifier(payload.get("call_leg_id"))
        raise EnvelopeError("the event names no call", best_known_id=leg or event_id or "")
    event_type = identifier(data.get("event_type")) or UNKNOWN_TYPE
    if event_type.startswith(OWN_TYPES):
        raise EnvelopeError(f"event types that begin with {OWN_TYPES} are this program's own", best_known_id=call_id)
    return Webhook(
        event_id=event_id or f"sha256:{_digest(data, body)}",
        type=event_type,
        occurred_at=parse_time(data.get("occurred_at")),
        call_id=call_id,
        call_control_id=call_control_id or "",
        from_number=_address(payload.get("from")),
        to_number=_address(payload.get("to")),
        attempt=_attempt(as_object(envelope).get("meta")),
        repaired=repaired,
    )


def parse_time(value: object) -> Micros | None:
    """An ISO 8601 time in microseconds since the epoch, UTC where it names no zone. None if it is not readable."""
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        micros = (moment - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return None
    return micros if micros >= 0 else None


def _digest(data: dict[str, Any], body: bytes) -> str:
    """SHA-256 of the event with its keys sorted; of the raw body where it is nested too deep to be written again."""
    try:
        canonical = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        canonical = body
    return hashlib.sha256(canonical).hexdigest()


def _address(value: object) -> str | None:
    text = as_text(value)
    return text if text is not None and len(text) <= MAX_TEXT_CHARS else None


def _attempt(meta: object) -> int:
    attempt = as_object(meta).get("attempt")
    return attempt if type(attempt) is int and 1 <= attempt < 1 << 31 else 1


# ---- the payloads ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WebhookPayload:
    """The payload of an event: of this class itself where the program uses nothing more of it."""

    is_transfer_leg: bool = False
    """Whether the event is about the leg to the human line, which shares the session id of the caller's leg."""


@dataclass(frozen=True, slots=True)
class CallInitiated(WebhookPayload):
    """call.initiated: a leg rings."""

    incoming: bool = True
    """False for a leg that this program placed. A leg without a direction counts as incoming."""


@dataclass(frozen=True, slots=True)
class CallAnswered(WebhookPayload):
    """call.answered."""

    incoming: bool = True
    """As of CallInitiated."""


@dataclass(frozen=True, slots=True)
class CallHangup(WebhookPayload):
    """call.hangup."""

    hangup_cause: str | None = None


@dataclass(frozen=True, slots=True)
class StreamingStarted(WebhookPayload):
    """streaming.started: the media socket is open."""


@dataclass(frozen=True, slots=True)
class StreamingStopped(WebhookPayload):
    """streaming.stopped: the stream ended in order."""


@dataclass(frozen=True, slots=True)
class StreamingFailed(WebhookPayload):
    """streaming.failed: the media socket could not be opened, or was lost."""


def parse_payload(event_type: str, body: bytes) -> WebhookPayload:
    """The payload of the webhook `body`, an event of type `event_type`. Nothing in `body` makes it raise."""
    try:
        envelope, _ = json_text.load(body)
    except json_text.NotJsonError:
        envelope = None
    payload = as_object(as_object(as_object(envelope).get("data")).get("payload"))
    is_transfer_leg = payload.get("client_state") == TRANSFER_LEG_STATE
    match event_type:
        case WebhookType.CALL_INITIATED:
            return CallInitiated(is_transfer_leg, _is_incoming(payload))
        case WebhookType.CALL_ANSWERED:
            return CallAnswered(is_transfer_leg, _is_incoming(payload))
        case WebhookType.CALL_HANGUP:
            return CallHangup(is_transfer_leg, as_text(payload.get("hangup_cause")))
        case WebhookType.STREAMING_STARTED:
            return StreamingStarted(is_transfer_leg)
        case WebhookType.STREAMING_STOPPED:
            return StreamingStopped(is_transfer_leg)
        case WebhookType.STREAMING_FAILED:
            return StreamingFailed(is_transfer_leg)
        case _:
            return WebhookPayload(is_transfer_leg)


def _is_incoming(payload: dict[str, Any]) -> bool:
    return as_text(payload.get("direction")) in (None, "incoming")
