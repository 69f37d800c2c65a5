"""Copies packets from the queue to the topic `packets`, for a queue that was written before that topic existed.

Decides which packets are copied, and records in Kafka how far the queue was copied: the purge of the queue leaves a
packet alone that may not be in `packets`. Nothing is copied twice, however often and wherever a copy is broken off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import aiokafka
from aiokafka import TopicPartition

from dispatchai.kafka.clients import make_producer
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.headers import LONG_MAX, number_in
from dispatchai.kafka.reading import OnProgress, open_reader, partitions_of, read_to_end
from dispatchai.kafka.topics import Topic

ASSESSED_AT: Final = "assessed_at"
"""Header of a packet in `dispatch-queue`: when the assessment was recorded that it is made of, in milliseconds since
the epoch, as decimal digits. It also says that the packet is in `packets`."""

GROUP: Final = "dispatchai-packets"
"""The committed offsets of this group in `dispatch-queue` say how far it was copied. It has no members. Kafka keeps the
offsets for a week by default, and a packet that was copied leaves the queue sooner."""

SENT_AT_ONCE: Final = 1_000
"""Packets that are sent before Kafka's acknowledgements are awaited, about 2 MB."""


class PacketHistoryError(KafkaOperationError):
    """The packets cannot be copied. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did: packets that were `copied`, and those that were `present`, in `packets` already."""

    copied: int
    present: int


def assessed_at_ms(headers: Iterable[tuple[str, bytes | None]]) -> int | None:
    """The time in the header of a packet; None if a version of the program wrote it that did not know `packets`."""
    for name, value in headers:
        if name == ASSESSED_AT and (time_ms := number_in(value, LONG_MAX)) is not None:
            return time_ms
    return None


async def copied_up_to(connection: KafkaConnection, partitions: Iterable[int]) -> Mapping[int, int]:
    """The offset before which every packet in a partition of `dispatch-queue` was copied; 0 for none. Raises
    KafkaError."""
    async with open_reader(connection, group_id=GROUP) as reader:
        queue = {number: TopicPartition(Topic.DISPATCH_QUEUE, number) for number in partitions}
        reader.assign(list(queue.values()))
        return {number: await reader.committed(partition) or 0 for number, partition in queue.items()}


async def copy_packets(connection: KafkaConnection, on_progress: OnProgress = lambda read, total: None) -> Copied:
    """Copy the packets in `dispatch-queue` that are not in `packets` yet, with their times, and record how far.

    Raises PacketHistoryError, SilentKafkaError and KafkaError.
    """
    found = await partitions_of(connection, (Topic.DISPATCH_QUEUE, Topic.PACKETS))
    queue, packets = found[Topic.DISPATCH_QUEUE], found[Topic.PACKETS]
    if not queue or len(queue) != len(packets):
        raise PacketHistoryError(
            f"{Topic.DISPATCH_QUEUE} has {len(queue)} partitions and {Topic.PACKETS} has {len(packets)}: "
            "run `dispatchai topics apply`"
        )
    copied = present = 0
    async with make_producer(connection, linger_ms=10) as producer:
        for source, target in zip(queue, packets, strict=True):
            of_partition = await _copy(connection, producer, source, target, on_progress)
            copied, present = copied + of_partition.copied, present + of_partition.present
    return Copied(copied, present)


async def _copy(
    connection: KafkaConnection,
    producer: aiokafka.AIOKafkaProducer,
    source: TopicPartition,
    target: TopicPartition,
    on_progress: OnProgress,
) -> Copied:
    """Copy one partition."""
    known: set[bytes] = set()
    copied = present = 0
    sent: list[asyncio.Future[object]] = []
    async with open_reader(connection) as reader:
        async for record in read_to_end(connection, reader, await reader.beginning_offsets([target])):
            known.add(_digest(record))
    async with open_reader(connection, group_id=GROUP) as reader:
        end = 0
        starts = await reader.beginning_offsets([source])
        async for record in read_to_end(connection, reader, starts, on_progress=on_progress):
            end = record.offset + 1
            if record.value is None or assessed_at_ms(record.headers) is not None:
                continue
            if (digest := _digest(record)) in known:
                present += 1
                continue
            known.add(digest)
            copied += 1
            sent.append(
                await producer.send(
                    target.topic,
                    record.value,
                    key=record.key,
                    partition=target.partition,
                    timestamp_ms=record.timestamp,
                )
            )
            if len(sent) == SENT_AT_ONCE:
                await asyncio.gather(*sent)
                sent.clear()
        await asyncio.gather(*sent)
        if end:
            await reader.commit({source: end})
    return Copied(copied, present)


def _digest(record: aiokafka.ConsumerRecord) -> bytes:
    """What two copies of a packet have in common, and packets of different content have not: a draft is written again
    in the same version."""
    return blake2b(record.value or b"", key=(record.key or b"")[:64], digest_size=8).digest()
