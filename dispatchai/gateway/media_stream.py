"""One media stream becomes records of `audio-frames`: a START, one for each frame as it arrived, an END.

Decides which codecs are taken and what is recorded of a stream. Decodes no audio; of L16 it measures which byte order
it has. Leaves who may open a stream to `sockets`, the form of messages to `wire`, the road to Kafka to `outbox`.

A codec that has memory (G722, AMR-WB, Opus) is refused: decoding it means to carry a decoder's state through every
gap, snapshot and replay, and the call asks the carrier for PCMU. The refusal is recorded as the END of a stream with
its reason, the socket is closed with 1003, and the call goes on without that stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from dispatchai.audio.byte_order import ByteOrderCheck
from dispatchai.audio.g711 import L16_LITTLE
from dispatchai.gateway.metrics import GatewayMetrics
from dispatchai.gateway.reorder_buffer import Arrival, ReorderBuffer
from dispatchai.records import AudioFrame, FrameKind, Micros, Track, encode
from dispatchai.records.frame_encoder import FrameEncoder
from dispatchai.telnyx.media_messages import DEFAULT_SAMPLE_RATE, Media, MediaFormat

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SUPPORTED_ENCODINGS: Final = frozenset({"PCMU", "PCMA", "L16"})
"""Codecs that the program can decode, as the carrier names them. They are recorded as they come."""

SAMPLE_RATES: Final = frozenset({8000, 16_000})
"""Samples per second that the carrier's telephony has, and that all recognisers take."""

G711_FRAME_BYTES: Final = frozenset({80, 160})
"""Length of 10 and 20 ms of G.711. Only where the carrier named no codec does a length decide: 160 bytes could also
be 10 ms of L16. Source: DispatchAI telephony guide, "WebSocket Audio Handler"."""

QUIET_S: Final = 0.5
"""How long a socket is silent until what its stream holds goes out: two retransmissions of TCP, as the carrier's next
message may be on its way. A live stream does not come to this: four later frames settle what one waits for."""

HELD_BESIDE: Final = 12
"""Messages of the other track that a held frame waits for at most: a quarter of a second, as a track that goes on alone
keeps the socket from ever being silent."""

BYTE_ORDER_S: Final = 1.0
"""Audio of an L16 stream that is kept back at most, to find out its byte order; 50 ms of a voice are enough. A stream
without any audio yet keeps its START back, too."""


def refusal_of(media_format: MediaFormat) -> str | None:
    """Why audio of this format is not taken, or None if it is."""
    if media_format.encoding not in SUPPORTED_ENCODINGS:
        return f"codec {media_format.encoding} is not supported; ask for PCMU"
    if media_format.channels != 1:
        return f"{media_format.channels} channels are not supported; ask for 1"
    if media_format.sample_rate not in SAMPLE_RATES:
        return f"a sample rate of {media_format.sample_rate} is not supported; ask for {DEFAULT_SAMPLE_RATE}"
    return None


Emit = Callable[[bytes, Micros, bool], None]
"""Takes an encoded record, the time of its capture, and whether it must not be left out. It must not fail."""

_Released = Sequence[tuple[int, tuple[Micros, bytes]]]
"""Frames of one track in order: number, time of receipt, payload."""


@dataclass(slots=True, eq=False)
class _Numbered:
    """One track: its reorder buffer, and what is added to the carrier's numbers so that they count from 1."""

    buffer: ReorderBuffer[tuple[Micros, bytes]] = field(default_factory=ReorderBuffer)
    shift: int = 0
    empty: bool = True
    beside: int = 0
    """Messages of the other track since this one began to hold frames."""


@dataclass(slots=True, eq=False)
class _Undecided:
    """An L16 stream whose byte order is not known yet, and its frames so far."""

    check: ByteOrderCheck = field(default_factory=ByteOrderCheck)
    frames: list[tuple[Track, int, Micros, bytes]] = field(default_factory=list)


