"""A dead letter holds any record; one record is one entry; what is sent again is what was there."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiokafka
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letter_store import DeadLetterStore, FailedRecord, Filter, Refused, Sent, State
from dispatchai.kafka.dead_letters import (
    DEAD_LETTER_MAX_BYTES,
    TRUNCATED_VALUE_BYTES,
    DeadLetter,
    Dismissal,
    Place,
    RetryNote,
    Truncated,
    dead_letter_of,
    dismissal_headers,
    parse_dead_letter,
    retry_headers,
    retry_note_headers,
)
from dispatchai.kafka.topics import Topic, Topics
from tests.engine.test_app import Names, make_app, make_states, make_topics, running, until
from tests.support.paths import DOCS

FAUST_REQUEST_BYTES = 1_000_000
"""What Faust's producer takes at most."""

WRITTEN_MS = 1_700_000_000_000

Header = tuple[str, bytes | None]


def record(
    value: bytes | None = b"value",
    key: bytes | None = b"key",
    headers: Sequence[Header] = (),
    *,
    topic: str = "source",
    offset: int = 17,
) -> aiokafka.ConsumerRecord:
    """A record as a consumer hands it over."""
    return aiokafka.ConsumerRecord(
        topic, 3, offset, WRITTEN_MS, 0, key, value, None, len(key or b""), len(value or b""), tuple(headers)
    )


def dead_lettered(
    one: aiokafka.ConsumerRecord, reader: str = "sums", error: Exception | None = None
) -> aiokafka.ConsumerRecord:
    """The dead letter for a record, as it is read from the topic."""
    key, value, headers = dead_letter_of(one, reader=reader, error=error or ValueError("bad"))
    return record(value, key, headers, topic=Topic.DEAD_LETTERS, offset=5)


def dead_letter(one: aiokafka.ConsumerRecord) -> DeadLetter:
    read = parse_dead_letter(dead_lettered(one))
    assert isinstance(read, DeadLetter)
    return read


# -- what a dead letter is


def test_a_dead_letter_says_whose_it_is_who_failed_and_why() -> None:
    found = dead_letter(record(b"\xff\x00", b"\xfe", [("trace", b"1"), ("trace", b"2"), ("attempt", b"9")]))
    assert found == DeadLetter(
        place=Place(Topic.DEAD_LETTERS, 3, 5),
        written_ms=WRITTEN_MS,
        first=Place("source", 3, 17),
        origin=Place("source", 3, 17),
        origin_timestamp_ms=WRITTEN_MS,
        reader="sums",
        error="ValueError: bad",
        attempt=1,
        key=b"\xfe",
        value=b"\xff\x00",
        headers=(("trace", b"1"), ("trace", b"2"), ("attempt", b"9")),
        truncated=None,
    )


def test_the_dead_letter_of_a_record_that_was_sent_again_counts_on_and_names_the_first() -> None:
    first = Place("source", 3, 2)
    found = dead_letter(record(headers=[("trace", b"1"), *retry_headers(first, 4)]))
    assert (found.attempt, found.first, found.origin) == (4, first, Place("source", 3, 17))
    assert found.headers == (("trace", b"1"),), "what a retry added is not the record's own"


@pytest.mark.parametrize("attempt", [b"", b"-1", b"zero", b"9" * 40, b"\xff"])
def test_a_nonsense_attempt_is_a_first_one(attempt: bytes) -> None:
    assert dead_letter(record(headers=[("retry.attempt", attempt), ("retry.of", b"source/3/2")])).attempt == 1
    assert dead_letter(record(headers=[("retry.attempt", b"7"), ("retry.of", attempt)])).attempt == 1


@given(
    st.none() | st.binary(max_size=50),
    st.none() | st.binary(max_size=200),
    st.lists(st.tuples(st.text(max_size=10), st.none() | st.binary(max_size=50)), max_size=4),
)
def test_every_record_comes_back_out_of_its_dead_letter(
    key: bytes | None, value: bytes | None, headers: list[Header]
) -> None:
    headers = [(name, content) for name, content in headers if not name.startswith("retry.")]
    raw = dead_lettered(record(value, key, headers))
    assert raw.key is not None or raw.value is not None, "a client could not write it"
    found = parse_dead_letter(raw)
    assert isinstance(found, DeadLetter)
    assert (found.key, found.value) == (key, value)
    assert found.headers == tuple((name, content or b"") for name, content in headers)


