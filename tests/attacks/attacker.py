"""An attacker's side of HTTP and WebSockets: bytes as they are written, to a gateway in a process of its own.

Decides nothing of what is right; the tests of this folder hold each attack and what the gateway must do about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.telnyx import stream_tokens
from tests.support.gateway_process import STREAM_SECRET, Running, gateway

HOST: Final = "127.0.0.1"
WEBHOOK: Final = "/api/v1/call/incoming"
TEXT, PING = 0x81, 0x89


def bomb(packed_bytes: int) -> bytes:
    """Zeros, compressed by gzip to about `packed_bytes`: a thousandth of what they inflate to."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block, packed = bytes(1 << 20), b""
    while len(packed) < packed_bytes - 2_000:
        packed += packer.compress(block)
    return packed + packer.flush()


@asynccontextmanager
async def ready(connection: KafkaConnection, **options: object) -> AsyncIterator[Running]:
    """A gateway in its own process, once it is ready. `options` are those of `gateway`."""
    async with gateway(connection, **options) as running:  # type: ignore[arg-type]
        async with aiohttp.ClientSession() as http:
            while (await http.get(f"http://{HOST}:{running.port}/health/ready")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield running


async def exchange(port: int, *pieces: bytes, pause_s: float = 0) -> bytes:
    """Write `pieces` to a new connection. Returns everything that comes until the gateway closes it."""
    reader, writer = await asyncio.open_connection(HOST, port)
    answer = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            answer += data
    writer.close()
    return answer


def post(body: bytes, headers: Mapping[str, str] | None = None, *, path: str = WEBHOOK) -> bytes:
    """An HTTP request, after which the connection is to be closed."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: gateway",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def token(call_id: str, valid_s: int = 600) -> str:
    """The token of the leg ``v3:call_id``."""
    subject = stream_tokens.Subject(f"v3:{call_id}", call_id)
    return stream_tokens.issue(STREAM_SECRET.encode(), subject, int(time.time()) + valid_s)


def frame(first: int, payload: bytes) -> bytes:
    """A frame of a WebSocket client, masked with zeros."""
    if len(payload) < 126:
        return struct.pack("!BB", first, 0x80 | len(payload)) + bytes(4) + payload
    return struct.pack("!BBH", first, 0x80 | 126, len(payload)) + bytes(4) + payload


@asynccontextmanager
async def socket(
    port: int, call_id: str, *, start: bool = True, headers: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """An open media socket of a call, after its `start`."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=1024)
    lines = [
        "GET /ws HTTP/1.1",
        "Host: gateway",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        f"{stream_tokens.HEADER}: {token(call_id)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"extensions" not in head.lower()
    if start:
        text = (
            f'{{"event":"start","stream_id":"s","start":{{"call_control_id":"v3:{call_id}",'
            f'"call_session_id":"{call_id}","media_format":{{"encoding":"PCMU","sample_rate":8000,"channels":1}}}}}}'
        )
        writer.write(frame(TEXT, text.encode()))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
