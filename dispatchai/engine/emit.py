"""What an application writes to Kafka, past Faust's own per-message cost (100 µs and more a message).

It goes through the producer that Faust owns, so Faust's flush before each commit covers it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from dispatchai.engine.app import App

log = structlog.get_logger(__name__)

Headers = Sequence[tuple[str, bytes]]


class Emitter:
    """Sends records and knows which of them the broker has not acknowledged yet."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._pending: set[asyncio.Future[object]] = set()

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        headers: Headers = (),
    ) -> None:
        """Put a record in the producer's buffer; waits only while that is full. `value` None is a tombstone.

        If the broker will not have it after all retries the application stops: an output that cannot be written
        must not be passed over, and what led to it is read again after the restart.
        """
        producer = self._app.producer._ensure_producer()
        sent = await producer.send(topic, value, key=key, partition=partition, headers=list(headers))
        self._pending.add(sent)
        sent.add_done_callback(self._on_done)

    def _on_done(self, sent: asyncio.Future[object]) -> None:
        self._pending.discard(sent)
        if sent.cancelled():
            return
        error = sent.exception()
        if error is not None:
            log.error("record_not_written", error=type(error).__name__)
            self._app.fail(error)

    async def delivered(self) -> None:
        """Wait until the broker has acknowledged everything sent before this call."""
        pending = list(self._pending)
        if pending:
            await asyncio.wait(pending)
