"""The telephone codecs: payload bytes to linear samples and back, vectorised, by tables that are built once.

Source: ITU-T Recommendation G.711 (11/88), tables 1a/1b (A-law) and 2a/2b (µ-law); samples are scaled to 16 bits
as in ITU-T G.191's `alaw_expand` and `ulaw_expand` (13-bit A-law values × 8, 14-bit µ-law values × 4).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from dispatchai.audio.errors import CodecError

Samples = npt.NDArray[np.int16]
"""Linear samples, shape (n,), full scale ±32768."""

L16_LITTLE: Final = "L16"
"""Linear samples of 16 bits, little-endian: the carrier sends such audio under this name."""

L16_BIG: Final = "L16BE"
"""The same, big-endian, as in RFC 3551's L16. The gateway records this name for such a stream."""

DECODABLE: Final = frozenset({"PCMU", "PCMA", L16_LITTLE, L16_BIG})
"""The recorded encodings that `decode` knows."""

_SAMPLE_BYTES: Final = {"PCMU": 1, "PCMA": 1, L16_LITTLE: 2, L16_BIG: 2}

_MULAW_BIAS: Final = 33
"""Added to the magnitude before the µ-law segments are cut, in G.711's 14-bit scale."""

_MULAW_LARGEST: Final = 0x1FFF
"""Largest biased magnitude that µ-law can carry, in G.711's 14-bit scale."""


def _mulaw_table() -> Samples:
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = (((((code & 0x0F) << 1) + _MULAW_BIAS) << ((code >> 4) & 0x07)) - _MULAW_BIAS) << 2
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _alaw_table() -> Samples:
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment = (code >> 4) & 0x07
    mantissa = ((code & 0x0F) << 4) + 8
    magnitude = np.where(segment == 0, mantissa, (mantissa + 0x100) << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


MULAW: Final[Samples] = _mulaw_table()
"""Linear value of each µ-law code, shape (256,)."""

ALAW: Final[Samples] = _alaw_table()
"""Linear value of each A-law code, shape (256,)."""

TABLES: Final[dict[str, Samples]] = {"PCMU": MULAW, "PCMA": ALAW}
"""The table of each one-byte encoding."""


def decode(encoding: str, payload: bytes) -> Samples:
    """Linear samples of `payload`. Raises CodecError for an encoding outside `DECODABLE` or a part of a sample."""
    match encoding:
        case "PCMU" | "PCMA":
            return TABLES[encoding][np.frombuffer(payload, dtype=np.uint8)]
        case "L16" | "L16BE":
            if len(payload) % 2:
                raise CodecError(f"an L16 payload of {len(payload)} bytes ends within a sample")
            order = "<i2" if encoding == L16_LITTLE else ">i2"
            return np.frombuffer(payload, dtype=order).astype(np.int16, copy=False)
        case _:
            raise CodecError(f"cannot decode {encoding!r}: known are {', '.join(sorted(DECODABLE))}")


def samples_in(encoding: str, payload_length: int) -> int:
    """How many whole samples `payload_length` bytes of `encoding` hold; 0 for an encoding that cannot be decoded."""
    size = _SAMPLE_BYTES.get(encoding)
    return payload_length // size if size else 0


def whole_samples(encoding: str, payload: bytes) -> bytes:
    """`payload` without a last byte that is half a sample; the next payload begins with a whole sample again."""
    size = _SAMPLE_BYTES.get(encoding, 1)
    rest = len(payload) % size
    return payload[:-rest] if rest else payload


def _magnitude(linear: npt.NDArray[np.int32], shift: int) -> npt.NDArray[np.int32]:
    """|linear| without the `shift` bits that the code drops; for a negative value in ones' complement, as in G.191."""
    return np.where(linear < 0, ~linear, linear) >> shift


def encode_mulaw(samples: Samples) -> bytes:
    """µ-law bytes of `samples`, one for each; magnitudes beyond the code's range are clipped."""
    linear = samples.astype(np.int32)
    magnitude = np.minimum(_magnitude(linear, 2) + _MULAW_BIAS, _MULAW_LARGEST)
    segment = np.log2(magnitude).astype(np.int32) - 5
    code = (segment << 4) | ((magnitude >> (segment + 1)) & 0x0F)
    coded: npt.NDArray[np.uint8] = (~(code | np.where(linear < 0, 0x80, 0)) & 0xFF).astype(np.uint8)
    return coded.tobytes()


def encode_alaw(samples: Samples) -> bytes:
    """A-law bytes of `samples`, one for each."""
    linear = samples.astype(np.int32)
    magnitude = _magnitude(linear, 4)
    segment = np.maximum(np.log2(np.maximum(magnitude, 1)).astype(np.int32) - 3, 0)
    mantissa = (magnitude >> np.maximum(segment - 1, 0)) & 0x0F
    coded: npt.NDArray[np.uint8] = (((segment << 4) | mantissa | np.where(linear < 0, 0, 0x80)) ^ 0x55).astype(np.uint8)
    return coded.tobytes()
