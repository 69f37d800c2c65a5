"""The call-control commands that the program gives, as values: the action each one names and the body it sends.

Decides the parameter names and nothing else. When a command is given is `callflow`'s matter, how it reaches the
carrier `client`'s. Source: Telnyx Voice API v2, call-control commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

INBOUND_TRACK: Final = "inbound_track"
"""Only the caller's voice: the greeting must not come back as speech."""

PCMU: Final = "PCMU"
"""Asked for on every leg, so that a leg in another codec is transcoded where the carrier can."""

Body = dict[str, str | bool]
"""JSON body of a command."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Take the call. Followed by the event call.answered."""

    action: ClassVar[str] = "answer"

    call_control_id: str
    command_id: str
    send_silence_when_idle: bool = True
    """Keeps RTP towards the caller going where nothing is played."""

    def body(self) -> Body:
        return {"command_id": self.command_id, "send_silence_when_idle": self.send_silence_when_idle}


@dataclass(frozen=True, slots=True)
class StreamingStart:
    """Send the call's audio to the media socket `stream_url`. Followed by streaming.started or streaming.failed."""

    action: ClassVar[str] = "streaming_start"

    call_control_id: str
    command_id: str
    stream_url: str
    stream_auth_token: str = ""
    """Sent by the carrier in the socket's handshake; empty for none. A secret: see `callflow.with_token`."""
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
class Speak:
    """Say `payload` to the caller. Followed by call.speak.started and call.speak.ended."""

    action: ClassVar[str] = "speak"

    call_control_id: str
    command_id: str
    payload: str
    voice: str
    language: str

    def body(self) -> Body:
        return {
            "command_id": self.command_id,
            "payload": self.payload,
            "voice": self.voice,
            "language": self.language,
        }


@dataclass(frozen=True, slots=True)
class Hangup:
    """End the call. Followed by call.hangup."""

    action: ClassVar[str] = "hangup"

    call_control_id: str
    command_id: str

    def body(self) -> Body:
        return {"command_id": self.command_id}


Command = Answer | StreamingStart | Speak | Hangup
