"""The dead letters as an operator needs them: one entry for each failed record, and a way to send it again.

Decides which dead letters belong to one record, which records are open, and the order of sending a record and noting
it. Memory does not grow with the topic: only what is listed is kept, of a limited number of records.
`dead_letters` decides what the bytes mean.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import aiokafka
from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaError

from dispatchai.kafka.clients import make_producer
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letter_origins import Origins, Unconfirmed
from dispatchai.kafka.dead_letters import (
    DeadLetter,
    Dismissal,
    Place,
    RetryNote,
    dismissal_headers,
    parse_dead_letter,
    retry_headers,
    retry_note_headers,
)
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.reading import OnProgress, open_reader, partitions_of, read_to_end
from dispatchai.kafka.topics import Topic

RECORDS_MAX: Final = 50_000
"""The most records that one command holds in memory: about 50 MB."""

RETRY_AT_ONCE: Final = 200
"""Records that are sent and acknowledged before their notes are written: as many can be sent twice after a crash."""

RETRY_BYTES_AT_ONCE: Final = 16 * 1024 * 1024
"""The same limit in bytes of values, which are held in memory meanwhile."""

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
"""A record is sent again at its original size; the broker decides what its topic accepts."""


class DeadLetterStoreError(KafkaOperationError):
    """The dead letters cannot be read, or a record cannot be sent. The message says what to do."""


class State(StrEnum):
    """Whether a failed record needs attention."""

    OPEN = "OPEN"
    """A reader could not process it, and it has not been sent again since."""
    RETRIED = "RETRIED"
    """It was sent again, and no reader has failed on it since."""
    DISMISSED = "DISMISSED"
    """An operator needs nothing more of it, and no reader has failed on it at a later attempt."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One reader could not process a record at one attempt. It wrote `times` dead letters, the last at `written_ms`."""

    reader: str
    attempt: int
    error: str
    written_ms: int
    times: int = 1


@dataclass(slots=True)
class FailedRecord:
    """One record, with what all its dead letters say. `key` is the dead letters' key, so it may be truncated."""

    first: Place
    key: bytes | None
    is_record: bool
    failures: dict[tuple[int, str], Failure] = field(default_factory=dict)
    """By attempt and reader."""
    retries: list[RetryNote] = field(default_factory=list)
    dismissals: list[Dismissal] = field(default_factory=list)
    newest_dead_letter: Place | None = None
    """The dead letter to send from. Any would do: all hold the same bytes."""
    newest_ms: int = 0
    origin_timestamp_ms: int | None = None

    @property
    def attempt(self) -> int:
        """The last attempt that is known."""
        return max(self.failed_attempt, max((note.attempt for note in self.retries), default=1))

    @property
    def failed_attempt(self) -> int:
        """The last attempt that failed; 0 without a dead letter."""
        return max((attempt for attempt, _ in self.failures), default=0)

    @property
    def state(self) -> State:
        """Whether the record needs attention."""
        if any(dismissal.attempt >= self.attempt for dismissal in self.dismissals):
            return State.DISMISSED
        return State.OPEN if self.failed_attempt >= self.attempt else State.RETRIED

    def add(self, item: DeadLetter | RetryNote | Dismissal) -> None:
        """Add what one record of the dead-letter topic says."""
        if not isinstance(item, Dismissal):
            self.newest_ms = max(self.newest_ms, item.written_ms)
        match item:
            case Dismissal():
                self.dismissals.append(item)
            case RetryNote():
                self.retries.append(item)
            case DeadLetter():
                self.key = item.key
                self.is_record = item.origin is not None
                self.origin_timestamp_ms = item.origin_timestamp_ms
                self.newest_dead_letter = item.place
                name = (item.attempt, item.reader)
                before = self.failures.get(name)
                times = 1 if before is None else before.times + 1
                # Thousands of errors have the same text: they share one string.
                error = sys.intern(item.error)
                self.failures[name] = Failure(item.reader, item.attempt, error, item.written_ms, times)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which dead letters count. Empty matches all; times are those of the dead letters, in ms since the epoch."""

    topic: str | None = None
    reader: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def matches(self, item: DeadLetter | RetryNote | Dismissal) -> bool:
        """Whether `item` is a dead letter that matches. A note never does."""
        return (
            isinstance(item, DeadLetter)
            and (self.topic is None or (item.origin is not None and item.origin.topic == self.topic))
            and (self.reader is None or item.reader == self.reader)
            and (self.since_ms is None or item.written_ms >= self.since_ms)
            and (self.until_ms is None or item.written_ms < self.until_ms)
        )


@dataclass(frozen=True, slots=True)
class Sent:
    """The record `first` was sent again and is stored at `sent_to`; its next dead letter has this `attempt`."""

    first: Place
    attempt: int
    sent_to: Place


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that was not sent again, and why."""

    first: Place
    reason: str