KILOBYTES = st.sampled_from([0, 1, 60, 400, 900, 940, 949, 960, 2_000])


@settings(max_examples=60)
@given(KILOBYTES, KILOBYTES, st.lists(KILOBYTES, max_size=3), st.integers(0, 300), st.text(max_size=2_000))
def test_every_dead_letter_fits_into_a_request(key: int, value: int, large: list[int], small: int, error: str) -> None:
    headers: list[Header] = [(f"large-{size}", bytes(size * 1000)) for size in large]
    headers += [(f"small-{number}", b"x") for number in range(small)]
    raw = dead_lettered(record(bytes(value * 1000), bytes(key * 1000), headers), error=RuntimeError(error))
    assert DefaultRecordBatchBuilder.estimate_size_in_bytes(raw.key, raw.value, list(raw.headers)) < FAUST_REQUEST_BYTES


def test_only_what_is_too_large_is_cut_and_the_dead_letter_says_so() -> None:
    whole = dead_letter(record(bytes(900_000)))
    assert whole.truncated is None
    assert whole.value is not None
    assert len(whole.value) == 900_000
    value = bytes(range(256)) * (DEAD_LETTER_MAX_BYTES // 256 + 1)
    cut = dead_letter(record(value))
    assert cut.value == value[:TRUNCATED_VALUE_BYTES]
    assert cut.truncated is not None
    assert cut.truncated == Truncated(len(value), cut.truncated.sha256)
    assert len(bytes.fromhex(cut.truncated.sha256)) == 32


@given(
    st.dictionaries(
        st.sampled_from([f"origin.{name}" for name in ("topic", "partition", "offset", "timestamp_ms", "null")])
        | st.sampled_from(["reader", "error", "attempt", "first", "truncated", "sha256", "retried", "retried.to"]),
        st.none()
        | st.binary(max_size=20)
        | st.sampled_from([b"1", b"a/1/2", b"a/1", b"\xb2", b"99999999999999999999"]),
    )
)
def test_whatever_is_in_the_topic_is_read(headers: dict[str, bytes | None]) -> None:
    read = parse_dead_letter(record(headers=list(headers.items()), topic=Topic.DEAD_LETTERS))
    assert read.first
    assert read.attempt >= 1


def test_a_retry_note_is_distinguished_from_a_dead_letter() -> None:
    first, sent_to = Place("source", 3, 2), Place("source", 3, 99)
    read = parse_dead_letter(record(b"", headers=retry_note_headers(first, 2, sent_to), topic=Topic.DEAD_LETTERS))
    assert read == RetryNote(Place(Topic.DEAD_LETTERS, 3, 17), WRITTEN_MS, first, 2, sent_to)


NO_PLACES = ["", "a", "a/1", "a/1/", "a/1/2/3", "a/-1/2", "/1/2", "a/1/x", "a/1/²"]
TOO_FAR = [f"a/1/{2**63 - 1}", f"a/1/{2**64}", f"a/{2**31}/1", f"a/1/{'9' * 5_000}"]


@pytest.mark.parametrize("text", NO_PLACES + TOO_FAR)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="TOPIC/PARTITION/OFFSET"):
        Place.parse(text)


# -- what belongs to one record


def failed_record(*items: DeadLetter | RetryNote | Dismissal) -> FailedRecord:
    made = FailedRecord(items[0].first, key=None, is_record=True)
    for one in items:
        made.add(one)
    return made


def failed(attempt: int, reader: str = "sums") -> DeadLetter:
    first = Place("source", 3, 17)
    headers = retry_headers(first, attempt) if attempt > 1 else []
    read = parse_dead_letter(dead_lettered(record(headers=headers, offset=16 + attempt), reader))
    assert isinstance(read, DeadLetter)
    return read


