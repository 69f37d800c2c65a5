"""One media stream of the simulated carrier: the messages it sends over its socket, and which of them were usable.

Decides how a stream opens and ends, and which of its frames the platform could have heard. `call` decides when each
frame is due. Source: Telnyx, media streaming over WebSockets (the carrier is the client).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from dispatchai.simulator.commands import Stream
from dispatchai.simulator.errors import SimulatorError
from dispatchai.simulator.faults import Faults, TokenFault
from dispatchai.simulator.messages import Leg, MediaTrack, StreamWriter
from dispatchai.simulator.payloads import Voice
from dispatchai.simulator.websocket import NO_STATUS, ClientSocket, HandshakeError

TOKEN_HEADER: Final = "x-telnyx-streaming-auth-token"  # noqa: S105 - the name of a header
WRONG_TOKEN: Final = "not-the-token"  # noqa: S105 - a wrong token, on purpose

CONNECT_S: Final = 5.0

GARBAGE: Final = b'{"event":"media","media":'
"""A message that is cut off."""

NORMAL_CLOSE: Final = 1000


class StreamRefusedError(SimulatorError):
    """The media socket could not be opened. The message says why."""


class StreamEnd(StrEnum):
    """How a stream ended."""

    STOPPED = "stopped"
    """By `stop` and the closing handshake."""
    CLOSED = "closed"
    """By the closing handshake alone."""
    CUT = "cut"
    """By a broken connection (1006), which the carrier broke on purpose."""
    LOST = "lost"
    """The platform closed the socket, or the connection broke."""


@dataclass(frozen=True, slots=True)
class StreamReport:
    """The messages sent in a stream. Chunks are the caller's frames, counted from 1 as in the messages."""

    stream_id: str
    first_frame: int
    """The caller's frame, from 0, that is chunk 1. Frames between two streams are not sent."""
    chunks: int
    """The highest chunk number sent."""
    lost: tuple[int, ...]
    """Chunk numbers up to `chunks` that were never sent, or were broken, or came before `start`: they must be gaps."""
    messages: int
    """Media messages of the caller's voice, including repeated and broken ones."""
    first_due_at: float
    """When chunk 1 was due, in seconds since the epoch by this machine's clock. Chunk n is due n - 1 frames later."""
    frame_s: float
    """Seconds from one frame to the next, on this machine."""
    end: StreamEnd


