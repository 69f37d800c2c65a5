"""What a former owner's late request overwrites in a compacted topic is written again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import aiokafka
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.late_writes import FOLLOW_MAX_WAIT_MS, Standing, standings
from dispatchai.engine.snapshots import EPOCH, epoch_of
from dispatchai.engine.write_lease import Lease
from dispatchai.kafka.connection import KafkaConnection
from tests.crash.unsafe import without
from tests.engine.test_app import (
    Names,
    append,
    changelog_of,
    make_app,
    make_states,
    make_topics,
    produce,
    read,
    running,
    until,
)

Written = tuple[str, bytes | None, int]
"""Key, value, epoch."""


def record(offset: int, written: Written) -> aiokafka.ConsumerRecord:
    key, value, epoch = written
    headers = ((EPOCH, str(epoch).encode()),)
    return aiokafka.ConsumerRecord("queue", 0, offset, 0, 0, key.encode(), value, None, 0, 0, headers)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.binary(max_size=2), st.integers(0, 3)), max_size=12),
    st.integers(0, 12),
)
def test_of_each_key_the_highest_epoch_counts_and_of_one_epoch_the_last(written: list[Written], cut: int) -> None:
    records = [record(offset, one) for offset, one in enumerate(written)]
    known: dict[bytes, Standing] = {}
    for part in (records[:cut], records[cut:]):
        standings(part, {b"a", b"b"}, known)
    assert known.keys() == {one.key for one in records} - {b"c"}
    for key, standing in known.items():
        of_key = [one for one in written if one[0].encode() == key]
        highest = max(epoch for _, _, epoch in of_key)
        assert standing.epoch == highest
        assert standing.value == [value for _, value, epoch in of_key if epoch == highest][-1]
        assert standing.overwritten == (of_key[-1][2] < highest)


async def append_records(broker: KafkaConnection, topic: str, written: Sequence[Written]) -> None:
    """As another owner of partition 0 would write them."""
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        for key, value, epoch in written:
            headers = [(EPOCH, str(epoch).encode())]
            await producer.send_and_wait(topic, value, key=key.encode(), partition=0, headers=headers)


@pytest.fixture(autouse=True)
def later_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the group had had ten generations before each test."""
    assigned, renewed = Lease.assigned, Lease.renewed
    monkeypatch.setattr(Lease, "assigned", lambda lease, generation, at: assigned(lease, generation + 10, at))
    monkeypatch.setattr(Lease, "renewed", lambda lease, generation, at: renewed(lease, generation + 10, at))


async def make(broker: KafkaConnection, folder: Path) -> tuple[App, Names, str]:
    """An application whose `sink` is compacted, and its changelog."""
    names = await make_topics(broker)
    app = make_app(broker, names, folder)
    states = make_states(app)
    agent.run(app, states, {names.source: int}, step=append)
    app.fenced.add(names.sink)
    return app, names, changelog_of(app, states)


def ends(**expected: bytes | None) -> Callable[[list[aiokafka.ConsumerRecord]], bool]:
    """Whether the last record of each key has the value that is expected."""

    def ended(found: list[aiokafka.ConsumerRecord]) -> bool:
        last = {one.key.decode(): one.value for one in found}
        return all(key in last and last[key] == value for key, value in expected.items())

    return ended