def sent_again(attempt: int) -> RetryNote:
    return RetryNote(
        Place(Topic.DEAD_LETTERS, 3, 6), WRITTEN_MS, Place("source", 3, 17), attempt, Place("source", 3, 18)
    )


def dismissed(attempt: int) -> Dismissal:
    headers = dismissal_headers(Place("source", 3, 17), attempt, "known fault")
    read = parse_dead_letter(record(b"", headers=headers, topic=Topic.DEAD_LETTERS))
    assert isinstance(read, Dismissal)
    assert read.reason == "known fault"
    return read


@pytest.mark.parametrize(
    ("items", "state", "attempt"),
    [
        ([failed(1)], State.OPEN, 1),
        ([failed(1), failed(1, "other"), failed(1)], State.OPEN, 1),
        ([failed(1), sent_again(2)], State.RETRIED, 2),
        ([failed(1), sent_again(2), failed(2)], State.OPEN, 2),
        # The reader was quicker than the note; a reader that restarts says again what it said before the retry.
        ([failed(1), failed(2), sent_again(2)], State.OPEN, 2),
        ([failed(1), sent_again(2), failed(1)], State.RETRIED, 2),
        ([failed(1), sent_again(2), failed(2), sent_again(3)], State.RETRIED, 3),
        ([failed(1), dismissed(1)], State.DISMISSED, 1),
        ([dismissed(1), failed(1), failed(1, "other")], State.DISMISSED, 1),
        ([failed(1), dismissed(1), sent_again(2)], State.RETRIED, 2),
        ([failed(1), dismissed(1), sent_again(2), failed(2)], State.OPEN, 2),
    ],
)
def test_a_record_is_open_until_it_is_sent_again_and_when_that_failed(
    items: list[DeadLetter | RetryNote | Dismissal], state: State, attempt: int
) -> None:
    assert (failed_record(*items).state, failed_record(*items).attempt) == (state, attempt)


def test_one_record_has_each_reader_once() -> None:
    made = failed_record(failed(1), failed(1), failed(1, "other"))
    assert [(one.reader, one.times) for one in made.failures.values()] == [("sums", 2), ("other", 1)]


# -- on a cluster


@dataclass
class Reader:
    """An agent that fails on the numbers in `broken`."""

    app: App
    states: KeyedStates[list[int]]
    broken: set[int]
    seen: list[aiokafka.ConsumerRecord]


@asynccontextmanager
async def reading(broker: KafkaConnection, names: Names, folder: Path, broken: set[int]) -> AsyncIterator[Reader]:
    app = make_app(broker, names, folder)
    states = make_states(app)
    reader = Reader(app, states, broken, [])

    def step(key: str, numbers: list[int] | None, new: Sequence[int]) -> agent.Stepped[list[int]]:
        if reader.broken & set(new):
            raise RuntimeError("a number that is not liked")
        return agent.Stepped([*(numbers or []), *new])

    agent.run(app, states, {names.source: int}, step=step)
    async with running(app):
        yield reader


async def entries_of(broker: KafkaConnection, topic: str, count: int, attempt: int = 1) -> list[FailedRecord]:
    """The entries of `topic`, as soon as `count` records have failed `attempt` times."""
    async with asyncio.timeout(100):
        while True:
            found, _ = await DeadLetterStore(broker).newest(Filter(topic=topic), 1000)
            if sum(one.failed_attempt >= attempt for one in found) >= count:
                return sorted(found, key=lambda one: one.first)


async def retried(broker: KafkaConnection, entries: Sequence[FailedRecord]) -> list[Sent | Refused]:
    return [result async for result in DeadLetterStore(broker).retry(entries, lambda dead_letter: None)]


async def read_partition(broker: KafkaConnection, place: Place) -> aiokafka.ConsumerRecord:
    async with aiokafka.AIOKafkaConsumer(**broker.client_options(), enable_auto_commit=False) as consumer:
        partition = aiokafka.TopicPartition(place.topic, place.partition)
        consumer.assign([partition])
        consumer.seek(partition, place.offset)
        return await asyncio.wait_for(consumer.getone(), 60)


