"""The call-control commands that the program sends, as values: the action of each, its body, and how it can end.

Decides only the parameter names. `calls.commands` decides which command is sent when, `client` how it is sent.
Source: Telnyx Voice API v2, call-control commands.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Final

import orjson

INBOUND_TRACK: Final = "inbound_track"
"""Only the caller's voice: the greeting must not be recognised as speech."""

PCMU: Final = "PCMU"
"""Requested for every leg, so that the carrier transcodes a leg in another codec where it can."""

DUAL_CHANNELS: Final = "dual"
"""A recording keeps the two sides apart, so that it stays clear who said what when both talk at once."""

TRANSFER_LEG_STATE: Final = "ZGlzcGF0Y2hhaTp0cmFuc2Zlcg=="
"""Base64 of ``dispatchai:transfer``. Every event of the leg to the human line carries it as client_state: that leg has
the call's session id, and must be distinguished from the caller's leg, which begins and ends with the call."""

Body = dict[str, str | bool]
"""JSON body of a command."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the call. The event call.answered follows."""

    action: ClassVar[str] = "answer"

    call_control_id: str
    command_id: str
    send_silence_when_idle: bool = True
    """Keeps RTP flowing to the caller while nothing is played."""

    def body(self) -> Body:
        return {"command_id": self.command_id, "send_silence_when_idle": self.send_silence_when_idle}


@dataclass(frozen=True, slots=True)
class StreamingStart:
    """Stream the call's audio to the media socket `stream_url`. streaming.started or streaming.failed follows."""

    action: ClassVar[str] = "streaming_start"

    call_control_id: str
    command_id: str
    stream_url: str
    stream_auth_token: str = ""
    """Sent by the carrier in the socket's handshake; empty for none. A secret: see `calls.commands.with_token`."""
    stream_track: str = INBOUND_TRACK
    stream_codec: str = PCMU

    def __repr__(self) -> str:
        """Without the token."""
        return f"StreamingStart(call_control_id={self.call_control_id!r}, command_id={self.command_id!r})"

    def body(self) -> Body:
        body: Body = {
            "command_id": self.command_id,
            "stream_url": self.stream_url,
            "stream_track": self.stream_track,
            "stream_codec": self.stream_codec,
        }
        if self.stream_auth_token:
            body["stream_auth_token"] = self.stream_auth_token
        return body


@dataclass(frozen=True, slots=True)
class RecordStart:
    """Record the call at the carrier. call.recording.saved follows after the call, or call.recording.error."""

    action: ClassVar[str] = "record_start"

    call_control_id: str
    command_id: str
    format: str
    """wav or mp3."""
    channels: str = DUAL_CHANNELS

    def body(self) -> Body:
        return {"command_id": self.command_id, "format": self.format, "channels": self.channels}


@dataclass(frozen=True, slots=True)
class Speak:
    """Say `payload` to the caller. call.speak.started and call.speak.ended follow."""

    action: ClassVar[str] = "speak"

    call_control_id: str
    command_id: str
    payload: str
    voice: str
    language: str

    def __repr__(self) -> str:
        """Without the text: a dispatcher's words must not be logged."""
        return f"Speak(call_control_id={self.call_control_id!r}, command_id={self.command_id!r})"

    def body(self) -> Body:
        return {
            "command_id": self.command_id,
            "payload": self.payload,
            "voice": self.voice,
            "language": self.language,
        }


@dataclass(frozen=True, slots=True)
class Transfer:
    """Connect the caller with `to`, an E.164 number or a SIP address. Events of both legs follow."""

    action: ClassVar[str] = "transfer"

    call_control_id: str
    command_id: str
    to: str
    target_leg_client_state: str = TRANSFER_LEG_STATE

    def body(self) -> Body:
        return {
            "command_id": self.command_id,
            "to": self.to,
            "target_leg_client_state": self.target_leg_client_state,
        }


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the call. call.hangup follows."""

    action: ClassVar[str] = "hangup"

    call_control_id: str
    command_id: str

    def body(self) -> Body:
        return {"command_id": self.command_id}


Command = Answer | StreamingStart | RecordStart | Speak | Transfer | Hangup

COMMANDS: Final[dict[str, type[Command]]] = {
    kind.action: kind for kind in (Answer, StreamingStart, RecordStart, Speak, Transfer, Hangup)
}
"""The commands by their actions."""


def request_of(command: Command) -> str:
    """The body of `command` as JSON, for `command_from`. A StreamingStart must not have its token yet."""
    return orjson.dumps(command.body()).decode()


def command_from(action: str, call_control_id: str, request: str) -> Command | None:
    """The command whose body `request_of` returned, to be sent again; None where there is no such command."""
    kind = COMMANDS.get(action)
    try:
        body = orjson.loads(request)
    except orjson.JSONDecodeError:
        return None
    if kind is None or not isinstance(body, dict):
        return None
    # The fields of a command have the names of its parameters.
    names = {field.name for field in fields(kind)} - {"call_control_id"}
    if not names >= body.keys() or not all(isinstance(value, str | bool) for value in body.values()):
        return None
    try:
        return kind(call_control_id=call_control_id, **body)
    except TypeError:  # a parameter is missing
        return None


@dataclass(frozen=True, slots=True)
class Done:
    """The carrier accepted the command, on this try or on an earlier one."""

    attempts: int


@dataclass(frozen=True, slots=True)
class AlreadyEnded:
    """The call is over: the aim of a hangup, and the failure of every other command."""


@dataclass(frozen=True, slots=True)
class NotAnswered:
    """The command came too early: the call is not answered yet, or its audio has not begun."""


@dataclass(frozen=True, slots=True)
class AlreadyStreaming:
    """The call's audio is streamed already: the aim of a streaming_start."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Refused permanently: the same command would be refused again. `code` and `title` are the carrier's, or empty."""

    status: int
    code: str
    title: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Every try failed, or the carrier asked for a wait beyond the budget. `reason` is that of the last try."""

    attempts: int
    reason: str
    retry_after_s: float | None = None


Outcome = Done | AlreadyEnded | NotAnswered | AlreadyStreaming | Rejected | Unavailable


def achieved(command: Command, outcome: Outcome) -> bool:
    """Whether the aim of `command` is reached, whether or not by this command."""
    match command, outcome:
        case (_, Done()) | (Hangup(), AlreadyEnded()) | (StreamingStart(), AlreadyStreaming()):
            return True
        case _:
            return False
