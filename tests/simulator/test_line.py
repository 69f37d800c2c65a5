"""Claims about the simulated carrier's sockets and its timer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import WSMsgType, web
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.simulator.pacer import GRAIN_S, Pacer
from dispatchai.simulator.websocket import ABNORMAL, NO_STATUS, ClientSocket, HandshakeError

Handler = Callable[[web.WebSocketResponse], Awaitable[None]]


def ignore() -> None:
    pass


@asynccontextmanager
async def platform(handler: Handler, heartbeat_s: float | None = None) -> AsyncIterator[str]:
    """A WebSocket server that is not the program's; `handler` serves each socket."""

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=heartbeat_s, max_msg_size=1 << 22)
        await socket.prepare(request)
        await handler(socket)
        return socket

    application = web.Application()
    application.router.add_get("/ws", handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}/ws"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
async def test_a_message_of_any_length_arrives_as_it_was_sent(size: int) -> None:
    received: asyncio.Queue[str] = asyncio.Queue()

    async def listen(socket: web.WebSocketResponse) -> None:
        async for message in socket:
            await received.put(message.data)

    async with platform(listen) as url:
        socket = await ClientSocket.connect(url, {}, ignore)
        socket.send(b"x" * size)
        assert await received.get() == "x" * size
        await socket.close()


async def test_everything_sent_before_a_cut_arrives_and_no_close_frame_follows() -> None:
    heard: asyncio.Future[tuple[int, int | None]] = asyncio.get_running_loop().create_future()

    async def listen(socket: web.WebSocketResponse) -> None:
        count = 0
        async for message in socket:
            count += message.type is WSMsgType.TEXT
        heard.set_result((count, socket.close_code))

    async with platform(listen) as url:
        socket = await ClientSocket.connect(url, {}, ignore)
        for _ in range(2000):
            socket.send(b"x" * 300)
        await socket.cut()
        assert await heard == (2000, ABNORMAL)
        assert not socket.is_open


@pytest.mark.parametrize(("code", "seen"), [(1000, 1000), (1008, 1008), (1013, 1013)])
async def test_the_platforms_close_is_reported_once_with_its_code(code: int, seen: int) -> None:
    async def leave(socket: web.WebSocketResponse) -> None:
        await socket.close(code=code)

    lost = asyncio.Event()
    calls: list[None] = []

    def on_lost() -> None:
        calls.append(None)
        lost.set()

    async with platform(leave) as url:
        socket = await ClientSocket.connect(url, {}, on_lost)
        await lost.wait()
        assert (socket.is_open, socket.close_code) == (False, seen)
        socket.send(b"to nobody")
        await socket.close()
        await socket.cut()
    assert len(calls) == 1


async def test_the_carriers_close_has_no_code_and_is_not_reported_as_a_loss() -> None:
    codes: asyncio.Queue[int | None] = asyncio.Queue()

    async def listen(socket: web.WebSocketResponse) -> None:
        async for _ in socket:
            pass
        await codes.put(socket.close_code)

    async with platform(listen) as url:
        socket = await ClientSocket.connect(url, {}, lambda: pytest.fail("nobody else ended it"))
        await socket.close()
        assert await codes.get() in (None, 0, NO_STATUS)


async def test_pings_are_answered() -> None:
    stayed = asyncio.Event()

    async def listen(socket: web.WebSocketResponse) -> None:
        await socket.ping()
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                stayed.set()

    async with platform(listen, heartbeat_s=0.02) as url:
        socket = await ClientSocket.connect(url, {}, ignore)
        await asyncio.sleep(0.2)  # ten heartbeats: the server drops a peer that does not answer within half of one
        assert socket.is_open
        socket.send(b"{}")
        await stayed.wait()
        await socket.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "refused the handshake with 403"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: bm8=\r\n\r\n", "answered a different handshake"),
        (b"", "closed during the handshake"),
        (b"x" * 20_000, "handshake is too long"),
    ],
)
async def test_a_refused_handshake_says_why_and_does_not_quote_the_request(answer: bytes, message: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws"
        with pytest.raises(HandshakeError, match=message) as caught:
            await ClientSocket.connect(url, {"x-token": "secret"}, ignore)
    assert "secret" not in str(caught.value)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.data())
def test_all_waiters_wake_in_order_and_none_before_its_time(delays_ms: list[int], data: st.DataObject) -> None:
    given_up = data.draw(st.sets(st.integers(0, len(delays_ms) - 1), max_size=len(delays_ms) - 1))

    async def run() -> list[tuple[float, float]]:
        loop, pacer = asyncio.get_running_loop(), Pacer()
        began = loop.time()
        woken: list[tuple[float, float]] = []

        async def wait(moment: float) -> None:
            await pacer.until(moment)
            woken.append((moment, loop.time()))

        tasks = [asyncio.create_task(wait(began + delay / 1000)) for delay in delays_ms]
        await asyncio.sleep(0)
        for index in given_up:
            tasks[index].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return woken

    woken = asyncio.run(run())
    assert len(woken) == len(delays_ms) - len(given_up)
    assert woken == sorted(woken, key=lambda each: each[0])
    # A loop may wake early, by up to its clock's resolution.
    assert all(at >= moment - GRAIN_S / 2 for moment, at in woken)
