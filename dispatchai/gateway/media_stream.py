"""One media stream becomes records of `audio-frames`: a START, one record for each frame as it arrived, an END.

Decides which codecs are accepted and what is recorded of a stream. Decodes no audio, but detects the byte order of L16.
`media_sockets` decides who may open a stream, `telnyx.media_messages` reads the messages, `kafka_writer` sends the
records.

A codec with memory (G722, AMR-WB, Opus) is refused: to decode it, a decoder's state would have to be carried through
every gap, snapshot and replay, and the call asks the carrier for PCMU anyway. The refusal and its reason are recorded
as the END of a stream, the socket is closed with 1003, and the call goes on without that stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from dispatchai.audio.byte_order import ByteOrderCheck
from dispatchai.audio.g711 import L16_LITTLE, samples_in
from dispatchai.gateway.metrics import GatewayMetrics
from dispatchai.gateway.reorder_buffer import Arrival, ReorderBuffer
from dispatchai.records import AudioFrame, FrameKind, Micros, Track, encode
from dispatchai.records.frame_encoder import FrameEncoder
from dispatchai.telnyx.media_messages import DEFAULT_SAMPLE_RATE, Media, MediaFormat

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SUPPORTED_ENCODINGS: Final = frozenset({"PCMU", "PCMA", "L16"})
"""Codecs that the program can decode, as the carrier names them. They are recorded as they come."""

SAMPLE_RATES: Final = frozenset({8000, 16_000})
"""Samples per second of the carrier's telephony, which all recognisers accept."""

G711_FRAME_BYTES: Final = frozenset({80, 160})
"""Length of 10 and 20 ms of G.711. A length decides only where the carrier named no codec: 160 bytes could also be
10 ms of L16. Source: DispatchAI telephony guide, "WebSocket Audio Handler"."""

QUIET_S: Final = 0.5
"""How long a socket must be silent before its stream's held frames go out. It covers two retransmissions of TCP, as
the carrier's next message may be on its way. A live stream never gets there: after four later frames, the gap that a
frame waits for is given up."""

OTHER_TRACK_MAX: Final = 12
"""Messages of the other track that a held frame waits for at most: a quarter of a second. A track that continues alone
keeps the socket from ever being silent."""

BYTE_ORDER_S: Final = 1.0
"""The most audio of an L16 stream that is held back to detect its byte order; 50 ms of a voice are enough. The START of
a stream without any audio is held back, too."""


def refusal_of(media_format: MediaFormat) -> str | None:
    """Why audio of this format is refused, or None if it is accepted."""
    if media_format.encoding not in SUPPORTED_ENCODINGS:
        return f"codec {media_format.encoding} is not supported; ask for PCMU"
    if media_format.channels != 1:
        return f"{media_format.channels} channels are not supported; ask for 1"
    if media_format.sample_rate not in SAMPLE_RATES:
        return f"a sample rate of {media_format.sample_rate} is not supported; ask for {DEFAULT_SAMPLE_RATE}"
    return None


Emit = Callable[[bytes, Micros, bool], None]
"""Takes an encoded record, the time of its capture, and whether it must never be dropped. It must not fail."""

_Released = Sequence[tuple[int, tuple[Micros, bytes]]]
"""Frames of one track in order: number, time of receipt, payload."""


@dataclass(slots=True, eq=False)
class _TrackState:
    """One track: its reorder buffer, and what is added to the carrier's numbers so that they count from 1."""

    buffer: ReorderBuffer[tuple[Micros, bytes]] = field(default_factory=ReorderBuffer)
    shift: int = 0
    empty: bool = True
    waited: int = 0
    """Messages of the other track since this one began to hold frames."""


@dataclass(slots=True, eq=False)
class _UndecidedL16:
    """An L16 stream whose byte order is not known yet, and its frames so far."""

    check: ByteOrderCheck = field(default_factory=ByteOrderCheck)
    frames: list[tuple[Track, int, Micros, bytes]] = field(default_factory=list)


