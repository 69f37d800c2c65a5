"""All of the carrier's JSON that comes in, as typed values: the webhook envelope and the messages of the media socket.

Decides what is well formed and under which call it belongs (`call_id_of`). Pure: reads no clock, keeps no state, writes
no log. Leaves to others what is done with a message, and whether it may be believed (`signatures`, `tokens`).

Sources: Telnyx Voice API v2, webhooks and media streaming over WebSockets. Unknown fields are ignored everywhere; a
field of a wrong type counts as absent.
"""

from __future__ import annotations

import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from dispatchai.records import Micros, Track

MAX_ID_CHARS: Final = 256
"""Longest identifier taken from the carrier. Telnyx's longest, the call control id, is about 100 characters."""

MAX_TEXT_CHARS: Final = 256
"""Longest phone number or SIP address that is kept; RFC 3261 names no limit, real ones are below 100."""

MAX_DIGITS: Final = 18
"""Longest number that is read: any of so many digits fits in 64 bits."""

MAX_SAMPLE_RATE: Final = 1_000_000
"""Larger rates are no rates; 32 bits hold those that are."""

MAX_CHUNK: Final = 1 << 40
"""Largest chunk number believed: 20 ms frames of 700 years. Larger ones would not fit where sequences are added to."""

OWN_TYPES: Final = "dispatchai."
"""Types of the timers and outcomes that the calls agent writes; nobody outside may set a timer of a call off."""

UNKNOWN_TYPE: Final = "unknown"
"""Event type recorded where the carrier gave none."""

_ID: Final = re.compile(r"[A-Za-z0-9._:~+/=@-]+", re.ASCII)
_ENCODING: Final = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def identifier(value: object) -> str | None:
    """`value` if it is an identifier: 1 to MAX_ID_CHARS of letters, digits and ``._:~+/=@-``. None for all else."""
    if isinstance(value, str) and len(value) <= MAX_ID_CHARS and _ID.fullmatch(value):
        return value
    return None


def call_id_of(call_session_id: object, call_control_id: object) -> str | None:
    """The key of a call in every topic: its session id, which its legs share, else its control id, else None.

    Webhooks and media sockets both use this, so a call's events and its audio have one key.
    """
    return identifier(call_session_id) or identifier(call_control_id)


# ---- webhooks ----------------------------------------------------------------------------------------------------


class EnvelopeError(ValueError):
    """A webhook that no retry can make usable. `best_known_id` is any identifier found in it, else empty."""

    def __init__(self, reason: str, best_known_id: str = "") -> None:
        super().__init__(reason)
        self.best_known_id = best_known_id


@dataclass(frozen=True, slots=True)
class Webhook:
    """One event of the carrier.

    `event_id` is the carrier's; where it gave none, a digest of the event without its delivery attempt, so that a
    redelivery still has the same. `occurred_at` is None where the carrier gave no readable time. `attempt` counts
    from 1.
    """

    event_id: str
    type: str
    occurred_at: Micros | None
    call_id: str
    call_control_id: str
    from_number: str | None
    to_number: str | None
    attempt: int


def parse_webhook(body: bytes) -> Webhook:
    """The event in `body`. Raises EnvelopeError if it is no JSON object or names no call."""
    try:
        envelope = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise EnvelopeError("the body is not JSON") from None
    data = _object(_object(envelope).get("data"))
    payload = _object(data.get("payload"))
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
        from_number=_text(payload.get("from")),
        to_number=_text(payload.get("to")),
        attempt=_attempt(_object(envelope).get("meta")),
    )


def parse_time(value: object) -> Micros | None:
    """An ISO 8601 time as microseconds since the epoch, UTC where it names no zone. None if it is not readable."""
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
    """SHA-256 of the event in one spelling; of the raw body where it is nested deeper than can be written again."""
    try:
        spelled = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        spelled = body
    return hashlib.sha256(spelled).hexdigest()


def _attempt(meta: object) -> int:
    attempt = _object(meta).get("attempt")
    return attempt if type(attempt) is int and 1 <= attempt < 1 << 31 else 1


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_TEXT_CHARS else None


# ---- media socket ------------------------------------------------------------------------------------------------


class BadMessageKind(StrEnum):
    """Why a media message was dropped."""

    JSON = "json"
    """It is no JSON object."""
    EVENT = "event"
    """Its event is unknown or missing."""
    FIELDS = "fields"
    """A field that it cannot do without is missing or of a wrong type."""
    BASE64 = "base64"
    """Its audio is no base64, or is empty."""
    BINARY = "binary"
    """It came as a binary message; the protocol has text only."""
    ORDER = "order"
    """It came where the protocol has no place for it: media before start, a second start."""


class BadMessage(ValueError):  # noqa: N818 - it is the message that is bad, the stream goes on
    """A media message that is dropped. No content of it is in the exception."""

    def __init__(self, kind: BadMessageKind) -> None:
        super().__init__(kind.value)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class MediaFormat:
    """What the carrier says the audio is. `encoding` is in capitals. A number that makes no sense is 0."""

    encoding: str
    sample_rate: int
    channels: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The socket is open; the carrier says hello."""


@dataclass(frozen=True, slots=True)
class Start:
    """A stream begins. What the carrier did not say is None: `stream_id`, the call's session, the codec."""

    stream_id: str | None
    call_session_id: str | None
    call_control_id: str
    media_format: MediaFormat | None


