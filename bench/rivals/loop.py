"""A bare aiokafka loop: fetch, process, write, commit once a second. No rebalances, no recovery, no dead letters.

It is the least that Kafka costs in Python: the figure to compare a processor with.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiokafka
import uvloop

from bench.rivals.job import APP_ID, BOOTSTRAP, COMMIT_S, EMBEDDED, changelog
from dispatchai.engine.faust_internals import FETCH_MAX_WAIT_MS, FETCH_MIN_BYTES
from dispatchai.kafka.topics import Topic

Records = Sequence[Any]
"""aiokafka's, of one partition in the order of their offsets."""

BATCH_BYTES = 524_288


@dataclass(slots=True)
class Made:
    """The results of a partition's records: signals in order, and the last snapshot of each call."""

    signals: list[tuple[bytes, bytes]] = field(default_factory=list)
    snapshots: dict[bytes, bytes] = field(default_factory=dict)


async def run(process: Callable[[Records], Made]) -> None:
    """Consume until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    app_id = os.environ[APP_ID]
    consumer = aiokafka.AIOKafkaConsumer(
        Topic.AUDIO_FRAMES,
        bootstrap_servers=os.environ[BOOTSTRAP],
        group_id=app_id,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        session_timeout_ms=10_000,
        fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
        fetch_min_bytes=FETCH_MIN_BYTES,
    )
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=os.environ[BOOTSTRAP],
        acks="all",
        enable_idempotence=not os.environ[EMBEDDED],
        max_batch_size=BATCH_BYTES,
    )
    async with consumer, producer:
        consuming = asyncio.create_task(_consume(consumer, producer, process, changelog(app_id)))
        await asyncio.wait([consuming, asyncio.create_task(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)


async def _consume(consumer: Any, producer: Any, process: Callable[[Records], Made], changelog: str) -> None:
    deliveries: list[Any] = []
    committed_at = time.monotonic()
    while True:
        for tp, records in (await consumer.getmany(timeout_ms=FETCH_MAX_WAIT_MS)).items():
            made = process(records)
            deliveries += await _send(producer, Topic.SIGNALS, tp.partition, made.signals)
            deliveries += await _send(producer, changelog, tp.partition, made.snapshots.items())
        if time.monotonic() - committed_at >= COMMIT_S:
            await asyncio.gather(*deliveries)
            deliveries.clear()
            await consumer.commit()
            committed_at = time.monotonic()


async def _send(producer: Any, topic: str, partition: int, records: Iterable[tuple[bytes, bytes]]) -> list[Any]:
    now_ms = int(time.time() * 1000)
    deliveries = []
    batch = None
    for key, value in records:
        if batch is None:
            batch = producer.create_batch()
        if batch.append(timestamp=now_ms, key=key, value=value) is None:
            batch.close()
            deliveries.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(timestamp=now_ms, key=key, value=value)
    if batch is not None:
        batch.close()
        deliveries.append(await producer.send_batch(batch, topic, partition=partition))
    return deliveries


def use_uvloop() -> None:
    """Use uvloop, as the program does."""
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
