"""The pure step of the signals agent: the media frames of one call in, its voice signals out.

Each frame is applied once, in the order of its sequence number; repeated frames are skipped and missing ones counted.
The signals depend on frame numbers and audio only, never on how many frames arrived together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from dispatchai.audio.g711 import samples_in
from dispatchai.audio.loudness import Loudness, frame_rms
from dispatchai.audio.loudness import step as loudness_step
from dispatchai.records import AudioFrame, FrameKind, Signal, SignalKind, SignalState, StreamSignal, Track
from dispatchai.records.frame_decoder import MISSING_FRAMES_MAX

SIGNAL_EVERY_MS: Final = 1000
"""A signal comes at least this often, in audio time."""

TRANSITION_APART_MS: Final = 200
"""A voice transition is signalled if the last signal was this long ago: at most 5 a second."""

STREAMS_KEPT: Final = 16
"""Streams that a call's state remembers. If it reconnects more often, late frames of the oldest would count again."""

NO_STATE: Final = SignalState(
    streams=(),
    audio_ms=0.0,
    voiced_ms=0.0,
    voiced_frames=0,
    distress_sum=0.0,
    distress_max=0.0,
    missing_frames=0,
    frames=0,
)
"""The state of a call before its first record."""


@dataclass(frozen=True, slots=True)
class SignalStep:
    """The result of a run of frames: the state, the signals, and whether a snapshot is due."""

    state: SignalState
    signals: tuple[Signal, ...]
    snapshot: bool


def step(before: SignalState | None, frames: Sequence[AudioFrame]) -> SignalStep:
    """Apply `frames`, records of one call in the order of their offsets, to its state.

    Only the caller's track counts. A frame that cannot be decoded is missing.
    """
    call = _Call(before or NO_STATE)
    rms = _rms_of(frames)
    for index, frame in enumerate(frames):
        if frame.track is Track.INBOUND:
            call.apply(frame, rms[index])
    return SignalStep(call.state(), tuple(call.signals), call.snapshot)


def _rms_of(frames: Sequence[AudioFrame]) -> list[float | None]:
    """RMS of each frame, None for one without audio; frames of one encoding are measured together."""
    rms: list[float | None] = [None] * len(frames)
    by_encoding: dict[str, list[int]] = {}
    for index, frame in enumerate(frames):
        if frame.kind is FrameKind.FRAME and samples_in(frame.encoding, len(frame.payload)):
            by_encoding.setdefault(frame.encoding, []).append(index)
    for encoding, indexes in by_encoding.items():
        measured = frame_rms(encoding, [frames[index].payload for index in indexes]).tolist()
        for index, value in zip(indexes, measured, strict=True):
            rms[index] = value
    return rms


