"""On recovery the snapshot of the latest owner counts, whatever an earlier one wrote after it."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import aiokafka
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.engine import agent
from dispatchai.engine.guards import VARIABLE
from dispatchai.engine.snapshots import EPOCH, SnapshotTable, epoch_of
from dispatchai.kafka.connection import KafkaConnection
from tests.engine.test_app import Names, append, make_app, make_states, make_topics, read, running


def snapshot(offset: int, key: str, value: bytes | None, epoch: int | None) -> aiokafka.ConsumerRecord:
    return aiokafka.ConsumerRecord(
        topic="changelog", partition=0, offset=offset, timestamp=0, timestamp_type=0, key=key.encode(), value=value,
        checksum=None, serialized_key_size=0, serialized_value_size=0,
        headers=() if epoch is None else ((EPOCH, str(epoch).encode()),),
    )  # fmt: skip


@pytest.fixture
async def table(tmp_path: Path) -> SnapshotTable:
    app = make_app(KafkaConnection("127.0.0.1:1"), Names("test", "source", "sink"), tmp_path)
    return make_states(app).table


async def test_a_process_that_wakes_up_does_not_win_with_its_old_snapshots(table: SnapshotTable) -> None:
    table.load(0, [snapshot(0, "call", b"1", 4), snapshot(1, "call", b"2", 5), snapshot(2, "call", b"1,old", 4)])
    table.load(0, [snapshot(3, "call", b"1,older", 4)])
    assert table.data["call"] == b"2"


async def test_a_call_that_is_over_does_not_come_back(table: SnapshotTable) -> None:
    table.load(0, [snapshot(0, "call", b"1", 4), snapshot(1, "call", None, 5), snapshot(2, "call", b"1", 4)])
    assert "call" not in table.data


async def test_of_one_owner_the_last_snapshot_counts(table: SnapshotTable) -> None:
    table.load(0, [snapshot(0, "call", b"1", None), snapshot(1, "call", b"2", None)])
    assert table.data["call"] == b"2"


async def test_each_owner_has_a_higher_epoch_than_all_before_it(table: SnapshotTable) -> None:
    table.app.lease.assigned(7, 0.0)
    assert table.epoch(0) == 7
    table.load(0, [snapshot(0, "call", b"1", 7), snapshot(1, "other", b"1", 9)])
    assert table.epoch(0) == 10, "the group's generations began anew"
    assert table.epoch(1) == 7
    table.drop(0)
    assert table.epoch(0) == 7
    assert "call" not in table.data


async def test_without_the_guard_the_old_snapshot_wins(tmp_path: Path) -> None:
    with patch.dict("os.environ", {VARIABLE: "no-epochs"}):
        app = make_app(KafkaConnection("127.0.0.1:1"), Names("test", "source", "sink"), tmp_path)
    table = make_states(app).table
    table.load(0, [snapshot(0, "call", b"2", 5), snapshot(1, "call", b"1", 4)])
    assert table.data["call"] == b"1"


@given(st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=4))
def test_headers_of_others_are_no_epoch(headers: list[tuple[str, bytes]]) -> None:
    assert epoch_of([(name, value) for name, value in headers if name != EPOCH]) == 0


def test_a_broken_epoch_is_none() -> None:
    assert epoch_of([(EPOCH, b"x")]) == 0
    assert epoch_of([(EPOCH, b"12")]) == 12


async def test_what_is_overwritten_is_known_until_it_is_written_again(table: SnapshotTable) -> None:
    table.load(0, [snapshot(0, "call", b"2", 5), snapshot(1, "call", b"1", 4), snapshot(2, "over", None, 5)])
    table.load(0, [snapshot(3, "over", b"1", 4), snapshot(4, "other", b"1", 4), snapshot(5, "other", b"2", 5)])
    table.load(1, [snapshot(0, "elsewhere", b"2", 5), snapshot(1, "elsewhere", b"1", 4)])
    assert table.overwritten == {0: ["call", "over"], 1: ["elsewhere"]}
    table.put("call", b"2", 0)
    table.load(0, [snapshot(6, "over", None, 6)])
    table.drop(1)
    assert table.overwritten == {}


async def test_after_a_recovery_the_changelog_ends_with_what_counts(broker: KafkaConnection, tmp_path: Path) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    agent.run(app, states, {names.source: int}, step=append)
    changelog = states.table.changelog_topic.get_topic_name()
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        written = [("call", b"1,2", 5), ("call", b"1", 4), ("over", b"1", 4), ("over", None, 5), ("over", b"1", 4)]
        for key, value, epoch in written:
            headers = [(EPOCH, str(epoch).encode())]
            await producer.send_and_wait(changelog, value, key=key.encode(), partition=0, headers=headers)
    async with running(app):
        found = await read(broker, changelog, lambda found: len(found) == len(written) + 2)
    for key, counts in ((b"call", b"1,2"), (b"over", None)):
        *_, last = [record for record in found if record.key == key]
        assert last.value == counts
        assert epoch_of(last.headers) == 6
