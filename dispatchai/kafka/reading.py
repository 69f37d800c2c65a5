"""Reads topics outside of a consumer group: which partitions there are, where they end, and the records up to there.

Decides when a partition is read to its end, on the embedded broker too. Callers decide what the records mean. Nothing
here creates a topic or commits an offset.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiokafka
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient

from dispatchai.kafka.clients import make_consumer
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.errors import KafkaOperationError

POLL_MS: Final = 500
"""How long one poll waits for records. Bounds how late silence is noticed."""

SILENCE_S: Final = 30.0
"""Kafka counts as unavailable when it delivers none of the records it has for this long."""

EMBEDDED_FETCH_MAX_WAIT_MS: Final = 20
"""How long the embedded broker may hold a fetch. It answers at the end of that time, whatever records there are."""

END_READ_MS: Final = 500
"""How long to look for records behind the embedded broker's end offset. One that is there takes a fetch, 20 ms."""

FETCH_PARTITION_BYTES: Final = 131_072
"""How much of a partition one fetch of a view may bring. With aiokafka's 1 MiB the readers of the queue held all of it
several times over when a process started, and Python keeps the memory: 30 MB for 2,000 packets."""

OnProgress = Callable[[int, int], None]
"""Called with (records read, records to read at least) after each poll."""


class SilentKafkaError(KafkaOperationError):
    """Kafka answers requests but delivers no records, although some are there."""


@asynccontextmanager
async def open_reader(connection: KafkaConnection, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group, which commits nothing. `options` are those of AIOKafkaConsumer. Raises KafkaError.

    A position that the log no longer has moves to the beginning of the log.
    """
    settings = {"enable_auto_commit": False, "auto_offset_reset": "earliest", **options}
    async with make_consumer(connection, **settings) as consumer:
        await asyncio.sleep(0)  # a consumer whose tasks have not run yet raises CancelledError when it is stopped
        yield consumer


async def partitions_of(
    connection: KafkaConnection, topics: Iterable[str], **options: Any
) -> dict[str, list[TopicPartition]]:
    """The partitions of each of `topics`, in order; none for a topic that does not exist. Raises KafkaError.

    `options` are those of AIOKafkaClient.
    """
    # A consumer without a subscription keeps no metadata of topics, hence a client of its own.
    client = AIOKafkaClient(**connection.client_options(), **options)
    try:
        await client.bootstrap()
        # All topics are asked for and not one by name: a broker may create a topic that is asked for by name.
        cluster = await client.fetch_all_metadata()
    finally:
        await client.close()
    return {
        topic: [TopicPartition(topic, number) for number in sorted(cluster.partitions_for_topic(topic) or ())]
        for topic in topics
    }


async def current_ends(
    connection: KafkaConnection, consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    """The end offset of each of `partitions` now, asked through `consumer`. Raises KafkaError."""
    return await true_ends(connection, await consumer.end_offsets(list(partitions)))


async def true_ends(connection: KafkaConnection, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """The actual end offsets, where a broker reported `ends`. Raises KafkaError.

    The embedded broker's high watermark can lag behind what was written; a fetch from there shows the records behind
    it. Without this a table would be recovered to an outdated state.
    """
    found = dict(ends)
    if not connection.embedded:
        return found
    options = {"fetch_max_wait_ms": EMBEDDED_FETCH_MAX_WAIT_MS, "auto_offset_reset": "latest"}
    async with open_reader(connection, **options) as reader:
        reader.assign(list(ends))
        for partition, end in ends.items():
            reader.seek(partition, end)
        while fetched := await reader.getmany(timeout_ms=END_READ_MS):
            for partition, records in fetched.items():
                found[partition] = records[-1].offset + 1
    return found


async def unread(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """How many offsets lie between the position of `consumer` and `ends`, for each partition that is not at its end.

    Offsets can be missing from a log, so a partition is at its end by position and not by its last record. Waits for
    a position that is not known yet; limit the time of the call.
    """
    left = {partition: end - await consumer.position(partition) for partition, end in ends.items()}
    return {partition: offsets for partition, offsets in left.items() if offsets > 0}


async def read_to_end(
    connection: KafkaConnection,
    consumer: AIOKafkaConsumer,
    starts: Mapping[TopicPartition, int],
    *,
    ends: Mapping[TopicPartition, int] | None = None,
    on_progress: OnProgress = lambda read, total: None,
    silence_s: float = SILENCE_S,
) -> AsyncGenerator[aiokafka.ConsumerRecord, None]:
    """The records of the partitions of `starts`, from these offsets to their ends at the time of the call.

    `ends` are nearer ends; some records behind them come too. Those of one partition come in order. Whoever does not
    read to the end closes it (`aclosing`). Takes over the assignment of `consumer`. Raises SilentKafkaError after
    `silence_s` seconds without a record, and KafkaError.
    """
    if not starts:
        return
    # aiokafka takes no other kind of tuple where it reads some partitions only, and Faust has a kind of its own.
    starts = {TopicPartition(*partition): offset for partition, offset in starts.items()}
    consumer.assign(list(starts))
    ends = await current_ends(connection, consumer, starts) if ends is None else ends
    for partition, offset in starts.items():
        consumer.seek(partition, offset)
    total = sum(max(ends[partition] - offset, 0) for partition, offset in starts.items())
    read, heard_at = 0, time.monotonic()
    while left := await _unread_within(silence_s, consumer, ends):
        consumer.pause(*(starts.keys() - left.keys()))
        fetched = await consumer.getmany(*left, timeout_ms=POLL_MS)
        if not fetched and time.monotonic() - heard_at > silence_s:
            raise _silent(silence_s)
        for records in fetched.values():
            for record in records:
                read += 1
                yield record
        if fetched:
            heard_at = time.monotonic()  # after the caller has taken the records, which may have lasted
        on_progress(read, max(read, total))


async def _unread_within(
    limit_s: float, consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    try:
        async with asyncio.timeout(limit_s):
            return await unread(consumer, ends)
    except TimeoutError:
        raise _silent(limit_s) from None


def _silent(silence_s: float) -> SilentKafkaError:
    return SilentKafkaError(f"Kafka has delivered nothing for {silence_s:.0f} s: `dispatchai doctor` says more")
