"""What stands between two processes on loopback: a balancer, or a network that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 65_536


@asynccontextmanager
async def relay(target: Callable[[], int], *, port: int = 0, whole: asyncio.Event | None = None) -> AsyncIterator[int]:
    """Hands each connection to `port` (0: any) on to the port that `target` names for it, and back. Gives its port.

    While `whole` is not set nothing gets through, and neither side is notified.
    """
    connections: set[asyncio.Task[None]] = set()
    if whole is None:
        whole = asyncio.Event()
        whole.set()
    gate = whole

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, RuntimeError):  # uvloop says the latter of a connection that is closed
                while data := await source.read(CHUNK_BYTES):
                    await gate.wait()
                    sink.write(data)
                    await sink.drain()
                await gate.wait()
        finally:
            sink.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        try:
            back, onward = await asyncio.open_connection("127.0.0.1", target())
        except OSError:  # what it goes to is away
            writer.close()
            return
        await asyncio.gather(pump(reader, onward), pump(back, writer))

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(connect(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
