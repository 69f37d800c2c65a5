"""Avro encoding of the frames of one stream: what `records.encode` gives, at a tenth of its cost.

Decides nothing: a test holds it to the codec and the schema, byte by byte. It is here because a gateway encodes 50
frames a second for each call, of which only number, time and payload differ.
Source: Apache Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

from typing import Final

from dispatchai.records import AudioFrame, FrameKind, Micros, Track, encode
from dispatchai.records.codec import HEADER_LENGTH

_KINDS: Final = tuple(FrameKind)
_TRACKS: Final = tuple(Track)
_NO_DETAIL: Final = b"\x00"
"""Branch null of the union."""


_LOW_BITS: Final = 21
"""Three groups of 7: what changes of a time in microseconds within two seconds."""


class FrameEncoder:
    """Encodes the FRAME records of one stream. Remembers what two frames have in common: their times' higher bits and
    their length."""

    __slots__ = ("_format", "_heads", "_high", "_high_encoded", "_length", "_length_encoded")

    def __init__(self, stream_id: str, encoding: str, sample_rate: int) -> None:
        example = AudioFrame(stream_id, FrameKind.FRAME, Track.INBOUND, 0, 0, encoding, sample_rate, b"", None)
        start = encode(example)[:HEADER_LENGTH] + _string(stream_id) + _long(_KINDS.index(FrameKind.FRAME))
        self._heads = {track: start + _long(number) for number, track in enumerate(_TRACKS)}
        self._format = _string(encoding) + _long(sample_rate)
        self._length = 0
        self._length_encoded = _groups(0)
        self._high = 0
        self._high_encoded = _groups(0)

    def encode(self, track: Track, sequence: int, captured_at: Micros, payload: bytes) -> bytes:
        """The record in single-object encoding. Numbers are 0 or more."""
        if len(payload) != self._length:
            self._length = len(payload)
            self._length_encoded = _long(self._length)
        return b"".join(
            (
                self._heads[track],
                _long(sequence),
                self._time(captured_at),
                self._format,
                self._length_encoded,
                payload,
                _NO_DETAIL,
            )
        )

    def _time(self, captured_at: Micros) -> bytes:
        """`_long` of a time, most of it remembered."""
        zigzag = captured_at << 1
        high = zigzag >> _LOW_BITS
        if not high:
            return _groups(zigzag)
        if high != self._high:
            self._high = high
            self._high_encoded = _groups(high)
        low = bytes((zigzag & 0x7F | 0x80, zigzag >> 7 & 0x7F | 0x80, zigzag >> 14 & 0x7F | 0x80))
        return low + self._high_encoded


def _long(number: int) -> bytes:
    """A number that is not negative, in zigzag coding."""
    return _groups(number << 1)


def _groups(rest: int) -> bytes:
    """7 bits a byte, the lowest first; the highest bit of a byte says that another follows."""
    if rest < 0x80:
        return rest.to_bytes()
    if rest < 0x4000:
        return bytes((rest & 0x7F | 0x80, rest >> 7))
    groups = bytearray()
    while rest > 0x7F:
        groups.append(rest & 0x7F | 0x80)
        rest >>= 7
    groups.append(rest)
    return bytes(groups)


def _string(text: str) -> bytes:
    raw = text.encode()
    return _long(len(raw)) + raw