class DeadLetterStore:
    """Reads the dead letters of one cluster, and sends their records again. `on_read` is called with the progress.

    Every method raises KafkaError, and SilentKafkaError when Kafka delivers nothing.
    """

    def __init__(self, connection: KafkaConnection, on_read: OnProgress = lambda read, total: None) -> None:
        self._connection = connection
        self._on_read = on_read

    async def newest(self, wanted: Filter, limit: int, *, dismissed: bool = False) -> tuple[list[FailedRecord], bool]:
        """The `limit` records that failed last, newest first, and whether there are more. Of records that failed in
        the same millisecond the later record comes first. Dismissed ones are left out unless `dismissed` is set.

        Reads the topic up to three times: for the dismissals, then for the records, then for all their dead letters.
        """
        hidden = {} if dismissed else await self._dismissals(wanted.since_ms)
        failed_at_ms: dict[Place, int] = {}
        more = False
        async for item in self.read(wanted.since_ms):
            if wanted.matches(item) and not _is_hidden(item, hidden):
                failed_at_ms[item.first] = max(item.written_ms, failed_at_ms.get(item.first, 0))
                if len(failed_at_ms) > 2 * limit:
                    more = True
                    failed_at_ms = dict(_newest(failed_at_ms, limit))
        more = more or len(failed_at_ms) > limit
        found = await self.failed_records({first for first, _ in _newest(failed_at_ms, limit)})
        return sorted(found.values(), key=lambda record: (record.newest_ms, record.first), reverse=True), more

    async def _dismissals(self, since_ms: int | None) -> dict[Place, int]:
        """The last attempt after which each record was dismissed."""
        found: dict[Place, int] = {}
        async for item in self.read(since_ms):
            if isinstance(item, Dismissal):
                found[item.first] = max(item.attempt, found.get(item.first, 0))
        return found

    async def dismiss(self, records: Sequence[FailedRecord], reason: str) -> None:
        """Note beside the dead letters of each record that nothing more is needed of it. Nothing is deleted."""
        async with make_producer(self._connection) as producer:
            notes = [
                await producer.send(
                    Topic.DEAD_LETTERS,
                    b"",
                    key=record.key,
                    partition=record.newest_dead_letter.partition,
                    headers=dismissal_headers(record.first, record.attempt, reason),
                )
                for record in records
                if record.newest_dead_letter is not None
            ]
            for note in notes:
                await note

    async def failed_records(self, firsts: Collection[Place]) -> dict[Place, FailedRecord]:
        """The records `firsts`, with all their dead letters. A record without a dead letter is left out."""
        found: dict[Place, FailedRecord] = {}
        if firsts:
            async for item in self.read():
                if item.first in firsts:
                    _add(found, item)
        return {first: record for first, record in found.items() if record.failures}

    async def open_records(self, wanted: Filter) -> list[FailedRecord]:
        """All open records of which a dead letter matches `wanted`, oldest first.

        Raises DeadLetterStoreError when they are more than `RECORDS_MAX`.
        """
        found: dict[Place, FailedRecord] = {}
        matching: set[Place] = set()
        async for item in self.read():
            if wanted.matches(item):
                matching.add(item.first)
            if item.first in matching:
                _add(found, item)
            if len(found) > RECORDS_MAX:
                raise DeadLetterStoreError(
                    f"more than {RECORDS_MAX} records match: narrow it with --topic, --reader, --since or --until"
                )
        records = [record for record in found.values() if record.state is State.OPEN]
        return sorted(records, key=lambda record: (record.newest_ms, record.first))

    async def dead_letter(self, place: Place) -> DeadLetter:
        """The dead letter at `place`, with its content. Raises DeadLetterStoreError when it was deleted."""
        # A generator that is left before its end is closed here: at the end of the loop its consumer could not be.
        async with aclosing(self._dead_letters_at([place])) as found:
            async for dead_letter in found:
                return dead_letter
        raise DeadLetterStoreError(f"the dead letter {place} was deleted: the topic's retention has passed")

    async def read(self, since_ms: int | None = None) -> AsyncIterator[DeadLetter | RetryNote | Dismissal]:
        """Every dead letter and note that is stored now, in order within a partition.

        `since_ms` skips most of the older ones. Raises DeadLetterStoreError.
        """
        async with self._reader() as (consumer, partitions):
            starts = await consumer.beginning_offsets(partitions)
            # The embedded broker finds offsets by time only roughly.
            if since_ms is not None and not self._connection.embedded:
                found = await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
                ends = await consumer.end_offsets(partitions)
                starts = {tp: ends[tp] if at is None else at.offset for tp, at in found.items()}
            async for record in self._read(consumer, starts):
                yield parse_dead_letter(record)

    async def retry(
        self,
        records: Sequence[FailedRecord],
        refuse: Callable[[DeadLetter], str | None],
        *,
        unconfirmed: bool = False,
    ) -> AsyncIterator[Sent | Refused]:
        """Send each of `records` again: same topic, partition, key, value, headers and timestamp, one attempt higher.

        What is sent is the record that its topic holds, and only if it is the one in the dead letter: whoever writes
        dead letters could otherwise have anything sent. With `unconfirmed` a record that the topic no longer holds is
        sent as its dead letter has it.

        `refuse` returns why a record must not be sent, or None. A record is noted as sent after the broker has
        acknowledged it: after a crash in between it is still open, so it may be sent twice but is never lost.
        Raises DeadLetterStoreError.
        """
        by_place = {one.newest_dead_letter: one for one in records if one.newest_dead_letter is not None}
        async with (
            make_producer(self._connection, max_request_size=MAX_REQUEST_BYTES) as producer,
            open_reader(self._connection) as consumer,
        ):
            cluster = await producer.client.fetch_all_metadata()
            origins = Origins(self._connection, consumer)
            batch: list[tuple[FailedRecord, DeadLetter]] = []
            size = 0
            async for dead_letter in self._dead_letters_at(list(by_place)):
                record = by_place[dead_letter.place]
                reason = refuse(dead_letter) or _cannot_be_sent(dead_letter, cluster)
                if reason is not None:
                    yield Refused(record.first, reason)
                    continue
                batch.append((record, dead_letter))
                size += _value_bytes(dead_letter)
                if len(batch) >= RETRY_AT_ONCE or size >= RETRY_BYTES_AT_ONCE:
                    for result in await _send_confirmed(producer, origins, batch, unconfirmed=unconfirmed):
                        yield result
                    batch, size = [], 0
            for result in await _send_confirmed(producer, origins, batch, unconfirmed=unconfirmed):
                yield result

    async def _dead_letters_at(self, places: Collection[Place]) -> AsyncGenerator[DeadLetter, None]:
        """The dead letters at `places`, in order within a partition."""
        wanted = {(place.partition, place.offset) for place in places}
        first: dict[int, int] = {}
        for partition, offset in wanted:
            first[partition] = min(offset, first.get(partition, offset))
        async with self._reader() as (consumer, partitions):
            starts = {tp: first[tp.partition] for tp in partitions if tp.partition in first}
            async with aclosing(self._read(consumer, starts)) as records:
                async for record in records:
                    if (record.partition, record.offset) in wanted:
                        wanted.discard((record.partition, record.offset))
                        found = parse_dead_letter(record)
                        if isinstance(found, DeadLetter):
                            yield found
                        if not wanted:
                            return

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[tuple[aiokafka.AIOKafkaConsumer, list[TopicPartition]]]:
        """A consumer without a group, and the partitions of the dead-letter topic.

        Raises DeadLetterStoreError where there is no such topic.
        """
        topic = Topic.DEAD_LETTERS
        partitions = (await partitions_of(self._connection, [topic]))[topic]
        if not partitions:
            raise DeadLetterStoreError(f"the topic {topic} does not exist: `dispatchai topics apply` creates it")
        async with open_reader(self._connection) as consumer:
            yield consumer, partitions

    def _read(
        self, consumer: aiokafka.AIOKafkaConsumer, starts: Mapping[TopicPartition, int]
    ) -> AsyncGenerator[aiokafka.ConsumerRecord, None]:
        """The records of the partitions of `starts`, from these offsets to their ends now."""
        return read_to_end(self._connection, consumer, starts, on_progress=self._on_read)


