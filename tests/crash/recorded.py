"""The records that a run left in Kafka: all records of every topic, by topic and call.

Only reads topics and committed offsets; `oracle` decides what should be there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import aiokafka
import orjson
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition

from dispatchai.app import SPEECH, WORKER
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.reading import current_ends, unread
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import DecodeError, decode, decode_as, to_json

T = TypeVar("T")


READS: Final[Mapping[str, tuple[str, ...]]] = {
    WORKER: (Topic.CALL_EVENTS, Topic.AUDIO_FRAMES, Topic.SIGNALS, Topic.TRANSCRIPTS, Topic.ASSESSMENTS),
    SPEECH: (Topic.CALL_EVENTS, Topic.AUDIO_FRAMES),
}
"""The topics that each consumer group reads."""

FETCH_MS: Final = 200
"""How long one fetch waits for records."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A record. `value` None is a tombstone; `written_at` is the record's time, in seconds since the epoch."""

    partition: int
    offset: int
    value: bytes | None
    written_at: float


class Recorded:
    """All records, in the order of their offsets."""

    def __init__(self) -> None:
        self._records: dict[str, dict[str, list[Stored]]] = defaultdict(lambda: defaultdict(list))
        self.ends: dict[TopicPartition, int] = defaultdict(int)
        """The end offset of each partition."""

    def add(self, tp: TopicPartition, record: aiokafka.ConsumerRecord) -> None:
        """Add the next record of its partition."""
        key = "" if record.key is None else record.key.decode(errors="replace")
        stored = Stored(record.partition, record.offset, record.value, record.timestamp / 1000)
        self._records[record.topic][key].append(stored)
        self.ends[tp] = record.offset + 1

    def call_ids(self, topic: str) -> tuple[str, ...]:
        """The keys in `topic`, in the order of their first records."""
        return tuple(self._records[topic])

    def stored(self, topic: str, call_id: str) -> tuple[Stored, ...]:
        """The records of a call, tombstones included."""
        return tuple(self._records[topic].get(call_id, ()))

    def values(self, topic: str, call_id: str, kind: type[T]) -> tuple[T, ...]:
        """The records of a call, decoded, without tombstones. Raises DecodeError."""
        return tuple(decode_as(kind, each.value) for each in self.stored(topic, call_id) if each.value is not None)

    def of(self, topic: str) -> Iterator[tuple[str, Stored]]:
        """All records of `topic` by key."""
        for key, records in self._records[topic].items():
            for each in records:
                yield key, each

    def dump(self, path: Path) -> None:
        """Write a line for each record, by topic and key. Contains the callers' words, but no audio."""
        with path.open("w", encoding="utf-8") as file:
            for topic, by_key in sorted(self._records.items()):
                for key, records in by_key.items():
                    for each in records:
                        at = datetime.fromtimestamp(each.written_at, UTC)
                        place = f"{topic}/{each.partition}@{each.offset} {at:%H:%M:%S.%f} {key}"
                        file.write(f"{place} {_readable(each.value)}\n")


def _readable(value: bytes | None) -> str:
    if value is None:
        return "tombstone"
    try:
        record = decode(value)
    except DecodeError as error:
        return f"{len(value)} bytes: {error}"
    return f"{type(record).__name__} {orjson.dumps(to_json(record)).decode()}"


class Reader:
    """Follows every topic and changelog from its beginning. Use as `async with`."""

    def __init__(self, connection: KafkaConnection, topics: Topics) -> None:
        self.recorded = Recorded()
        self._connection = connection
        self._partitions = [
            TopicPartition(spec.name, partition)
            for spec in topics.every_topic()
            for partition in range(topics.partitions)
        ]
        self._consumer: Any = None
        self._admin: Any = None

    async def __aenter__(self) -> Self:
        options = self._connection.client_options()
        self._consumer = aiokafka.AIOKafkaConsumer(**options, auto_offset_reset="earliest", enable_auto_commit=False)
        await self._consumer.start()
        self._consumer.assign(self._partitions)
        await self._consumer.seek_to_beginning(*self._partitions)
        self._admin = AIOKafkaAdminClient(**options)
        await self._admin.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()
        await self._admin.close()

    async def read(self) -> bool:
        """Read what was written up to now. Returns whether anything came.

        Up to the end offsets, and not until a fetch brings nothing: on a busy machine a fetch brings nothing for a
        moment while records are there. Then the last snapshot of a call can be missing.
        """
        anything = False
        ends = await current_ends(self._connection, self._consumer, self._partitions)
        while (batches := await self._consumer.getmany(timeout_ms=FETCH_MS)) or await unread(self._consumer, ends):
            anything = anything or bool(batches)
            for tp, records in batches.items():
                for record in records:
                    self.recorded.add(tp, record)
        return anything

    async def committed(self, group: str) -> dict[TopicPartition, int]:
        """The offsets that `group` has committed."""
        # By name, because the embedded broker closes the connection when it is asked for all partitions.
        asked = [tp for tp in self._partitions if tp.topic in READS[group]]
        offsets = await self._admin.list_consumer_group_offsets(group, partitions=asked)
        return {tp: each.offset for tp, each in offsets.items() if each.offset >= 0}

    async def lag(self, group: str) -> dict[TopicPartition, int]:
        """The number of records that `group` has not committed, for each partition with such records."""
        committed = await self.committed(group)
        behind = {tp: end - committed.get(tp, 0) for tp, end in self.recorded.ends.items() if tp.topic in READS[group]}
        return {tp: count for tp, count in behind.items() if count > 0}