class _Call:
    """A call's state while a run of frames is applied to it."""

    def __init__(self, before: SignalState) -> None:
        self._before = before
        self._streams = {stream.stream_id: stream for stream in before.streams}
        self._audio_ms = before.audio_ms
        self._voiced_ms = before.voiced_ms
        self._voiced_frames = before.voiced_frames
        self._distress_sum = before.distress_sum
        self._distress_max = before.distress_max
        self._missing = before.missing_frames
        self._frames = before.frames
        self.signals: list[Signal] = []
        self.snapshot = False

    def state(self) -> SignalState:
        """The state after the frames applied so far."""
        return SignalState(
            streams=tuple(self._streams.values())[-STREAMS_KEPT:],
            audio_ms=self._audio_ms,
            voiced_ms=self._voiced_ms,
            voiced_frames=self._voiced_frames,
            distress_sum=self._distress_sum,
            distress_max=self._distress_max,
            missing_frames=self._missing,
            frames=self._frames,
        )

    def apply(self, frame: AudioFrame, rms: float | None) -> None:
        """Apply one record of the caller's track."""
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            stream = self._open(frame)
        match frame.kind:
            case FrameKind.START:
                pass
            case FrameKind.FRAME if stream.ended or frame.sequence < stream.next_sequence:
                pass  # it was read twice after a crash, or stored twice
            case FrameKind.FRAME:
                self._audio(stream, frame, rms)
            case FrameKind.END if not stream.ended:
                self._end(stream, frame)

    def _open(self, frame: AudioFrame) -> StreamSignal:
        stream = StreamSignal(
            stream_id=frame.stream_id,
            next_sequence=1,
            ended=False,
            ema=0.0,
            distress=0.0,
            voiced=False,
            rms=0.0,
            captured_at=frame.captured_at,
            position_samples=0,
            signalled_at_samples=0,
            signalled_voiced=False,
        )
        self._streams[frame.stream_id] = stream
        self._signal(stream, frame, SignalKind.START, sequence=0)
        self.snapshot = True
        return stream

    def _audio(self, stream: StreamSignal, frame: AudioFrame, rms: float | None) -> None:
        self._miss(frame.sequence - stream.next_sequence + (rms is None))
        if rms is None:
            self._streams[stream.stream_id] = replace(stream, next_sequence=frame.sequence + 1)
            return
        samples = samples_in(frame.encoding, len(frame.payload))
        duration_ms = samples * 1000.0 / frame.sample_rate
        loudness = loudness_step(Loudness(stream.ema, stream.distress, stream.voiced, stream.rms), rms)
        self._frames += 1
        self._audio_ms += duration_ms
        if loudness.voiced:
            self._voiced_ms += duration_ms
            self._voiced_frames += 1
            self._distress_sum += loudness.distress
        self._distress_max = max(self._distress_max, loudness.distress)
        position = stream.position_samples + samples
        since_ms = (position - stream.signalled_at_samples) * 1000.0 / frame.sample_rate
        turned = loudness.voiced != stream.signalled_voiced
        signals = since_ms >= SIGNAL_EVERY_MS or (turned and since_ms >= TRANSITION_APART_MS)
        stream = StreamSignal(
            stream_id=stream.stream_id,
            next_sequence=frame.sequence + 1,
            ended=False,
            ema=loudness.ema,
            distress=loudness.distress,
            voiced=loudness.voiced,
            rms=loudness.rms,
            captured_at=frame.captured_at,
            position_samples=position,
            signalled_at_samples=position if signals else stream.signalled_at_samples,
            signalled_voiced=loudness.voiced if signals else stream.signalled_voiced,
        )
        self._streams[stream.stream_id] = stream
        if signals:
            self._signal(stream, frame, SignalKind.UPDATE, sequence=frame.sequence)
            self.snapshot = True

    def _miss(self, frames: int) -> None:
        self._missing = min(self._missing + frames, MISSING_FRAMES_MAX)

    def _end(self, stream: StreamSignal, frame: AudioFrame) -> None:
        if frame.sequence > stream.next_sequence:
            self._miss(frame.sequence - stream.next_sequence)
        stream = replace(stream, ended=True, next_sequence=frame.sequence, captured_at=frame.captured_at)
        self._streams[stream.stream_id] = stream
        self._signal(stream, frame, SignalKind.END, sequence=frame.sequence)
        self.snapshot = True

    def _signal(self, stream: StreamSignal, frame: AudioFrame, kind: SignalKind, *, sequence: int) -> None:
        self.signals.append(
            Signal(
                stream_id=stream.stream_id,
                sequence=sequence,
                captured_at=frame.captured_at,
                kind=kind,
                audio_ms=round(self._audio_ms),
                voiced_ms=round(self._voiced_ms),
                voiced=stream.voiced and kind is not SignalKind.END,
                rms=stream.rms,
                loudness_distress=stream.distress,
                loudness_distress_max=self._distress_max,
                loudness_distress_mean=self._distress_sum / self._voiced_frames if self._voiced_frames else 0.0,
                missing_frames=self._missing,
            )
        )
