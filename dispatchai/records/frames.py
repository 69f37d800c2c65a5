"""Many AudioFrame records at once, as columns: what `decode` gives of each, at a small part of its cost.

The frames of live streams differ in the values of their fields and hardly ever in where the fields lie. So records
of one length are read as a matrix: where the fields lie is found in one of them, and those that agree with it are
read together, column by column. What does not agree with any (the start or end of a stream, another version's
record, no frame at all) is left to `decode`. Decides nothing: a test holds it to the codec.
Source: Apache Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from dispatchai.records.codec import HEADER_LENGTH, DecodeError, decode_as, header_of
from dispatchai.records.values import AudioFrame, FrameKind, Track

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

STREAM_BYTES: Final = 64
"""Longest stream id that is read here. Telnyx's has 36 bytes, to which the gateway adds 9."""

ENCODINGS: Final = frozenset({"PCMU", "PCMA", "L16", "L16BE"})
"""The codecs that are read here."""

LAYOUTS_MAX: Final = 8
"""Layouts that are looked for among the records of one length: usually there is one. More would be made up."""

SEQUENCE_MAX: Final = 1 << 53
"""Largest frame number that is believed: 20 ms frames of five million years, and sums of it still fit in 64 bits."""

_LONG_BYTES: Final = 8
"""Bytes of the longest number that is read here: 55 bits, which hold a time in microseconds until the year 2541."""

_HEADER: Final = header_of(AudioFrame.__name__)
_KIND: Final = 2 * tuple(FrameKind).index(FrameKind.FRAME)
_INBOUND: Final = 2 * tuple(Track).index(Track.INBOUND)
_OUTBOUND: Final = 2 * tuple(Track).index(Track.OUTBOUND)
"""Indexes of enums, in zigzag coding."""

_MORE: Final = 0x80
"""The bit of a byte that says that another byte of the number follows."""

_SHIFTS: Final = np.arange(_LONG_BYTES, dtype=np.int64) * 7


@dataclass(frozen=True, slots=True)
class PayloadRun:
    """Frames of one codec and payload length. `rows` says where each is in the columns, shape (k,); `payloads` has
    their audio, shape (k, bytes)."""

    rows: Ints
    encoding: str
    sample_rate: int
    payloads: Bytes


@dataclass(frozen=True, slots=True)
class FrameColumns:
    """The audio frames among n records, one row for each record, in their order.

    Only rows where `plain` is true mean anything. `captured_at` is in microseconds since the epoch; `stream` has the
    stream's id in UTF-8 padded with zeros, shape (n, STREAM_BYTES). Each plain row is in one of `runs`.
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
    """The frame in a record's value. Raises DecodeError, also for a number that no stream has."""
    frame = decode_as(AudioFrame, value)
    if not 0 <= frame.sequence <= SEQUENCE_MAX:
        raise DecodeError(f"an AudioFrame with a sequence of {frame.sequence}")
    return frame


def stream_key(stream_id: str) -> Bytes | None:
    """`stream_id` as `FrameColumns.stream` has it, or None if it has no such form."""
    name = stream_id.encode()
    if len(name) > STREAM_BYTES or b"\0" in name:
        return None
    return np.frombuffer(name.ljust(STREAM_BYTES, b"\0"), np.uint8)


def stream_name(key: Bytes) -> str:
    """The stream id of which `stream_key` made `key`."""
    return key.tobytes().rstrip(b"\0").decode()


