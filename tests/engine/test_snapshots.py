"""On recovery the snapshot of the latest owner counts, whatever an earlier one wrote after it."""

from __future__ import annotations

from pathlib import Path

import aiokafka
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.engine import agent
from dispatchai.engine.snapshots import EPOCH, SnapshotStore, epoch_of
from dispatchai.kafka.connection import KafkaConnection
from tests.crash.unsafe import without
from tests.engine.test_app import append, changelog_of, make_app, make_states, make_topics, read, running, until


def snapshot(offset: int, key: str, value: bytes | None, epoch: int | None) -> aiokafka.ConsumerRecord:
    return aiokafka.ConsumerRecord(
        topic="changelog", partition=0, offset=offset, timestamp=0, timestamp_type=0, key=key.encode(), value=value,
        checksum=None, serialized_key_size=0, serialized_value_size=0,
        headers=() if epoch is None else ((EPOCH, str(epoch).encode()),),
    )  # fmt: skip


GENERATION = 7


@pytest.fixture
def table() -> SnapshotStore:
    return SnapshotStore("sums", lambda: GENERATION)


def test_a_process_that_wakes_up_does_not_win_with_its_old_snapshots(table: SnapshotStore) -> None:
    table.load(0, [snapshot(0, "call", b"1", 4), snapshot(1, "call", b"2", 5), snapshot(2, "call", b"1,old", 4)])
    table.load(0, [snapshot(3, "call", b"1,older", 4)])
    assert table.values["call"] == b"2"


def test_a_call_that_is_over_does_not_come_back(table: SnapshotStore) -> None:
    table.load(0, [snapshot(0, "call", b"1", 4), snapshot(1, "call", None, 5), snapshot(2, "call", b"1", 4)])
    assert "call" not in table.values


def test_of_one_owner_the_last_snapshot_counts(table: SnapshotStore) -> None:
    table.load(0, [snapshot(0, "call", b"1", None), snapshot(1, "call", b"2", None)])
    assert table.values["call"] == b"2"


def test_each_owner_has_a_higher_epoch_than_all_before_it(table: SnapshotStore) -> None:
    assert table.epoch(0) == 7
    table.load(0, [snapshot(0, "call", b"1", 7), snapshot(1, "other", b"1", 9)])
    assert table.epoch(0) == 10, "the group's generations started again at 1"
    assert table.epoch(1) == 7
    table.drop(0)
    assert table.epoch(0) == 7
    assert "call" not in table.values


def test_without_the_rule_the_old_snapshot_wins(table: SnapshotStore) -> None:
    with without("no-epochs"):
        table.load(0, [snapshot(0, "call", b"2", 5), snapshot(1, "call", b"1", 4)])
    assert table.values["call"] == b"1"


@given(st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=4))
def test_headers_of_others_are_no_epoch(headers: list[tuple[str, bytes]]) -> None:
    assert epoch_of([(name, value) for name, value in headers if name != EPOCH]) == 0


def test_a_broken_epoch_is_none() -> None:
    assert epoch_of([(EPOCH, b"x")]) == 0
    assert epoch_of([(EPOCH, b"12")]) == 12


def test_what_is_overwritten_is_known_until_it_is_written_again(table: SnapshotStore) -> None:
    table.load(0, [snapshot(0, "call", b"2", 5), snapshot(1, "call", b"1", 4), snapshot(2, "over", None, 5)])
    table.load(0, [snapshot(3, "over", b"1", 4), snapshot(4, "other", b"1", 4), snapshot(5, "other", b"2", 5)])
    table.load(1, [snapshot(0, "elsewhere", b"2", 5), snapshot(1, "elsewhere", b"1", 4)])
    assert table.overwritten == {0: ["call", "over"], 1: ["elsewhere"]}
    table.put("call", b"2", 0)
    table.load(0, [snapshot(6, "over", None, 6)])
    table.drop(1)
    assert table.overwritten == {}


def test_what_is_overwritten_in_a_partition_that_is_lost_is_not_written_again(table: SnapshotStore) -> None:
    for partition in (0, 1):
        table.load(partition, [snapshot(0, f"call {partition}", b"2", 5)])
        assert table.follow(partition, [snapshot(1, f"call {partition}", b"1", 4)])
    table.keep({1})
    assert table.overwritten == {1: ["call 1"]}
    assert table.values == {"call 1": b"2"}
    assert (table.loaded(0), table.epoch(0)) == (0, GENERATION)


async def test_after_a_recovery_the_changelog_ends_with_what_counts(broker: KafkaConnection, tmp_path: Path) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    agent.run(app, states, {names.source: int}, step=append)
    changelog = changelog_of(app, states)
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        written = [("call", b"1,2", 5), ("call", b"1", 4), ("over", b"1", 4), ("over", None, 5), ("over", b"1", 4)]
        for key, value, epoch in written:
            headers = [(EPOCH, str(epoch).encode())]
            await producer.send_and_wait(changelog, value, key=key.encode(), partition=0, headers=headers)
    async with running(app):
        found = await read(broker, changelog, lambda found: len(found) == len(written) + 2)
    for call, counts in ((b"call", b"1,2"), (b"over", None)):
        *_, last = [record for record in found if record.key == call]
        assert last.value == counts
        assert epoch_of(last.headers) == 6


@pytest.mark.parametrize("key", [b"\xff\xfe", b"", None], ids=["no text", "empty", "none"])
async def test_a_recovery_ends_whatever_is_at_the_end_of_a_changelog(
    broker: KafkaConnection, tmp_path: Path, key: bytes | None
) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    agent.run(app, states, {names.source: int}, step=append)
    headers = [("Faust-Ag-ReplyTo", b"\xff"), ("h" * 300, b"")]
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        await producer.send_and_wait(changelog_of(app, states), b"1,2", key=b"call", partition=0)
        await producer.send_and_wait(changelog_of(app, states), b"x", key=key, partition=0, headers=headers)
    async with running(app):
        await until(app.is_processing)
        assert states.get("call") == [1, 2]
