"""The proxy in front of several gateways: hands each connection to one that is ready, in turn.

Stands in for nginx (`deploy/nginx`), without TLS and without reading what it passes on. A connection that a gateway
refuses goes to the next one; one that breaks later is closed on both sides, and the carrier opens another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, cast

import aiohttp

HOST: Final = "127.0.0.1"

LOOK_S: Final = 0.2
"""Pause between two looks at the gateways' readiness."""

LOOK_TIMEOUT_S: Final = 1.0


class _End(asyncio.Protocol):
    """One end of a connection that is passed on. What comes before the other end is there waits."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self._waiting = bytearray()

    def join(self, other: _End) -> None:
        """Pass everything on to `other` from now on."""
        self.other = other
        if self._waiting and other.transport is not None:
            other.transport.write(bytes(self._waiting))
            self._waiting.clear()
        if self.transport is None or self.transport.is_closing():
            other.close()

    def close(self) -> None:
        """Close it once what was written has gone out."""
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._waiting += data
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None:
            self.other.close()


class _Accepted(_End):
    """The carrier's end of a connection."""

    def __init__(self, front: Front) -> None:
        super().__init__()
        self._front = front

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._front.accept(self)


class Front:
    """Passes connections on to the gateways at `ports`."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.handed_out: Counter[int] = Counter()
        """Connections that each port got."""
        self._ports = list(ports)
        self._ready: set[int] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    def accept(self, end: _Accepted) -> None:
        """Connect `end` to a gateway, or close it."""
        task = asyncio.ensure_future(self._connect(end))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, end: _Accepted) -> None:
        loop = asyncio.get_running_loop()
        for port in self._next_ports():
            with suppress(OSError):
                _, gateway = await loop.create_connection(_End, HOST, port)
                self.handed_out[port] += 1
                gateway.join(end)
                end.join(gateway)
                return
            self._ready.discard(port)
        end.close()

    def _next_ports(self) -> Collection[int]:
        """The ports to try, those of ready gateways alone; each call begins with another one."""
        self._ports.append(self._ports.pop(0))
        return [port for port in self._ports if port in self._ready]

    async def look(self) -> None:
        """Follow which gateways are ready, for ever."""
        timeout = aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                await asyncio.gather(*(self._look_at(http, port) for port in tuple(self._ports)))
                await asyncio.sleep(LOOK_S)

    async def _look_at(self, http: aiohttp.ClientSession, port: int) -> None:
        ready = False
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with http.get(f"http://{HOST}:{port}/health/ready") as response:
                ready = response.status == 200
        (self._ready.add if ready else self._ready.discard)(port)


@asynccontextmanager
async def front(ports: Sequence[int]) -> AsyncIterator[tuple[int, Front]]:
    """A proxy for the gateways at `ports`. Gives its port, and itself."""
    made = Front(ports)
    server = await asyncio.get_running_loop().create_server(lambda: _Accepted(made), HOST, 0)
    looking = asyncio.create_task(made.look(), name="front")
    try:
        yield server.sockets[0].getsockname()[1], made
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        server.close()
