"""Avro's binary encoding of numbers and texts, one at a time and in columns.

fastavro encodes whole records; this is for the encoders and decoders that write or read thousands of records at a part
of its cost. Knows nothing of schemas.
Source: Apache Avro 1.12 specification, "Binary Encoding", primitive types.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

MORE: Final = 0x80
"""The bit of a byte that says that another byte of the number follows. The other seven are a group of its bits."""

LONG_MAX_BYTES: Final = 10
"""Bytes of the longest number, of 64 bits."""

_SHIFTS: Final = np.arange(LONG_MAX_BYTES, dtype=np.int64) * 7

_LOW_BITS: Final = 21
"""Three groups of 7: what changes of a time in microseconds within two seconds."""


# ---- one at a time ---------------------------------------------------------------------------------------------------


def encode_long(number: int) -> bytes:
    """An int or long that is not negative."""
    return _groups(number << 1)


def encode_string(text: str) -> bytes:
    """A string: its length in bytes, then UTF-8."""
    raw = text.encode()
    return _groups(len(raw) << 1) + raw


def decode_long(data: bytes, at: int, longest: int = LONG_MAX_BYTES) -> tuple[int, int]:
    """The number at the offset `at`, and the offset behind it.

    Raises IndexError if it does not end within `longest` bytes or within `data`.
    """
    zigzag = 0
    for group in range(longest):
        byte = data[at + group]
        zigzag |= (byte & ~MORE) << (7 * group)
        if byte < MORE:
            return (zigzag >> 1) ^ -(zigzag & 1), at + group + 1
    raise IndexError


class TimeEncoder:
    """Encodes times in microseconds, which are not negative. Remembers the high bits, which seldom change."""

    __slots__ = ("_high", "_high_groups")

    def __init__(self) -> None:
        self._high = 0
        self._high_groups = b""

    def encode(self, micros: int) -> bytes:
        """`encode_long` of the time."""
        zigzag = micros << 1
        high = zigzag >> _LOW_BITS
        if not high:
            return _groups(zigzag)
        if high != self._high:
            self._high, self._high_groups = high, _groups(high)
        low = bytes((zigzag & 0x7F | 0x80, zigzag >> 7 & 0x7F | 0x80, zigzag >> 14 & 0x7F | 0x80))
        return low + self._high_groups


def _groups(rest: int) -> bytes:
    """The bits of `rest`, which is not negative, 7 in each byte, the lowest first."""
    if rest < 0x80:
        return rest.to_bytes()
    if rest < 0x4000:
        return bytes((rest & 0x7F | 0x80, rest >> 7))
    if rest < 0x200000:
        return bytes((rest & 0x7F | 0x80, rest >> 7 & 0x7F | 0x80, rest >> 14))
    groups = bytearray()
    while rest > 0x7F:
        groups.append(rest & 0x7F | 0x80)
        rest >>= 7
    groups.append(rest)
    return bytes(groups)


# ---- in columns ------------------------------------------------------------------------------------------------------


def encode_longs(values: Ints) -> tuple[Bytes, Mask]:
    """`encode_long` of each of `values`, shape (k,): the bytes, shape (k, width), and which of them count in each row.

    The bytes of a number are the first of its row.
    """
    zigzag = ((values << 1) ^ (values >> 63)).view(np.uint64)
    width = max(1, -(-int(zigzag.max()).bit_length() // 7))
    left = zigzag[:, np.newaxis] >> (np.arange(width, dtype=np.uint64) * np.uint64(7))
    more = left > np.uint64(0x7F)
    counts = left != 0
    counts[:, 0] = True
    return np.where(more, left | np.uint64(MORE), left).astype(np.uint8), counts


def decode_longs(encoded: Bytes) -> Ints:
    """The number in each row of `encoded`, shape (k, bytes of each number), at most 8 bytes each."""
    groups = (encoded & 0x7F).astype(np.int64) << _SHIFTS[: encoded.shape[1]]
    zigzag: Ints = groups.sum(axis=1)
    return (zigzag >> 1) ^ -(zigzag & 1)


def encode_doubles(values: npt.NDArray[np.float64]) -> Bytes:
    """The eight bytes of each of `values`, shape (k, 8)."""
    return values.astype("<f8").view(np.uint8).reshape(-1, 8)


# ---- parts of composed types -----------------------------------------------------------------------------------------

NULL: Final = encode_long(0)
"""A union of null and another type that is null: the branch, without a value."""

ONE_ITEM: Final = encode_long(1)
NO_MORE_ITEMS: Final = encode_long(0)
"""The bytes before and behind the item of an array that has one: the counts of items in its two blocks."""