class Stream:
    """The records of one stream: START, frames in order per track, END, each to `emit`.

    START waits for the first frame if the carrier named no codec, and for enough audio to tell the byte order of L16;
    `l16_encoding` is what such a stream is recorded as when the audio does not tell. While `holds`, something waits
    that must go out though nothing follows: the owner calls `release` when the socket has been silent for QUIET_S.
    """

    def __init__(
        self,
        stream_id: str,
        media_format: MediaFormat | None,
        emit: Emit,
        metrics: GatewayMetrics,
        now: Micros,
        *,
        l16_encoding: str = L16_LITTLE,
    ) -> None:
        self._stream_id = stream_id
        self._format = media_format
        self._emit = emit
        self._metrics = metrics
        self._l16_encoding = l16_encoding

        def missed(frames: int) -> None:  # no method: a stream that its buffers refer to waits for the collector
            metrics.frames_missing += frames

        self._tracks = {track: _Numbered(ReorderBuffer(on_gap=missed)) for track in Track}
        self._encoder: FrameEncoder | None = None
        self._undecided: _Undecided | None = None
        self._assumption: str | None = None
        self._began_at = now
        self._ended = False
        self.holds = False
        if media_format is not None:
            self._open(media_format)

    def media(self, message: Media, now: Micros) -> None:
        """One frame, received at `now`. Dropped after the end: a replaced socket may still have read it."""
        if self._ended:
            return
        if self._format is None:
            guess = "PCMU" if len(message.payload) in G711_FRAME_BYTES else "L16"
            self._assume(guess, f"its first frame has {len(message.payload)} bytes", now)
        numbered = self._tracks[message.track]
        if numbered.empty:
            numbered.empty = False
            numbered.shift = 1 if message.chunk == 0 else 0
        buffer = numbered.buffer
        arrival, released = buffer.push(message.chunk + numbered.shift, (now, message.payload))
        if released:
            self._frames(message.track, released)
        if self.holds:
            self._pass_by(message.track)
        if arrival is Arrival.IN_ORDER:
            return
        self._note_holds()
        match arrival:
            case Arrival.REORDERED:
                self._metrics.frames_reordered += 1
            case Arrival.DUPLICATE:
                self._metrics.frames_duplicate += 1
            case Arrival.LATE:
                self._metrics.frames_late += 1

    def _pass_by(self, track: Track) -> None:
        """A message of `track` came: what the other one holds waits for no more than HELD_BESIDE of them."""
        for other, numbered in self._tracks.items():
            if other is track or not numbered.buffer.holds:
                numbered.beside = 0
                continue
            numbered.beside += 1
            if numbered.beside > HELD_BESIDE:
                self._frames(other, numbered.buffer.flush())
                self._note_holds()

    def release(self) -> None:
        """Let out all that waits, giving up what is missing before it."""
        if self._ended:
            return
        for track, numbered in self._tracks.items():
            self._frames(track, numbered.buffer.flush())
        if self._undecided is not None and self._undecided.frames:
            self._settle()
        self._note_holds()

    def end(self, detail: str, now: Micros) -> None:
        """The stream is over, and why. A second call does nothing."""
        if self._ended:
            return
        if self._format is None:
            self._assume("PCMU", "it has no frame", now)
        for track, numbered in self._tracks.items():
            self._frames(track, numbered.buffer.flush())
        self._settle()
        self._ended = True
        self.holds = False
        self._edge(FrameKind.END, self._tracks[Track.INBOUND].buffer.next, detail, now)

    def _assume(self, encoding: str, because: str, now: Micros) -> None:
        self._began_at = now
        self._assumption = f"no media_format: {encoding} assumed, {because}"
        self._open(MediaFormat(encoding, DEFAULT_SAMPLE_RATE, channels=1))

    def _open(self, media_format: MediaFormat) -> None:
        """The codec is known; unless it is L16, so is how it is recorded."""
        self._format = media_format
        if media_format.encoding == "L16" and refusal_of(media_format) is None:
            self._undecided = _Undecided()
        else:
            self._begin(media_format)

    def _begin(self, media_format: MediaFormat) -> None:
        self._format = media_format
        self._encoder = FrameEncoder(self._stream_id, media_format.encoding, media_format.sample_rate)
        self._edge(FrameKind.START, 0, self._assumption, self._began_at)

    def _edge(self, kind: FrameKind, sequence: int, detail: str | None, now: Micros) -> None:
        if self._format is None:
            raise RuntimeError("a stream has no edge before its codec is known")
        record = AudioFrame(
            stream_id=self._stream_id,
            kind=kind,
            track=Track.INBOUND,
            sequence=sequence,
            captured_at=now,
            encoding=self._format.encoding,
            sample_rate=self._format.sample_rate,
            payload=b"",
            detail=detail,
        )
        self._emit(encode(record), now, True)

    def _frames(self, track: Track, frames: _Released) -> None:
        self._metrics.frames += len(frames)
        if self._undecided is None:
            self._write(track, frames)
        else:
            self._keep_back(self._undecided, track, frames)

    def _write(self, track: Track, frames: _Released) -> None:
        if self._encoder is not None:
            for sequence, (captured_at, payload) in frames:
                self._emit(self._encoder.encode(track, sequence, captured_at, payload), captured_at, False)

    def _keep_back(self, undecided: _Undecided, track: Track, frames: _Released) -> None:
        for sequence, (captured_at, payload) in frames:
            undecided.frames.append((track, sequence, captured_at, payload))
            undecided.check.add(payload)
        rate = self._format.sample_rate if self._format else DEFAULT_SAMPLE_RATE
        if undecided.check.verdict is not None or undecided.check.samples >= BYTE_ORDER_S * rate:
            self._settle()
        else:
            self._note_holds()

    def _settle(self) -> None:
        """Decide the byte order of an L16 stream by what is there, and record what was kept back."""
        undecided, self._undecided = self._undecided, None
        if undecided is None or self._format is None:
            return
        encoding = undecided.check.verdict or self._l16_encoding
        if encoding != self._l16_encoding:
            self._metrics.streams_swapped += 1
            swapped = f"byte order: {encoding} by its smoothness, against L16_BYTE_ORDER"
            self._assumption = f"{self._assumption}; {swapped}" if self._assumption else swapped
            log.warning("the audio has the other byte order: set L16_BYTE_ORDER", stream_id=self._stream_id)
        self._begin(MediaFormat(encoding, self._format.sample_rate, self._format.channels))
        for track, sequence, captured_at, payload in undecided.frames:
            self._write(track, [(sequence, (captured_at, payload))])
        self._note_holds()

    def _note_holds(self) -> None:
        kept_back = self._undecided is not None and bool(self._undecided.frames)
        self.holds = kept_back or any(numbered.buffer.holds for numbered in self._tracks.values())
