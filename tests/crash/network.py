"""The network between one process and Kafka, which can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.relay import relay


class Line:
    """Forwards connections at `port` to `target`. While it is cut nothing gets through and no side gets an error: data
    in flight arrives when it is restored, like data that TCP sends again."""

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
        """Accept connections inside this context."""
        async with relay(lambda: self.target, port=self.port, whole=self._whole):
            yield