def _cannot_be_sent(dead_letter: DeadLetter, cluster: ClusterMetadata) -> str | None:
    """Why no record of this place can be sent again; None if it can."""
    if dead_letter.origin is None:
        return "it never was a record of a topic: a webhook's body has to be sent again by the carrier"
    if (dead_letter.origin.topic, dead_letter.origin.partition) != (
        dead_letter.first.topic,
        dead_letter.first.partition,
    ):
        return f"its dead letter is of {dead_letter.origin}, where no record of that name was sent again"
    partitions = cluster.partitions_for_topic(dead_letter.origin.topic)
    if not partitions:
        return f"the topic {dead_letter.origin.topic} does not exist here any more"
    if dead_letter.origin.partition not in partitions:
        return f"{dead_letter.origin.topic} has no partition {dead_letter.origin.partition} any more"
    if dead_letter.key is None and dead_letter.value is None:
        return "it has neither key nor value: nothing to send"
    return None


def _value_bytes(dead_letter: DeadLetter) -> int:
    """The length of the whole value, if its dead letter says what is true."""
    return len(dead_letter.value or b"") if dead_letter.truncated is None else dead_letter.truncated.value_bytes


async def _send_confirmed(
    producer: aiokafka.AIOKafkaProducer,
    origins: Origins,
    batch: Sequence[tuple[FailedRecord, DeadLetter]],
    *,
    unconfirmed: bool,
) -> list[Sent | Refused]:
    """Send those of `batch` that their topics confirm, with `unconfirmed` those too that their topics deleted."""
    compared = await origins.compare([dead_letter for _, dead_letter in batch])
    refused: list[Sent | Refused] = []
    to_send = []
    for record, dead_letter in batch:
        match compared[dead_letter.place]:
            case DeadLetter() as whole:
                to_send.append((record, whole))
            case Unconfirmed(deleted=True) if unconfirmed:
                to_send.append((record, dead_letter))
            case Unconfirmed(reason):
                refused.append(Refused(record.first, reason))
    return refused + await _send(producer, to_send)


