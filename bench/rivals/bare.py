"""The job on a bare aiokafka loop with the program's own numpy: all calls of a fetch at once."""

from __future__ import annotations

import asyncio

import numpy as np

from bench.rivals import loop
from dispatchai.audio import signals
from dispatchai.audio.voices import Voices, hear
from dispatchai.records import AudioFrame, SignalState, decode_as, encode, encode_fields
from dispatchai.records.frames import decode_frames


class Bare:
    """All calls. Those whose stream goes on are in `Voices`, the others as they are."""

    def __init__(self) -> None:
        self._voices = Voices()
        self._rows: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._others: dict[bytes, SignalState] = {}

    def process(self, records: loop.Records) -> loop.Made:
        """The signals and snapshots that the records of a partition make."""
        made = loop.Made()
        keys = [record.key for record in records]
        columns = decode_frames([record.value for record in records])
        heard = hear(columns)
        rows = np.array([self._rows.get(key, -1) for key in keys], np.int64)
        usual = heard.usual & self._voices.go_on(rows, columns)
        if not usual.all():
            others = {keys[index] for index in np.flatnonzero(~usual)}
            usual &= np.array([key not in others for key in keys])
            for key in others:
                self._one(key, [decode_as(AudioFrame, record.value) for record in records if record.key == key], made)
            heard = heard.only(usual[heard.record])
        step = self._voices.step(rows[heard.record], heard)
        self._voices.keep(step)
        made.signals += [(self._keys[row], encode(signal)) for row, signal in step.signals]
        signalled = list(dict.fromkeys(row for row, _ in step.signals))
        for row, fields in zip(signalled, self._voices.fields(signalled), strict=True):
            made.snapshots[self._keys[row]] = encode_fields(SignalState.__name__, fields)
        return made

    def _one(self, key: bytes, frames: list[AudioFrame], made: loop.Made) -> None:
        """Apply the records of one call in which a stream begins or ends."""
        row = self._rows.setdefault(key, len(self._keys))
        if row == len(self._keys):
            self._keys.append(key)
        before = self._voices.state(row) if self._voices.is_set(row) else self._others.pop(key, None)
        stepped = signals.step(before, frames)
        if not self._voices.set(row, stepped.state):
            self._others[key] = stepped.state
        made.signals += [(key, encode(signal)) for signal in stepped.signals]
        if stepped.snapshot:
            made.snapshots[key] = encode(stepped.state)


if __name__ == "__main__":
    loop.use_uvloop()
    asyncio.run(loop.run(Bare().process))
