"""Finds the byte order of linear audio from the audio itself: the carrier's documents do not state it, and users saw
both.

In the right order neighbouring samples of a voice are close to each other. In the wrong one the low byte, which is
noise, becomes the high byte. Decides the order of a stream of L16 by this evidence; the caller decides what to assume
without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from dispatchai.audio.g711 import L16_BIG, L16_LITTLE

SMOOTHER: Final = 2.0
"""How many times smaller the mean step must be in one order than in the other. Speech gives 4 (a loud hiss) to 250 (the
noise of a silent line); white noise at full scale gives 1, and no verdict."""

TELLING_STEPS: Final = 400
"""Fewest steps other than 0 for a verdict: 50 ms at 8 kHz. Digital silence has none."""


@dataclass(slots=True)
class ByteOrderCheck:
    """Measures payloads of L16 under both orders: the sum of |x[n] - x[n-1]|."""

    samples: int = 0
    """Samples seen."""
    _telling: int = 0
    _little: int = 0
    _big: int = 0

    def add(self, payload: bytes) -> None:
        """Measure one payload. A last byte that is half a sample does not count."""
        whole = payload[: len(payload) // 2 * 2]
        little = np.diff(np.frombuffer(whole, "<i2").astype(np.int32))
        big = np.diff(np.frombuffer(whole, ">i2").astype(np.int32))
        self.samples += len(whole) // 2
        self._telling += int(np.count_nonzero(little))
        self._little += int(np.abs(little).sum())
        self._big += int(np.abs(big).sum())

    @property
    def verdict(self) -> str | None:
        """The encoding of the audio, L16_LITTLE or L16_BIG; None while the evidence is not enough."""
        if self._telling < TELLING_STEPS:
            return None
        if self._little * SMOOTHER <= self._big:
            return L16_LITTLE
        if self._big * SMOOTHER <= self._little:
            return L16_BIG
        return None
