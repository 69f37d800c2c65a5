"""The job on a bare aiokafka loop with the program's own numpy: all calls of a fetch at once."""

from __future__ import annotations

import asyncio
from itertools import repeat

import numpy as np

from bench.rivals import loop
from dispatchai.audio import signals
from dispatchai.audio.voice_columns import Voices, hear
from dispatchai.records import AudioFrame, Signal, SignalState, decode_as, encode
from dispatchai.records.column_encoder import encode_columns
from dispatchai.records.frame_decoder import decode_frames


class Bare:
    """All calls. Those whose stream goes on are in `Voices`, the others in a dict."""

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
        rows = np.fromiter(map(self._rows.get, keys, repeat(-1)), np.int64, len(keys))
        usual = heard.usual & self._voices.go_on(rows, columns)
        if not usual.all():
            usual &= ~np.isin(rows, rows[~usual])
            for key in {keys[index] for index in np.flatnonzero(~usual)}:
                self._one(key, [decode_as(AudioFrame, record.value) for record in records if record.key == key], made)
            heard = heard.only(usual[heard.record])
        step = self._voices.step(rows[heard.record], heard)
        self._voices.keep(step)
        values = encode_columns(Signal.__name__, step.signals, len(step.signalled))
        made.signals += zip((self._keys[row] for row in step.signalled), values, strict=True)
        signalled = np.unique(step.signalled).tolist()
        snapshots = encode_columns(SignalState.__name__, self._voices.states(signalled), len(signalled))
        made.snapshots.update(zip((self._keys[row] for row in signalled), snapshots, strict=True))
        return made

    def _one(self, key: bytes, frames: list[AudioFrame], made: loop.Made) -> None:
        """Apply the records of a call in which a stream begins or ends."""
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
