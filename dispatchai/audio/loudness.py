"""Voice activity and distress from loudness alone, frame by frame.

The measure of the telephony guide: loudness above its own moving average. It sees the onset of loudness, not its
level: an ordinary first word scores 0.4-1.0, a steady scream decays to calm within 4 s and a whisper scores 0. On
speech of equal level it is at chance (area under the curve .494 on Emo-DB). So it is one weak signal among others:
it may raise a risk a little and never lowers one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dispatchai.audio.g711 import TABLES, decode, samples_in

ALPHA: Final = 0.15
"""Weight of a new frame in the moving average of loudness."""

VOICED_RMS: Final = 0.02
"""A frame is voice from this RMS on (1.0 is full scale; -34 dBFS)."""

GAIN: Final = 8.0
"""Distress per unit of RMS above the moving average."""

DECAY: Final = 0.9
"""What is left of the distress one frame later: half of it after 130 ms."""

FULL_SCALE: Final = 32_768.0
"""Largest magnitude of a 16-bit sample."""

_SQUARES: Final[dict[str, npt.NDArray[np.int64]]] = {
    encoding: table.astype(np.int64) ** 2 for encoding, table in TABLES.items()
}
"""Square of the sample of each code, shape (256,)."""


def frame_rms(encoding: str, payloads: Sequence[bytes]) -> npt.NDArray[np.float64]:
    """RMS of each payload, shape (len(payloads),), 1.0 = full scale; 0 for an empty one.

    Squares are summed as integers, so the result does not depend on which frames are measured together.
    Raises ValueError for an encoding that cannot be decoded.
    """
    lengths = np.array([samples_in(encoding, len(payload)) for payload in payloads], dtype=np.int64)
    if encoding in _SQUARES:
        squares = _SQUARES[encoding][np.frombuffer(b"".join(payloads), dtype=np.uint8)]
    else:
        squares = np.concatenate(
            [np.zeros(0, np.int64), *(decode(encoding, payload).astype(np.int64) ** 2 for payload in payloads)]
        )
    sums = np.zeros(len(payloads), dtype=np.int64)
    filled = lengths > 0
    if filled.any():
        starts = np.cumsum(lengths) - lengths
        sums[filled] = np.add.reduceat(squares, starts[filled])
    means: npt.NDArray[np.float64] = sums / np.maximum(lengths, 1)
    return np.sqrt(means) / FULL_SCALE


@dataclass(frozen=True, slots=True)
class Loudness:
    """The measure after some frame of a stream."""

    ema: float = 0.0
    distress: float = 0.0
    voiced: bool = False
    rms: float = 0.0


def step(before: Loudness, rms: float) -> Loudness:
    """The measure one frame later. `rms` is that frame's, 1.0 = full scale.

    ema = α·rms + (1 − α)·ema, score = min(1, 8·max(0, rms − ema)); the distress is the score or what is left of
    the last distress, whichever is more. Source: the telephony guide, "Distress calculation".
    """
    ema = ALPHA * rms + (1.0 - ALPHA) * before.ema
    score = min(1.0, GAIN * max(0.0, rms - ema))
    return Loudness(ema=ema, distress=max(score, DECAY * before.distress), voiced=rms >= VOICED_RMS, rms=rms)