async def test_an_output_that_an_earlier_owner_overwrites_is_written_again(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    app, names, _ = await make(broker, tmp_path)
    # Overwritten before this owner came, when nobody followed.
    before: list[Written] = [("before", b"new", 0), ("gone", b"live", -1), ("gone", None, 0), ("early", b"kept", -1)]
    await append_records(broker, names.sink, [(key, value, 3 + epoch) for key, value, epoch in before])
    await append_records(broker, names.sink, [("before", b"old", 1), ("gone", b"old", 1)])
    async with running(app):
        await until(lambda: app.lease.open)
        await read(broker, names.sink, ends(before=b"new", gone=None, early=b"kept"))
        for key, value in (("call", b"1"), ("over", b"live"), ("over", None), ("other", b"1")):
            await app.fenced.send(names.sink, {0: [(key.encode(), value)]}, [("mark", key.encode())])
        await app.emitter.delivered()
        await append_records(broker, names.sink, [("call", b"old", 6), ("over", b"old", 1), ("late", b"only", 6)])
        await app.fenced.send(names.sink, {0: [(b"other", b"2")]})
        found = await read(broker, names.sink, ends(call=b"1", over=None, late=b"only", other=b"2"))
    written_again = [(one.key, one.value) for one in found if epoch_of(one.headers) >= 10]
    assert sorted(written_again[:2], key=str) == [(b"before", b"new"), (b"gone", None)]
    assert sorted(written_again[-2:], key=str) == [(b"call", b"1"), (b"over", None)]
    assert len(written_again) == 9
    (again,) = [one for one in found if one.key == b"call" and one.value == b"1"][1:]
    assert dict(again.headers)["mark"] == b"call", "its headers are lost"
    assert app.metrics.written_again._value.get() == 4


async def test_what_is_written_while_it_is_looked_up_is_not_overwritten_by_what_was_there(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    app, names, _ = await make(broker, tmp_path)
    async with running(app):
        await until(lambda: app.lease.open)
        await app.fenced.send(names.sink, {0: [(b"call", b"0")]})
        for number in range(1, 6):
            late = asyncio.create_task(append_records(broker, names.sink, [("call", b"old", 6)] * 3))
            while not late.done():
                await app.fenced.send(names.sink, {0: [(b"call", f"{number}".encode())]})
                await asyncio.sleep(0.005)
        found = await read(broker, names.sink, ends(call=b"5"))
    own = [int(one.value) for one in found if epoch_of(one.headers) >= 10]
    assert own == sorted(own)


async def test_a_snapshot_that_an_earlier_owner_overwrites_is_written_again(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    app, names, changelog = await make(broker, tmp_path)
    await append_records(broker, changelog, [("gone", b"1", 5), ("gone", None, 6)])
    async with running(app):
        await until(lambda: app.lease.open)
        await produce(broker, names.source, [("call", b"1")])
        found = await read(broker, changelog, lambda found: any(one.key == b"call" for one in found))
        (partition,) = {one.partition for one in found if one.key == b"call"}
        await append_records(broker, changelog, [("gone", b"old", 5)])
        await read(broker, changelog, lambda found: len([one for one in found if one.key == b"gone"]) == 4)
        found = await read(broker, changelog, ends(gone=None))
        if partition == 0:
            await append_records(broker, changelog, [("call", b"old", 0)])
            await read(broker, changelog, lambda found: len([one for one in found if one.key == b"call"]) >= 3)
            await read(broker, changelog, ends(call=b"1"))
    assert epoch_of([one for one in found if one.key == b"gone"][-1].headers) >= 10


async def test_a_process_whose_lease_has_expired_takes_no_later_owner_for_nobody(
    broker: KafkaConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would go on above the later owner's epoch, and its old snapshots would count."""
    app, _, changelog = await make(broker, tmp_path)
    async with running(app):
        await until(lambda: app.lease.open)
        own = app.fenced.epoch(0)
        await append_records(broker, changelog, [("earlier", b"1", own - 5)])
        await read(broker, changelog, ends(earlier=None))  # it follows
        with monkeypatch.context() as expired:
            expired.setattr(Lease, "valid", False)
            await append_records(broker, changelog, [("later", b"1", own + 5)])
            await asyncio.sleep(3 * FOLLOW_MAX_WAIT_MS / 1000)
            assert app.fenced.epoch(0) == own
        # It was nobody's after all: the same assignment goes on.
        await read(broker, changelog, ends(later=None))
        assert app.fenced.epoch(0) > own + 5


async def test_without_the_rule_what_is_overwritten_stays_so(broker: KafkaConnection, tmp_path: Path) -> None:
    app, _names, _ = await make(broker, tmp_path)
    with without("no-epochs"):
        followed = asyncio.create_task(app.fenced.run())
        await asyncio.wait_for(followed, 1.0)
