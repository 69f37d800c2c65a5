"""Audio records of many calls, sorted into the input of each call's session.

Frames of live streams, which are nearly all records, are read as columns and handed on in runs: one `FrameRun` for
frames of one stream that follow each other and agree in codec and length. Pure: the caller decodes the other records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from dispatchai.records import AudioFrame, Track
from dispatchai.records.frame_decoder import decode_frames
from dispatchai.speech.session import FrameRun


class AudioRecord(Protocol):
    """A record of `audio-frames`, as far as speech needs it."""

    offset: int
    timestamp: int
    """Milliseconds since the epoch."""
    key: bytes | None
    value: bytes | None


KEY_MAX_BYTES = 1_024
"""Longest key of a record that a run takes; `engine.agent` dead-letters a longer one."""

R = TypeVar("R", bound=AudioRecord)


@dataclass(frozen=True, slots=True)
class Input:
    """The next input of a call's session, and the offset of its first record."""

    heard: AudioFrame | FrameRun
    offset: int

    @property
    def sequences(self) -> Sequence[int]:
        """The frame numbers in it; at least one."""
        return self.heard.sequences if isinstance(self.heard, FrameRun) else (self.heard.sequence,)


@dataclass(frozen=True, slots=True)
class CallInputs(Generic[R]):
    """The records of one call, and what its session is to hear of them, each in order."""

    records: list[R] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _OpenRun:
    """A run that the next frame of its call may extend. `layout` is the frames' `PayloadRun`, by its number."""

    layout: int
    stream_id: str
    sequences: list[int]
    payloads: list[bytes]


class FrameBatch(Generic[R]):
    """Audio records that were read together."""

    def __init__(self, records: Sequence[R]) -> None:
        """Read what can be read as columns. Never raises."""
        self._records = records
        self._columns = columns = decode_frames([record.value or b"" for record in records])
        layouts = np.full(len(columns), -1, np.int64)
        for number, run in enumerate(columns.runs):
            layouts[run.rows] = number
        self._layouts: list[int] = layouts.tolist()
        # The texts of keys and stream ids, of which there are few among the records of a fetch.
        keys = {
            key: key is not None and len(key) <= KEY_MAX_BYTES and bool(_text(key))
            for key in {record.key for record in records}
        }
        stream_ids = columns.stream.view(f"S{columns.stream.shape[1]}")[:, 0].tolist()
        texts = {stream_id: _text(stream_id) for stream_id in set(stream_ids)}
        self._stream_ids = [
            texts[stream_id] if layout >= 0 and keys[record.key] else None
            for record, layout, stream_id in zip(records, self._layouts, stream_ids, strict=True)
        ]
        """The stream of each record that a run takes; None for the others."""

    @property
    def others(self) -> list[R]:
        """The records that no run takes, such as START and END. Each must be decoded by itself."""
        return [record for record, stream_id in zip(self._records, self._stream_ids, strict=True) if stream_id is None]

    def by_call(self, decoded: Iterable[tuple[R, AudioFrame]]) -> dict[bytes, CallInputs[R]]:
        """The inputs of each call, by its key. `decoded` are those of `others` that hold a frame; they have a key."""
        frames = {record.offset: frame for record, frame in decoded}
        inbound, sequences = self._columns.inbound.tolist(), self._columns.sequence.tolist()
        runs = self._columns.runs
        calls: defaultdict[bytes, CallInputs[R]] = defaultdict(CallInputs)
        open_runs: dict[bytes, _OpenRun] = {}
        for row, (record, layout, stream_id) in enumerate(
            zip(self._records, self._layouts, self._stream_ids, strict=True)
        ):
            key = record.key or b""
            if stream_id is None:
                if (frame := frames.get(record.offset)) is not None:
                    call = calls[key]
                    call.records.append(record)
                    call.inputs.append(Input(frame, record.offset))
                    open_runs.pop(key, None)
                continue
            if not inbound[row]:
                continue
            call = calls[key]
            call.records.append(record)
            run = runs[layout]
            payload = run.payload_in(record.value or b"")
            known = open_runs.get(key)
            if known is not None and known.layout == layout and known.stream_id == stream_id:
                known.sequences.append(sequences[row])
                known.payloads.append(payload)
                continue
            known = open_runs[key] = _OpenRun(layout, stream_id, [sequences[row]], [payload])
            heard = FrameRun(stream_id, Track.INBOUND, run.encoding, run.sample_rate, known.sequences, known.payloads)
            call.inputs.append(Input(heard, record.offset))
        return dict(calls)


def _text(value: bytes) -> str | None:
    """`value` as UTF-8, or None if it is none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
