"""The simulated caller's audio: a WAV file as 20 ms frames of µ-law at 8 kHz.

Decides which files can be read and how they are resampled to the telephone's rate. Sources: Microsoft RIFF
specification (WAVE, WAVE_FORMAT_EXTENSIBLE); ITU-T G.711 for the codes; J. O. Smith, "Digital Audio Resampling"
(windowed-sinc interpolation).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, gcd
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dispatchai.audio.g711 import ALAW, MULAW, encode_mulaw
from dispatchai.simulator.errors import SimulatorError

SAMPLE_RATE: Final = 8000
FRAME_MS: Final = 20
FRAME_BYTES: Final = SAMPLE_RATE * FRAME_MS // 1000
"""Bytes of a frame: 160, one for each sample."""

FILE_MAX_BYTES: Final = 256 * 1024 * 1024
"""Larger files are refused. It is 25 minutes of 44.1 kHz stereo 24-bit audio, far more than any call."""

RATES: Final = range(4000, 192_001)

MULAW_SILENCE: Final = b"\xff"

_PCM: Final = 1
_ALAW: Final = 6
_MULAW: Final = 7
_EXTENSIBLE: Final = 0xFFFE

_SIZE_UNKNOWN: Final = frozenset({0, 0xFFFF_FFFF, 0x7FFF_FFFF})
"""Lengths of the data chunk that a program writes to a pipe, where the data reach to the end of the file."""

_ZERO_CROSSINGS: Final = 24
"""Half the length of the interpolation filter, in zero crossings of its sinc; Hann window: -44 dB and falling."""

_CUTOFF: Final = 0.94
"""Pass band as a fraction of half the lower rate: 3.76 kHz on the telephone. The rest is the filter's slope."""


class AudioFileError(SimulatorError):
    """The file cannot be played. The message names it and says why."""


@dataclass(frozen=True, slots=True)
class CallerAudio:
    """A caller's audio. `pcmu` is a whole number of frames of 160 bytes of µ-law at 8 kHz."""

    name: str
    pcmu: bytes

    @property
    def frames(self) -> int:
        return len(self.pcmu) // FRAME_BYTES

    @property
    def seconds(self) -> float:
        return self.frames * FRAME_MS / 1000

    def frame(self, index: int) -> bytes:
        """Frame `index`, from 0."""
        return self.pcmu[index * FRAME_BYTES : (index + 1) * FRAME_BYTES]


@dataclass(frozen=True, slots=True)
class _Format:
    tag: int
    channels: int
    rate: int
    bits: int


def load(path: Path) -> CallerAudio:
    """The audio of a WAV file: PCM of 8, 16, 24 or 32 bits, A-law or µ-law, 4 to 192 kHz, any number of channels.

    Channels are averaged. µ-law mono at 8 kHz is used byte by byte. The last frame is padded with silence.
    Raises AudioFileError.
    """
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise AudioFileError(f"{path} is larger than {FILE_MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise AudioFileError(f"cannot read {path}: {error.strerror}") from error
    try:
        pcmu = _to_pcmu(content)
    except AudioFileError as error:
        raise AudioFileError(f"{path} {error}") from None
    return CallerAudio(path.name, pcmu + MULAW_SILENCE * (-len(pcmu) % FRAME_BYTES))


def _to_pcmu(content: bytes) -> bytes:
    form, data = _parse(content)
    if form == _Format(_MULAW, 1, SAMPLE_RATE, 8):
        return data
    samples = _samples(form, data).reshape(-1, form.channels).mean(axis=1)
    resampled = _resample(samples, form.rate, SAMPLE_RATE)
    return encode_mulaw(np.clip(np.rint(resampled * 32768), -32768, 32767).astype(np.int16))


def _parse(content: bytes) -> tuple[_Format, bytes]:
    if not content:
        raise AudioFileError("is empty")
    if len(content) < 12 or content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise AudioFileError("is not a WAV file")
    form: _Format | None = None
    for name, chunk in _chunks(content):
        match name:
            case b"fmt ":
                form = _format(chunk)
            case b"data":
                if form is None:
                    raise AudioFileError("is a broken WAV file: its data come before their format")
                whole = chunk[: len(chunk) - len(chunk) % (form.channels * form.bits // 8)]
                if not whole:
                    raise AudioFileError("holds no audio")
                return form, whole
    raise AudioFileError("is a broken WAV file: it has no data")


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        at += 8
        if name == b"data" and size in _SIZE_UNKNOWN:
            size = len(content) - at
        yield name, content[at : at + size]
        at += size + size % 2


def _format(chunk: bytes) -> _Format:
    if len(chunk) < 16:
        raise AudioFileError("is a broken WAV file: its format is cut off")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        (tag,) = struct.unpack_from("<H", chunk, 24)  # the first field of the sub-format's GUID
    match tag, bits:
        case (1, 8 | 16 | 24 | 32) | (6 | 7, 8):
            pass
        case _:
            raise AudioFileError(f"is in a format that is not understood (tag {tag}, {bits} bits): save it as PCM WAV")
    if not channels or rate not in RATES:
        raise AudioFileError(f"has {channels} channels at {rate} Hz: it needs at least one channel, at 4 to 192 kHz")
    return _Format(tag, channels, rate, bits)


def _samples(form: _Format, data: bytes) -> npt.NDArray[np.float64]:
    """The samples in -1..1, with interleaved channels."""
    octets = np.frombuffer(data, dtype=np.uint8)
    match form.tag, form.bits:
        case (7, _):
            return MULAW[octets] / 32768.0
        case (6, _):
            return ALAW[octets] / 32768.0
        case (_, 8):  # unsigned, unlike the others
            return (octets.astype(np.float64) - 128) / 128
        case (_, 24):
            wide = np.zeros((len(octets) // 3, 4), dtype=np.uint8)
            wide[:, 1:] = octets.reshape(-1, 3)
            return wide.reshape(-1).view("<i4") / float(1 << 31)
        case (_, bits):
            return np.frombuffer(data, dtype=f"<i{bits // 8}") / float(1 << (bits - 1))


def _resample(samples: npt.NDArray[np.float64], source: int, target: int) -> npt.NDArray[np.float64]:
    """`samples` at `target` Hz: a windowed sinc at the place of each output sample, one filter for each phase."""
    if source == target:
        return samples
    divisor = gcd(source, target)
    up, down = target // divisor, source // divisor
    # In source samples: half the filter's length, and its cutoff as a fraction of half the source's rate.
    cutoff = _CUTOFF * min(1.0, target / source)
    half = ceil(_ZERO_CROSSINGS / cutoff)
    taps = np.arange(-half, half + 1)
    padded = np.concatenate([np.zeros(half), samples, np.zeros(half + 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(taps))
    length = len(samples) * up // down
    output = np.empty(length)
    for phase in range(min(up, length)):
        whole, part = divmod(phase * down, up)
        offset = taps - part / up
        kernel = cutoff * np.sinc(cutoff * offset) * np.cos(np.pi * offset / (2 * (half + 1))) ** 2
        count = len(range(phase, length, up))
        output[phase::up] = windows[whole::down][:count] @ (kernel / kernel.sum())
    return output