def decode_frames(values: Sequence[bytes]) -> FrameColumns:
    """The audio frames among the record values `values`. Never raises: what cannot be read is not plain."""
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
            same[0] = True  # read now, or never
            if same.all():
                break
            left, matrix = left[~same], matrix[~same]
    return FrameColumns(
        columns.plain, columns.inbound, columns.stream, columns.sequence, columns.captured_at, tuple(runs)
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the fields lie in a record: offset of the first byte of each, and of the byte behind."""

    stream: int
    stream_end: int
    sequence: int
    captured_at: int
    encoding: int
    """From here to the payload all records of the layout are the same: codec, rate, payload's length."""
    payload: int
    payload_end: int
    codec: str
    sample_rate: int


def _layout_of(value: bytes) -> _Layout | None:
    """Where the fields of one record lie; None if it is no usual audio frame."""
    try:
        if not value.startswith(_HEADER):
            return None
        stream_bytes, stream = _long(value, HEADER_LENGTH)
        stream_end = stream + stream_bytes
        if not 0 <= stream_bytes <= STREAM_BYTES or value[stream_end] != _KIND:
            return None
        _, captured_at = _long(value, stream_end + 2)
        _, encoding = _long(value, captured_at)
        codec_bytes, codec = _long(value, encoding)
        if codec_bytes < 0:
            return None
        rate = codec + codec_bytes
        name = value[codec:rate].decode("ascii")
        sample_rate, length = _long(value, rate)
        payload_bytes, payload = _long(value, length)
    except (IndexError, UnicodeDecodeError):
        return None
    if name not in ENCODINGS or payload_bytes < 0 or payload + payload_bytes + 1 != len(value) or value[-1] != 0:
        return None
    if not -(1 << 31) <= sample_rate < 1 << 31:
        return None
    return _Layout(
        stream, stream_end, stream_end + 2, captured_at, encoding, payload, len(value) - 1, name, sample_rate
    )


def _long(value: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and the offset behind it. Raises IndexError if it does not end within _LONG_BYTES."""
    number = 0
    for group in range(_LONG_BYTES):
        byte = value[at + group]
        number |= (byte & ~_MORE) << (7 * group)
        if byte < _MORE:
            return (number >> 1) ^ -(number & 1), at + group + 1
    raise IndexError


def _read(matrix: Bytes, rows: Ints, layout: _Layout, columns: FrameColumns, runs: list[PayloadRun]) -> Mask:
    """Read the records that agree with `layout`, whose first is of it, into `columns`. Returns which agree."""
    first = matrix[0]
    fixed = slice(0, layout.stream)  # header, length of the stream's id
    format_ = slice(layout.encoding, layout.payload)
    track = matrix[:, layout.sequence - 1]
    same: Mask = (matrix[:, fixed] == first[fixed]).all(axis=1)
    same &= (matrix[:, format_] == first[format_]).all(axis=1)
    same &= matrix[:, layout.stream_end] == _KIND
    same &= (track == _INBOUND) | (track == _OUTBOUND)
    same &= matrix[:, -1] == 0
    numbers = matrix[:, layout.sequence : layout.encoding]
    same &= ((numbers ^ first[layout.sequence : layout.encoding]) < _MORE).all(axis=1)
    stream = matrix[:, layout.stream : layout.stream_end]
    same &= (stream != 0).all(axis=1)  # a zero would be taken for padding
    sequence = _numbers(matrix[:, layout.sequence : layout.captured_at])
    same &= (sequence >= 0) & (sequence <= SEQUENCE_MAX)
    if not same.all():
        matrix, rows, track, stream, sequence = matrix[same], rows[same], track[same], stream[same], sequence[same]
    columns.plain[rows] = True
    columns.inbound[rows] = track == _INBOUND
    columns.stream[rows, : layout.stream_end - layout.stream] = stream
    columns.sequence[rows] = sequence
    columns.captured_at[rows] = _numbers(matrix[:, layout.captured_at : layout.encoding])
    if len(rows):
        payloads = matrix[:, layout.payload : layout.payload_end]
        runs.append(PayloadRun(rows, layout.codec, layout.sample_rate, payloads))
    return same


def _numbers(groups: Bytes) -> Ints:
    """The number in each row of `groups`, shape (k, bytes of the number)."""
    shifted = (groups & 0x7F).astype(np.int64) << _SHIFTS[: groups.shape[1]]
    zigzag: Ints = shifted.sum(axis=1)
    return (zigzag >> 1) ^ -(zigzag & 1)
