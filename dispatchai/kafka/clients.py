"""Makes the producers and consumers that the program has beside Faust's. The caller starts and stops them.

Decides what is common to them: `connection` says how they connect, `metadata_updates` how often they ask while Kafka is
away.
"""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from dispatchai.kafka import metadata_updates
from dispatchai.kafka.connection import KafkaConnection


def make_producer(connection: KafkaConnection, **options: Any) -> AIOKafkaProducer:
    """A producer that loses nothing. `options` are those of AIOKafkaProducer. Needs a running loop."""
    producer = AIOKafkaProducer(**connection.producer_options(), **options)
    metadata_updates.limit(producer)
    return producer


def make_consumer(connection: KafkaConnection, **options: Any) -> AIOKafkaConsumer:
    """A consumer. `options` are those of AIOKafkaConsumer. Needs a running loop."""
    consumer = AIOKafkaConsumer(**connection.client_options(), **options)
    metadata_updates.limit(consumer)
    return consumer
