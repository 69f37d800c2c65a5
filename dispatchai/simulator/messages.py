"""The JSON that the simulated carrier sends: webhooks and media messages, as Telnyx writes them. Pure.

Decides names, types and spelling; `call` and `media` decide when something is sent. Sources: Telnyx Voice API v2,
webhooks and media streaming over WebSockets; published payloads of real calls.
"""

from __future__ import annotations

import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from secrets import token_bytes
from typing import Any, Final, Self

import orjson

from dispatchai.simulator.payloads import Voice

CONNECTION_ID: Final = "2963572552562678752"
"""The Call Control application that the called number belongs to."""

USER_ID: Final = "3e6f995f-85f7-4705-9741-53b116d28237"
"""The account's id in media messages."""

CONTROL_ID_BYTES: Final = 54
"""Real control ids are 72 characters of URL-safe base64 after their prefix."""


class MediaTrack(StrEnum):
    """Whose voice a frame carries: the caller's or the platform's."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class HangupSource(StrEnum):
    """Who ended the call. On an incoming leg the platform is the callee."""

    CALLER = "caller"
    CALLEE = "callee"


class HangupCause(StrEnum):
    """Why the call ended: the causes that the simulated carrier can produce."""

    NORMAL_CLEARING = "normal_clearing"
    ORIGINATOR_CANCEL = "originator_cancel"
    CALL_REJECTED = "call_rejected"


SIP_CAUSE: Final = {
    HangupCause.NORMAL_CLEARING: "200",
    HangupCause.ORIGINATOR_CANCEL: "487",
    HangupCause.CALL_REJECTED: "603",
}


@dataclass(frozen=True, slots=True)
class Leg:
    """The ids and numbers of a leg, the same in all its messages."""

    call_control_id: str
    call_leg_id: str
    call_session_id: str
    from_number: str
    to_number: str

    @classmethod
    def new(cls, from_number: str, to_number: str) -> Self:
        return cls(
            call_control_id=f"v3:{urlsafe_b64encode(token_bytes(CONTROL_ID_BYTES)).decode('ascii')}",
            call_leg_id=str(uuid.uuid4()),
            call_session_id=str(uuid.uuid4()),
            from_number=from_number,
            to_number=to_number,
        )


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """One event. Every delivery of it has the same id."""

    id: str
    type: str
    occurred_at: datetime
    payload: dict[str, Any]

    def body(self, attempt: int, url: str) -> bytes:
        """The raw body of delivery attempt `attempt` (from 1) to `url`."""
        return orjson.dumps(
            {
                "data": {
                    "record_type": "event",
                    "event_type": self.type,
                    "id": self.id,
                    "occurred_at": rfc3339(self.occurred_at),
                    "payload": self.payload,
                },
                "meta": {"attempt": attempt, "delivered_to": url},
            }
        )


def rfc3339(moment: datetime) -> str:
    """`moment` as Telnyx writes it: UTC, with microseconds and Z."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class EventWriter:
    """Makes the webhook events of one call. `client_state` is the last command's; every event repeats it."""

    def __init__(self, leg: Leg, voice: Voice, skew_s: float = 0.0) -> None:
        """`skew_s` is how many seconds the carrier's clock is ahead."""
        self._leg = leg
        self._voice = voice
        self._skew = timedelta(seconds=skew_s)
        self.client_state: str | None = None
        self._started = self._now()

    def initiated(self) -> WebhookEvent:
        return self._event(
            "call.initiated",
            **self._numbers(),
            direction="incoming",
            state="parked",
            start_time=rfc3339(self._started),
            caller_id_name=self._leg.from_number,
            calling_party_type="pstn",
            connection_codecs="PCMU,PCMA,G729",
            offered_codecs="PCMU,PCMA",
        )

    def answered(self) -> WebhookEvent:
        return self._event(
            "call.answered",
            **self._numbers(),
            start_time=rfc3339(self._started),
            codec=self._voice.encoding,
            sampling_rate=self._voice.sample_rate,
        )

    def speak_started(self) -> WebhookEvent:
        return self._event("call.speak.started")

    def speak_ended(self, *, completed: bool) -> WebhookEvent:
        return self._event("call.speak.ended", status="completed" if completed else "call_hangup")

    def streaming_started(self, stream_url: str) -> WebhookEvent:
        return self._event("streaming.started", stream_url=stream_url)

    def streaming_stopped(self, stream_url: str) -> WebhookEvent:
        return self._event("streaming.stopped", stream_url=stream_url)

    def streaming_failed(self, stream_id: str, stream_url: str, stream_track: str) -> WebhookEvent:
        return self._event(
            "streaming.failed",
            failure_reason="connection_failed",
            stream_id=stream_id,
            stream_params={"stream_url": stream_url, "track": stream_track},
            stream_type="websocket",
        )

    def hangup(self, cause: HangupCause, source: HangupSource, frames_sent: int) -> WebhookEvent:
        return self._event(
            "call.hangup",
            **self._numbers(),
            start_time=rfc3339(self._started),
            end_time=rfc3339(self._now()),
            hangup_cause=cause,
            hangup_source=source,
            sip_hangup_cause=SIP_CAUSE[cause],
            telnyx_error=None,
            call_quality_stats={
                "inbound": {
                    "mos": "4.50",
                    "jitter_max_variance": "0.00",
                    "jitter_packet_count": "0",
                    "packet_count": str(frames_sent),
                    "skip_packet_count": "0",
                },
                "outbound": {"packet_count": "0", "skip_packet_count": "0"},
            },
        )

    def bridged(self, to_number: str) -> WebhookEvent:
        """The caller was transferred, and `to_number` answered."""
        return self._event("call.bridged", **{"from": self._leg.from_number, "to": to_number})

    def recording_started(self) -> datetime:
        """The time at which a recording begins, by the carrier's clock."""
        return self._now()

    def recording_saved(self, channels: str, container: str, since: datetime) -> WebhookEvent:
        """A recording is ready. Unlike the other events, this one has no call control id."""
        url = f"https://recordings.invalid/{self._leg.call_leg_id}.{container}"
        event = self._event(
            "call.recording.saved",
            channels=channels,
            recording_started_at=rfc3339(since),
            recording_ended_at=rfc3339(self._now()),
            recording_urls={container: url},
            public_recording_urls={},
        )
        del event.payload["call_control_id"]
        return event

    def _now(self) -> datetime:
        return datetime.now(UTC) + self._skew

    def _numbers(self) -> dict[str, str]:
        return {"from": self._leg.from_number, "to": self._leg.to_number}

    def _event(self, kind: str, **extras: Any) -> WebhookEvent:
        return WebhookEvent(
            id=str(uuid.uuid4()),
            type=kind,
            occurred_at=self._now(),
            payload={
                "call_control_id": self._leg.call_control_id,
                "call_leg_id": self._leg.call_leg_id,
                "call_session_id": self._leg.call_session_id,
                "connection_id": CONNECTION_ID,
                "client_state": self.client_state,
                **extras,
            },
        )


