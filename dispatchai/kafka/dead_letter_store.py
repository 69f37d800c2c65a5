"""The dead letters as an operator needs them: one entry a record, whoever complained about it, and a way to send it
again.

Decides what belongs to one record, which are open, and the order of sending and noting. Memory does not grow with the
topic: of each letter only what is listed is kept, of so many records at most. Leaves to others what the bytes mean.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import aiokafka
from aiokafka import TopicPartition
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaError

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letters import Letter, Place, Retried, own_headers, read_letter, retried_note, retry_headers
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.reading import open_reader, partitions_of, read_to_end
from dispatchai.kafka.topics import Topic

RECORDS_MAX: Final = 50_000
"""Records that one command holds at most: about 50 MB."""

RETRY_AT_ONCE: Final = 200
"""Records that are sent, and acknowledged, before their notes are written: what may be sent twice after a crash."""

RETRY_BYTES_AT_ONCE: Final = 16 * 1024 * 1024
"""The same in bytes of values, which are in memory meanwhile."""

MAX_REQUEST_BYTES: Final = 64 * 1024 * 1024
"""A record goes back as large as it came; the broker knows what its topic takes."""

OnRead = Callable[[int, int], None]
"""(records read, records there) while the letters are read."""


class LetterboxError(KafkaOperationError):
    """The letters cannot be read, or a record not be sent. The message says what to do."""


class State(StrEnum):
    """What became of a record."""

    OPEN = "OPEN"
    """Somebody could not process it, and it was not sent again since."""
    RETRIED = "RETRIED"
    """It was sent again, and nobody has complained since."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """One reader could not process a record at one attempt; `times` it said so, lastly at `written_ms`."""

    reader: str
    attempt: int
    error: str
    written_ms: int
    times: int = 1


@dataclass(slots=True)
class Entry:
    """One record and all that the letters say of it. `key` is that of the letter, so it may be cut."""

    first: Place
    key: bytes | None
    is_record: bool
    complaints: dict[tuple[int, str], Complaint] = field(default_factory=dict)
    retried: list[Retried] = field(default_factory=list)
    newest_letter: Place | None = None
    """The letter to send from: any would do, as all hold the same bytes."""
    newest_ms: int = 0
    origin_timestamp_ms: int | None = None

    @property
    def attempt(self) -> int:
        """The last attempt of which anything is known."""
        return max(self.failed_attempt, max((note.attempt for note in self.retried), default=1))

    @property
    def failed_attempt(self) -> int:
        """The last attempt that failed; 0 when no letter was seen."""
        return max((attempt for attempt, _ in self.complaints), default=0)

    @property
    def state(self) -> State:
        """Whether anything is left to be done."""
        return State.OPEN if self.failed_attempt >= self.attempt else State.RETRIED

    def take(self, letter: Letter | Retried) -> None:
        """Add what one letter says."""
        self.newest_ms = max(self.newest_ms, letter.written_ms)
        match letter:
            case Retried():
                self.retried.append(letter)
            case Letter():
                self.key = letter.key
                self.is_record = letter.origin is not None
                self.origin_timestamp_ms = letter.origin_timestamp_ms
                self.newest_letter = letter.place
                name = (letter.attempt, letter.reader)
                before = self.complaints.get(name)
                times = 1 if before is None else before.times + 1
                # Errors are alike by the thousand: one text for all of them.
                error = sys.intern(letter.error)
                self.complaints[name] = Complaint(letter.reader, letter.attempt, error, letter.written_ms, times)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters count. Empty matches all; times in ms since the epoch, of the letter."""

    topic: str | None = None
    reader: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def matches(self, letter: Letter | Retried) -> bool:
        """Whether `letter` is one of those that are asked for."""
        return (
            isinstance(letter, Letter)
            and (self.topic is None or (letter.origin is not None and letter.origin.topic == self.topic))
            and (self.reader is None or letter.reader == self.reader)
            and (self.since_ms is None or letter.written_ms >= self.since_ms)
            and (self.until_ms is None or letter.written_ms < self.until_ms)
        )


