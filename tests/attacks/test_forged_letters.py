"""Attacks through an operator's hands: dead letters of records that never failed, or never were.

The gateway and the speech process may write dead letters, and no commands, actions or packets. The operator who sends
records again may write all of them.
"""

from __future__ import annotations

from uuid import uuid4

import aiokafka

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letter_store import DeadLetterStore, FailedRecord, Filter, Refused, Sent
from dispatchai.kafka.dead_letters import Place
from dispatchai.kafka.topics import Topic
from dispatchai.records import Action, ActionKind, encode
from tests.support.recorded_call import event

Headers = list[tuple[str, bytes]]


def headers(topic: str, partition: str, offset: str, *more: tuple[str, bytes]) -> Headers:
    """The headers of a dead letter of the record at this place."""
    place = [("origin.topic", topic), ("origin.partition", partition), ("origin.offset", offset)]
    return [*((name, text.encode()) for name, text in place), ("reader", b"calls"), ("attempt", b"1"), *more]


async def letter(connection: KafkaConnection, key: bytes, value: bytes, of: Headers) -> None:
    async with aiokafka.AIOKafkaProducer(**connection.producer_options()) as producer:
        await producer.send_and_wait(Topic.DEAD_LETTERS, value, key=key, headers=of)


async def open_of(connection: KafkaConnection, key: bytes) -> list[FailedRecord]:
    found = await DeadLetterStore(connection).open_records(Filter())
    return [record for record in found if record.key == key]


async def retried(connection: KafkaConnection, records: list[FailedRecord]) -> list[Sent | Refused]:
    return [result async for result in DeadLetterStore(connection).retry(records, lambda _: None)]


def hangup() -> bytes:
    return encode(
        Action(
            action_id="forged-0001",
            kind=ActionKind.HANGUP,
            actor="nobody",
            occurred_at=1,
            text=None,
            level=None,
            other_call_id=None,
        )
    )


async def test_a_dead_letter_of_an_action_that_nobody_took_is_not_sent(embedded: KafkaConnection) -> None:
    key = uuid4().hex.encode()
    # Neither is there a record at this place, nor was there one.
    await letter(embedded, key, hangup(), headers(Topic.DISPATCH_ACTIONS, "0", "999999"))
    (result,) = await retried(embedded, await open_of(embedded, key))
    assert isinstance(result, Refused)


async def test_a_dead_letter_with_another_value_than_its_record_is_not_sent(embedded: KafkaConnection) -> None:
    key = uuid4().hex.encode()
    async with aiokafka.AIOKafkaProducer(**embedded.producer_options()) as producer:
        sound = await producer.send_and_wait(Topic.CALL_EVENTS, encode(event("call.dtmf.received")), key=key)
    place = headers(Topic.CALL_EVENTS, str(sound.partition), str(sound.offset))
    await letter(embedded, key, encode(event("call.hangup")), place)
    (result,) = await retried(embedded, await open_of(embedded, key))
    assert isinstance(result, Refused)


async def test_a_dead_letter_with_an_absurd_place_does_not_keep_others_from_being_sent(
    embedded: KafkaConnection,
) -> None:
    key = uuid4().hex.encode()
    broken = b"no record"
    async with aiokafka.AIOKafkaProducer(**embedded.producer_options()) as producer:
        failed = await producer.send_and_wait(Topic.TRANSCRIPTS, broken, key=key)
    cut = [("truncated", b"99"), ("sha256", b"00" * 32)]
    absurd = [*(str(2**number) for number in range(64, 84)), "9" * 4_000]
    async with aiokafka.AIOKafkaProducer(**embedded.producer_options()) as producer:
        for offset in absurd:
            of = headers(Topic.TRANSCRIPTS, str(failed.partition), offset, *cut)
            await producer.send_and_wait(Topic.DEAD_LETTERS, b"beginning", key=key, headers=of)
    await letter(embedded, key, broken, headers(Topic.TRANSCRIPTS, str(failed.partition), str(failed.offset)))
    results = await retried(embedded, await open_of(embedded, key))
    place = Place(failed.topic, failed.partition, failed.offset)
    assert [result.first for result in results if isinstance(result, Sent)] == [place]
