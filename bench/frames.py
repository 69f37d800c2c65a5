"""Calls as records of `audio-frames`, made by the hundred thousand from the shipped recordings.

The frames of two calls differ only in stream, sequence and time, so the rest is encoded once. The records are byte for
byte those of the gateway; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Final

from dispatchai.records import AudioFrame, FrameKind, Track, encode
from dispatchai.records.avro_primitives import encode_long
from dispatchai.simulator import load
from dispatchai.speech.engines import RECORDINGS
from tests.support.callers import CALLERS

FRAMES_PER_S: Final = 50
FRAME_S: Final = 1 / FRAMES_PER_S
FRAME_BYTES: Final = 160
"""20 ms of PCMU at 8 kHz."""

_SEQUENCES_KEPT: Final = FRAMES_PER_S * 600
"""Frame numbers whose encoding is kept: those of a call of ten minutes."""


@cache
def _sequences() -> tuple[bytes, ...]:
    return tuple(encode_long(number) for number in range(_SEQUENCES_KEPT))


def _frame(stream_id: str, kind: FrameKind, sequence: int, captured_at: int, payload: bytes = b"") -> AudioFrame:
    return AudioFrame(stream_id, kind, Track.INBOUND, sequence, captured_at, "PCMU", 8000, payload, None)


def _cut(stream_id: str, payload: bytes) -> tuple[bytes, bytes]:
    """The parts of a frame's record before its sequence and behind its time."""
    zero, one = (encode(_frame(stream_id, FrameKind.FRAME, sequence, 0, payload)) for sequence in (0, 1))
    at = next(index for index, (left, right) in enumerate(zip(zero, one, strict=True)) if left != right)
    return zero[:at], zero[at + len(encode_long(0)) * 2 :]


@cache
def _recordings() -> tuple[tuple[bytes, ...], ...]:
    """For each recording, the part behind the time in the record of each of its frames."""
    audios = [load(RECORDINGS / name).pcmu for name in CALLERS]
    return tuple(
        tuple(
            _cut("", audio[start : start + FRAME_BYTES])[1]
            for start in range(0, len(audio) - FRAME_BYTES + 1, FRAME_BYTES)
        )
        for audio in audios
    )


@dataclass(slots=True)
class Call:
    """A call whose frames are made one after the other. At its end the recording begins again.

    `number` chooses the recording and where it begins, so that the calls differ.
    """

    call_id: str
    number: int
    sequence: int = field(default=0, init=False)
    """Number of the last frame that was made."""
    stream_id: str = field(init=False)
    _head: bytes = field(init=False)
    _tails: tuple[bytes, ...] = field(init=False)
    _at: int = field(init=False)

    def __post_init__(self) -> None:
        self.stream_id = f"stream-{self.call_id}"
        self._head = _cut(self.stream_id, b"")[0]
        recordings = _recordings()
        self._tails = recordings[self.number % len(recordings)]
        self._at = self.number * 7919 % len(self._tails)

    def start(self, captured_at: int) -> bytes:
        """The record that opens the stream. `captured_at` in microseconds since the epoch."""
        return encode(_frame(self.stream_id, FrameKind.START, 0, captured_at))

    def frame(self, time: bytes) -> bytes:
        """The record of the next frame. `time` is `encode_long` of its microseconds since the epoch."""
        self.sequence += 1
        self._at += 1
        if self._at >= len(self._tails):
            self._at = 0
        number = _sequences()[self.sequence] if self.sequence < _SEQUENCES_KEPT else encode_long(self.sequence)
        return b"".join((self._head, number, time, self._tails[self._at]))

    def end(self, captured_at: int) -> bytes:
        """The record that closes the stream."""
        return encode(_frame(self.stream_id, FrameKind.END, self.sequence + 1, captured_at))
