"""Follows a topic from its beginning, in no group: a measurement's view of the processes that it measures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiokafka

from dispatchai.kafka.connection import KafkaConnection

FETCH_MS: Final = 20
"""How long the broker may hold a fetch. It is short, because the time of receipt is measured."""

On = Callable[[Any, float], None]
"""Called with each record and the time at which it was received, in seconds since the epoch."""


@dataclass(slots=True)
class Progress:
    """Wakes tasks that wait for records."""

    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def until(self, reached: Callable[[], bool], timeout_s: float) -> None:
        """Return as soon as `reached()` is true after some record. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(reached)

    async def changed(self) -> None:
        """Records were read: wake the tasks."""
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def follow(connection: KafkaConnection, topic: str, on: On) -> AsyncIterator[Progress]:
    """Pass each record of `topic` to `on` inside this context."""
    consumer = aiokafka.AIOKafkaConsumer(
        topic,
        **connection.client_options(),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=FETCH_MS,
    )
    progress = Progress()

    async def run() -> None:
        while True:
            fetched = await consumer.getmany(timeout_ms=1000)
            received_at = time.time()
            for records in fetched.values():
                for record in records:
                    on(record, received_at)
            if fetched:
                await progress.changed()

    await consumer.start()
    following = asyncio.create_task(run(), name=f"follow {topic}")
    try:
        yield progress
        if following.done():
            following.result()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await consumer.stop()
