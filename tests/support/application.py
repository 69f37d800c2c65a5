"""An application on a real broker for one test: its own groups and changelogs, and the shared topics of the project."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiokafka
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from dispatchai.engine.app import App, create_app
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.reading import true_ends
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import decode, encode

PARTITIONS = Topics.load().partitions

CHANGELOG = Topics.load().tables["signals"].changelog.configs
"""The configuration of a changelog. All of the project's changelogs have the same."""

PATIENCE_S = 60.0
"""How long a test waits for anything: long enough for a slow program, so that only a broken one fails."""

RESTARTS = pytest.mark.parametrize("broker", ["apache-kafka"], indirect=True)
"""For tests that restart an application: the embedded broker notices only after 20 s that a member has left, and no
process is restarted on it in use."""


def call_name(what: str) -> str:
    """A call id that no other test has."""
    return f"{what}-{uuid4().hex[:12]}"


@dataclass(frozen=True, slots=True)
class Group:
    """The name of an application, so that a second one can go on where the first one stopped."""

    broker: KafkaConnection
    app_id: str
    folder: Path

    def app(self) -> App:
        """An application of this name, not started."""
        return create_app(
            self.app_id,
            self.broker,
            dead_letter_topic=Topic.DEAD_LETTERS,
            partitions=PARTITIONS,
            web_host="127.0.0.1",
            web_port=free_port(),
            data_dir=self.folder,
        )


async def new_group(
    broker: KafkaConnection, folder: Path, *, tables: Sequence[str] = (), sources: Sequence[str] = ()
) -> Group:
    """A group with the changelogs of `tables`, which reads `sources` from now on, and no records of other tests."""
    group = Group(broker, f"test-{uuid4().hex[:8]}", folder)
    if tables:
        admin = AIOKafkaAdminClient(**broker.client_options())
        await admin.start()
        try:
            names = [f"{group.app_id}-{table}-changelog" for table in tables]
            await admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs=CHANGELOG) for name in names])
        finally:
            await admin.close()
    partitions = partitions_of(sources)
    if partitions:
        async with aiokafka.AIOKafkaConsumer(
            group_id=group.app_id, enable_auto_commit=False, **broker.client_options()
        ) as consumer:
            consumer.assign(partitions)
            await consumer.commit(await true_ends(broker, await consumer.end_offsets(partitions)))
    return group


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is stored."""

    topic: str
    partition: int
    offset: int


def partitions_of(topics: Iterable[str]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]


@asynccontextmanager
async def running(app: App) -> AsyncIterator[App]:
    """Start `app`, and stop it at the end."""
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def committed(group: Group, place: Place) -> int:
    """The offset from which the partition of `place` is read again after a restart."""
    partition = TopicPartition(place.topic, place.partition)
    async with aiokafka.AIOKafkaConsumer(
        group_id=group.app_id, enable_auto_commit=False, **group.broker.client_options()
    ) as consumer:
        return await consumer.committed(partition) or 0


async def produce(
    broker: KafkaConnection, topic: str, call_id: str, records: Iterable[Any], *, first_ms: int | None = None
) -> list[Place]:
    """Write `records` of one call, in order; bytes are written as they are. Returns where each is stored.

    With `first_ms` each gets the time of a frame, as from the gateway: 20 ms after the one before.
    """
    async with aiokafka.AIOKafkaProducer(**broker.producer_options(), linger_ms=5) as producer:
        sent = [
            await producer.send(
                topic,
                record if isinstance(record, bytes) else encode(record),
                key=call_id.encode(),
                timestamp_ms=None if first_ms is None else first_ms + 20 * number,
            )
            for number, record in enumerate(records)
        ]
        written = [await one for one in sent]
    return [Place(one.topic, one.partition, one.offset) for one in written]


Records = list[aiokafka.ConsumerRecord]


async def read(
    broker: KafkaConnection, topic: str, call_ids: Iterable[str], enough: Callable[[Records], bool]
) -> Records:
    """The records of `call_ids` in `topic`, in order for each partition, as soon as they are `enough`."""
    keys = {call_id.encode() for call_id in call_ids}
    records: Records = []
    async with (
        aiokafka.AIOKafkaConsumer(
            auto_offset_reset="earliest", fetch_max_wait_ms=20, **broker.client_options()
        ) as consumer,
        asyncio.timeout(PATIENCE_S),
    ):
        consumer.assign(partitions_of([topic]))
        while not enough(records):
            for fetched in (await consumer.getmany(timeout_ms=100)).values():
                records.extend(record for record in fetched if record.key in keys)
    return records


async def read_call(
    broker: KafkaConnection, topic: str, call_id: str, enough: Callable[[list[Any]], bool]
) -> list[Any]:
    """The decoded values of one call; a tombstone is None."""
    records = await read(broker, topic, [call_id], lambda records: enough(values(records)))
    return values(records)


def values(records: Records) -> list[Any]:
    """The decoded values; a tombstone is None."""
    return [None if record.value is None else decode(record.value) for record in records]


async def dead_letters(broker: KafkaConnection, call_id: str, count: int) -> Records:
    """The first `count` dead letters of a call."""
    return await read(broker, Topic.DEAD_LETTERS, [call_id], lambda records: len(records) >= count)


async def until(true: Callable[[], bool]) -> None:
    """Wait for a state in memory, for which there is no event."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.02)
