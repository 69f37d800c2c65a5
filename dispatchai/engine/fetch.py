"""What one fetch brings, as the engine hands it to agents: records, in batches by partition.

Faust pays about 100 µs for each event before an agent sees it. One event therefore stands for all records of a topic
that one fetch brought, and the price is paid once for each fetch and topic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiokafka
import numpy as np
import numpy.typing as npt
from faust.types import TP


class Record(Protocol):
    """A record as aiokafka parses it. Its `Batch` names the partition."""

    offset: int
    timestamp: int
    """Milliseconds since the epoch."""
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Batch:
    """The records of one partition that one fetch brought, in the order of their offsets; never empty."""

    tp: TP
    records: tuple[Record, ...]

    @property
    def first_offset(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    @property
    def last_offset(self) -> int:
        """Offset of the last record."""
        return int(self.records[-1].offset)

    def offsets(self) -> npt.NDArray[np.int64]:
        """The offset of each record, shape (n,)."""
        count, first = len(self.records), self.first_offset
        if self.last_offset - first == count - 1:
            return np.arange(first, first + count)
        return np.fromiter((record.offset for record in self.records), np.int64, count)

    def parts(self, most_records: int, most_bytes: int) -> Iterator[Batch]:
        """The batch in parts, in order, each with no more records and, beyond its first record, no more bytes."""
        return (Batch(self.tp, part) for part in runs(self.records, most_records, most_bytes))

    def by_key(self) -> Iterator[tuple[bytes | None, list[Record]]]:
        """The records of each key, in their order; keys in the order of their first record."""
        groups: dict[bytes | None, list[Record]] = {}
        for record in self.records:
            groups.setdefault(record.key, []).append(record)
        return iter(groups.items())


@dataclass(frozen=True, slots=True)
class Fetch:
    """The records of one topic that one fetch brought, a batch for each partition; never empty.

    Faust sees it as the last record of its last batch: when that one counts as read, the others do too. `generation`
    is the consumer group's generation in which it was fetched.
    """

    batches: tuple[Batch, ...]
    generation: int

    def parts(self, most_records: int, most_bytes: int) -> Iterator[Fetch]:
        """The fetch as it is if it is no larger; else the parts of its batches, each by itself."""
        records = [record for batch in self.batches for record in batch.records]
        if len(records) <= most_records and sum(map(bytes_of, records)) <= most_bytes:
            yield self
            return
        for batch in self.batches:
            for part in batch.parts(most_records, most_bytes):
                yield Fetch((part,), self.generation)


def runs(records: Sequence[Record], most_records: int, most_bytes: int) -> Iterator[tuple[Record, ...]]:
    """`records` in runs, in order, each with no more records and, beyond its first record, no more bytes."""
    run: list[Record] = []
    held = 0
    for record in records:
        size = bytes_of(record)
        if run and (len(run) >= most_records or held + size > most_bytes):
            yield tuple(run)
            run, held = [], 0
        run.append(record)
        held += size
    if run:
        yield tuple(run)


def bytes_of(record: Record) -> int:
    """The bytes of a record's key and value."""
    return len(record.key or b"") + len(record.value or b"")


def consumer_record(tp: TP, record: Record) -> aiokafka.ConsumerRecord:
    """`record` of `tp` in the form in which aiokafka's consumer returns records."""
    return aiokafka.ConsumerRecord(
        topic=tp.topic,
        partition=tp.partition,
        offset=record.offset,
        timestamp=record.timestamp,
        timestamp_type=record.timestamp_type,
        key=record.key,
        value=record.value,
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=0,
        headers=tuple(record.headers),
    )


def event_record(tp: TP, offset: int, value: Any = b"") -> aiokafka.ConsumerRecord:
    """The record at `offset` of `tp` as Faust sees it: with `value`, and nothing that its writer chose.

    Faust interprets keys and headers. It would drop a record whose key is no text without counting it as read, and a
    recovery that waits for that record would not end.
    """
    return aiokafka.ConsumerRecord(
        topic=tp.topic,
        partition=tp.partition,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        key=b"",
        value=value,
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=0,
        headers=(),
    )
