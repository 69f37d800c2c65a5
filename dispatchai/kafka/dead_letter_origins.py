"""Compares dead letters with the records that they say they are of.

Decides whether the record at a dead letter's origin confirms it. More processes may write dead letters than may write
events, commands or packets, and an operator may write all of them: what is sent again has to be what the topic holds.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import aiokafka
from aiokafka import TopicPartition

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letters import DeadLetter, Place, first_place, own_headers
from dispatchai.kafka.reading import current_ends, read_to_end

READ_ON_OFFSETS: Final = 1_000
"""Up to this many offsets further the next record is read on to. Beyond that a fetch of its own is less to read."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """The topic does not confirm the dead letter. `deleted`: the topic no longer holds what is that old."""

    reason: str
    deleted: bool = False


class Origins:
    """The records at the origins of dead letters, read through a consumer without a group, which it takes over."""

    def __init__(self, connection: KafkaConnection, consumer: aiokafka.AIOKafkaConsumer) -> None:
        self._connection = connection
        self._consumer = consumer
        self._ends: dict[TopicPartition, int] = {}

    async def compare(self, dead_letters: Sequence[DeadLetter]) -> dict[Place, DeadLetter | Unconfirmed]:
        """By the place of each of `dead_letters`: the dead letter with the content of its record, whole; or why its
        topic does not confirm it.

        All have an origin, in a partition that exists, and were written before the first comparison. Raises KafkaError,
        and SilentKafkaError when Kafka delivers nothing.
        """
        by_partition: defaultdict[TopicPartition, defaultdict[int, list[DeadLetter]]]
        by_partition = defaultdict(lambda: defaultdict(list))
        for one in dead_letters:
            assert one.origin is not None  # noqa: S101 - the caller's promise
            by_partition[TopicPartition(one.origin.topic, one.origin.partition)][one.origin.offset].append(one)
        if new := by_partition.keys() - self._ends.keys():
            self._ends |= await current_ends(self._connection, self._consumer, new)
        results: dict[Place, DeadLetter | Unconfirmed] = {}
        for partition, by_offset in by_partition.items():
            stored = sorted(offset for offset in by_offset if offset < self._ends[partition])
            for first, last in _runs(stored):
                records = read_to_end(self._connection, self._consumer, {partition: first}, ends={partition: last + 1})
                async for record in records:
                    for one in by_offset.get(record.offset, ()):
                        results[one.place] = _compared(one, record)
            beginning = (await self._consumer.beginning_offsets([partition]))[partition]
            for offset, those in by_offset.items():
                for one in those:
                    results.setdefault(one.place, _missing(one, deleted=offset < beginning))
        return results


def _runs(offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of `offsets`, which are in order, that is read at once."""
    first = last = None
    for offset in offsets:
        if first is None or last is None:
            first = offset
        elif offset - last > READ_ON_OFFSETS:
            yield first, last
            first = offset
        last = offset
    if first is not None and last is not None:
        yield first, last


def _missing(one: DeadLetter, *, deleted: bool) -> Unconfirmed:
    if not deleted:
        return Unconfirmed(f"there is no record {one.origin}: its dead letter is not what a reader wrote")
    if one.truncated is not None:
        return Unconfirmed(f"its dead letter holds only the beginning of it, and {one.origin} was deleted")
    reason = f"{one.origin} was deleted, so nothing but its dead letter says what it was: look at it, and name it with "
    return Unconfirmed(f"{reason}--unconfirmed", deleted=True)


def _compared(one: DeadLetter, record: aiokafka.ConsumerRecord) -> DeadLetter | Unconfirmed:
    if not _is_of(one, record):
        return Unconfirmed(f"the record {one.origin} is another one: its dead letter is not what a reader wrote")
    return replace(
        one,
        key=record.key,
        value=record.value,
        # Not all clients can write a header without a value.
        headers=tuple((name, content or b"") for name, content in own_headers(record)),
        origin_timestamp_ms=record.timestamp if record.timestamp >= 0 else None,
        truncated=None,
    )


def _is_of(one: DeadLetter, record: aiokafka.ConsumerRecord) -> bool:
    """Whether the dead letter says of `record` what is true, as far as it says it."""
    if first_place(record) != one.first:
        return False
    if one.truncated is None:
        return (record.key, record.value) == (one.key, one.value)
    value = record.value or b""
    return (
        len(value) == one.truncated.value_bytes
        and value.startswith(one.value or b"")
        and hashlib.sha256(value).hexdigest() == one.truncated.sha256
        and (record.key is None) == (one.key is None)
        and (record.key or b"").startswith(one.key or b"")
    )
