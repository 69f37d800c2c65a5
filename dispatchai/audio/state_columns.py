"""The signal states of many calls in columns, one row for each call, and their snapshots.

A call whose last stream is live is kept in `voice_columns`, where thousands of frames are applied at once; any other
state is kept as it is. The engine's columnar state assigns the rows and says when snapshots are due. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispatchai.audio.voice_columns import Voices
from dispatchai.records import SignalState, decode_as, encode
from dispatchai.records.column_encoder import encode_columns


class StateColumns:
    """The states of all calls, by row; the `Columns` of the engine's `ColumnarStates`."""

    def __init__(self) -> None:
        self.voices = Voices()
        self._others: dict[int, SignalState] = {}

    def load(self, row: int, value: bytes) -> None:
        """Load the state of a snapshot into `row`. Raises DecodeError."""
        self.set(row, decode_as(SignalState, value))

    def save(self, rows: Sequence[int]) -> list[bytes | None]:
        """The states in `rows` as snapshots; None for an empty row."""
        alike = [row for row in rows if self.voices.is_set(row) and self.voices.has_one_stream(row)]
        made = encode_columns(SignalState.__name__, self.voices.states(alike), len(alike))
        saved: dict[int, bytes] = dict(zip(alike, made, strict=True))
        for row in rows:
            if row not in saved and (state := self.get(row)) is not None:
                saved[row] = encode(state)
        return [saved.get(row) for row in rows]

    def clear(self, row: int) -> None:
        """Clear `row`. No effect on an empty row."""
        self.voices.clear(row)
        self._others.pop(row, None)

    def get(self, row: int) -> SignalState | None:
        """The state in `row`, or None."""
        return self.voices.state(row) if self.voices.is_set(row) else self._others.get(row)

    def set(self, row: int, state: SignalState) -> None:
        """Replace the state in `row`."""
        self._others.pop(row, None)
        if not self.voices.set(row, state):
            self._others[row] = state
