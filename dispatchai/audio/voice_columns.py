"""The voices of many calls at once: `signals.step` for one frame of each call in a single numpy operation.

`Voices` keeps the live stream of each call in columns, one row for each call. It applies the frames of live streams in
their order and returns their signals, in columns too. Everything else (a stream that begins or ends, a frame that
cannot be decoded, a frame of an earlier stream) goes through `signals.step`, which defines the results: `state` returns
a row in the form that the step takes, `set` puts it back. A test holds the two to the same bits, whatever the order
and the batches. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from dispatchai.audio.g711 import samples_in
from dispatchai.audio.loudness import ALPHA, DECAY, GAIN, VOICED_RMS, rms_of_rows
from dispatchai.audio.signals import SIGNAL_EVERY_MS, TRANSITION_APART_MS
from dispatchai.records import SignalKind, SignalState, StreamSignal
from dispatchai.records.column_encoder import Column, OneItem, Same, Text
from dispatchai.records.frame_decoder import MISSING_FRAMES_MAX, STREAM_BYTES, FrameColumns, stream_key, stream_name

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_INITIAL_ROWS: Final = 64

Fields = tuple[tuple[str, type[np.generic]], ...]

_STREAM_FIELDS: Final[Fields] = (
    ("next_sequence", np.int64),
    ("ema", np.float64),
    ("distress", np.float64),
    ("voiced", np.bool_),
    ("rms", np.float64),
    ("captured_at", np.int64),
    ("position_samples", np.int64),
    ("signalled_at_samples", np.int64),
    ("signalled_voiced", np.bool_),
)
"""The columns of a call's current stream: fields of StreamSignal."""

_CALL_FIELDS: Final[Fields] = (
    ("audio_ms", np.float64),
    ("voiced_ms", np.float64),
    ("voiced_frames", np.int64),
    ("distress_sum", np.float64),
    ("distress_max", np.float64),
    ("missing_frames", np.int64),
    ("frames", np.int64),
)
"""The columns of a call: the figures of SignalState."""

_SIGNAL_FIGURES: Final = (
    "next_sequence",
    "captured_at",
    "audio_ms",
    "voiced_ms",
    "voiced",
    "rms",
    "distress",
    "distress_max",
    "distress_sum",
    "voiced_frames",
    "missing_frames",
)
"""The columns that a signal is made from."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The caller's frames among n records, measured: one entry for each frame, shape (k,).

    `record` is the frame's index among the records, `rms` its loudness (1.0 = full scale), `samples` their number.
    `usual`, shape (n,), says which records only need to be applied: these frames, and those of the other track, which
    do not count.
    """

    usual: Mask
    record: Ints
    sequence: Ints
    captured_at: Ints
    rms: Floats
    samples: Ints
    sample_rate: Ints

    def only(self, chosen: Mask) -> Heard:
        """The `chosen` frames, shape (k,)."""
        return Heard(
            self.usual,
            self.record[chosen],
            self.sequence[chosen],
            self.captured_at[chosen],
            self.rms[chosen],
            self.samples[chosen],
            self.sample_rate[chosen],
        )


@dataclass(frozen=True, slots=True)
class Step:
    """The result of frames: their signals, and the `columns` of the calls in `rows`, shape (c,), after them.

    `signals` has the fields of m signals in the form of `encode_columns`, those of a call in their order, and
    `signalled`, shape (m,), the row of the call of each.
    """

    signalled: Ints
    signals: dict[str, Column]
    rows: Ints
    columns: dict[str, npt.NDArray[Any]]


def hear(columns: FrameColumns) -> Heard:
    """Measure the caller's frames among `columns`, in their order. A frame without a whole sample is not usual."""
    count = len(columns)
    rms = np.zeros(count)
    samples = np.zeros(count, np.int64)
    sample_rate = np.ones(count, np.int64)
    for run in columns.runs:
        length = samples_in(run.encoding, run.payloads.shape[1])
        if length and run.sample_rate > 0:
            rms[run.rows] = rms_of_rows(run.encoding, run.payloads)
            samples[run.rows] = length
            sample_rate[run.rows] = run.sample_rate
    record = np.flatnonzero(columns.inbound & (samples > 0))
    return Heard(
        columns.plain & (~columns.inbound | (samples > 0)),
        record,
        columns.sequence[record],
        columns.captured_at[record],
        rms[record],
        samples[record],
        sample_rate[record],
    )


