"""Voice activity and distress from loudness alone, frame by frame.

The measure of the telephony guide: loudness above its own moving average. It detects the onset of loudness, not its
level: an ordinary first word scores 0.4-1.0, a steady scream decays to calm within 4 s and a whisper scores 0. On
speech of equal level it is no better than chance (area under the curve .494 on Emo-DB). So it is one weak signal among
others: it may raise a risk a little and never lowers one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dispatchai.audio.g711 import TABLES, decode, samples_in, whole_samples

ALPHA: Final = 0.15
"""Weight of a new frame in the moving average of loudness."""

VOICED_RMS: Final = 0.02
"""A frame is voice from this RMS on (1.0 is full scale; -34 dBFS)."""

GAIN: Final = 8.0
"""Distress per unit of RMS above the moving average."""

DECAY: Final = 0.9
"""Part of the distress that is left one frame later: half of it after 130 ms."""

FULL_SCALE: Final = 32_768.0
"""Largest magnitude of a 16-bit sample."""

_SQUARES: Final[dict[str, npt.NDArray[np.int64]]] = {
    encoding: table.astype(np.int64) ** 2 for encoding, table in TABLES.items()
}
"""Square of the sample of each code, shape (256,)."""


def rms_of_rows(encoding: str, payloads: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """RMS of each payload, shape (k,), 1.0 = full scale, of `payloads`, shape (k, bytes); 0 for an empty one.

    A last byte that is half a sample does not count. Squares are summed as integers, so the result does not depend on
    which frames are measured together. Raises CodecError for an encoding that cannot be decoded.
    """
    count, length = payloads.shape
    samples = samples_in(encoding, length)
    if encoding in _SQUARES:
        squares = _SQUARES[encoding][payloads]
    else:
        whole = payloads[:, : len(whole_samples(encoding, bytes(length)))]
        squares = decode(encoding, whole.tobytes()).astype(np.int64).reshape(count, samples) ** 2
    sums: npt.NDArray[np.int64] = squares.sum(axis=1, dtype=np.int64)
    return np.sqrt(sums / max(samples, 1)) / FULL_SCALE


def frame_rms(encoding: str, payloads: Sequence[bytes]) -> npt.NDArray[np.float64]:
    """`rms_of_rows` for payloads of any lengths, shape (len(payloads),)."""
    rms = np.zeros(len(payloads))
    for length in {len(payload) for payload in payloads}:
        indexes = [index for index, payload in enumerate(payloads) if len(payload) == length]
        rows = np.frombuffer(b"".join([payloads[index] for index in indexes]), np.uint8)
        rms[indexes] = rms_of_rows(encoding, rows.reshape(len(indexes), length))
    return rms


@dataclass(frozen=True, slots=True)
class Loudness:
    """The measure after some frame of a stream."""

    ema: float = 0.0
    distress: float = 0.0
    voiced: bool = False
    rms: float = 0.0


def step(before: Loudness, rms: float) -> Loudness:
    """The measure one frame later. `rms` is that frame's, 1.0 = full scale.

    ema = α·rms + (1 − α)·ema, score = min(1, 8·max(0, rms − ema)); the distress is the score or the rest of the last
    distress, whichever is more. Source: the telephony guide, "Distress calculation".
    """
    ema = ALPHA * rms + (1.0 - ALPHA) * before.ema
    score = min(1.0, GAIN * max(0.0, rms - ema))
    return Loudness(ema=ema, distress=max(score, DECAY * before.distress), voiced=rms >= VOICED_RMS, rms=rms)
