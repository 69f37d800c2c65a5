"""Decodes many AudioFrame records at once, into columns: what `decode` gives of each, at a small part of its cost.

The frames of live streams differ in the values of their fields and hardly ever in where the fields begin. So records of
one length are read as a matrix: the layout of one of them is found, and those that agree with it are read together,
column by column. A record that agrees with no layout (the start or end of a stream, a record of another version, no
frame at all) is left to `decode`. A test holds this to the codec.
Source: Apache Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dispatchai.records.avro_primitives import (
    MORE,
    NULL,
    Bytes,
    Ints,
    Mask,
    decode_long,
    decode_longs,
    encode_long,
)
from dispatchai.records.codec import HEADER_LENGTH, decode_as, header_of
from dispatchai.records.errors import DecodeError
from dispatchai.records.values import AudioFrame, FrameKind, Track

STREAM_BYTES: Final = 64
"""Longest stream id that is read here. Telnyx's has 36 bytes, to which the gateway adds 9."""

ENCODINGS: Final = frozenset({"PCMU", "PCMA", "L16", "L16BE"})
"""The codecs that are read here."""

LAYOUTS_MAX: Final = 8
"""Layouts that are tried among the records of one length. Live streams have one; only made-up records have more."""

SEQUENCE_MAX: Final = 1 << 53
"""Largest frame number that is accepted: 20 ms frames of five million years, and sums of it still fit in 64 bits."""

MISSING_FRAMES_MAX: Final = 10_000_000
"""Most missing frames that are counted for a call: 55 hours of audio. Frame numbers that leap farther are wrong, and
their sum over many streams would fit in no field."""

_LONG_BYTES: Final = 8
"""Bytes of the longest number that is read here: 55 bits, enough for a time in microseconds until the year 2541."""

_HEADER: Final = header_of(AudioFrame.__name__)
(_KIND,) = encode_long(tuple(FrameKind).index(FrameKind.FRAME))
(_INBOUND,) = encode_long(tuple(Track).index(Track.INBOUND))
(_OUTBOUND,) = encode_long(tuple(Track).index(Track.OUTBOUND))
(_NULL,) = NULL
"""The bytes of the enums, and of a detail that is null."""


@dataclass(frozen=True, slots=True)
class PayloadRun:
    """Frames of one codec and payload length. `rows`, shape (k,), says where each is in the columns; `payloads`, shape
    (k, bytes), has their audio."""

    rows: Ints
    encoding: str
    sample_rate: int
    payloads: Bytes

    def payload_in(self, value: bytes) -> bytes:
        """The audio in `value`, the record of one of these frames: what stands before the detail, which is null."""
        end = len(value) - 1  # of NULL
        return value[end - self.payloads.shape[1] : end]


@dataclass(frozen=True, slots=True)
class FrameColumns:
    """The audio frames among n records, one row for each record, in their order.

    Only rows where `plain` is true have a meaning; each of them is in one of `runs`. `captured_at` is in microseconds
    since the epoch; `stream`, shape (n, STREAM_BYTES), has the stream's id in UTF-8, padded with zeros.
    """

    plain: Mask
    inbound: Mask
    stream: Bytes
    sequence: Ints
    captured_at: Ints
    runs: tuple[PayloadRun, ...]

    def __len__(self) -> int:
        return len(self.plain)


def decode_frame(value: bytes) -> AudioFrame:
    """The frame in a record's value. Raises DecodeError, also for a frame number that no stream reaches."""
    frame = decode_as(AudioFrame, value)
    if not 0 <= frame.sequence <= SEQUENCE_MAX:
        raise DecodeError(f"an AudioFrame with a sequence of {frame.sequence}")
    return frame


def stream_key(stream_id: str) -> Bytes | None:
    """`stream_id` in the form of `FrameColumns.stream`, or None if it does not fit."""
    name = stream_id.encode()
    if len(name) > STREAM_BYTES or b"\0" in name:
        return None
    return np.frombuffer(name.ljust(STREAM_BYTES, b"\0"), np.uint8)


def stream_name(key: Bytes) -> str:
    """The stream id that `stream_key` turned into `key`."""
    return key.tobytes().rstrip(b"\0").decode()


