"""A packet leaves the queue by a recorded event, and by nothing else; what is recorded twice or late does no harm."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import aiokafka
import pytest

from agents import queue_purge, ranking
from dispatchai.calls.events import EventType, PacketPurged, payload_of
from dispatchai.engine.snapshots import EPOCH
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.packet_history import ASSESSED_AT, copied_up_to, copy_packets
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import AssessmentKind, CallPacket, encode
from dispatchai.triage.purging import KeepFor, QueueEntry, purged_event
from dispatchai.triage.ranking import packet
from tests.support.application import PARTITIONS, call_name, new_group, produce, read, read_call, running, until
from tests.support.recorded_call import S, assessment

HOUR_S = 3600.0
KEEP = KeepFor(closed_s=HOUR_S, open_s=2 * HOUR_S)
SOURCES = (Topic.ASSESSMENTS, Topic.CALL_EVENTS)


def now_us() -> int:
    return round(time.time() * S)


def packet_of(call: str, ended_h: float, version: int = 1) -> CallPacket:
    """The packet of a call that ended `ended_h` hours ago."""
    ended_at = now_us() - round(ended_h * HOUR_S * S)
    final = assessment(AssessmentKind.FINAL, version=version, call=call)
    return packet(call, replace(final, ended_at=ended_at))


async def queue(broker: KafkaConnection, *packets: CallPacket, marked: bool = True) -> None:
    """Put `packets` into the queue as this program does, or (not `marked`) as a version did that had no `packets`."""
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        for one in packets:
            at_ms = one.ranking.created_at // 1000
            headers = [(EPOCH, b"0"), *([(ASSESSED_AT, str(at_ms).encode())] if marked else [])]
            await producer.send_and_wait(
                Topic.DISPATCH_QUEUE, encode(one), key=one.call_id.encode(), headers=headers, timestamp_ms=at_ms
            )


def versions(found: list[CallPacket | None]) -> list[int | None]:
    return [None if one is None else one.version for one in found]


async def test_what_is_due_is_recorded_and_removed_and_what_is_not_stays(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    due, fresh, later, foreign = (call_name(what) for what in ("due", "fresh", "later", "foreign"))
    await queue(broker, packet_of(due, 3), packet_of(due, 3, version=3), packet_of(fresh, 1))
    await queue(broker, packet_of(foreign, 3), marked=False)
    group = await new_group(broker, tmp_path, sources=SOURCES)
    app = group.app()
    ranking.make(app)
    queue_purge.make(app, KEEP)
    async with running(app):
        of_due = await read_call(broker, Topic.DISPATCH_QUEUE, due, lambda found: None in found)
        event, *repeated = await read_call(broker, Topic.CALL_EVENTS, due, bool)
        # Now the queue is followed: what comes behind its end at the start is purged too, when it is due.
        await queue(broker, packet_of(later, 3))
        await read_call(broker, Topic.DISPATCH_QUEUE, later, lambda found: None in found)
        of_fresh = await read_call(broker, Topic.DISPATCH_QUEUE, fresh, bool)
        of_foreign = await read_call(broker, Topic.DISPATCH_QUEUE, foreign, bool)

        # A packet that comes back, as the late write of a former owner, is removed once more.
        await queue(broker, packet_of(due, 3, version=5))
        again = await read_call(
            broker, Topic.DISPATCH_QUEUE, due, lambda found: found[-1:] == [None] and 5 in versions(found)
        )
        # An event of a packet that is gone, once more and by somebody else, removes nothing else.
        await produce(broker, Topic.CALL_EVENTS, due, [purged_event(QueueEntry(0, due, 1, 0), 0)] * 2)
        await read_call(broker, Topic.DISPATCH_QUEUE, due, lambda found: found.count(None) > again.count(None))
        tombstones = await read(broker, Topic.DISPATCH_QUEUE, [due], lambda found: bool(found))
    assert versions(of_due)[:3] == [1, 3, None]
    assert (event.type, payload_of(event)) == (EventType.PURGED, PacketPurged(3))
    assert {one.event_id for one in repeated} <= {event.event_id}, "recorded again after a rebalance, as the same event"
    assert None not in of_fresh
    assert None not in of_foreign, "it may not be in `packets`, and left the queue"
    assert all(dict(one.headers).get(EPOCH) for one in tombstones), "a former owner's late packet could follow it"


async def test_a_worker_that_dies_between_the_event_and_the_tombstone_writes_it_when_it_reads_the_event_again(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    call = call_name("crashed")
    group = await new_group(broker, tmp_path, sources=SOURCES)
    one = packet_of(call, 0.1)
    await queue(broker, one)
    # The event is there and not processed; the packet itself is not due, so only the event can remove it.
    await produce(broker, Topic.CALL_EVENTS, call, [purged_event(QueueEntry(0, call, 1, 0), now_us())])
    app = group.app()
    ranking.make(app)
    queue_purge.make(app, KEEP)
    async with running(app):
        found = await read_call(broker, Topic.DISPATCH_QUEUE, call, lambda found: None in found)
    assert found == [one, None]


async def test_packets_of_an_older_version_are_copied_once_and_then_purged(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    old, young = call_name("old"), call_name("young")
    group = await new_group(broker, tmp_path, sources=SOURCES)
    app = group.app()
    ranking.make(app)
    queue_purge.make(app, KEEP)
    wanted = [packet_of(old, 3), packet_of(old, 3, version=3)]
    await queue(broker, *wanted, packet_of(young, 1), marked=False)
    first = await copy_packets(broker)
    again = await copy_packets(broker)
    assert first.copied >= 3
    assert again.copied == 0
    assert again.present == first.copied + first.present
    async with running(app):
        found = await read_call(broker, Topic.DISPATCH_QUEUE, old, lambda found: None in found)
        of_young = await read_call(broker, Topic.DISPATCH_QUEUE, young, bool)
    assert found == [*wanted, None]
    assert None not in of_young
    records = await read(broker, Topic.PACKETS, [old, young], lambda found: len(found) >= 3)
    assert len(records) == 3
    assert [one.value for one in records if one.key == old.encode()] == [encode(one) for one in wanted]
    assert {one.timestamp for one in records if one.key == old.encode()} == {
        one.ranking.created_at // 1000 for one in wanted
    }, "its retention counts from the call"
    assert sum((await copied_up_to(broker, range(PARTITIONS))).values()) > 0


async def test_a_copy_while_a_worker_runs_is_noticed_by_it(
    broker: KafkaConnection, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = call_name("copied-later")
    await queue(broker, packet_of(call, 3), marked=False)
    group = await new_group(broker, tmp_path, sources=SOURCES)
    app = group.app()
    ranking.make(app)
    queue_purge.make(app, KEEP)
    monkeypatch.setattr(queue_purge, "COPIED_EVERY_S", 0.5)
    async with running(app):
        await until(app.is_processing)
        await copy_packets(broker)
        await read_call(broker, Topic.DISPATCH_QUEUE, call, lambda found: None in found)
