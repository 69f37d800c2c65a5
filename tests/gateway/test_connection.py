"""One open media socket: how much of it is held, when its peer counts as gone, how it is opened and closed."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from aiohttp import WSMsgType

from dispatchai.gateway.connection import UNREAD_MAX_BYTES
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.telnyx import stream_tokens
from tests.gateway.test_websocket import sent
from tests.support.gateway import (
    STOP,
    Gateway,
    event,
    frames_of,
    media,
    new_call,
    outline,
    records_of,
    running_gateway,
    start,
    stream_token,
    text,
)

if TYPE_CHECKING:
    pass


def handshake(call_id: str, **changes: str) -> bytes:
    """The request that opens a media socket of `call_id`; an empty one in `changes` removes a header."""
    headers = {
        "Host": "gateway",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
        stream_tokens.HEADER: stream_token(call_id),
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value]
    return "\r\n".join(["GET /ws HTTP/1.1", *lines, "", ""]).encode()


@asynccontextmanager
async def opened(gateway: Gateway, call_id: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of the carrier after its handshake. The test reads and writes its frames."""
    reader, writer = await asyncio.open_connection(*gateway.address)
    try:
        writer.write(handshake(call_id))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        yield reader, writer
    finally:
        writer.close()


async def test_a_burst_larger_than_the_read_buffer_is_recorded_completely_while_webhooks_are_answered(
    embedded: KafkaConnection,
) -> None:
    call_id, last = new_call(), 4000
    burst = b"".join(sent(media(chunk).encode(), key=None) for chunk in range(1, last + 1))
    assert len(burst) > 10 * UNREAD_MAX_BYTES
    async with running_gateway(embedded) as gateway, opened(gateway, call_id) as (reader, writer):
        writer.write(sent(start(call_id).encode()) + burst + sent(STOP.encode()))
        status, _ = await gateway.webhook(text(event(new_call())).encode())
        assert status == 200
        assert (await reader.read())[:2] == bytes((0x80 | WSMsgType.CLOSE, 2))
        frames = await frames_of(embedded, call_id)
    assert outline(frames) == ["START", *map(str, range(1, last + 1)), f"END:{last + 1}:stop"]


async def test_a_peer_that_answers_no_ping_counts_as_gone(embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with running_gateway(embedded, heartbeat_s=0.2) as gateway, opened(gateway, call_id) as (reader, writer):
        writer.write(sent(start(call_id).encode()) + sent(media(1).encode()))
        assert await reader.readexactly(2) == bytes((0x80 | WSMsgType.PING, 0))
        assert outline(await frames_of(embedded, call_id)) == ["START", "1", "END:2:closed: code 1006"]


async def test_a_peer_that_answers_pings_stays_connected_and_its_pings_are_answered(embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with running_gateway(embedded, heartbeat_s=0.2) as gateway, opened(gateway, call_id) as (reader, writer):
        writer.write(sent(start(call_id).encode()))
        for _ in range(3):
            assert await reader.readexactly(2) == bytes((0x80 | WSMsgType.PING, 0))
            writer.write(sent(b"", 0x80 | WSMsgType.PONG))
        writer.write(sent(b"there?", 0x80 | WSMsgType.PING))
        assert await reader.readexactly(8) == bytes((0x80 | WSMsgType.PONG, 6)) + b"there?"
        writer.write(sent(media(1).encode()) + sent((1001).to_bytes(2, "big"), 0x80 | WSMsgType.CLOSE))
        assert await reader.read() == bytes((0x80 | WSMsgType.CLOSE, 2)) + (1001).to_bytes(2, "big")
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "END:2:closed: code 1001"]


async def test_what_the_carrier_sends_before_it_answers_a_stopping_gateway_is_recorded(
    embedded: KafkaConnection,
) -> None:
    call_id, last = new_call(), 1000

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """On the gateway's close frame: what was sent before it came, and the same code. Returns what follows it."""
        head = await reader.readexactly(2)
        assert head[0] == 0x80 | WSMsgType.CLOSE
        code = (await reader.readexactly(head[1]))[:2]
        assert int.from_bytes(code, "big") == 1001
        burst = b"".join(sent(media(chunk).encode(), key=None) for chunk in range(2, last + 1))
        assert len(burst) > 2 * UNREAD_MAX_BYTES, "some of it waits in the kernel"
        writer.write(burst + sent(b"", 0x80 | WSMsgType.PING) + sent(code, 0x80 | WSMsgType.CLOSE))
        return await reader.read()

    async with AsyncExitStack() as carrier:
        async with running_gateway(embedded) as gateway:
            reader, writer = await carrier.enter_async_context(opened(gateway, call_id))
            writer.write(sent(start(call_id).encode()) + sent(media(1).encode()))
            await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 2)
            answering = asyncio.create_task(answer(reader, writer))
        assert await answering == b"", "nothing follows a close frame"
    frames = await frames_of(embedded, call_id)
    assert outline(frames) == ["START", *map(str, range(1, last + 1)), f"END:{last + 1}:closed: the gateway stops"]


async def test_a_carrier_that_does_not_answer_a_stopping_gateway_is_cut_off(embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with AsyncExitStack() as carrier, running_gateway(embedded) as gateway:
        _, writer = await carrier.enter_async_context(opened(gateway, call_id))
        writer.write(sent(start(call_id).encode()) + sent(media(1).encode()))
        await records_of(embedded, "audio-frames", call_id, lambda records: len(records) == 2)
    assert outline(await frames_of(embedded, call_id)) == ["START", "1", "END:2:closed: the gateway stops"]


@pytest.mark.parametrize(
    "changes", [{"Sec_WebSocket_Key": ""}, {"Sec_WebSocket_Key": "short"}, {"Sec_WebSocket_Version": "8"}]
)
async def test_a_request_that_is_no_handshake_is_refused(embedded: KafkaConnection, changes: dict[str, str]) -> None:
    async with running_gateway(embedded) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.address)
        writer.write(handshake(new_call(), **changes, Connection="Upgrade, close"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert gateway.metrics.sockets_opened == 0
        writer.close()
