"""The bounds of every process's HTTP server."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from dispatchai.process import http_server
from dispatchai.process.http_server import DESCRIPTORS_RESERVED, HttpServer

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
OK = b"HTTP/1.1 200 "

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]

KEPT: list[Peer] = []
"""The connections of a test: one that nobody refers to is closed."""


async def answer(request: web.Request) -> web.Response:
    return web.Response(text=str(len(await request.read())))


async def large(_: web.Request) -> web.Response:
    return web.Response(body=bytes(50_000_000))


async def broken(request: web.Request) -> web.Response:
    raise RuntimeError(request.query_string)


class Held:
    """A handler that answers when it is let."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let = asyncio.Event()

    async def __call__(self, _: web.Request) -> web.Response:
        self.begun.set()
        await self.let.wait()
        return web.Response()


@asynccontextmanager
async def serving(
    *, connections_max: int = 100, held: Held | None = None
) -> AsyncIterator[tuple[HttpServer, tuple[str, int]]]:
    app = web.Application()
    app.router.add_route("*", "/", answer)
    app.router.add_get("/large", large)
    app.router.add_get("/broken", broken)
    if held is not None:
        app.router.add_get("/held", held.__call__)
    server = HttpServer(app, grace_s=0.1, connections_max=connections_max)
    await server.start()
    try:
        yield server, await server.listen("127.0.0.1", 0)
    finally:
        await server.stop()
        while KEPT:
            KEPT.pop()[1].transport.abort()


async def connected(address: tuple[str, int], data: bytes = b"") -> Peer:
    reader, writer = await asyncio.open_connection(*address)
    KEPT.append((reader, writer))
    writer.write(data)
    return reader, writer


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the server closes. False if it sends something first."""
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("size", [0, 1, 16_384, 100_000, 1_000_000])
async def test_bodies_are_read_whole(size: int) -> None:
    async with serving() as (_, address), aiohttp.ClientSession() as http:
        for _ in range(2):
            async with http.post(f"http://{address[0]}:{address[1]}/", data=bytes(size)) as reply:
                assert await reply.text() == str(size)


async def test_an_idle_connection_gives_way_and_a_busy_one_stays() -> None:
    held = Held()
    async with serving(connections_max=2, held=held) as (server, address):
        busy, _ = await connected(address, GET.replace(b"/ ", b"/held "))
        await held.begun.wait()
        idle, _ = await connected(address, GET)
        assert (await idle.readuntil(b"\r\n\r\n")).startswith(OK)
        assert await idle.readexactly(1) == b"0"
        new, _ = await connected(address, GET)
        assert (await new.readuntil(b"\r\n\r\n")).startswith(OK)
        assert await is_closed(idle)
        held.let.set()
        assert (await busy.readuntil(b"\r\n\r\n")).startswith(OK)
        assert (server.counts.evicted, server.counts.refused, server.counts.open) == (1, 0, 2)


async def test_a_new_connection_is_refused_when_all_are_busy() -> None:
    held = Held()
    async with serving(connections_max=1, held=held) as (server, address):
        busy = await connected(address, GET.replace(b"/ ", b"/held "))
        await held.begun.wait()
        new, _ = await connected(address)
        assert await is_closed(new)
        assert (server.counts.refused, server.counts.open, server.counts.accepted) == (1, 1, 1)
        held.let.set()
        assert (await busy[0].readuntil(b"\r\n\r\n")).startswith(OK)


async def test_connections_that_wait_are_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"IDLE_TIMEOUT_S": 0.1, "BODY_TIMEOUT_S": 0.1, "SWEEP_S": 0.05, "WRITE_TIMEOUT_S": 0.1}.items():
        monkeypatch.setattr(http_server, name, value)
    async with serving() as (server, address):
        for begun in (b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\nab"):
            peer, _ = await connected(address, begun)
            assert await is_closed(peer)
        assert server.counts.timed_out == 1  # the body
        peer, _ = await connected(address, GET)
        assert (await peer.read()).startswith(OK)  # and then it is closed as idle
        unread, writer = await asyncio.open_connection(*address, limit=1024)
        writer.write(GET.replace(b"/ ", b"/large "))
        while server.counts.timed_out < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert server.counts.open == 0
        del unread


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n" + (b"X: " + b"a" * 5000 + b"\r\n") * 10,
        GET * 10,
        b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20_000,
    ],
    ids=["head", "pipelined", "framing"],
)
async def test_who_sends_too_much_is_cut_off(request_bytes: bytes) -> None:
    async with serving() as (server, address):
        peer, _ = await connected(address, request_bytes)
        assert await is_closed(peer)
        assert server.counts.oversized == 1


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Content-Encoding: gzip", 415),
        ("Content-Encoding: identity", 200),
        ("Transfer-Encoding: gzip, chunked", 501),
    ],
)
async def test_nothing_is_decoded(header: str, status: int) -> None:
    async with serving() as (_, address):
        rest = "\r\n0\r\n\r\n" if "Transfer" in header else "Content-Length: 0\r\n\r\n"
        peer, _ = await connected(address, f"POST / HTTP/1.1\r\nHost: here\r\n{header}\r\n{rest}".encode())
        assert (await peer.readuntil(b"\r\n")).startswith(f"HTTP/1.1 {status} ".encode())


async def test_an_error_of_the_program_is_logged_with_its_place_and_without_content(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with serving() as (server, address):
        peer, _ = await connected(address, b"GET /broken?said=fire HTTP/1.1\r\nHost: here\r\n\r\n")
        assert (await peer.readuntil(b"\r\n")).startswith(b"HTTP/1.1 500 ")
        assert server.counts.unreadable == 0
    logged = capsys.readouterr().out
    assert "request_failed" in logged
    assert "RuntimeError" in logged
    assert "test_http_server.py:" in logged
    assert "fire" not in logged


async def test_an_answer_before_the_end_of_the_body_closes_the_connection() -> None:
    async with serving() as (_, address):
        peer, _ = await connected(address, b"POST /nothing HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\nabc")
        text = await peer.read()
    assert text.startswith(b"HTTP/1.1 404 ")
    assert b"Connection: close" in text


async def test_the_connections_fit_the_descriptors_of_the_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS_RESERVED + 100, hard))
        assert http_server._descriptors_for(500) == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == DESCRIPTORS_RESERVED + 500
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_private_parts_of_aiohttp_are_there() -> None:
    for name in ("_waiter", "_messages", "_current_request", "_payload_parser"):
        assert hasattr(web.RequestHandler, name)
