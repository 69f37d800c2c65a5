"""Audio and frames for the tests of speech."""

from __future__ import annotations

import wave
from collections.abc import Iterator

import numpy as np

from dispatchai.audio.g711 import Samples, encode_mulaw
from dispatchai.records.values import AudioFrame, FrameKind, Track
from dispatchai.speech.engines import RECORDINGS

FRAME_MS = 20


def recording(name: str) -> bytes:
    """The shipped recording as PCMU bytes."""
    with wave.open(str(RECORDINGS / f"{name}.wav")) as file:
        return encode_mulaw(np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int16))


def tone(milliseconds: int, seed: int = 0) -> Samples:
    """A loud tone, whose pitch depends on `seed`."""
    time = np.arange(milliseconds * 8) / 8000
    return (8000 * np.sin(2 * np.pi * (200 + 37 * seed) * time)).astype(np.int16)


def quiet(milliseconds: int) -> Samples:
    """Silence."""
    return np.zeros(milliseconds * 8, np.int16)


def pcmu(*parts: Samples) -> bytes:
    """The parts one after another, as PCMU bytes."""
    return encode_mulaw(np.concatenate(parts))


def chunks(audio: bytes, size: int = 160) -> Iterator[bytes]:
    """`audio` in pieces of `size` bytes."""
    return (audio[at : at + size] for at in range(0, len(audio), size))


def record(
    kind: FrameKind,
    sequence: int,
    payload: bytes = b"",
    *,
    stream_id: str = "s1",
    track: Track = Track.INBOUND,
    encoding: str = "PCMU",
) -> AudioFrame:
    """A record of audio-frames."""
    return AudioFrame(stream_id, kind, track, sequence, sequence * 20_000, encoding, 8000, payload, None)


def records(audio: bytes, *, stream_id: str = "s1") -> list[AudioFrame]:
    """A whole stream: START, a FRAME for each 20 ms, END."""
    frames = [record(FrameKind.FRAME, n, part, stream_id=stream_id) for n, part in enumerate(chunks(audio), 1)]
    last = len(frames) + 1
    return [record(FrameKind.START, 0, stream_id=stream_id), *frames, record(FrameKind.END, last, stream_id=stream_id)]
