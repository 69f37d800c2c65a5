"""The network between one process and Kafka, which can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

CHUNK_BYTES: Final = 65_536


class Line:
    """Hands what comes to `port` on to `target`, and back. While it is cut nothing gets through, and nobody is told:
    what was under way arrives when it is whole again, as what TCP sends again."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self._whole = asyncio.Event()
        self._whole.set()

    async def cut(self, lasts_s: float) -> None:
        """Let nothing through for `lasts_s`."""
        self._whole.clear()
        try:
            await asyncio.sleep(lasts_s)
        finally:
            self._whole.set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take connections for as long as this lasts."""
        connections: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._connect(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        try:
            back, onward = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # the broker is away
            writer.close()
            return
        await asyncio.gather(self._pump(reader, onward), self._pump(back, writer))

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await source.read(CHUNK_BYTES):
                    await self._whole.wait()
                    target.write(data)
                    await target.drain()
                await self._whole.wait()
        finally:
            target.close()
