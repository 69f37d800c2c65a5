"""Attacks with something that was right once: a webhook, a token. The attacker has recorded them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson
from aiohttp import WSMsgType
from aiokafka import ConsumerRecord

from dispatchai.kafka.connection import KafkaConnection
from tests.attacks.attacker import HOST, TEXT, exchange, frame, post, ready, socket, token
from tests.support.gateway import SECRET, event, hmac_headers, new_call, occurred, records_of, start

HMAC_SETTINGS = {"TELNYX_WEBHOOK_SECRET": SECRET}


def signed(call_id: str, **changes: object) -> bytes:
    body = orjson.dumps(event(call_id, **changes))
    return post(body, hmac_headers(body))


async def test_an_old_webhook_makes_no_call_however_often_it_is_sent(embedded: KafkaConnection) -> None:
    old, new = new_call(), new_call()
    async with ready(embedded, settings=HMAC_SETTINGS) as running:
        replayed = signed(old, occurred_at=occurred(4000))
        for _ in range(3):
            assert (await exchange(running.port, replayed)).startswith(b"HTTP/1.1 503 ")
        assert (await exchange(running.port, signed(new, occurred_at=occurred()))).startswith(b"HTTP/1.1 200 ")

    def done(records: Sequence[ConsumerRecord]) -> bool:
        return len(records) == 1

    await records_of(embedded, "call-events", new, done)
    assert await records_of(embedded, "call-events", old, lambda records: not records) == []


async def test_the_token_of_a_call_that_is_over_opens_no_stream(embedded: KafkaConnection) -> None:
    call_id, other = new_call(), new_call()
    hangup = signed(call_id, event_type="call.hangup", occurred_at=occurred())
    async with ready(embedded, settings=HMAC_SETTINGS) as running:
        async with socket(running.port, call_id, start=False) as (reader, writer):
            assert (await exchange(running.port, hangup)).startswith(b"HTTP/1.1 200 ")
            # A socket that was open before the hangup starts no stream after it.
            writer.write(frame(TEXT, start(call_id).encode()))
            first, _, *code = await reader.readexactly(4)
            assert (first, bytes(code)) == (0x80 | WSMsgType.CLOSE, (1008).to_bytes(2, "big"))
        head = (
            "GET /ws HTTP/1.1\r\nHost: g\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"x-telnyx-streaming-auth-token: {token(call_id)}\r\n\r\n"
        )
        answer = await exchange(running.port, head.encode())
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"call_over" in answer
        async with socket(running.port, other) as (_, writer):
            assert not writer.is_closing()


async def test_a_token_ends_by_itself(embedded: KafkaConnection) -> None:
    async with ready(embedded) as running:
        reader, writer = await asyncio.open_connection(HOST, running.port)
        head = (
            "GET /ws HTTP/1.1\r\nHost: g\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"x-telnyx-streaming-auth-token: {token('a', valid_s=-1)}\r\n\r\n"
        )
        writer.write(head.encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
        writer.close()
