"""Writes records to Kafka by the hundred thousand, as the gateway does: in batches, one in flight for each partition.

For the process of a measurement: it costs less than any producer's `send`, and loses no record that Kafka accepts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, Final, Self

from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner

from dispatchai.kafka.connection import KafkaConnection

LINGER_S: Final = 0.005
"""How long records gather in a batch. The gateway's gather for 10 ms; here the time is part of the measurement."""

BATCH_BYTES: Final = 524_288
"""Below the broker's limit of 1 MiB a request holds for each partition."""


class PartitionQueues:
    """The queues of one topic's partitions. Use as `async with`; leaving it waits for every acknowledgement."""

    def __init__(self, connection: KafkaConnection, topic: str, *, linger_s: float = LINGER_S) -> None:
        self._producer = AIOKafkaProducer(**connection.producer_options(), max_batch_size=BATCH_BYTES)
        self._topic = topic
        self._linger_s = linger_s
        self._partition_of = DefaultPartitioner()
        self._open: list[Any] = []
        self._full: list[deque[Any]] = []
        self._busy: list[bool] = []
        self._unacknowledged = 0
        self._all_acknowledged = asyncio.Event()
        self._failed: BaseException | None = None
        self._sending: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._producer.start()
        partitions = await self._producer.partitions_for(self._topic)
        self._open = [None] * len(partitions)
        self._full = [deque() for _ in partitions]
        self._busy = [False] * len(partitions)
        self._sending = asyncio.create_task(self._keep_sending())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.flush()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)
        await self._producer.stop()

    def partition(self, key: bytes) -> int:
        """The partition of the records of `key`."""
        partition: int = self._partition_of(key, range(len(self._open)), range(len(self._open)))
        return partition

    def append(self, partition: int, key: bytes, value: bytes | None, timestamp_ms: int) -> None:
        """Queue a record for its partition. It is sent within `linger_s`, after the records before it."""
        batch = self._open[partition]
        if batch is None:
            batch = self._open[partition] = self._producer.create_batch()
        if batch.append(timestamp=timestamp_ms, key=key, value=value) is None:
            batch.close()
            self._full[partition].append(batch)
            batch = self._open[partition] = self._producer.create_batch()
            batch.append(timestamp=timestamp_ms, key=key, value=value)
        self._unacknowledged += 1

    @property
    def unacknowledged(self) -> int:
        """Records that the broker has not acknowledged."""
        return self._unacknowledged

    async def flush(self) -> None:
        """Return when the broker has acknowledged everything. Raises the error of a record that it refused."""
        while self._unacknowledged:
            if self._failed is not None:
                raise self._failed
            self._all_acknowledged.clear()
            await self._all_acknowledged.wait()
        if self._failed is not None:
            raise self._failed

    async def _keep_sending(self) -> None:
        while True:
            await asyncio.sleep(self._linger_s)
            for partition, busy in enumerate(self._busy):
                if not busy:
                    await self._send(partition)

    async def _send(self, partition: int) -> None:
        if self._full[partition]:
            batch = self._full[partition].popleft()
        elif (batch := self._open[partition]) is not None:
            batch.close()
            self._open[partition] = None
        else:
            return
        self._busy[partition] = True
        delivery = await self._producer.send_batch(batch, self._topic, partition=partition)
        delivery.add_done_callback(lambda done: self._delivered(partition, batch.record_count(), done))

    def _delivered(self, partition: int, count: int, done: asyncio.Future[Any]) -> None:
        self._busy[partition] = False
        self._unacknowledged -= count
        self._failed = self._failed or (asyncio.CancelledError() if done.cancelled() else done.exception())
        if not self._unacknowledged or self._failed is not None:
            self._all_acknowledged.set()
