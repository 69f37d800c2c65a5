"""Attacks that make the gateway work, remember or write too much. The attacker knows the port and no secret."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp

from dispatchai.gateway.connection import CONTROL_FRAMES_MAX
from dispatchai.kafka.connection import KafkaConnection
from tests.attacks.attacker import HOST, PING, WEBHOOK, bomb, exchange, frame, post, ready, socket
from tests.support.gateway_process import Running

GROWTH_MAX_BYTES = 60_000_000
"""The growth of the gateway's memory in which an attack must stay: far below what each of them took before."""


def status(answer: bytes) -> int:
    """The status of an answer."""
    return int(answer.split(b" ", 2)[1])


async def metrics_of(running: Running) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://{HOST}:{running.port}/metrics") as answer:
        return await answer.text()


async def test_bodies_are_not_inflated_for_anybody(embedded: KafkaConnection) -> None:
    packed = bomb(255_000)
    async with ready(embedded) as running:
        before = running.used()
        for path in (WEBHOOK, "/nothing"):
            for coding in ("gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "x"):
                answers = await asyncio.gather(
                    *(exchange(running.port, post(packed, {"Content-Encoding": coding}, path=path)) for _ in range(8))
                )
                # The connection is closed on unread bytes: its reset may overtake the answer. Where the carrier has no
                # business, its host is refused before anything else is looked at.
                expected = 415 if path == WEBHOOK else 403
                assert {status(answer) for answer in answers if answer} <= {expected}
                assert sum(map(bool, answers)) > 0
        assert running.used().memory_bytes - before.memory_bytes < GROWTH_MAX_BYTES


async def test_what_is_refused_is_not_read(embedded: KafkaConnection) -> None:
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    head = b"POST %s HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with ready(embedded) as running:
        for path in (WEBHOOK, "/nothing"):
            _, writer = await asyncio.open_connection(HOST, running.port)
            writer.write(head % path.encode())
            written = 0
            try:
                while written < 500:  # 32 MB
                    writer.write(chunk)
                    await writer.drain()
                    written += 1
            except ConnectionError:
                pass
            assert written < 500
            writer.close()


async def test_a_ping_flood_without_a_reader_is_ended(embedded: KafkaConnection) -> None:
    ping = frame(PING, b"x" * 125)
    async with ready(embedded) as running:
        before = running.used()
        async with socket(running.port, "flooded") as (_, writer):
            written = 0
            try:
                while written < 100_000_000:
                    writer.write(ping * 500)
                    written += 500 * len(ping)
                    await writer.drain()
            except ConnectionError:
                pass
        assert written < 100_000_000
        assert running.used().memory_bytes - before.memory_bytes < GROWTH_MAX_BYTES
        assert 'dispatchai_gateway_sockets_refused_total{reason="flood"} 1.0' in await metrics_of(running)


async def test_a_few_pings_do_no_harm(embedded: KafkaConnection) -> None:
    async with ready(embedded) as running, socket(running.port, "pinged") as (reader, writer):
        for _ in range(CONTROL_FRAMES_MAX):
            writer.write(frame(PING, b"x"))
            assert await reader.readexactly(3) == b"\x8a\x01x"


async def test_slow_connections_give_way_to_a_webhook(embedded: KafkaConnection) -> None:
    heads = [
        b"",
        b"POST ",
        b"POST /api/v1/call/incoming HTTP/1.1\r\nHost: gateway\r\nX-Slow: ",
        b"POST /api/v1/call/incoming HTTP/1.1\r\nHost: gateway\r\nContent-Length: 9000\r\n\r\n{",
    ]
    async with ready(embedded, settings={"HTTP_CONNECTIONS_MAX": "30"}) as running:
        async with socket(running.port, "a-call") as (reader, writer):
            slow = []
            for number in range(100):
                opened = await asyncio.open_connection(HOST, running.port)
                opened[1].write(heads[number % len(heads)])
                slow.append(opened)
            for _ in range(10):
                assert status(await exchange(running.port, post(b"{}"))) == 401
            # The call that was there stays.
            writer.write(frame(PING, b"x"))
            assert await reader.readexactly(3) == b"\x8a\x01x"
            text = await metrics_of(running)
            for _, peer in slow:
                peer.transport.abort()
        counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("dispatchai_http"))
        assert float(counted['dispatchai_http_connections_cut_total{reason="evicted"}']) > 60
        assert float(counted["dispatchai_http_connections_open"]) <= 30
        assert float(counted['dispatchai_http_connections_cut_total{reason="refused"}']) == 0


async def test_media_sockets_do_not_give_way(embedded: KafkaConnection) -> None:
    async with (
        ready(embedded, settings={"HTTP_CONNECTIONS_MAX": "5"}) as running,
        socket(running.port, "a", start=False),
        socket(running.port, "b"),
        socket(running.port, "c"),
        socket(running.port, "d"),
        socket(running.port, "e") as (reader, writer),
    ):
        answers = Counter([await exchange(running.port, post(b"{}")) for _ in range(5)])
        assert answers == {b"": 5}
        writer.write(frame(PING, b"x"))
        assert await reader.readexactly(3) == b"\x8a\x01x"


async def test_strangers_write_little_log(embedded: KafkaConnection, tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    requests = (
        post(b"{}"),
        post(b"{}", {"telnyx-signature-sha256": "x"}),
        post(b"{}", path="/nothing"),
        b"GET /ws HTTP/1.1\r\nHost: g\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: g\r\nbad header\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\nHost: g\r\n\r\n",
    )
    async with ready(embedded, log_level="INFO", log_file=log_file) as running:
        quiet = log_file.stat().st_size
        for _ in range(25):
            await asyncio.gather(
                *(exchange(running.port, request, b"") for request in requests for _ in range(8)),
                return_exceptions=True,
            )
        written = log_file.stat().st_size - quiet
        text = await metrics_of(running)
    assert written < 60_000  # 1600 requests
    counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("dispatchai_"))
    assert float(counted['dispatchai_gateway_refusals_total{reason="not_configured"}']) == 400
    assert float(counted["dispatchai_gateway_requests_unreadable_total"]) == 800
    assert float(counted['dispatchai_gateway_sockets_refused_total{reason="token"}']) == 200