class Media(NamedTuple):
    """One frame: RTP payload without headers, its number per track. Some count from 0, the carrier from 1.

    A tuple, as one is made 50 times a second and call: a frozen dataclass takes twice as long.
    """

    track: Track
    chunk: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """A message that carries no audio and asks for nothing: dtmf or mark."""

    event: str


@dataclass(frozen=True, slots=True)
class CarrierError:
    """The carrier could not use what it was sent. `code` is its number, as text, or empty."""

    code: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream is over."""


MediaMessage = Connected | Start | Media | Notice | CarrierError | Stop

_TRACKS: Final = {
    "inbound": Track.INBOUND,
    "inbound_track": Track.INBOUND,
    "outbound": Track.OUTBOUND,
    "outbound_track": Track.OUTBOUND,
}

DEFAULT_SAMPLE_RATE: Final = 8000
"""Samples per second of telephony, where the carrier named a codec without its rate."""


_USUAL_MEDIA: Final = re.compile(
    rb'\{"event":"media","sequence_number":"[0-9]{1,18}","stream_id":"[A-Za-z0-9._:~+/=@-]{1,256}",'
    rb'"media":\{"track":"(inbound|outbound)","chunk":"([0-9]{1,12})","timestamp":"[0-9]{1,18}","payload":"'
)
_USUAL_END: Final = b'"}}'
"""A media message letter by letter as the carrier writes it, but for its audio. Read so it costs half of what JSON
costs. Any other spelling is read as JSON; so is whatever comes of neither, with the same result, as a test sees to."""

_USUAL_TRACKS: Final = {b"inbound": Track.INBOUND, b"outbound": Track.OUTBOUND}


def parse_media_message(text: bytes) -> MediaMessage:
    """One text message of the media socket. Raises BadMessage, also for what is not UTF-8."""
    usual = _USUAL_MEDIA.match(text)
    if usual is not None and text.endswith(_USUAL_END):  # nearly every message: 50 a second and call
        track, number = usual.groups()
        try:
            # Base64 has no quotes, so nothing but audio is between the two.
            audio = binascii.a2b_base64(text[usual.end() : -len(_USUAL_END)], strict_mode=True)
        except ValueError:
            audio = b""
        if audio:
            return Media(_USUAL_TRACKS[track], int(number), audio)
    return parse_media_json(text)


def parse_media_json(text: bytes) -> MediaMessage:
    """As `parse_media_message`, of whatever spelling."""
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadMessage(BadMessageKind.JSON) from None
    if not isinstance(message, dict):
        raise BadMessage(BadMessageKind.JSON)
    event = message.get("event")
    match event:
        case "media":
            return _media(message.get("media"))
        case "connected":
            return Connected()
        case "start":
            return _start(message)
        case "dtmf" | "mark":
            return Notice(event)
        case "error":
            code = _object(message.get("payload")).get("code")
            return CarrierError(str(code) if type(code) is int else identifier(code) or "")
        case "stop":
            return Stop()
        case _:
            raise BadMessage(BadMessageKind.EVENT)


def _media(media: Any) -> Media:
    try:
        track = _TRACKS[media["track"]]
        number = _number(media["chunk"])
        payload = media["payload"]
    except (KeyError, TypeError):
        raise BadMessage(BadMessageKind.FIELDS) from None
    if number is None or number > MAX_CHUNK or type(payload) is not str:
        raise BadMessage(BadMessageKind.FIELDS)
    try:
        audio = binascii.a2b_base64(payload, strict_mode=True)
    except ValueError:
        raise BadMessage(BadMessageKind.BASE64) from None
    if not audio:
        raise BadMessage(BadMessageKind.BASE64)
    return Media(track, number, audio)


def _start(message: dict[str, Any]) -> Start:
    start = _object(message.get("start"))
    call_control_id = identifier(start.get("call_control_id"))
    if call_control_id is None:
        raise BadMessage(BadMessageKind.FIELDS)
    return Start(
        stream_id=identifier(message.get("stream_id")),
        call_session_id=identifier(start.get("call_session_id")),
        call_control_id=call_control_id,
        media_format=_media_format(start.get("media_format")),
    )


def _media_format(value: object) -> MediaFormat | None:
    fields = _object(value)
    encoding = fields.get("encoding")
    if not isinstance(encoding, str) or not _ENCODING.fullmatch(encoding):
        return None
    rate = _number(fields.get("sample_rate", DEFAULT_SAMPLE_RATE)) or 0
    return MediaFormat(
        encoding=encoding.upper(),
        sample_rate=rate if rate <= MAX_SAMPLE_RATE else 0,
        channels=_number(fields.get("channels", 1)) or 0,
    )


def _number(value: object) -> int | None:
    """A whole number from 0 that the carrier may write as text. None if it is none, or has more than 18 digits."""
    if type(value) is str:
        return int(value) if len(value) <= MAX_DIGITS and value.isascii() and value.isdigit() else None
    return value if type(value) is int and 0 <= value < 10**MAX_DIGITS else None