def decode_frames(values: Sequence[bytes]) -> FrameColumns:
    """The audio frames among the record values `values`. Never raises: a value that cannot be read is not plain."""
    count = len(values)
    columns = FrameColumns(
        plain=np.zeros(count, np.bool_),
        inbound=np.zeros(count, np.bool_),
        stream=np.zeros((count, STREAM_BYTES), np.uint8),
        sequence=np.zeros(count, np.int64),
        captured_at=np.zeros(count, np.int64),
        runs=(),
    )
    lengths = np.fromiter(map(len, values), np.int64, count)
    runs: list[PayloadRun] = []
    for length in np.unique(lengths).tolist():
        left = np.flatnonzero(lengths == length)
        joined = b"".join(map(values.__getitem__, left.tolist()))
        matrix = np.frombuffer(joined, np.uint8).reshape(len(left), length)
        for _ in range(LAYOUTS_MAX):
            layout = _layout_of(values[left[0]])
            same = _read(matrix, left, layout, columns, runs) if layout is not None else np.zeros(len(left), np.bool_)
            same[0] = True  # whether it was read or cannot be
            if same.all():
                break
            left, matrix = left[~same], matrix[~same]
    return FrameColumns(
        columns.plain, columns.inbound, columns.stream, columns.sequence, columns.captured_at, tuple(runs)
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """The offsets of a record's fields: of the first byte of each, and of the byte behind some."""

    stream: int
    stream_end: int
    sequence: int
    captured_at: int
    encoding: int
    """From here to the payload all records of the layout are alike: codec, rate, length of the payload."""
    payload: int
    payload_end: int
    codec: str
    sample_rate: int


def _layout_of(value: bytes) -> _Layout | None:
    """The layout of one record; None if it is no usual audio frame."""
    try:
        if not value.startswith(_HEADER):
            return None
        stream_bytes, stream = decode_long(value, HEADER_LENGTH, _LONG_BYTES)
        stream_end = stream + stream_bytes
        if not 0 <= stream_bytes <= STREAM_BYTES or value[stream_end] != _KIND:
            return None
        _, captured_at = decode_long(value, stream_end + 2, _LONG_BYTES)
        _, encoding = decode_long(value, captured_at, _LONG_BYTES)
        codec_bytes, codec = decode_long(value, encoding, _LONG_BYTES)
        if codec_bytes < 0:
            return None
        rate = codec + codec_bytes
        name = value[codec:rate].decode("ascii")
        sample_rate, length = decode_long(value, rate, _LONG_BYTES)
        payload_bytes, payload = decode_long(value, length, _LONG_BYTES)
    except (IndexError, UnicodeDecodeError):
        return None
    if name not in ENCODINGS or payload_bytes < 0 or payload + payload_bytes + 1 != len(value) or value[-1] != _NULL:
        return None
    if not -(1 << 31) <= sample_rate < 1 << 31:
        return None
    return _Layout(
        stream, stream_end, stream_end + 2, captured_at, encoding, payload, len(value) - 1, name, sample_rate
    )


def _read(matrix: Bytes, rows: Ints, layout: _Layout, columns: FrameColumns, runs: list[PayloadRun]) -> Mask:
    """Read the records that agree with `layout`, which is that of the first, into `columns`. Returns which agree."""
    first = matrix[0]
    fixed = slice(0, layout.stream)  # header, length of the stream's id
    format_ = slice(layout.encoding, layout.payload)
    track = matrix[:, layout.sequence - 1]
    same: Mask = (matrix[:, fixed] == first[fixed]).all(axis=1)
    same &= (matrix[:, format_] == first[format_]).all(axis=1)
    same &= matrix[:, layout.stream_end] == _KIND
    same &= (track == _INBOUND) | (track == _OUTBOUND)
    same &= matrix[:, -1] == _NULL
    numbers = matrix[:, layout.sequence : layout.encoding]
    same &= ((numbers ^ first[layout.sequence : layout.encoding]) < MORE).all(axis=1)
    stream = matrix[:, layout.stream : layout.stream_end]
    same &= (stream != 0).all(axis=1)  # a zero would be taken for padding
    sequence = decode_longs(matrix[:, layout.sequence : layout.captured_at])
    same &= (sequence >= 0) & (sequence <= SEQUENCE_MAX)
    if not same.all():
        matrix, rows, track, stream, sequence = matrix[same], rows[same], track[same], stream[same], sequence[same]
    columns.plain[rows] = True
    columns.inbound[rows] = track == _INBOUND
    columns.stream[rows, : layout.stream_end - layout.stream] = stream
    columns.sequence[rows] = sequence
    columns.captured_at[rows] = decode_longs(matrix[:, layout.captured_at : layout.encoding])
    if len(rows):
        payloads = matrix[:, layout.payload : layout.payload_end]
        runs.append(PayloadRun(rows, layout.codec, layout.sample_rate, payloads))
    return same