class StreamWriter:
    """Makes the messages of one media stream. Chunks count from 1 in each track, sequence numbers over all messages."""

    def __init__(self, leg: Leg, voice: Voice, *, tracks: int) -> None:
        """`tracks` is 1, or 2 if a frame of the platform follows each of the caller's."""
        self.stream_id = str(uuid.uuid4()).upper()
        self._leg = leg
        self._voice = voice
        self._tracks = tracks
        self._media_templates = {track: self._media_template(track) for track in MediaTrack}

    def connected(self, token: str) -> bytes:
        """The first message of a stream. It repeats the token of the handshake, if there is one."""
        message: dict[str, Any] = {"event": "connected", "version": "1.0.0"}
        if token:
            message["connected"] = {"x-telnyx-streaming-auth-token": token}
        return orjson.dumps(message)

    def start(
        self, client_state: str | None, custom_parameters: dict[str, str], *, named_leg: Leg, with_format: bool
    ) -> bytes:
        """The second message, with sequence number 1. `named_leg` is the leg that it names."""
        start: dict[str, Any] = {
            "user_id": USER_ID,
            "call_control_id": named_leg.call_control_id,
            "call_session_id": named_leg.call_session_id,
            "from": named_leg.from_number,
            "to": named_leg.to_number,
            "tags": [],
            "client_state": client_state,
            "custom_parameters": custom_parameters,
        }
        if with_format:
            start["media_format"] = {
                "encoding": self._voice.encoding,
                "sample_rate": self._voice.sample_rate,
                "channels": 1,
            }
        return orjson.dumps({"event": "start", "sequence_number": "1", "stream_id": self.stream_id, "start": start})

    def media(self, track: MediaTrack, chunk: int, payload: bytes) -> bytes:
        """One frame of one track, whose first chunk is 1. `payload` is base64. Telnyx writes numbers as strings."""
        number = 2 + (chunk - 1) * self._tracks + (self._tracks - 1 if track is MediaTrack.OUTBOUND else 0)
        return self._media_templates[track] % (number, chunk, (chunk - 1) * self._voice.frame_ms, payload)

    def stop(self, chunks: int) -> bytes:
        """The last message of a stream with `chunks` chunks in a track."""
        return orjson.dumps(
            {
                "event": "stop",
                "sequence_number": str(chunks * self._tracks + 2),
                "stream_id": self.stream_id,
                "stop": {"user_id": USER_ID, "call_control_id": self._leg.call_control_id},
            }
        )

    def _media_template(self, track: MediaTrack) -> bytes:
        """A message without its numbers and its payload, which are all that differs between 50 messages a second."""
        return (
            b'{"event":"media","sequence_number":"%%d","stream_id":"%b","media":'
            b'{"track":"%b","chunk":"%%d","timestamp":"%%d","payload":"%%b"}}'
        ) % (self.stream_id.encode("ascii"), track.encode("ascii"))