class Stream:
    """The records of one stream, each passed to `emit`: START, the frames of each track in order, END.

    START waits for the first frame if the carrier named no codec, and for enough audio to detect the byte order of L16;
    `l16_encoding` is what such a stream is recorded as when its audio does not show the byte order. While `holds` is
    True, something waits that must go out even if nothing follows: the owner calls `release` when the socket has been
    silent for QUIET_S.
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

        def count_missing(frames: int) -> None:  # no method: a cycle would wait for the collector
            metrics.frames_missing += frames

        self._tracks = {track: _TrackState(ReorderBuffer(on_gap=count_missing)) for track in Track}
        self._encoder: FrameEncoder | None = None
        self._undecided: _UndecidedL16 | None = None
        self._assumption: str | None = None
        self._began_at = now
        self._ended = False
        self.holds = False
        if media_format is not None:
            self._open(media_format)

    def seconds_of(self, message: Media) -> float:
        """How long the audio of a message is."""
        if self._format is None or not self._format.sample_rate:
            return 0.0
        return samples_in(self._format.encoding, len(message.payload)) / self._format.sample_rate

    def receive(self, message: Media, now: Micros) -> None:
        """Take one frame, received at `now`. It is dropped after the end: a replaced socket may still have read it."""
        if self._ended:
            return
        if self._format is None:
            guess = "PCMU" if len(message.payload) in G711_FRAME_BYTES else "L16"
            self._assume(guess, f"its first frame has {len(message.payload)} bytes", now)
        state = self._tracks[message.track]
        if state.empty:
            state.empty = False
            state.shift = 1 if message.chunk == 0 else 0
        buffer = state.buffer
        arrival, released = buffer.push(message.chunk + state.shift, (now, message.payload))
        if released:
            self._record(message.track, released)
        if self.holds:
            self._limit_wait(message.track)
        if arrival is Arrival.IN_ORDER:
            return
        self._update_holds()
        match arrival:
            case Arrival.REORDERED:
                self._metrics.frames_reordered += 1
            case Arrival.DUPLICATE:
                self._metrics.frames_duplicate += 1
            case Arrival.LATE:
                self._metrics.frames_late += 1

    def _limit_wait(self, track: Track) -> None:
        """A message of `track` came: frames held in the other track wait for no more than OTHER_TRACK_MAX of them."""
        for other, state in self._tracks.items():
            if other is track or not state.buffer.holds:
                state.waited = 0
                continue
            state.waited += 1
            if state.waited > OTHER_TRACK_MAX:
                self._record(other, state.buffer.flush())
                self._update_holds()

    def release(self) -> None:
        """Record all held frames, and give up the missing ones before them."""
        if self._ended:
            return
        for track, state in self._tracks.items():
            self._record(track, state.buffer.flush())
        if self._undecided is not None and self._undecided.frames:
            self._decide_byte_order()
        self._update_holds()

    def end(self, detail: str, now: Micros) -> None:
        """Record the end of the stream, with its reason `detail`. A second call does nothing."""
        if self._ended:
            return
        if self._format is None:
            self._assume("PCMU", "it has no frame", now)
        for track, state in self._tracks.items():
            self._record(track, state.buffer.flush())
        self._decide_byte_order()
        self._ended = True
        self.holds = False
        self._record_edge(FrameKind.END, self._tracks[Track.INBOUND].buffer.next, detail, now)

    def _assume(self, encoding: str, because: str, now: Micros) -> None:
        self._began_at = now
        self._assumption = f"no media_format: {encoding} assumed, {because}"
        self._open(MediaFormat(encoding, DEFAULT_SAMPLE_RATE, channels=1))

    def _open(self, media_format: MediaFormat) -> None:
        """The codec is known; so is its recorded name, except for L16."""
        self._format = media_format
        if media_format.encoding == "L16" and refusal_of(media_format) is None:
            self._undecided = _UndecidedL16()
        else:
            self._begin(media_format)

    def _begin(self, media_format: MediaFormat) -> None:
        self._format = media_format
        self._encoder = FrameEncoder(self._stream_id, media_format.encoding, media_format.sample_rate)
        self._record_edge(FrameKind.START, 0, self._assumption, self._began_at)

    def _record_edge(self, kind: FrameKind, sequence: int, detail: str | None, now: Micros) -> None:
        if self._format is None:
            raise RuntimeError("a stream has no START or END before its codec is known")
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

    def _record(self, track: Track, frames: _Released) -> None:
        self._metrics.frames += len(frames)
        if self._undecided is None:
            self._write(track, frames)
        else:
            self._hold_back(self._undecided, track, frames)

    def _write(self, track: Track, frames: _Released) -> None:
        if self._encoder is not None:
            for sequence, (captured_at, payload) in frames:
                self._emit(self._encoder.encode(track, sequence, captured_at, payload), captured_at, False)

    def _hold_back(self, undecided: _UndecidedL16, track: Track, frames: _Released) -> None:
        for sequence, (captured_at, payload) in frames:
            undecided.frames.append((track, sequence, captured_at, payload))
            undecided.check.add(payload)
        rate = self._format.sample_rate if self._format else DEFAULT_SAMPLE_RATE
        if undecided.check.verdict is not None or undecided.check.samples >= BYTE_ORDER_S * rate:
            self._decide_byte_order()
        else:
            self._update_holds()

    def _decide_byte_order(self) -> None:
        """Decide the byte order of an L16 stream by the audio so far, and record the frames that were held back."""
        undecided, self._undecided = self._undecided, None
        if undecided is None or self._format is None:
            return
        encoding = undecided.check.verdict or self._l16_encoding
        if encoding != self._l16_encoding:
            self._metrics.streams_swapped += 1
            swapped = f"byte order: {encoding} by its smoothness, against L16_BYTE_ORDER"
            self._assumption = f"{self._assumption}; {swapped}" if self._assumption else swapped
            log.warning("byte_order_swapped", stream_id=self._stream_id, encoding=encoding, setting="L16_BYTE_ORDER")
        self._begin(MediaFormat(encoding, self._format.sample_rate, self._format.channels))
        for track, sequence, captured_at, payload in undecided.frames:
            self._write(track, [(sequence, (captured_at, payload))])
        self._update_holds()

    def _update_holds(self) -> None:
        held_back = self._undecided is not None and bool(self._undecided.frames)
        self.holds = held_back or any(state.buffer.holds for state in self._tracks.values())
