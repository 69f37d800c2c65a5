"""How the server's end of a WebSocket reads bytes, wherever they are split, and what it writes."""

from __future__ import annotations

import os
import struct

import pytest
from aiohttp import WSCloseCode, WSMsgType
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.gateway.websocket import (
    NO_STATUS,
    REASON_MAX_BYTES,
    Binary,
    Broken,
    Close,
    MessageReader,
    Ping,
    Pong,
    Received,
    accept_of,
    close_frame,
    frame,
)

MAX_BYTES = 1000

CONTINUATION, TEXT, BINARY = 0x0, 0x1, 0x2
FINAL = 0x80
CLOSE, PING, PONG = FINAL | 0x8, FINAL | 0x9, FINAL | 0xA


def sent(payload: bytes, first: int = FINAL | TEXT, key: bytes | None = b"\x12\x34\x56\x78") -> bytes:
    """A frame as a client sends it; without a `key` it is not masked."""
    length, masked = len(payload), 0x80 if key else 0
    if length < 126:
        head = struct.pack("!BB", first, masked | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", first, masked | 126, length)
    else:
        head = struct.pack("!BBQ", first, masked | 127, length)
    if key is None:
        return head + payload
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def read(data: bytes, pieces: int | None = None) -> list[Received]:
    """The messages of `data`, fed in pieces of this many bytes."""
    reader = MessageReader(MAX_BYTES)
    size = pieces or max(1, len(data))
    return [message for at in range(0, len(data), size) for message in reader.feed(data[at : at + size])]


KEYS = st.none() | st.just(bytes(4)) | st.binary(min_size=4, max_size=4)
PIECES = st.integers(1, 40)
TEXTS = st.text(max_size=40).map(str.encode) | st.sampled_from([125, 126, 999, 1000]).map(bytes)
CONTROLS = st.one_of(
    st.tuples(st.binary(max_size=125), KEYS).map(lambda ping: (sent(ping[0], PING, ping[1]), Ping(ping[0]))),
    st.tuples(st.binary(max_size=125), KEYS).map(lambda pong: (sent(pong[0], PONG, pong[1]), Pong())),
)
"""Control frames, and how each is read."""


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Received]]:
    """The bytes of a client that follows the protocol, and the messages in them.

    Messages are whole or in fragments, and there may be pings and pongs between two fragments.
    """
    data, said = b"", list[Received]()
    for opcode in draw(st.lists(st.sampled_from([TEXT, TEXT, TEXT, BINARY]), max_size=6)):
        text = draw(TEXTS)
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
        starts, ends = [0, *cuts], [*cuts, len(text)]
        for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
            first = (opcode if at == 0 else CONTINUATION) | (FINAL if at == len(cuts) else 0)
            data += sent(text[start:end], first, draw(KEYS))
            if at < len(cuts):
                for control, meant in draw(st.lists(CONTROLS, max_size=1)):
                    data += control
                    said.append(meant)
        said.append(text if opcode == TEXT else Binary())
        for control, meant in draw(st.lists(CONTROLS, max_size=1)):
            data += control
            said.append(meant)
    code = draw(st.sampled_from([None, NO_STATUS, 1000, 1001, 1011, 3000, 4999]))
    if code is not None:
        payload = b"" if code == NO_STATUS else code.to_bytes(2, "big") + draw(st.text(max_size=30)).encode()[:123]
        data += sent(payload, CLOSE, draw(KEYS)) + draw(st.binary(max_size=20))
        said.append(Close(code))
    return data, said


@given(conversations(), PIECES)
def test_messages_are_read_in_order_however_the_bytes_are_split(
    conversation: tuple[bytes, list[Received]], pieces: int
) -> None:
    data, said = conversation
    assert read(data) == said
    assert read(data, pieces) == said


@given(
    st.lists(
        st.tuples(st.binary(max_size=12), st.integers(0, 255), KEYS).map(lambda one: sent(*one))
        | st.binary(max_size=40),
        max_size=8,
    ).map(b"".join),
    PIECES,
)
def test_no_bytes_make_the_reader_raise(data: bytes, pieces: int) -> None:
    found = read(data)
    assert found == read(data, pieces)
    assert not any(isinstance(message, Close | Broken) for message in found[:-1])


def test_all_messages_of_one_read_are_returned_however_many() -> None:
    texts = [f"{number}".encode() for number in range(50_000)]
    reader = MessageReader(MAX_BYTES)
    for _ in range(3):
        assert reader.feed(b"".join(sent(text, key=None) for text in texts)) == texts


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (sent(bytes(MAX_BYTES + 1)), WSCloseCode.MESSAGE_TOO_BIG),
        (sent(bytes(600), TEXT) + sent(bytes(600), FINAL | CONTINUATION), WSCloseCode.MESSAGE_TOO_BIG),
        (struct.pack("!BBQ", FINAL | TEXT, 0xFF, 1 << 62), WSCloseCode.MESSAGE_TOO_BIG),
        (struct.pack("!BBQ", FINAL | TEXT, 0xFF, (1 << 64) - 1), WSCloseCode.MESSAGE_TOO_BIG),
        (sent(b"a", 0x40 | FINAL | TEXT), WSCloseCode.PROTOCOL_ERROR),
        (sent(b"a", FINAL | 0x3), WSCloseCode.PROTOCOL_ERROR),
        (sent(b"a", FINAL | CONTINUATION), WSCloseCode.PROTOCOL_ERROR),
        (sent(b"a", TEXT) + sent(b"b", FINAL | TEXT), WSCloseCode.PROTOCOL_ERROR),
        (sent(b"a", PING ^ FINAL), WSCloseCode.PROTOCOL_ERROR),
        (sent(bytes(126), PING), WSCloseCode.PROTOCOL_ERROR),
        (sent(b"\x03", CLOSE), WSCloseCode.PROTOCOL_ERROR),
        *((sent(code.to_bytes(2, "big"), CLOSE), WSCloseCode.PROTOCOL_ERROR) for code in (0, 999, 1005, 1006, 5000)),
        (sent((1000).to_bytes(2, "big") + b"\xff", CLOSE), WSCloseCode.INVALID_TEXT),
    ],
)
def test_a_breach_of_the_protocol_ends_the_reading(data: bytes, code: int) -> None:
    conversation = sent(b"before") + data + sent(b"after")
    for pieces in (len(conversation), 7, 1):
        assert read(conversation, pieces) == [b"before", Broken(code)]


def test_a_message_that_is_too_large_is_refused_before_it_is_held() -> None:
    reader = MessageReader(MAX_BYTES)
    assert reader.feed(sent(bytes(5000))[:14]) == [Broken(WSCloseCode.MESSAGE_TOO_BIG)]
    assert reader.feed(os.urandom(5000)) == []


def test_text_is_returned_unchanged_whether_or_not_it_is_utf_8() -> None:
    assert read(sent(b"\xff") + sent("µ".encode())) == [b"\xff", "µ".encode()]


def test_a_close_frame_is_never_too_long_and_its_reason_stays_valid_text() -> None:
    raw = close_frame(1003, "µ" * 200)
    assert raw[:4] == bytes((CLOSE, 2 + REASON_MAX_BYTES - 1)) + (1003).to_bytes(2, "big")
    assert raw[4:].decode() == "µ" * 61
    assert frame(WSMsgType.PONG, b"x") == b"\x8a\x01x"


def test_the_handshake_is_answered_as_in_rfc_6455() -> None:
    assert accept_of("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    for wrong in ("", "x", "dGhlIHNhbXBsZQ==", "µµµ"):
        assert accept_of(wrong) is None
