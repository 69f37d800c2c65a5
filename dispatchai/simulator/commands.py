"""The carrier's side of call control: checks a request's body as Telnyx does, and has Telnyx's errors. Pure.

Decides which parameters exist and which values they accept. The call decides whether its state allows a command.
Sources: Telnyx Voice API v2, call-control commands and error codes.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

TOKEN_MAX_CHARS: Final = 4000
SPEAK_MAX_CHARS: Final = 3000
COMMAND_ID_MAX_CHARS: Final = 64
URL_MAX_CHARS: Final = 2000


@dataclass(frozen=True, slots=True)
class ApiError:
    """An error reply: its HTTP status, and the one entry of its `errors`."""

    status: int
    code: str
    title: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        return orjson.dumps({"errors": [{"code": self.code, "title": self.title, "detail": self.detail}]})


AUTHENTICATION_FAILED: Final = ApiError(
    401, "10009", "Authentication failed", "The API key is missing or is not the key of this account."
)
NOT_FOUND: Final = ApiError(404, "10005", "Resource not found", "There is no such call.")
CALL_ENDED: Final = ApiError(
    422, "90018", "Call has already ended", "This call is no longer active and can't receive commands."
)
NOT_ANSWERED: Final = ApiError(
    422, "90034", "Call has not been answered yet", "This command can only be issued on an answered call."
)
STREAMING_IN_USE: Final = ApiError(
    422, "90045", "Streaming is already in use", "The call's audio is already being streamed."
)
STREAMING_NOT_IN_USE: Final = ApiError(422, "90048", "Streaming is not in use", "There is no stream to stop.")
SERVER_ERROR: Final = ApiError(
    500, "10007", "Unexpected error", "A fault of the simulated carrier makes this command fail."
)
RATE_LIMIT_RESET_S: Final = 1
RATE_LIMITED: Final = ApiError(
    429,
    "10011",
    "Too many requests",
    "You have exceeded the maximum number of allowed requests.",
    {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "0", "x-ratelimit-reset": str(RATE_LIMIT_RESET_S)},
)
ALREADY_ANSWERED: Final = ApiError(422, "10015", "Bad Request", "The call has already been answered.")


@dataclass(frozen=True, slots=True)
class Stream:
    """A requested stream."""

    url: str
    track: str
    token: str
    custom_parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    command_id: str | None
    client_state: str | None
    stream: Stream | None


@dataclass(frozen=True, slots=True)
class StreamRequest:
    command_id: str | None
    client_state: str | None
    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamStopRequest:
    command_id: str | None
    client_state: str | None


@dataclass(frozen=True, slots=True)
class SpeakRequest:
    command_id: str | None
    client_state: str | None
    payload: str


@dataclass(frozen=True, slots=True)
class PlaybackStopRequest:
    command_id: str | None
    client_state: str | None
    stop_all: bool
    """Drops the queued texts as well, not only the one being spoken."""


@dataclass(frozen=True, slots=True)
class RecordStartRequest:
    command_id: str | None
    client_state: str | None
    channels: str
    container: str


@dataclass(frozen=True, slots=True)
class RecordStopRequest:
    command_id: str | None
    client_state: str | None


@dataclass(frozen=True, slots=True)
class TransferRequest:
    command_id: str | None
    client_state: str | None
    to_number: str


@dataclass(frozen=True, slots=True)
class HangupRequest:
    command_id: str | None
    client_state: str | None


Request = (
    AnswerRequest
    | StreamRequest
    | StreamStopRequest
    | SpeakRequest
    | PlaybackStopRequest
    | RecordStartRequest
    | RecordStopRequest
    | TransferRequest
    | HangupRequest
)

_Check = Callable[[Any], bool]


def _text(longest: int, shortest: int = 0) -> _Check:
    return lambda value: isinstance(value, str) and shortest <= len(value) <= longest


def _one_of(*values: str | int) -> _Check:
    return lambda value: value in values


def _base64(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _socket_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("ws://", "wss://")) and len(value) <= URL_MAX_CHARS


def _named_values(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict)
        and item.keys() == {"name", "value"}
        and all(isinstance(text, str) for text in item.values())
        for item in value
    )


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_CODECS: Final = ("PCMU", "PCMA", "G722", "OPUS", "AMR-WB", "L16")
_COMMON: Final[Mapping[str, _Check]] = {"client_state": _base64, "command_id": _text(COMMAND_ID_MAX_CHARS, 1)}
_STREAM: Final[Mapping[str, _Check]] = {
    "stream_url": _socket_url,
    "stream_track": _one_of("inbound_track", "outbound_track", "both_tracks"),
    "stream_codec": _one_of(*_CODECS, "default"),
    "stream_bidirectional_mode": _one_of("mp3", "rtp"),
    "stream_bidirectional_codec": _one_of(*_CODECS),
    "stream_bidirectional_target_legs": _one_of("both", "self", "opposite"),
}
_PARAMETERS: Final[Mapping[str, Mapping[str, _Check]]] = {
    "answer": {
        **_COMMON,
        **_STREAM,
        "send_silence_when_idle": _flag,
        "preferred_codecs": _text(200),
        "record": _one_of("record-from-answer"),
        "record_channels": _one_of("single", "dual"),
        "record_format": _one_of("wav", "mp3"),
        "record_track": _one_of("both", "inbound", "outbound"),
        "record_max_length": _whole_number,
        "record_timeout_secs": _whole_number,
        "record_trim": _one_of("trim-silence"),
        "record_custom_file_name": _text(200),
        "transcription": _flag,
        "transcription_config": _object,
        "webhook_url": _text(URL_MAX_CHARS),
        "webhook_url_method": _one_of("POST", "GET"),
        "webhook_urls": _object,
        "webhook_urls_method": _one_of("POST", "GET"),
        "webhook_retries_policies": _object,
        "custom_headers": _named_values,
        "sip_headers": _named_values,
        "billing_group_id": _text(64),
    },
    "streaming_start": {
        **_COMMON,
        **_STREAM,
        "stream_bidirectional_sampling_rate": _one_of(8000, 16000, 22050, 24000, 48000),
        "stream_auth_token": _text(TOKEN_MAX_CHARS),
        "custom_parameters": _named_values,
        "enable_dialogflow": _flag,
        "dialogflow_config": _object,
    },
    "streaming_stop": {**_COMMON, "stream_id": _text(64)},
    "speak": {
        **_COMMON,
        "payload": _text(SPEAK_MAX_CHARS, 1),
        "voice": _text(200, 1),
        "payload_type": _one_of("text", "ssml"),
        "language": _text(20, 1),
        "service_level": _one_of("basic", "premium"),
        "voice_settings": _object,
        "loop": lambda value: _whole_number(value) or value == "infinity",
        "stop": _one_of("current", "all"),
        "target_legs": _one_of("both", "self", "opposite"),
    },
    "playback_stop": {**_COMMON, "overlay": _flag, "stop": _one_of("current", "all")},
    "record_start": {
        **_COMMON,
        "channels": _one_of("single", "dual"),
        "format": _one_of("wav", "mp3"),
        "custom_file_name": _text(200),
        "max_length": _whole_number,
        "play_beep": _flag,
        "recording_track": _one_of("both", "inbound", "outbound"),
        "timeout_secs": _whole_number,
        "transcription": _flag,
        "transcription_engine": _text(40),
        "transcription_language": _text(20),
        "trim": _one_of("trim-silence"),
    },
    "record_stop": {**_COMMON, "recording_id": _text(64)},
    "transfer": {
        **_COMMON,
        "to": _text(256, 1),
        "from": _text(256, 1),
        "from_display_name": _text(128),
        "audio_url": _text(URL_MAX_CHARS),
        "early_media": _flag,
        "custom_headers": _named_values,
        "sip_headers": _named_values,
        "target_leg_client_state": _base64,
        "timeout_secs": _whole_number,
        "time_limit_secs": _whole_number,
        "park_after_unbridge": _one_of("self"),
        "mute_dtmf": _one_of("none", "both", "self", "opposite"),
        "preferred_codecs": _text(200),
        "answering_machine_detection": _text(40),
        "webhook_url": _text(URL_MAX_CHARS),
        "webhook_url_method": _one_of("POST", "GET"),
    },
    "hangup": {**_COMMON, "custom_headers": _named_values, "reason": _text(200)},
}
"""The supported actions, each with its parameters and the checks of their values."""

_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "streaming_start": ("stream_url",),
    "speak": ("payload", "voice"),
    "record_start": ("channels", "format"),
    "transfer": ("to",),
}

_CODE_OF: Final[Mapping[str, str]] = {
    "client_state": "90017",
    "voice": "90012",
    "language": "90013",
    "payload": "90010",
}
"""Parameters whose invalid values have an error code of their own; the others have 10015."""


def parse(action: str, content: bytes) -> Request | ApiError:
    """The request for `action` with the body `content`, or the carrier's error."""
    allowed = _PARAMETERS.get(action)
    if allowed is None:
        return ApiError(404, "10005", "Resource not found", f"The simulated carrier has no action {action[:40]!r}.")
    try:
        body: Any = orjson.loads(content or b"{}")
    except orjson.JSONDecodeError:
        return ApiError(400, "10015", "Bad Request", "The body is not JSON.")
    if not isinstance(body, dict):
        return ApiError(422, "10015", "Bad Request", "The body is not an object.")
    for name in _REQUIRED.get(action, ()):
        if body.get(name) is None:
            return ApiError(422, "10004", "Missing required parameter", f"{name} is missing.")
    for name, value in body.items():
        check = allowed.get(name)
        if check is None:
            return ApiError(422, "10015", "Bad Request", f"{action} has no parameter {name[:40]!r}.")
        if value is not None and not check(value):
            return ApiError(422, _CODE_OF.get(name, "10015"), "Bad Request", f"The value of {name} is not valid.")
    return _request(action, body)


def _request(action: str, body: dict[str, Any]) -> Request:
    command_id, client_state = body.get("command_id"), body.get("client_state")
    match action:
        case "answer":
            return AnswerRequest(command_id, client_state, _stream(body) if body.get("stream_url") else None)
        case "streaming_start":
            return StreamRequest(command_id, client_state, _stream(body))
        case "streaming_stop":
            return StreamStopRequest(command_id, client_state)
        case "speak":
            return SpeakRequest(command_id, client_state, body["payload"])
        case "playback_stop":
            return PlaybackStopRequest(command_id, client_state, stop_all=body.get("stop") == "all")
        case "record_start":
            return RecordStartRequest(command_id, client_state, body["channels"], body["format"])
        case "record_stop":
            return RecordStopRequest(command_id, client_state)
        case "transfer":
            return TransferRequest(command_id, client_state, body["to"])
        case _:
            return HangupRequest(command_id, client_state)


def _stream(body: dict[str, Any]) -> Stream:
    return Stream(
        url=body["stream_url"],
        track=body.get("stream_track") or "inbound_track",
        token=body.get("stream_auth_token") or "",
        custom_parameters={item["name"]: item["value"] for item in body.get("custom_parameters") or ()},
    )