class Voices:
    """The calls with a live stream, one row for each. The owner assigns the rows: any number from 0 up."""

    def __init__(self) -> None:
        self._size = 0
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self._stream = np.zeros((0, STREAM_BYTES), np.uint8)
        self._live = np.zeros(0, np.bool_)
        self._earlier: dict[int, tuple[StreamSignal, ...]] = {}
        self._grow(_INITIAL_ROWS)

    def set(self, row: int, state: SignalState) -> bool:
        """Load the state of a call into `row`. Returns False, and clears the row, if none of its streams is live."""
        while row >= self._size:
            self._grow(2 * self._size)
        current = state.streams[-1] if state.streams else None
        key = None if current is None or current.ended else stream_key(current.stream_id)
        if current is None or key is None:
            self.clear(row)
            return False
        for name, _ in _STREAM_FIELDS:
            self._columns[name][row] = getattr(current, name)
        for name, _ in _CALL_FIELDS:
            self._columns[name][row] = getattr(state, name)
        self._stream[row] = key
        self._live[row] = True
        self._earlier[row] = state.streams[:-1]
        return True

    def state(self, row: int) -> SignalState:
        """The state of the call in `row`, which must be set."""
        stream_id = stream_name(self._stream[row])
        current = StreamSignal(stream_id=stream_id, ended=False, **self._values(_STREAM_FIELDS, row))
        return SignalState(streams=(*self._earlier[row], current), **self._values(_CALL_FIELDS, row))

    def _values(self, fields: Fields, row: int) -> dict[str, Any]:
        return {name: self._columns[name][row].item() for name, _ in fields}

    def has_one_stream(self, row: int) -> bool:
        """Whether the call in `row`, which must be set, has only its live stream."""
        return not self._earlier[row]

    def states(self, rows: Sequence[int]) -> dict[str, Column]:
        """The states of the calls in `rows`, with one stream each: their fields in the form of `encode_columns`."""
        stream: dict[str, Column] = {name: self._columns[name][rows] for name, _ in _STREAM_FIELDS}
        stream |= {"stream_id": Text(self._stream[rows]), "ended": Same(value=False)}
        call: dict[str, Column] = {name: self._columns[name][rows] for name, _ in _CALL_FIELDS}
        return call | {"streams": OneItem(stream)}

    def clear(self, row: int) -> None:
        """Clear `row`. No effect on an empty row."""
        if row < self._size:
            self._live[row] = False
            self._earlier.pop(row, None)

    def is_set(self, row: int) -> bool:
        """Whether there is a call in `row`."""
        return row < self._size and bool(self._live[row])

    def go_on(self, rows: Ints, columns: FrameColumns) -> Mask:
        """Which frames of `columns` belong to the live stream of the call in their row, shape (n,). -1 is no row."""
        known = (rows >= 0) & (rows < self._size)
        at = np.where(known, rows, 0)
        # Compare eight bytes of the stream ids at a time.
        ours, theirs = self._stream.view(np.uint64)[at], columns.stream.view(np.uint64)
        same: Mask = known & self._live[at] & (ours == theirs).all(axis=1)
        return same

    def step(self, rows: Ints, heard: Heard) -> Step:
        """Apply the frames of `heard` to the calls in `rows`, shape (k,).

        Each frame must belong to the live stream of its call. Changes nothing here; `keep` does.
        """
        order = np.argsort(rows, kind="stable")
        calls, first, counts = np.unique(rows[order], return_index=True, return_counts=True)
        taken = {name: column[calls] for name, column in self._columns.items()}
        signalled = [calls[:0]]
        figures = {name: [taken[name][:0]] for name in _SIGNAL_FIGURES}
        for number in range(int(counts.max(initial=0))):
            # The next frame of each call that has one left.
            here = np.flatnonzero(counts > number)
            made = self._apply(taken, here, order[first[here] + number], heard)
            if len(made):
                signalled.append(calls[made])
                for name, parts in figures.items():
                    parts.append(taken[name][made])
        of_signals = np.concatenate(signalled)
        signals = self._signals(of_signals, {name: np.concatenate(parts) for name, parts in figures.items()})
        return Step(of_signals, signals, calls, taken)

    def keep(self, step: Step) -> None:
        """Store the results of `step`. The calls must not have changed in between."""
        for name, column in step.columns.items():
            self._columns[name][step.rows] = column

    def _apply(self, taken: dict[str, npt.NDArray[Any]], here: Ints, frames: Ints, heard: Heard) -> Ints:
        """Apply one frame to each of the calls `here`. Returns those of them that signal after it.

        The formulas are those of `signals` and `loudness`.
        """
        sequence = heard.sequence[frames]
        new = sequence >= taken["next_sequence"][here]
        if not new.all():
            here, frames, sequence = here[new], frames[new], sequence[new]
        rms, samples, rate = heard.rms[frames], heard.samples[frames], heard.sample_rate[frames]
        duration_ms = samples * 1000.0 / rate
        ema = ALPHA * rms + (1.0 - ALPHA) * taken["ema"][here]
        score = np.minimum(1.0, GAIN * np.maximum(0.0, rms - ema))
        distress = np.maximum(score, DECAY * taken["distress"][here])
        voiced = rms >= VOICED_RMS
        position = taken["position_samples"][here] + samples
        since_ms = (position - taken["signalled_at_samples"][here]) * 1000.0 / rate
        turned = voiced != taken["signalled_voiced"][here]
        signals = (since_ms >= SIGNAL_EVERY_MS) | (turned & (since_ms >= TRANSITION_APART_MS))

        # A version without this bound may have stored more.
        before = np.minimum(taken["missing_frames"][here], MISSING_FRAMES_MAX)
        missing = before + sequence - taken["next_sequence"][here]
        taken["missing_frames"][here] = np.minimum(missing, MISSING_FRAMES_MAX)
        taken["next_sequence"][here] = sequence + 1
        taken["ema"][here] = ema
        taken["distress"][here] = distress
        taken["voiced"][here] = voiced
        taken["rms"][here] = rms
        taken["captured_at"][here] = heard.captured_at[frames]
        taken["position_samples"][here] = position
        taken["frames"][here] += 1
        taken["audio_ms"][here] += duration_ms
        taken["distress_max"][here] = np.maximum(taken["distress_max"][here], distress)
        loud = here[voiced]
        taken["voiced_ms"][loud] += duration_ms[voiced]
        taken["voiced_frames"][loud] += 1
        taken["distress_sum"][loud] += distress[voiced]
        signalled: Ints = here[signals]
        taken["signalled_at_samples"][signalled] = position[signals]
        taken["signalled_voiced"][signalled] = voiced[signals]
        return signalled

    def _signals(self, rows: Ints, values: dict[str, npt.NDArray[Any]]) -> dict[str, Column]:
        """The signals of the calls in `rows`, shape (m,), from their figures `values`."""
        return {
            "stream_id": Text(self._stream[rows]),
            # The last frame applied is the one before the next.
            "sequence": values["next_sequence"] - 1,
            "captured_at": values["captured_at"],
            "kind": Same(SignalKind.UPDATE),
            "audio_ms": np.rint(values["audio_ms"]).astype(np.int64),
            "voiced_ms": np.rint(values["voiced_ms"]).astype(np.int64),
            "voiced": values["voiced"],
            "rms": values["rms"],
            "loudness_distress": values["distress"],
            "loudness_distress_max": values["distress_max"],
            "loudness_distress_mean": values["distress_sum"] / np.maximum(1, values["voiced_frames"]),
            "missing_frames": values["missing_frames"],
        }

    def _grow(self, size: int) -> None:
        """Make room for `size` rows."""
        for name, kind in (*_STREAM_FIELDS, *_CALL_FIELDS):
            column = np.zeros(size, kind)
            if self._size:
                column[: self._size] = self._columns[name]
            self._columns[name] = column
        stream = np.zeros((size, STREAM_BYTES), np.uint8)
        stream[: self._size] = self._stream
        live = np.zeros(size, np.bool_)
        live[: self._size] = self._live
        self._stream, self._live, self._size = stream, live, size
