"""What was fetched is handed over as aiokafka would, but whole."""

from __future__ import annotations

import asyncio
import gc
from weakref import ref

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.engine.aiokafka_internals import _Fetched
from dispatchai.engine.fetch import Record

TP = TopicPartition("audio-frames", 0)


def batch(base: int, offsets: list[int]) -> bytes:
    """The batch at offset `base` of what compaction left of it: the records at `offsets` behind its base."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
    for offset in offsets:
        builder.append(offset, 1_700_000_000_000 + offset, b"key", b"%d" % (base + offset), [])
    built = bytes(builder.build())
    return base.to_bytes(8, "big") + built[8:]


async def assigned() -> SubscriptionState:
    """aiokafka wants a running loop for it."""
    subscriptions = SubscriptionState()
    subscriptions.assign_from_user([TP])
    return subscriptions


def fetched(data: bytes, position: int) -> tuple[FetchResult, SubscriptionState]:
    subscriptions = asyncio.run(assigned())
    assignment = subscriptions.subscription.assignment
    assignment.state_value(TP).seek(position)
    records = PartitionRecords(TP, MemoryRecords(data), [], position, None, None, True, 0)
    return FetchResult(TP, assignment=assignment, partition_records=records, backoff=0), subscriptions


def position(subscriptions: SubscriptionState) -> int:
    found: int = subscriptions.subscription.assignment.state_value(TP).position
    return found


def contents(records: list[Record]) -> list[tuple[int, int, bytes | None, bytes | None]]:
    return [(record.offset, record.timestamp, record.key, record.value) for record in records]


@given(st.lists(st.lists(st.integers(0, 20), unique=True, min_size=1).map(sorted), min_size=1, max_size=5), st.data())
def test_all_records_from_the_position_on(batches: list[list[int]], data: st.DataObject) -> None:
    bases = [number * 30 for number in range(len(batches))]
    log = b"".join(batch(base, offsets) for base, offsets in zip(bases, batches, strict=True))
    start = data.draw(st.integers(0, bases[-1]))
    theirs, their_state = fetched(log, start)
    ours, our_state = fetched(log, start)
    results = _Fetched()
    results[TP] = ours
    assert contents(results[TP].getall()) == contents(theirs.getall())
    assert position(our_state) == position(their_state)
    assert not results[TP].has_more()


def test_the_bytes_of_a_fetch_do_not_wait_for_the_garbage_collector() -> None:
    result, _ = fetched(batch(0, [0, 1, 2]), 0)
    source, of_source = ref(result._partition_records), ref(result)
    results = _Fetched()
    results[TP] = result
    del result
    collects = gc.isenabled()
    gc.disable()
    try:
        assert len(results[TP].getall()) == 3
        assert source() is None
        del results[TP]
        assert of_source() is None
    finally:
        if collects:
            gc.enable()


def test_a_broken_batch_costs_nothing_that_came_before_it() -> None:
    good, bad = batch(0, [0, 1, 2]), bytearray(batch(3, [0, 1]))
    bad[-3] ^= 1
    result, state = fetched(good + bytes(bad), 0)
    results = _Fetched()
    results[TP] = result
    assert [record.offset for record in results[TP].getall()] == [0, 1, 2]
    assert position(state) == 3

    again, state = fetched(bytes(bad), 3)
    results[TP] = again
    with pytest.raises(CorruptRecordException, match="audio-frames"):
        results[TP].getall()
    # It is asked once more, has nothing, and is fetched again.
    assert results[TP].getall() == []
    assert not results[TP].has_more()
    assert position(state) == 3


def test_of_what_another_seek_made_old_there_is_nothing() -> None:
    result, state = fetched(batch(0, [0, 1, 2]), 0)
    state.subscription.assignment.state_value(TP).seek(1)
    results = _Fetched()
    results[TP] = result
    assert results[TP].getall() == []
