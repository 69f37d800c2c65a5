"""What a peer with a valid token may not do to the gateway or to other calls."""

from __future__ import annotations

import asyncio
import struct
import zlib
from pathlib import Path

import orjson
from aiohttp import WSCloseCode, WSMsgType

from dispatchai.kafka.connection import KafkaConnection
from tests.attacks.attacker import PING, TEXT, frame, ready, socket
from tests.support.gateway import new_call

CONTINUATION, TEXT_BEGUN = 0x00, 0x01
RSV1 = 0x40


def compressed(text: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH)


BROKEN = {
    "deflated": (frame(TEXT | RSV1, compressed(bytes(60_000))), WSCloseCode.PROTOCOL_ERROR),
    "too-long": (struct.pack("!BBQ", TEXT, 0x80 | 127, 1 << 40) + bytes(4), WSCloseCode.MESSAGE_TOO_BIG),
    "negative-length": (struct.pack("!BBQ", TEXT, 0x80 | 127, (1 << 64) - 1) + bytes(4), WSCloseCode.MESSAGE_TOO_BIG),
    "too-long-in-fragments": (
        frame(TEXT_BEGUN, bytes(40_000)) + frame(CONTINUATION, bytes(40_000)),
        WSCloseCode.MESSAGE_TOO_BIG,
    ),
    "long-ping": (frame(PING, bytes(126)), WSCloseCode.PROTOCOL_ERROR),
    "fragmented-ping": (frame(PING & 0x7F, b"x"), WSCloseCode.PROTOCOL_ERROR),
    "continuation-of-nothing": (frame(CONTINUATION, b"x"), WSCloseCode.PROTOCOL_ERROR),
    "two-texts-at-once": (frame(TEXT_BEGUN, b"x") + frame(TEXT_BEGUN, b"x"), WSCloseCode.PROTOCOL_ERROR),
    "reserved-opcode": (frame(0x8B, b""), WSCloseCode.PROTOCOL_ERROR),
    "no-messages": (frame(TEXT, b"") * 60, WSCloseCode.POLICY_VIOLATION),
    "not-utf-8": (frame(TEXT, b"\xff\xfe") * 60, WSCloseCode.POLICY_VIOLATION),
    "deep-json": (frame(TEXT, b'{"event":' * 7_000) * 60, WSCloseCode.POLICY_VIOLATION),
    "binary": (frame(0x82, bytes(60_000)) * 60, WSCloseCode.POLICY_VIOLATION),
    "pongs": (frame(0x8A, b"") * 60, WSCloseCode.POLICY_VIOLATION),
}


async def test_a_socket_that_breaks_the_rules_is_closed_and_another_goes_on(embedded: KafkaConnection) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with ready(embedded) as running, socket(running.port, "good") as (good, to_good):
        before = running.used()
        for name, (data, code) in BROKEN.items():
            async with socket(running.port, name, headers=offer) as (bad, to_bad):
                to_bad.write(data)
                closing = await bad.readexactly(4)
            assert (closing[0], int.from_bytes(closing[2:], "big")) == (0x80 | WSMsgType.CLOSE, code), name
            to_good.write(frame(PING, b"x"))
            assert await good.readexactly(3) == b"\x8a\x01x", name
        assert running.used().memory_bytes - before.memory_bytes < 30_000_000


async def test_fragments_without_end_are_not_kept(embedded: KafkaConnection) -> None:
    async with ready(embedded) as running, socket(running.port, "bad") as (_, writer):
        before = running.used()
        writer.write(frame(TEXT_BEGUN, b""))
        empty = frame(CONTINUATION, b"") * 1_000
        written = 0
        try:
            while written < 30_000_000:
                writer.write(empty)
                written += len(empty)
                await writer.drain()
        except ConnectionError:
            pass
        await asyncio.sleep(0)
        assert running.used().memory_bytes - before.memory_bytes < 30_000_000


async def test_errors_that_a_peer_reports_fill_no_log(embedded: KafkaConnection, tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    error, stop = (
        frame(TEXT, orjson.dumps(message))
        for message in ({"event": "error", "payload": {"code": 100001}}, {"event": "stop"})
    )
    async with ready(embedded, log_level="INFO", log_file=log_file) as running:
        async with socket(running.port, new_call()) as (reader, writer):
            quiet = log_file.stat().st_size
            for _ in range(20):
                writer.write(error * 100)
                await writer.drain()
            writer.write(stop)
            # The close frame comes after the last of the messages, or instead of it.
            await asyncio.wait_for(reader.read(4), 60)
        written = log_file.stat().st_size - quiet
    assert written < 60_000  # 2000 messages
