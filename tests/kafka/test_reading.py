"""Topics are read to where they end, from given offsets, without creating a topic."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from faust.types import TP

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.reading import SilentKafkaError, current_ends, open_reader, partitions_of, read_to_end, unread


async def topic_with(connection: KafkaConnection, records: Mapping[int, int]) -> str:
    """A new topic with so many records in each partition: their values are ``partition/offset``."""
    name = f"reading-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**connection.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, len(records), 1)])
    finally:
        await admin.close()
    await add(connection, name, records)
    return name


async def add(connection: KafkaConnection, name: str, records: Mapping[int, int], first: int = 0) -> None:
    async with AIOKafkaProducer(**connection.client_options(), acks="all") as producer:
        for partition, count in records.items():
            for offset in range(first, first + count):
                await producer.send_and_wait(name, f"{partition}/{offset}".encode(), partition=partition)


async def values(
    connection: KafkaConnection, starts: Mapping[TopicPartition, int], progress: list[tuple[int, int]] | None = None
) -> list[str]:
    async with open_reader(connection) as consumer:
        steps: list[tuple[int, int]] = [] if progress is None else progress
        return [
            record.value.decode()
            async for record in read_to_end(
                connection, consumer, starts, on_progress=lambda read, total: steps.append((read, total))
            )
        ]


async def test_partitions_are_read_that_are_named_in_faust_s_own_type(broker: KafkaConnection) -> None:
    name = await topic_with(broker, {0: 1, 1: 3})
    read = await values(broker, {TP(name, 0): 1, TP(name, 1): 1})
    assert read == ["1/1", "1/2"]


async def test_the_partitions_of_a_topic_are_listed_and_none_is_created(broker: KafkaConnection) -> None:
    name = await topic_with(broker, {0: 0, 1: 0, 2: 0})
    absent = f"absent-{uuid.uuid4().hex[:8]}"
    for _ in range(2):
        assert await partitions_of(broker, [absent, name]) == {
            absent: [],
            name: [TopicPartition(name, 0), TopicPartition(name, 1), TopicPartition(name, 2)],
        }


async def test_every_record_from_the_given_offsets_to_the_end_is_read_in_the_order_of_its_partition(
    broker: KafkaConnection,
) -> None:
    name = await topic_with(broker, {0: 5, 1: 3, 2: 0})
    starts = {TopicPartition(name, 0): 2, TopicPartition(name, 1): 0, TopicPartition(name, 2): 0}
    progress: list[tuple[int, int]] = []
    found = await values(broker, starts, progress)
    assert [value for value in found if value.startswith("0/")] == ["0/2", "0/3", "0/4"]
    assert [value for value in found if value.startswith("1/")] == ["1/0", "1/1", "1/2"]
    assert len(found) == 6
    assert progress[-1] == (6, 6)
    assert [read for read, _ in progress] == sorted(read for read, _ in progress)


async def test_partitions_may_be_named_by_fausts_type_and_end_one_after_the_other(broker: KafkaConnection) -> None:
    """aiokafka refuses to pause a partition of another type than its own: the engine's readings end with that."""
    name = await topic_with(broker, {0: 0, 1: 5})
    starts: dict[Any, int] = {TP(name, 0): 0, TP(name, 1): 0}
    assert len(await values(broker, starts)) == 5


async def test_partitions_that_are_not_asked_for_are_not_read(broker: KafkaConnection) -> None:
    name = await topic_with(broker, {0: 2, 1: 2})
    assert await values(broker, {TopicPartition(name, 1): 1}) == ["1/1"]
    assert await values(broker, {}) == []


async def test_a_start_at_the_end_reads_nothing(broker: KafkaConnection) -> None:
    name = await topic_with(broker, {0: 2})
    assert await values(broker, {TopicPartition(name, 0): 2}) == []


async def test_what_is_written_while_reading_is_left_to_the_next_reading(broker: KafkaConnection) -> None:
    name = await topic_with(broker, {0: 1})
    partition = TopicPartition(name, 0)
    found: list[str] = []
    async with open_reader(broker) as consumer:
        async for record in read_to_end(broker, consumer, {partition: 0}):
            if not found:
                await add(broker, name, {0: 1}, first=1)
            found.append(record.value.decode())
    assert found == ["0/0"]


async def test_ends_are_those_of_what_was_acknowledged(broker: KafkaConnection) -> None:
    name = await topic_with(broker, {0: 3, 1: 0})
    partitions = [TopicPartition(name, 0), TopicPartition(name, 1)]
    async with open_reader(broker) as consumer:
        assert await current_ends(broker, consumer, partitions) == {partitions[0]: 3, partitions[1]: 0}


async def test_what_is_unread_is_counted_by_partition(broker: KafkaConnection) -> None:
    name = await topic_with(broker, {0: 3, 1: 1})
    first, second = TopicPartition(name, 0), TopicPartition(name, 1)
    async with open_reader(broker) as consumer:
        consumer.assign([first, second])
        consumer.seek(first, 1)
        consumer.seek(second, 1)
        assert await unread(consumer, {first: 3, second: 1}) == {first: 2}


async def test_a_kafka_that_delivers_nothing_of_what_it_has_is_an_error(
    broker: KafkaConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await topic_with(broker, {0: 1})
    async with open_reader(broker) as consumer:

        async def nothing(*_: object, **__: object) -> dict[TopicPartition, list[object]]:
            return {}

        monkeypatch.setattr(consumer, "getmany", nothing)
        with pytest.raises(SilentKafkaError, match="dispatchai doctor"):
            async for _ in read_to_end(broker, consumer, {TopicPartition(name, 0): 0}, silence_s=0.2):
                pass
