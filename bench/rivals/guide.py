"""The job as the telephony guide computes it: each sample of each frame in Python, on a plain aiokafka loop.

Source: the telephony guide, "Audio Processing Pipeline" and "Distress calculation".
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

from bench.rivals import loop
from bench.rivals.job import Caller
from dispatchai.audio.g711 import TABLES
from dispatchai.audio.loudness import FULL_SCALE

_SAMPLES: Final = TABLES["PCMU"].tolist()


def rms(payload: bytes) -> float:
    """Loudness of a frame of PCMU, 1.0 = full scale."""
    total = 0
    for code in payload:
        sample = _SAMPLES[code]
        total += sample * sample
    return math.sqrt(total / len(payload)) / FULL_SCALE


class Guide:
    """All calls."""

    def __init__(self) -> None:
        self._callers: dict[bytes, Caller] = {}

    def process(self, records: loop.Records) -> loop.Made:
        """The signals and snapshots that the records of a partition make."""
        made = loop.Made()
        for record in records:
            caller = self._callers.get(record.key)
            if caller is None:
                caller = self._callers[record.key] = Caller()
            signals = caller.apply(record.value, rms)
            if signals:
                made.signals += [(record.key, value) for value in signals]
                made.snapshots[record.key] = caller.snapshot()
        return made


if __name__ == "__main__":
    loop.use_uvloop()
    asyncio.run(loop.run(Guide().process))
