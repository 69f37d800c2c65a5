"""The messages of Telnyx's media socket as typed values.

Decides which messages are well formed and why one is dropped. Pure: no clock, no state, no log. `stream_tokens` decides
which socket is genuine; the gateway decides what to do with a message.

Source: Telnyx, media streaming over WebSockets. Unknown fields are ignored; an optional field of a wrong type counts as
absent.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson

from dispatchai.records import Track
from dispatchai.telnyx import json_text
from dispatchai.telnyx.errors import TelnyxError
from dispatchai.telnyx.fields import as_number, as_object, identifier

DEFAULT_SAMPLE_RATE: Final = 8000
"""Samples per second of telephony, where Telnyx names a codec without its rate."""

MAX_SAMPLE_RATE: Final = 1_000_000
"""No real rate is larger; it fits in 32 bits."""

MAX_CHUNK: Final = 1 << 40
"""Largest chunk number that is accepted: 20 ms frames of 700 years. A larger one could overflow a sequence number."""

_ENCODING: Final = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)


class BadMessageKind(StrEnum):
    """Why a media message was dropped."""

    JSON = "json"
    """It is no JSON object."""
    EVENT = "event"
    """Its event is unknown or missing."""
    FIELDS = "fields"
    """A required field is missing or of a wrong type."""
    BASE64 = "base64"
    """Its audio is no base64, or is empty."""
    BINARY = "binary"
    """It came as a binary message; the protocol has text only."""
    ORDER = "order"
    """The protocol does not allow it at this point: media before start, a second start."""


class BadMessage(TelnyxError, ValueError):  # noqa: N818 - it is the message that is bad, the stream goes on
    """A media message that is dropped. The exception holds none of its content."""

    def __init__(self, kind: BadMessageKind) -> None:
        super().__init__(kind.value)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class MediaFormat:
    """The format that Telnyx states. `encoding` is in capitals. A number that makes no sense is 0."""

    encoding: str
    sample_rate: int
    channels: int


@dataclass(frozen=True, slots=True)
class Connected:
    """The socket is open: Telnyx's first message."""


@dataclass(frozen=True, slots=True)
class Start:
    """A stream begins. `stream_id`, `call_session_id` and `media_format` are None where Telnyx gave none."""

    stream_id: str | None
    call_session_id: str | None
    call_control_id: str
    media_format: MediaFormat | None


class Media(NamedTuple):
    """One frame: its RTP payload without headers, and its number in its track, which some senders count from 0.

    A tuple, because one is made 50 times a second and call: a frozen dataclass takes twice as long.
    """

    track: Track
    chunk: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """A message that carries no audio and needs no action: dtmf or mark."""

    event: str


@dataclass(frozen=True, slots=True)
class CarrierError:
    """Telnyx could not use what it was sent. `code` is its number as text, or empty."""

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

_USUAL_MEDIA: Final = re.compile(
    rb'\{"event":"media","sequence_number":"[0-9]{1,18}","stream_id":"[A-Za-z0-9._:~+/=@-]{1,256}",'
    rb'"media":\{"track":"(inbound|outbound)","chunk":"([0-9]{1,12})","timestamp":"[0-9]{1,18}","payload":"'
)
_USUAL_END: Final = b'"}}'
"""A media message exactly as Telnyx writes it, up to its audio, and after it. Matching it costs 2.5 µs, parsing it as
JSON 2.9 µs. Any other spelling is parsed as JSON; a test holds the two ways to the same result."""

_USUAL_TRACKS: Final = {b"inbound": Track.INBOUND, b"outbound": Track.OUTBOUND}


def parse_media_message(text: bytes) -> MediaMessage:
    """One text message of the media socket. Raises BadMessage."""
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
    """As `parse_media_message`, for any spelling."""
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        message = _start_with_broken_text(text)
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
            code = as_object(message.get("payload")).get("code")
            return CarrierError(str(code) if type(code) is int else identifier(code) or "")
        case "stop":
            return Stop()
        case _:
            raise BadMessage(BadMessageKind.EVENT)


def _start_with_broken_text(text: bytes) -> object:
    """A start message whose names or parameters are broken. Any other message that is no JSON is not worth the time."""
    if b'"start"' not in text:
        raise BadMessage(BadMessageKind.JSON)
    try:
        message, _ = json_text.load(text)
    except json_text.NotJsonError:
        raise BadMessage(BadMessageKind.JSON) from None
    return message


def _media(media: Any) -> Media:
    try:
        track = _TRACKS[media["track"]]
        number = as_number(media["chunk"])
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
    start = as_object(message.get("start"))
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
    fields = as_object(value)
    encoding = fields.get("encoding")
    if not isinstance(encoding, str) or not _ENCODING.fullmatch(encoding):
        return None
    rate = as_number(fields.get("sample_rate", DEFAULT_SAMPLE_RATE)) or 0
    return MediaFormat(
        encoding=encoding.upper(),
        sample_rate=rate if rate <= MAX_SAMPLE_RATE else 0,
        channels=as_number(fields.get("channels", 1)) or 0,
    )
