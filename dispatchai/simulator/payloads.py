"""The caller's audio as a leg carries it: cut into frames, in the leg's codec, as base64.

Decides the bytes of each payload; calls with the same recording share them. `faults` decides the codec of a leg. Of
G.722, AMR-WB and Opus only the lengths are right: the octets are noise, because no encoder is available.
Source of the lengths: RFC 3551, section 4.5 (G722, L16); RFC 4867, table 1 (AMR-WB at 12.65 kbit/s).
"""

from __future__ import annotations

import random
from base64 import b64encode
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from dispatchai.audio.g711 import MULAW, encode_alaw
from dispatchai.simulator.faults import Codec
from dispatchai.simulator.recording import MULAW_SILENCE, SAMPLE_RATE, CallerAudio

VOICES_KEPT: Final = 64
"""Number of recordings whose frames are cached; half a minute of audio takes 0.5 MB."""

BYTES_PER_MS: Final = {Codec.G722: 8.0, Codec.AMR_WB: 33 / 20, Codec.OPUS: 3.0}
"""Data rates of the codecs whose octets are noise. G.722 has 64 kbit/s; AMR-WB has 33 octets for each 20 ms."""

_ENCODING: Final = {Codec.L16_BE: "L16"}
_RATE: Final = {Codec.AMR_WB: 16_000, Codec.OPUS: 16_000}


@dataclass(frozen=True, slots=True)
class Voice:
    """The payloads of a stream. `payloads[n]` is frame n, `silence` is one silent frame; both are base64."""

    encoding: str
    """The codec's name in `media_format`."""
    sample_rate: int
    frame_ms: int
    payloads: tuple[bytes, ...]
    silence: bytes

    @property
    def frames(self) -> int:
        return len(self.payloads)


@lru_cache(maxsize=VOICES_KEPT)
def voice_of(audio: CallerAudio, codec: Codec, frame_ms: int) -> Voice:
    """`audio` in `codec`, cut into frames of `frame_ms`; the last one is padded with silence."""
    size = SAMPLE_RATE * frame_ms // 1000
    pcmu = audio.pcmu + MULAW_SILENCE * (-len(audio.pcmu) % size)
    noise = random.Random(codec)  # noqa: S311 - any octets will do, but the same each time
    frames = [pcmu[at : at + size] for at in range(0, len(pcmu), size)]
    return Voice(
        encoding=_ENCODING.get(codec, codec.value),
        sample_rate=_RATE.get(codec, SAMPLE_RATE),
        frame_ms=frame_ms,
        payloads=tuple(b64encode(_encoded(frame, codec, frame_ms, noise)) for frame in frames),
        silence=b64encode(_encoded(MULAW_SILENCE * size, codec, frame_ms, noise)),
    )


def _encoded(pcmu: bytes, codec: Codec, frame_ms: int, noise: random.Random) -> bytes:
    samples = MULAW[np.frombuffer(pcmu, np.uint8)]
    match codec:
        case Codec.PCMU:
            return pcmu
        case Codec.PCMA:
            return encode_alaw(samples)
        case Codec.L16:
            return samples.astype("<i2").tobytes()
        case Codec.L16_BE:
            return samples.astype(">i2").tobytes()
        case Codec.G722 | Codec.AMR_WB | Codec.OPUS:
            return noise.randbytes(max(1, round(BYTES_PER_MS[codec] * frame_ms)))
