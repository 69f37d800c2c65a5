"""Avro encoding of the frames of one stream: what `records.encode` gives, at a tenth of its cost.

Decides nothing: a test holds it to the codec and the schema, byte by byte. It is here because a gateway encodes 50
frames a second for each call, of which only number, time and payload differ.
Source: Apache Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from typing import Final

from dispatchai.records import AudioFrame, FrameKind, Micros, Track
from dispatchai.records.codec import header_of

_KINDS: Final = tuple(FrameKind)
_TRACKS: Final = tuple(Track)
_NO_DETAIL: Final = b"\x00"
"""Branch null of the union."""


_LOW_BITS: Final = 21
"""Three groups of 7: what changes of a time in microseconds within two seconds."""


class FrameEncoder:
    """Encodes the FRAME records of one stream. Remembers what two frames have in common: their times' higher bits and
    their length."""

    __slots__ = ("_format", "_heads", "_high", "_high_encoded", "_length", "_middle")

    def __init__(self, stream_id: str, encoding: str, sample_rate: int) -> None:
        start = header_of(AudioFrame.__name__) + _string(stream_id) + _long(_KINDS.index(FrameKind.FRAME))
        self._heads = {track: start + _long(number) for number, track in enumerate(_TRACKS)}
        self._format = _string(encoding) + _long(sample_rate)
        self._length = 0
        self._middle = self._format + _long(0)
        """What is between the time and the payload: format, and length of the payload."""
        self._high = 0
        self._high_encoded = _groups(0)

    def encode(self, track: Track, sequence: int, captured_at: Micros, payload: bytes) -> bytes:
        """The record in single-object encoding. Numbers are 0 or more."""
        length = len(payload)
        if length != self._length:
            self._length = length
            self._middle = self._format + _long(length)
        zigzag = captured_at << 1
        high = zigzag >> _LOW_BITS
        if high:
            if high != self._high:
                self._high = high
                self._high_encoded = _groups(high)
            low = bytes((zigzag & 0x7F | 0x80, zigzag >> 7 & 0x7F | 0x80, zigzag >> 14 & 0x7F | 0x80))
            time = low + self._high_encoded
        else:
            time = _groups(zigzag)
        return b"".join((self._heads[track], _groups(sequence << 1), time, self._middle, payload, _NO_DETAIL))


def _long(number: int) -> bytes:
    """A number that is not negative, in zigzag coding."""
    return _groups(number << 1)


def _groups(rest: int) -> bytes:
    """7 bits a byte, the lowest first; the highest bit of a byte says that another follows."""
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


def _string(text: str) -> bytes:
    raw = text.encode()
    return _long(len(raw)) + raw