@dataclass(frozen=True, slots=True)
class Sent:
    """`entry` was sent again and lies at `sent_to`; its next letter says `attempt`."""

    first: Place
    attempt: int
    sent_to: Place


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that was not sent again, and why."""

    first: Place
    reason: str


class Letterbox:
    """Reads the dead letters of one cluster. `on_read` is told how far a reading is."""

    def __init__(self, connection: KafkaConnection, on_read: OnRead = lambda done, of: None) -> None:
        self._connection = connection
        self._on_read = on_read

    async def newest(self, wanted: Filter, limit: int) -> tuple[list[Entry], bool]:
        """The `limit` records that were complained about last, newest first, and whether there are more. Of those
        complained about in the same millisecond the later record is first.

        Reads twice: which they are is known at the end only, and then all that is said of them is wanted.
        """
        latest: dict[Place, int] = {}
        more = False
        async for letter in self.letters(wanted.since_ms):
            if wanted.matches(letter):
                latest[letter.first] = max(letter.written_ms, latest.get(letter.first, 0))
                if len(latest) > 2 * limit:
                    more = True
                    latest = dict(_highest(latest, limit))
        more = more or len(latest) > limit
        entries = await self.entries({first for first, _ in _highest(latest, limit)})
        return sorted(entries.values(), key=lambda entry: (entry.newest_ms, entry.first), reverse=True), more

    async def entries(self, firsts: Collection[Place]) -> dict[Place, Entry]:
        """All that is said of the records `firsts`; one that nothing is said of is not in the result."""
        found: dict[Place, Entry] = {}
        if firsts:
            async for letter in self.letters():
                if letter.first in firsts:
                    _entry_of(found, letter).take(letter)
        return {first: entry for first, entry in found.items() if entry.complaints}

    async def open(self, wanted: Filter) -> list[Entry]:
        """All records that `wanted` matches and that were not sent again since, oldest first.

        Raises LetterboxError when they are more than `RECORDS_MAX`.
        """
        found: dict[Place, Entry] = {}
        matching: set[Place] = set()
        async for letter in self.letters():
            if wanted.matches(letter):
                matching.add(letter.first)
            if letter.first in matching:
                _entry_of(found, letter).take(letter)
            if len(found) > RECORDS_MAX:
                raise LetterboxError(
                    f"more than {RECORDS_MAX} records match: narrow it with --topic, --reader, --since or --until"
                )
        entries = [entry for entry in found.values() if entry.state is State.OPEN]
        return sorted(entries, key=lambda entry: (entry.newest_ms, entry.first))

    async def letter(self, place: Place) -> Letter:
        """The letter at `place`, with its content. Raises LetterboxError when it is gone."""
        async for letter in self._letters_at([place]):
            return letter
        raise LetterboxError(f"the letter {place} is gone: the topic's retention has passed")

    async def letters(self, since_ms: int | None = None) -> AsyncIterator[Letter | Retried]:
        """Every letter and note that is there now, those of a partition in order; `since_ms` skips most older ones.

        Raises LetterboxError.
        """
        async with self._reader() as (consumer, partitions):
            starts = await consumer.beginning_offsets(partitions)
            if since_ms is not None and not self._connection.embedded:  # whose answer to this is not exact
                found = await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
                ends = await consumer.end_offsets(partitions)
                starts = {tp: ends[tp] if at is None else at.offset for tp, at in found.items()}
            async for record in self._read(consumer, starts):
                yield read_letter(record)

    async def retry(
        self, entries: Sequence[Entry], refuse: Callable[[Letter], str | None]
    ) -> AsyncIterator[Sent | Refused]:
        """Send each of `entries` again: same topic, partition, key, value, headers and timestamp, one attempt higher.

        `refuse` says why a letter must not be sent, or None. A record is noted as sent after the broker has it: a
        crash in between leaves it open, so it may be sent twice and is never forgotten. Raises LetterboxError.
        """
        by_letter = {entry.newest_letter: entry for entry in entries if entry.newest_letter is not None}
        options = self._connection.producer_options()
        async with aiokafka.AIOKafkaProducer(**options, max_request_size=MAX_REQUEST_BYTES) as producer:
            cluster = await producer.client.fetch_all_metadata()
            batch: list[tuple[Entry, Letter]] = []
            size = 0
            async for letter in self._letters_at(list(by_letter)):
                entry = by_letter[letter.place]
                reason = refuse(letter) or _cannot_be_sent(letter, cluster)
                if reason is None and letter.truncated is not None:
                    whole = await self._whole(letter)
                    reason, letter = (whole, letter) if isinstance(whole, str) else (None, whole)
                if reason is not None:
                    yield Refused(entry.first, reason)
                    continue
                batch.append((entry, letter))
                size += len(letter.value or b"")
                if len(batch) >= RETRY_AT_ONCE or size >= RETRY_BYTES_AT_ONCE:
                    for sent in await _send(producer, batch):
                        yield sent
                    batch, size = [], 0
            for sent in await _send(producer, batch):
                yield sent

    async def _whole(self, letter: Letter) -> Letter | str:
        """The letter with what was cut from it, read where the record lies; or why that cannot be."""
        assert letter.origin is not None  # noqa: S101 - asked for before
        assert letter.truncated is not None  # noqa: S101
        gone = f"its letter holds only the beginning of it, and {letter.origin} is gone"
        async with self._reader(letter.origin.topic) as (consumer, partitions):
            tp = TopicPartition(letter.origin.topic, letter.origin.partition)
            if tp not in partitions:
                return gone
            # What is gone from the beginning of the log is read from where the log begins now.
            async for record in self._read(consumer, {tp: letter.origin.offset}):
                same = hashlib.sha256(record.value or b"").hexdigest() == letter.truncated.sha256
                if record.offset != letter.origin.offset or not same:
                    return gone
                headers = tuple(own_headers(record))
                return replace(letter, key=record.key, value=record.value, headers=headers, truncated=None)
        return gone

    async def _letters_at(self, places: Collection[Place]) -> AsyncIterator[Letter]:
        """The letters at `places`, those of a partition in order."""
        wanted = {(place.partition, place.offset) for place in places}
        first: dict[int, int] = {}
        for partition, offset in wanted:
            first[partition] = min(offset, first.get(partition, offset))
        async with self._reader() as (consumer, partitions):
            starts = {tp: first[tp.partition] for tp in partitions if tp.partition in first}
            async for record in self._read(consumer, starts):
                if (record.partition, record.offset) in wanted:
                    wanted.discard((record.partition, record.offset))
                    letter = read_letter(record)
                    if isinstance(letter, Letter):
                        yield letter
                    if not wanted:
                        return

    @asynccontextmanager
    async def _reader(
        self, topic: str = Topic.DEAD_LETTERS
    ) -> AsyncIterator[tuple[aiokafka.AIOKafkaConsumer, list[TopicPartition]]]:
        """A consumer of no group, and the partitions of `topic`. Raises LetterboxError without the dead letters."""
        partitions = (await partitions_of(self._connection, [topic]))[topic]
        if not partitions and topic == Topic.DEAD_LETTERS:
            raise LetterboxError(f"the topic {topic} does not exist here: `dispatchai topics apply` creates it")
        async with open_reader(self._connection) as consumer:
            yield consumer, partitions

    def _read(
        self, consumer: aiokafka.AIOKafkaConsumer, starts: Mapping[TopicPartition, int]
    ) -> AsyncIterator[aiokafka.ConsumerRecord]:
        """The records of the partitions of `starts`, from there to their ends as they are now."""
        return read_to_end(self._connection, consumer, starts, on_progress=self._on_read)


def _cannot_be_sent(letter: Letter, cluster: ClusterMetadata) -> str | None:
    """Why a record cannot be sent again, whatever it is; None if it can."""
    if letter.origin is None:
        return "it never was a record of a topic: a webhook's body has to be sent again by the carrier"
    partitions = cluster.partitions_for_topic(letter.origin.topic)
    if not partitions:
        return f"the topic {letter.origin.topic} does not exist here any more"
    if letter.origin.partition not in partitions:
        return f"{letter.origin.topic} has no partition {letter.origin.partition} any more"
    if letter.key is None and letter.value is None:
        return "it has neither key nor value: nothing to send"
    return None


async def _send(producer: aiokafka.AIOKafkaProducer, batch: Iterable[tuple[Entry, Letter]]) -> list[Sent | Refused]:
    """Send `batch`, wait until Kafka has it, then note it beside the letters."""
    results: list[Sent | Refused] = []
    under_way = []
    for entry, letter in batch:
        assert letter.origin is not None  # noqa: S101 - refused before
        attempt = entry.attempt + 1
        try:
            acknowledged = await producer.send(
                letter.origin.topic,
                letter.value,
                key=letter.key,
                partition=letter.origin.partition,
                timestamp_ms=letter.origin_timestamp_ms,
                headers=[*letter.headers, *retry_headers(entry.first, attempt)],
            )
        except KafkaError as error:
            results.append(Refused(entry.first, _why(error)))
        else:
            under_way.append((entry, letter, attempt, acknowledged))
    notes = []
    for entry, letter, attempt, acknowledged in under_way:
        try:
            written = await acknowledged
        except KafkaError as error:
            results.append(Refused(entry.first, _why(error)))
            continue
        sent_to = Place(written.topic, written.partition, written.offset)
        results.append(Sent(entry.first, attempt, sent_to))
        headers = retried_note(entry.first, attempt, sent_to)
        notes.append(
            await producer.send(
                Topic.DEAD_LETTERS, b"", key=entry.key, partition=letter.place.partition, headers=headers
            )
        )
    for note in notes:
        await note
    return results


def _why(error: KafkaError) -> str:
    return f"Kafka refuses it: {type(error).__name__}"


def _entry_of(found: dict[Place, Entry], letter: Letter | Retried) -> Entry:
    return found.setdefault(letter.first, Entry(letter.first, key=None, is_record=True))


def _highest(latest: Mapping[Place, int], count: int) -> list[tuple[Place, int]]:
    return sorted(latest.items(), key=lambda item: (item[1], item[0]), reverse=True)[:count]