async def test_a_record_that_fails_twice_is_one_entry_and_is_processed_once_its_reader_is_fixed(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    headers: list[Header] = [("trace", b"abc"), ("empty", b"")]
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        for value in (b"13", b"7"):
            written = await producer.send_and_wait(
                names.source, value, key=b"call", timestamp_ms=WRITTEN_MS, headers=headers
            )
    async with reading(broker, names, tmp_path, {13}) as reader:
        (one,) = await entries_of(broker, names.source, 1)
        assert one.first == Place(names.source, written.partition, written.offset - 1)
        assert (one.state, one.attempt, one.key) == (State.OPEN, 1, b"call")

        (first,) = await retried(broker, [one])
        assert isinstance(first, Sent)
        assert (first.attempt, first.sent_to.partition) == (2, written.partition)
        again = await read_partition(broker, first.sent_to)
        assert (again.key, again.value, again.timestamp) == (b"call", b"13", WRITTEN_MS)
        assert [header for header in again.headers if header in headers] == headers

        (twice,) = await entries_of(broker, names.source, 1, attempt=2)
        assert twice.first == one.first, "a retry makes no second entry"
        assert (twice.state, twice.attempt) == (State.OPEN, 2)
        assert [one.attempt for one in twice.failures.values()] == [1, 2]

        reader.broken.clear()
        (second,) = await retried(broker, [twice])
        assert isinstance(second, Sent)
        assert second.attempt == 3
        await until(lambda: reader.states.get("call") == [7, 13])
        settled = (await DeadLetterStore(broker).failed_records([one.first]))[one.first]
        assert (settled.state, settled.attempt) == (State.RETRIED, 3)
        assert [note.sent_to for note in settled.retries] == [first.sent_to, second.sent_to]
        assert await DeadLetterStore(broker).open_records(Filter(topic=names.source)) == []


POISON: dict[str, tuple[bytes | None, bytes | None, list[Header]]] = {
    "no number": (b"call", b"not a number", []),
    "empty": (b"call", b"", []),
    "no key": (None, b"1", []),
    "neither key nor value": (None, None, []),
    "an empty key": (b"", b"1", []),
    "a key that is no text": (b"\xff\xfe", b"1", []),
    "a number that is not liked": (b"call", b"13", []),
    "headers without values": (b"call", b"x", [("a", None), ("", b"1")]),
    "as large as a record may be": (b"call", b"x" * 900_000, []),
    "larger than its dead letter may be": (b"call", b"x" * (DEAD_LETTER_MAX_BYTES + 1), []),
    "large headers": (b"call", b"x", [("large", b"x" * 960_000)]),
}


async def write(broker: KafkaConnection, topic: str, poisons: Sequence[str]) -> dict[Place, str]:
    """Write `POISON` as it is, which a producer would refuse in part: record batches are made by hand."""
    written = {}
    async with aiokafka.AIOKafkaProducer(**broker.producer_options(), max_request_size=2_000_000) as producer:
        for name in poisons:
            key, value, headers = POISON[name]
            batch = producer.create_batch()
            batch._builder.append(0, WRITTEN_MS, key, value, headers)
            batch._relative_offset += 1
            batch.close()
            sent = await (await producer.send_batch(batch, topic, partition=0))
            written[Place(topic, 0, sent.offset)] = name
    return written


async def test_poison_of_every_kind_is_dead_lettered_whole_and_stops_nothing(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    places = await write(broker, names.source, list(POISON))
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        await producer.send_and_wait(names.source, b"7", key=b"call", partition=0)
    async with reading(broker, names, tmp_path, {13}) as reader:
        await until(lambda: reader.states.get("call") == [7])
        entries = await entries_of(broker, names.source, len(POISON))
    assert {one.first for one in entries} == set(places)
    for one in entries:
        key, value, headers = POISON[places[one.first]]
        assert one.newest_dead_letter is not None
        found = await DeadLetterStore(broker).dead_letter(one.newest_dead_letter)
        (failure,) = one.failures.values()
        assert (failure.reader, failure.attempt, failure.times) == ("sums", 1, 1)
        assert found.key == key
        if found.truncated is None:
            assert (found.value, found.headers) == (value, tuple((name, held or b"") for name, held in headers))
        else:
            assert found.truncated.value_bytes == len(value or b"")
    cut = {places[one.first] for one in entries if await is_cut(broker, one)}
    assert cut == {"larger than its dead letter may be", "large headers"}


async def test_a_dead_letter_is_read_without_leaving_a_generator_open(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    """What the collector closes, it closes when the loop ends: with an error in the log."""
    names = await make_topics(broker)
    await write(broker, names.source, ["no number", "empty"])
    async with reading(broker, names, tmp_path, set()):
        first, _ = await entries_of(broker, names.source, 2)
    assert first.newest_dead_letter is not None
    left_open: list[object] = []
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(finalizer=left_open.append)
    try:
        await DeadLetterStore(broker).dead_letter(first.newest_dead_letter)
        gc.collect()
    finally:
        sys.set_asyncgen_hooks(*hooks)
    assert left_open == []


async def is_cut(broker: KafkaConnection, one: FailedRecord) -> bool:
    assert one.newest_dead_letter is not None
    return (await DeadLetterStore(broker).dead_letter(one.newest_dead_letter)).truncated is not None


async def test_a_record_whose_dead_letter_was_cut_is_sent_again_whole(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    await write(broker, names.source, ["larger than its dead letter may be", "large headers", "neither key nor value"])
    async with reading(broker, names, tmp_path, set()):
        entries = await entries_of(broker, names.source, 3)
        results = {result.first: result for result in await retried(broker, entries)}
        for one, name in zip(entries, ["larger than its dead letter may be", "large headers"], strict=False):
            sent = results[one.first]
            assert isinstance(sent, Sent), sent
            again = await read_partition(broker, sent.sent_to)
            key, value, headers = POISON[name]
            assert (again.key, again.value) == (key, value)
            assert again.headers[: len(headers)] == tuple(headers)
        refused = results[entries[2].first]
        assert isinstance(refused, Refused)
        assert "neither key nor value" in refused.reason
        await entries_of(broker, names.source, 2, attempt=2)


async def leave(broker: KafkaConnection, raw: Sequence[tuple[bytes | None, bytes, list[Any]]]) -> list[Place]:
    """Write dead letters as they are."""
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        sent = [await producer.send(Topic.DEAD_LETTERS, value, key=key, headers=headers) for key, value, headers in raw]
        written = [await one for one in sent]
    return [Place(one.topic, one.partition, one.offset) for one in written]


async def test_a_dead_letter_with_an_absurd_offset_does_not_keep_others_from_being_sent(
    broker: KafkaConnection, topics: Topics
) -> None:
    names = await make_topics(broker)
    (sound,) = await write(broker, names.source, ["no number"])
    absurd = [str(2**number) for number in range(62, 84)] + ["9" * 4_000, str(2**63 - 2)]
    cut = [("truncated", b"99"), ("sha256", b"00" * 32)]
    key, value, _ = POISON["no number"]
    assert value is not None
    raw = []
    for offset in [*absurd, str(sound.offset)]:
        about = {"origin.topic": names.source, "origin.partition": "0", "origin.offset": offset, "reader": names.app}
        headers: list[Any] = [(name, text.encode()) for name, text in about.items()]
        raw.append((key, value, headers if offset == str(sound.offset) else [*headers, *cut]))
    await leave(broker, raw)
    entries = await DeadLetterStore(broker).open_records(Filter(reader=names.app))
    assert len(entries) == len(raw)
    results = await retried(broker, entries)
    assert len(results) == len(raw)
    assert [result.first for result in results if isinstance(result, Sent)] == [sound]


async def test_what_cannot_be_sent_again_is_refused_with_its_reason(broker: KafkaConnection, topics: Topics) -> None:
    mark = uuid.uuid4().hex[:8]
    webhook = (b"v3:leg", b"{}", [("origin", b"webhook"), ("reader", b"gateway"), ("error", b"no call")])
    gone = dead_letter_of(record(topic=f"gone-{mark}"), reader="sums", error=ValueError())
    (webhook_place, gone_place) = await leave(broker, [webhook, gone])
    first = Place(f"gone-{mark}", 3, 17)
    entries = await DeadLetterStore(broker).failed_records([webhook_place, first])
    assert entries[first].newest_dead_letter == gone_place
    assert not entries[webhook_place].is_record
    results = {result.first: result for result in await retried(broker, list(entries.values()))}
    reasons = {place: result.reason for place, result in results.items() if isinstance(result, Refused)}
    assert "by the carrier" in reasons[webhook_place]
    assert "does not exist here any more" in reasons[first]
    again = await DeadLetterStore(broker).failed_records(list(entries))
    assert {one.state for one in again.values()} == {State.OPEN}, "what was refused stays open"


async def test_a_partition_that_no_longer_exists_is_a_reason_too(broker: KafkaConnection, topics: Topics) -> None:
    name = f"narrow-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**broker.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()
    await leave(broker, [dead_letter_of(record(topic=name), reader="sums", error=ValueError())])
    entries = await DeadLetterStore(broker).failed_records([Place(name, 3, 17)])
    (result,) = await retried(broker, list(entries.values()))
    assert isinstance(result, Refused)
    assert "has no partition 3 any more" in result.reason


async def fail(broker: KafkaConnection, topic: str, *headers: Header) -> aiokafka.ConsumerRecord:
    """A record in `topic`, as its reader gets it."""
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        sent = await producer.send_and_wait(topic, b"value", key=b"call", headers=list(headers))
    return await read_partition(broker, Place(sent.topic, sent.partition, sent.offset))


async def test_what_is_sent_again_is_what_the_topic_holds(broker: KafkaConnection, topics: Topics) -> None:
    names = await make_topics(broker)
    failed = await fail(broker, names.source, ("trace", b"true"))
    key, value, headers = dead_letter_of(failed, reader="sums", error=ValueError())
    invented = ("origin.header.trace", b"false"), ("origin.timestamp_ms", b"1")
    await leave(broker, [(key, value, [*(one for one in headers if one[0] not in dict(invented)), *invented])])
    place = Place(failed.topic, failed.partition, failed.offset)
    (sent,) = await retried(broker, list((await DeadLetterStore(broker).failed_records([place])).values()))
    assert isinstance(sent, Sent)
    again = await read_partition(broker, sent.sent_to)
    assert (again.timestamp, again.headers[0]) == (failed.timestamp, ("trace", b"true"))


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"another"},
        {"value": b"another"},
        {"origin.null": b"value"},
        {"value": b"", "truncated": b"5", "sha256": b"00" * 32},
        {"value": b"", "truncated": b"4"},
        {"value": b"x", "truncated": b"5"},
        {"key": b"x", "truncated": b"5"},
        {"first": b"another/0/1"},
        {"first": b"{topic}/{partition}/999"},
        {"origin.offset": b"999"},
        {"origin.topic": b"dispatch-actions", "first": b"{topic}/{partition}/{offset}"},
    ],
    ids=str,
)
async def test_a_dead_letter_that_its_topic_does_not_confirm_is_not_sent(
    embedded: KafkaConnection, change: dict[str, bytes]
) -> None:
    names = await make_topics(embedded)
    failed = await fail(embedded, names.source)
    key, value, pairs = dead_letter_of(failed, reader="sums", error=ValueError())
    place = {"topic": failed.topic, "partition": failed.partition, "offset": failed.offset}
    headers = dict(pairs) | {"sha256": hashlib.sha256(b"value").hexdigest().encode()}
    headers |= {name: text.decode().format(**place).encode() for name, text in change.items()}
    key, value = headers.pop("key", key), headers.pop("value", value)
    (at,) = await leave(embedded, [(key, value, list(headers.items()))])
    letter = await DeadLetterStore(embedded).dead_letter(at)
    one = FailedRecord(letter.first, key, is_record=True)
    one.add(letter)
    for unconfirmed in (False, True):
        results = DeadLetterStore(embedded).retry([one], lambda _: None, unconfirmed=unconfirmed)
        (result,) = [result async for result in results]
        assert isinstance(result, Refused)


# The embedded broker deletes no records on request.
@pytest.mark.parametrize("broker", ["apache-kafka"], indirect=True)
async def test_a_record_that_its_topic_has_deleted_is_sent_on_demand_alone(
    broker: KafkaConnection, topics: Topics
) -> None:
    names = await make_topics(broker)
    failed = await fail(broker, names.source)
    await leave(broker, [dead_letter_of(failed, reader="sums", error=ValueError())])
    admin = AIOKafkaAdminClient(**broker.client_options())
    await admin.start()
    try:
        partition = aiokafka.TopicPartition(failed.topic, failed.partition)
        await admin.delete_records({partition: RecordsToDelete(before_offset=failed.offset + 1)})
    finally:
        await admin.close()
    place = Place(failed.topic, failed.partition, failed.offset)
    entries = list((await DeadLetterStore(broker).failed_records([place])).values())
    (refused,) = await retried(broker, entries)
    assert isinstance(refused, Refused)
    assert "was deleted" in refused.reason
    assert "--unconfirmed" in refused.reason
    (sent,) = [one async for one in DeadLetterStore(broker).retry(entries, lambda _: None, unconfirmed=True)]
    assert isinstance(sent, Sent)
    assert (await read_partition(broker, sent.sent_to)).value == b"value"


async def test_the_newest_are_listed_whole_however_many_there_are(broker: KafkaConnection, topics: Topics) -> None:
    topic = f"many-{uuid.uuid4().hex[:8]}"
    raw = [
        dead_letter_of(record(topic=topic, key=str(number).encode(), offset=number), reader=reader, error=ValueError())
        for number in range(100)
        for reader in ("calls", "triage")
    ]
    await leave(broker, raw)
    # The oldest one fails again: it is the newest now, and its first dead letters belong to it.
    oldest = record(topic=topic, key=b"0", offset=200, headers=retry_headers(Place(topic, 3, 0), 2))
    await leave(broker, [dead_letter_of(oldest, reader="calls", error=ValueError())])
    found, more = await DeadLetterStore(broker).newest(Filter(topic=topic), 3)
    assert more
    assert found[0].first.offset == 0
    assert sorted(found[0].failures) == [(1, "calls"), (1, "triage"), (2, "calls")]
    assert len(found) == 3
    everything, more = await DeadLetterStore(broker).newest(Filter(topic=topic), 100)
    assert (len(everything), more) == (100, False)
    assert {len(one.failures) for one in everything[1:]} == {2}
    of_triage, _ = await DeadLetterStore(broker).newest(Filter(topic=topic, reader="triage"), 1000)
    assert len(of_triage) == 100
    now = found[0].newest_ms
    assert (await DeadLetterStore(broker).newest(Filter(topic=topic, since_ms=now + 1), 10))[0] == []
    assert len(await DeadLetterStore(broker).open_records(Filter(topic=topic, until_ms=now + 1))) == 100
    assert await DeadLetterStore(broker).open_records(Filter(topic=topic, until_ms=1)) == []


async def test_more_than_a_command_holds_is_refused_and_not_cut_off(
    broker: KafkaConnection, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatchai.kafka.dead_letter_store.RECORDS_MAX", 2)
    topic = f"many-{uuid.uuid4().hex[:8]}"
    await leave(
        broker,
        [dead_letter_of(record(topic=topic, offset=number), reader="sums", error=ValueError()) for number in range(3)],
    )
    with pytest.raises(Exception, match="narrow it with --topic"):
        await DeadLetterStore(broker).open_records(Filter(topic=topic))


def test_headers_in_use_are_those_that_are_documented() -> None:
    text = (DOCS / "dead-letters.md").read_text(encoding="utf-8")
    headers = {
        name for name, _ in dead_letter_of(record(None, headers=[("x", b"")]), reader="r", error=ValueError())[2]
    }
    headers |= {name for name, _ in dead_letter_of(record(bytes(2_000_000)), reader="r", error=ValueError())[2]}
    headers |= {name for name, _ in retry_note_headers(Place("a", 0, 0), 2, Place("a", 0, 1))}
    headers |= {name for name, _ in retry_headers(Place("a", 0, 0), 2)}
    assert {name for name in headers if f"`{name}`" not in text} == {"origin.header.x"}