async def _send(
    producer: aiokafka.AIOKafkaProducer, batch: Iterable[tuple[FailedRecord, DeadLetter]]
) -> list[Sent | Refused]:
    """Send `batch`, wait until Kafka has acknowledged it, then write a retry note beside each dead letter."""
    results: list[Sent | Refused] = []
    in_flight = []
    for record, dead_letter in batch:
        assert dead_letter.origin is not None  # noqa: S101 - refused before
        attempt = record.attempt + 1
        try:
            acknowledged = await producer.send(
                dead_letter.origin.topic,
                dead_letter.value,
                key=dead_letter.key,
                partition=dead_letter.origin.partition,
                timestamp_ms=dead_letter.origin_timestamp_ms,
                headers=[*dead_letter.headers, *retry_headers(record.first, attempt)],
            )
        except KafkaError as error:
            results.append(Refused(record.first, _reason(error)))
        else:
            in_flight.append((record, dead_letter, attempt, acknowledged))
    notes = []
    for record, dead_letter, attempt, acknowledged in in_flight:
        try:
            written = await acknowledged
        except KafkaError as error:
            results.append(Refused(record.first, _reason(error)))
            continue
        sent_to = Place(written.topic, written.partition, written.offset)
        results.append(Sent(record.first, attempt, sent_to))
        headers = retry_note_headers(record.first, attempt, sent_to)
        notes.append(
            await producer.send(
                Topic.DEAD_LETTERS, b"", key=record.key, partition=dead_letter.place.partition, headers=headers
            )
        )
    for note in notes:
        await note
    return results


def _reason(error: KafkaError) -> str:
    return f"Kafka refuses it: {type(error).__name__}"


def _add(found: dict[Place, FailedRecord], item: DeadLetter | RetryNote | Dismissal) -> None:
    found.setdefault(item.first, FailedRecord(item.first, key=None, is_record=True)).add(item)


def _is_hidden(item: DeadLetter | RetryNote | Dismissal, dismissed: Mapping[Place, int]) -> bool:
    return isinstance(item, DeadLetter) and item.attempt <= dismissed.get(item.first, 0)


def _newest(failed_at_ms: Mapping[Place, int], count: int) -> list[tuple[Place, int]]:
    return sorted(failed_at_ms.items(), key=lambda item: (item[1], item[0]), reverse=True)[:count]