class MediaStream:
    """An open stream. Its owner ends it with `stop` or `cut`, then asks for its `report`."""

    def __init__(
        self, leg: Leg, wanted: Stream, voice: Voice, faults: Faults, socket: ClientSocket, *, first_frame: int
    ) -> None:
        self.first_frame = first_frame
        self._wanted = wanted
        self._voice = voice
        self._faults = faults
        self._socket = socket
        both = faults.both_tracks or wanted.track == "both_tracks"
        self._sends_inbound = both or wanted.track != "outbound_track"
        self._sends_outbound = both or wanted.track == "outbound_track"
        self._writer = StreamWriter(leg, voice, tracks=2 if both else 1)
        self._started = False
        self._chunks = 0
        self._messages = 0
        self._usable: set[int] = set()
        self._end: StreamEnd | None = None
        self._start_message = b""

    @classmethod
    async def open(
        cls,
        leg: Leg,
        wanted: Stream,
        voice: Voice,
        faults: Faults,
        *,
        client_state: str | None,
        other_leg: Leg,
        first_frame: int,
        lost: Callable[[], None],
    ) -> Self:
        """Open a stream and send `connected` and, unless a fault prevents it, `start`. Raises StreamRefusedError.

        `lost` is called once, when the platform closes the socket or it breaks. `other_leg` is the leg that `start`
        names if the fault is TokenFault.OTHER_CALL.
        """
        token = {TokenFault.ABSENT: "", TokenFault.WRONG: WRONG_TOKEN}.get(faults.token, wanted.token)
        try:
            async with asyncio.timeout(CONNECT_S):
                socket = await ClientSocket.connect(wanted.url, {TOKEN_HEADER: token} if token else {}, lost)
        except TimeoutError:
            raise StreamRefusedError(f"the media socket did not answer within {CONNECT_S:g} s") from None
        except HandshakeError as error:
            raise StreamRefusedError(str(error)) from None
        except (OSError, ssl.SSLError, ValueError) as error:
            raise StreamRefusedError(f"the media socket cannot be reached ({type(error).__name__})") from None
        stream = cls(leg, wanted, voice, faults, socket, first_frame=first_frame)
        socket.send(stream._writer.connected(token))
        stream._start_message = stream._writer.start(
            client_state,
            wanted.custom_parameters,
            named_leg=other_leg if faults.token is TokenFault.OTHER_CALL else leg,
            with_format=not faults.missing_media_format,
        )
        if not faults.early_media:
            stream._start()
        return stream

    @property
    def is_open(self) -> bool:
        """False once the platform has closed the socket, or it broke."""
        return self._socket.is_open

    @property
    def is_ready(self) -> bool:
        """False while the platform reads more slowly than it is sent to."""
        return self._socket.is_ready

    @property
    def was_closed_in_order(self) -> bool:
        """Whether the platform closed the socket with a normal code, or with none."""
        return self._socket.close_code in (NORMAL_CLOSE, NO_STATUS)

    async def ready(self) -> None:
        """Wait until the platform reads again, or the socket has ended."""
        await self._socket.ready()

    def send(self, frame: int, *, damaged: bool = False) -> None:
        """Send the caller's frame `frame`. Does nothing if the stream is lost."""
        chunk = frame - self.first_frame + 1
        if not self._started and chunk > self._faults.early_media:
            self._start()
        if not self._sends_inbound or not self._socket.is_open:
            return
        payload = self._voice.payloads[frame]
        # The character is not in the base64 alphabet; a decoder that is not strict would skip it.
        self._socket.send(self._writer.media(MediaTrack.INBOUND, chunk, b"*" + payload[1:] if damaged else payload))
        self._messages += 1
        self._chunks = max(self._chunks, chunk)
        if self._started and not self._faults.missing_start and not damaged:
            self._usable.add(chunk)

    def send_platform(self, frame: int) -> None:
        """Send the platform's voice during the caller's frame `frame`: silence. Does nothing if it is not streamed."""
        if self._sends_outbound:
            self._socket.send(
                self._writer.media(MediaTrack.OUTBOUND, frame - self.first_frame + 1, self._voice.silence)
            )

    def send_garbage(self) -> None:
        """Send a message that is not JSON."""
        self._socket.send(GARBAGE)

    def send_huge(self, size: int) -> None:
        """Send a mark with a name that makes the message `size` bytes long."""
        head, tail = b'{"event":"mark","mark":{"name":"', b'"}}'
        self._socket.send(head + b"x" * max(0, size - len(head) - len(tail)) + tail)

    async def stop(self, *, send_stop: bool = True) -> None:
        """End the stream: with `stop`, unless `send_stop` is False, and the closing handshake."""
        if self._socket.is_open:
            if send_stop:
                self._socket.send(self._writer.stop(self._chunks))
            self._end = StreamEnd.STOPPED if send_stop else StreamEnd.CLOSED
        await self._socket.close()

    async def cut(self) -> None:
        """Break the connection without a close frame."""
        if self._socket.is_open:
            self._end = StreamEnd.CUT
        await self._socket.cut()

    def report(self, first_due_at: float, frame_s: float) -> StreamReport:
        """The report of a stream that has ended. The call knows when its frames were due."""
        return StreamReport(
            stream_id=self._writer.stream_id,
            first_frame=self.first_frame,
            chunks=self._chunks,
            lost=tuple(chunk for chunk in range(1, self._chunks + 1) if chunk not in self._usable),
            messages=self._messages,
            first_due_at=first_due_at,
            frame_s=frame_s,
            end=self._end or StreamEnd.LOST,
        )

    def _start(self) -> None:
        self._started = True
        if not self._faults.missing_start:
            self._socket.send(self._start_message)
