"""Batches in each codec of KAFKA_COMPRESSION reach the broker and are read back, and so are those of another codec."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import aiokafka
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from dispatchai.kafka.connection import Compression, KafkaConnection

VALUES = [b"the same words again and again " * 20] * 50


@pytest.mark.parametrize("codec", list(Compression))
async def test_compressed_batches_are_read_back(broker: KafkaConnection, codec: Compression) -> None:
    topic = f"compressed-{uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**broker.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()
    options = replace(broker, compression=codec).producer_options()
    async with aiokafka.AIOKafkaProducer(**options, linger_ms=50, max_batch_size=131_072) as producer:
        batch = producer.create_batch()
        for value in VALUES:
            batch.append(key=b"call", value=value, timestamp=None)
        batch.close()
        await (await producer.send_batch(batch, topic, partition=0))
        for value in VALUES:
            await producer.send(topic, value, key=b"call", partition=0)
    found: list[bytes | None] = []
    reader = aiokafka.AIOKafkaConsumer(**broker.client_options(), enable_auto_commit=False)
    await reader.start()
    try:
        partition = TopicPartition(topic, 0)
        reader.assign([partition])
        await reader.seek_to_beginning(partition)
        while len(found) < 2 * len(VALUES):
            found += [one.value for records in (await reader.getmany(timeout_ms=500)).values() for one in records]
    finally:
        await reader.stop()
    assert found == [*VALUES, *VALUES]
