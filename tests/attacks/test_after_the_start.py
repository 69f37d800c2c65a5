"""What a peer with a valid token may not do after its stream has started."""

from __future__ import annotations

import asyncio
import base64

import orjson

from dispatchai.kafka.connection import KafkaConnection
from tests.attacks.attacker import TEXT, exchange, frame, post, ready, socket
from tests.attacks.test_floods import metrics_of
from tests.support.gateway import SECRET, event, hmac_headers, new_call, occurred

OVER_WITHIN_S = 20.0
"""How long a stream may go on after its call has hung up: far longer than any frame is on its way."""


def message(**fields: object) -> bytes:
    return frame(TEXT, orjson.dumps(fields))


def media(chunk: int, payload: bytes = bytes(160)) -> bytes:
    audio = base64.b64encode(payload).decode()
    return message(event="media", media={"track": "inbound", "chunk": str(chunk), "payload": audio})


async def test_a_stream_ends_with_its_call(embedded: KafkaConnection) -> None:
    call_id = new_call()
    body = orjson.dumps(event(call_id, event_type="call.hangup", occurred_at=occurred()))
    async with (
        ready(embedded, settings={"TELNYX_WEBHOOK_SECRET": SECRET}) as running,
        socket(running.port, call_id) as (reader, writer),
    ):
        writer.write(media(1))
        assert (await exchange(running.port, post(body, hmac_headers(body)))).startswith(b"HTTP/1.1 200 ")
        closed = asyncio.create_task(reader.read(2))
        chunk = 1
        async with asyncio.timeout(OVER_WITHIN_S):
            while not closed.done():
                chunk += 1
                writer.write(media(chunk))
                await asyncio.sleep(0.02)


async def test_a_stream_that_is_much_faster_than_speech_is_not_taken_as_it_comes(embedded: KafkaConnection) -> None:
    half_a_second = 4_000
    async with ready(embedded) as running, socket(running.port, new_call()) as (_, writer):
        try:
            async with asyncio.timeout(5):
                for chunk in range(1, 1_801):  # a quarter of an hour
                    writer.write(media(chunk, bytes(half_a_second)))
                    await writer.drain()
        except (TimeoutError, ConnectionError):
            pass
        await asyncio.sleep(5)
        taken = frames_of(await metrics_of(running))
    # Recognisers hear all calls of a process one after the other: nobody else is heard meanwhile.
    assert taken * half_a_second / 8_000 < 300


def frames_of(text: str) -> float:
    """How many frames the gateway has taken."""
    (count,) = [
        line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith("dispatchai_gateway_frames_total")
    ]
    return float(count)
