"""An agent applies each record once in effect, commits no further than its snapshots, survives poison records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import aiokafka
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from faust.types import TP

from dispatchai.engine import agent
from dispatchai.engine.app import STALL_LIMIT_S, App, create_app
from dispatchai.engine.checkpoint import ROUND_PAUSE_S, Checkpoint
from dispatchai.engine.effects import Effects
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Topic, Topics

PARTITIONS = 2
PATIENCE_S = 100.0

random_bytes = Random(1).randbytes
"""Bytes that do not become fewer by compression."""


@dataclass(frozen=True)
class Names:
    """Topics of one test."""

    app: str
    source: str
    sink: str


def new_names() -> Names:
    mark = uuid4().hex[:8]
    return Names(f"test-{mark}", f"source-{mark}", f"sink-{mark}")


def checkpoint_of(app: App, states: KeyedStates[Any]) -> Checkpoint:
    """What makes `states` durable."""
    (found,) = [checkpoint for checkpoint in app._checkpoints.values() if checkpoint.source is states]
    return found


def changelog_of(app: App, states: KeyedStates[Any]) -> str:
    """The changelog topic of `states`."""
    return checkpoint_of(app, states).changelog


async def make_topics(
    broker: KafkaConnection, names: Names | None = None, sink_configs: dict[str, str] | None = None
) -> Names:
    names = names or new_names()
    admin = AIOKafkaAdminClient(**broker.client_options())
    await admin.start()
    try:
        wanted = {names.source: None, names.sink: sink_configs, f"{names.app}-sums-changelog": None}
        await admin.create_topics(
            [NewTopic(name, PARTITIONS, 1, topic_configs=configs) for name, configs in wanted.items()]
        )
    finally:
        await admin.close()
    return names


def make_app(broker: KafkaConnection, names: Names, folder: Path) -> App:
    return create_app(
        names.app,
        broker,
        dead_letter_topic=Topic.DEAD_LETTERS,
        partitions=PARTITIONS,
        web_host="127.0.0.1",
        web_port=free_port(),
        data_dir=folder,
    )


def make_states(app: App, *, evict: bool = False) -> KeyedStates[list[int]]:
    return app.keyed_states(
        "sums",
        encode=lambda numbers: ",".join(map(str, numbers)).encode(),
        decode=lambda value: [int(number) for number in value.decode().split(",") if number],
        partitions=PARTITIONS,
        evict=evict,
    )


async def make_idle_app(broker: KafkaConnection, folder: Path) -> tuple[App, Names]:
    """An application whose agent changes nothing, for what lies below agents."""
    names = await make_topics(broker)
    app = make_app(broker, names, folder)
    agent.run(app, make_states(app), {names.source: int}, step=lambda key, state, numbers: agent.Stepped(state))
    return app, names


@asynccontextmanager
async def running(app: App) -> AsyncIterator[App]:
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def test_what_is_sent_soon_is_not_overtaken_by_what_is_sent_after_it(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    app, names = await make_idle_app(broker, tmp_path)
    rounds, many = 30, [(b"call", str(number).encode()) for number in range(50)]
    async with running(app):
        await until(lambda: app.lease.open)
        for number in range(rounds):
            await app.emitter.ready()
            app.emitter.send_soon(names.sink, 0, many, timestamp_ms=1)
            app.emitter.send_soon(names.sink, 0, [(b"call", b"soon")], timestamp_ms=1)
            await app.emitter.send(names.sink, b"call", str(number).encode(), partition=0)
        found = await read(broker, names.sink, lambda found: len(found) >= rounds * (len(many) + 2))
    expected = [[*(value for _, value in many), b"soon", str(number).encode()] for number in range(rounds)]
    assert [record.value for record in found] == [value for one in expected for value in one]


async def produce(broker: KafkaConnection, topic: str, records: Sequence[tuple[str | None, bytes]]) -> None:
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        for key, value in records:
            await producer.send(topic, value, key=None if key is None else key.encode())


async def committed(broker: KafkaConnection, names: Names) -> int:
    """Sum of the committed offsets of the source topic."""
    consumer = aiokafka.AIOKafkaConsumer(group_id=names.app, **broker.client_options(), enable_auto_commit=False)
    await consumer.start()
    try:
        offsets = [await consumer.committed(TopicPartition(names.source, number)) for number in range(PARTITIONS)]
        return sum(offset or 0 for offset in offsets)
    finally:
        await consumer.stop()


async def read(
    broker: KafkaConnection, topic: str, enough: Callable[[list[aiokafka.ConsumerRecord]], bool]
) -> list[aiokafka.ConsumerRecord]:
    consumer = aiokafka.AIOKafkaConsumer(
        topic, **broker.client_options(), auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    await consumer.start()
    records: list[aiokafka.ConsumerRecord] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not enough(records):
                for fetched in (await consumer.getmany(timeout_ms=100)).values():
                    records.extend(fetched)
        return records
    finally:
        await consumer.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - a state in memory has no event to wait for
            await asyncio.sleep(0.02)


def append(key: str, numbers: list[int] | None, new: Sequence[int]) -> agent.Stepped[list[int]]:
    """Numbers already there are skipped, as frames are by their sequence."""
    after = [*(numbers or []), *(number for number in new if number not in (numbers or []))]
    return agent.Stepped(after)


def append_or_delete(key: str, numbers: list[int] | None, new: Sequence[int]) -> agent.Stepped[list[int]]:
    """As `append`; a 0 gives the state up."""
    return agent.Stepped(None) if 0 in new else append(key, numbers, new)


@pytest.mark.parametrize("broker", ["apache-kafka"], indirect=True)  # the embedded one makes what it is asked for
async def test_topics_that_the_broker_does_not_know_at_first_are_read_as_soon_as_it_does(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = new_names()
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    agent.run(app, states, {names.source: int}, step=append)
    async with running(app):
        await until(lambda: app.lease.open)
        assert not app.consumer.assignment()
        await make_topics(broker, names)
        await produce(broker, names.source, [("call", b"1")])
        await until(lambda: states.get("call") == [1])


async def test_every_record_is_handed_over_once_and_in_order_of_its_key(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    batches: list[int] = []

    def step(key: str, numbers: list[int] | None, new: Sequence[int]) -> agent.Stepped[list[int]]:
        batches.append(len(new))
        return agent.Stepped([*(numbers or []), *new])

    agent.run(app, states, {names.source: int}, step=step)
    keys = [f"call-{number}" for number in range(10)]
    await produce(broker, names.source, [(key, str(number).encode()) for number in range(200) for key in keys])
    async with running(app):
        await until(lambda: sum(len(states.get(key) or []) for key in keys) >= 2000)
        assert {key: states.get(key) for key in keys} == {key: list(range(200)) for key in keys}
        assert sum(batches) == 2000
        assert len(batches) < 500, "records were not handed over together"


async def test_commits_wait_for_what_is_held_and_a_restart_loses_and_repeats_nothing(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    first = make_app(broker, names, tmp_path)
    first_states = make_states(first)
    agent.run(
        first,
        first_states,
        {names.source: int},
        # Only the first batch asks for a snapshot: what comes later is in memory alone, as before a crash.
        step=lambda key, numbers, new: agent.Stepped(append(key, numbers, new).state, snapshot=numbers is None),
    )
    async with running(first):
        await produce(broker, names.source, [("call", b"1"), ("call", b"2")])
        await until(lambda: first_states.store.values.get("call") is not None)
        covered = first_states.get("call")
        await produce(broker, names.source, [("call", b"3"), ("call", b"4")])
        await until(lambda: first_states.get("call") == [1, 2, 3, 4])
    assert covered is not None
    assert await committed(broker, names) == len(covered)

    second = make_app(broker, names, tmp_path)
    second_states = make_states(second)
    seen: list[int] = []

    def step(key: str, numbers: list[int] | None, new: Sequence[int]) -> agent.Stepped[list[int]]:
        seen.extend(new)
        return append(key, numbers, new)

    agent.run(second, second_states, {names.source: int}, step=step)
    async with running(second):
        await until(lambda: second_states.get("call") == [1, 2, 3, 4])
    assert seen == [1, 2, 3, 4][len(covered) :]
    assert await committed(broker, names) == 4


async def test_every_partition_is_committed_to_its_end_while_the_agent_runs(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    agent.run(app, make_states(app), {names.source: int}, step=append)
    async with running(app):
        for first in range(0, 80, 10):
            await produce(broker, names.source, [(f"call-{number}", b"%d" % (first + number)) for number in range(10)])
        async with asyncio.timeout(PATIENCE_S):
            while await committed(broker, names) < 80:
                pass


async def test_a_poison_record_is_buried_and_stops_nothing(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)

    def step(key: str, numbers: list[int] | None, new: Sequence[int]) -> agent.Stepped[list[int]]:
        if 13 in new:
            raise RuntimeError("thirteen")
        made = append(key, numbers, new)
        return agent.Stepped(made.state, [agent.Output(names.sink, str(number).encode()) for number in new])

    agent.run(app, states, {names.source: int}, step=step)
    await produce(broker, names.source, [("call", b"not a number"), (None, b"5"), ("bad", b"13"), ("call", b"7")])

    def ours(records: list[aiokafka.ConsumerRecord]) -> list[aiokafka.ConsumerRecord]:
        return [item for item in records if dict(item.headers).get("origin.topic") == names.source.encode()]

    async with running(app):
        dead = ours(await read(broker, Topic.DEAD_LETTERS, lambda records: len(ours(records)) >= 3))
        assert [item.value for item in await read(broker, names.sink, bool)] == [b"7"]
        await until(lambda: states.get("call") == [7])
    assert {(item.key, item.value) for item in dead} == {
        (b"call", b"not a number"),
        (None, b"5"),
        (b"bad", b"13"),
    }
    errors = {item.value: dict(item.headers)["error"] for item in dead}
    assert errors[b"13"] == b"RuntimeError: thirteen"
    assert states.get("bad") is None


async def test_a_state_is_not_snapshotted_while_an_effect_is_owed_for_it(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    done: list[tuple[str, int]] = []
    allowed = asyncio.Event()

    async def perform(key: str, number: int) -> None:
        await allowed.wait()
        done.append((key, number))

    effects: Effects[int] = Effects(states, perform)
    app.on_close.append(effects.close)
    agent.run(
        app,
        states,
        {names.source: int},
        step=lambda key, numbers, new: agent.Stepped(append(key, numbers, new).state, effects=new),
        effects=effects,
    )
    await produce(broker, names.source, [("call", b"1"), ("call", b"2")])
    async with running(app):
        await until(lambda: states.get("call") == [1, 2])
        await app.consumer.commit()
        assert await committed(broker, names) == 0
        assert states.store.values.get("call") is None
        allowed.set()
        await until(lambda: states.store.values.get("call") == b"1,2")
        assert done == [("call", 1), ("call", 2)]
    assert await committed(broker, names) == 2


async def test_a_large_state_is_written_rarely_and_with_the_stop(broker: KafkaConnection, tmp_path: Path) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states: KeyedStates[list[int]] = app.keyed_states(
        "sums",
        encode=lambda numbers: b"%d" % len(numbers) + bytes(60_000 * numbers[0]),
        decode=lambda value: [0],
        partitions=PARTITIONS,
    )
    agent.run(app, states, {names.source: int}, step=append)

    async def sent(key: str, value: bytes, count: int) -> None:
        await produce(broker, names.source, [(key, value)])
        await until(lambda: len(states.get(key) or ()) == count)

    def written(key: str) -> bytes:
        return (states.store.values.get(key) or b"").rstrip(b"\0")

    async with running(app):
        await sent("large", b"1", 1)
        await until(lambda: written("large") == b"1")
        await sent("large", b"2", 2)
        for count in range(1, 4):
            await sent("small", b"%d" % (count - 1), count)
            await until(lambda: written("small") == b"%d" % len(states.get("small") or ()))
        assert written("large") == b"1"
        assert not covered(app, names)
    assert written("large") == b"2"
    assert await committed(broker, names) == 5


@pytest.mark.parametrize("broker", ["apache-kafka"], indirect=True)  # the embedded one refuses none
async def test_what_an_output_followed_from_is_not_covered_if_kafka_refuses_it(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker, sink_configs={"max.message.bytes": "1000"})
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    again: list[str] = []

    async def begin_anew() -> None:
        again.append("begun")
        while True:
            await app.emitter.ready()
            await asyncio.sleep(0.01)

    app.background(begin_anew)
    agent.run(
        app,
        states,
        {names.source: int},
        step=lambda key, state, new: agent.Stepped(
            append(key, state, new).state, [agent.Output(names.sink, random_bytes(5000))]
        ),
    )
    async with running(app):
        await produce(broker, names.source, [("call", b"1")])
        await until(lambda: app.failure.has_failed)
        last_round = checkpoint_of(app, states)._round
        assert last_round is not None
        await asyncio.wait([last_round])
        with pytest.raises(AssignmentOverError):
            await app.emitter.send(names.sink, b"call", b"small", partition=0)
        await app.consumer.commit()
        assert states.store.values == {}
    assert await committed(broker, names) == 0
    assert again == ["begun"]


async def test_without_a_lease_a_rebalance_does_not_wait_for_what_is_to_be_sent_again(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    app, names = await make_idle_app(broker, tmp_path)
    place = TopicPartition(names.sink, 0)
    async with running(app):
        await until(lambda: app.lease.open)
        await app.emitter.send(names.sink, b"call", b"before", partition=0)
        await app.emitter.delivered()
        producer = app.producer_client()
        accumulator = producer._message_accumulator
        # Nothing is awaited until the process is without a lease: no request can go out meanwhile.
        sent = accumulator._append_batch(accumulator.create_builder(), place)
        sent.append(b"call", b"lost", None)
        accumulator.reenqueue(accumulator._pop_batch(place))  # a request with it had no answer
        length_s, app.lease.length_s = app.lease.length_s, -PATIENCE_S  # heartbeats renew nothing
        app.lease._until, app.rebalancing = 0.0, True
        await asyncio.wait_for(producer.flush(), PATIENCE_S)
        assert isinstance(sent.future.exception(), AssignmentOverError)
        assert app.collaborators.commits.records_dropped, "a commit could cover it"

        app.rebalancing, app.lease.length_s = False, length_s
        app.lease.assigned(app.lease.generation, app.lease.clock())
        app.lease.resumed()
        for number in range(3):
            await app.emitter.send(names.sink, b"call", b"%d" % number, partition=0)
            await app.emitter.delivered()
        assert not app.failure.has_failed, "the broker waits for the number of what was dropped"
        found = await read(broker, names.sink, lambda found: len(found) >= 4)
    assert [record.value for record in found] == [b"before", b"0", b"1", b"2"]


async def test_a_process_that_can_have_no_partitions_any_more_fails(broker: KafkaConnection, tmp_path: Path) -> None:
    app, _ = await make_idle_app(broker, tmp_path)

    async def lookup(*_: Any) -> int:
        raise AssertionError("Did we not perform bootstrap?")

    async with running(app):
        await until(lambda: app.lease.open)
        coordinator = app.consumer._thread._ensure_consumer()._coordinator
        coordinator._client.coordinator_lookup = lookup
        app.consumer._thread.thread_loop.call_soon_threadsafe(coordinator.coordinator_dead)
        async with asyncio.timeout(STALL_LIMIT_S):  # after twice that anything that has no partitions fails
            await app.failure.wait()


async def test_what_is_still_to_be_written_when_the_producer_has_stopped_fails_nothing_and_is_not_committed(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    """Agents may work until they are stopped, and records may wait for their turn even longer."""
    app, names = await make_idle_app(broker, tmp_path)
    async with running(app):
        await until(lambda: app.lease.open)
        await app.emitter.ready()
    assert app.lease.open
    assert app.collaborators.commits.valid
    await app.emitter.send_soon(names.sink, 0, [(b"call", b"1")], timestamp_ms=0)
    with pytest.raises(AssignmentOverError):
        await app.emitter.send_batch(names.sink, 0, [(b"call", b"1")], timestamp_ms=0)
    with pytest.raises(AssignmentOverError):
        await app.emitter.send(names.sink, b"call", b"1", partition=0)
    await app.emitter.delivered()
    assert not app.failure.has_failed
    assert not app.collaborators.commits.valid


async def test_a_consumer_that_cannot_go_on_fails_the_process_at_once(broker: KafkaConnection, tmp_path: Path) -> None:
    app, _ = await make_idle_app(broker, tmp_path)

    async def getmany(*_: Any) -> Any:
        raise RuntimeError("nobody expects this of a fetch")

    async with running(app):
        await until(lambda: app.lease.open)
        app.consumer._getmany = getmany
        async with asyncio.timeout(STALL_LIMIT_S):  # after twice that the stall detection finds it
            await app.failure.wait()


async def test_a_seek_of_partitions_that_are_lost_meanwhile_stops_nothing(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    """A rebalance takes them away in the consumer thread before the application's loop hears of it."""
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    agent.run(app, states, {names.source: int}, step=append)
    async with running(app):
        await until(lambda: app.lease.open)
        app._source._seek_again[TP("lost", 0)] = 1
        await until(lambda: not app._source._seek_again)
        await produce(broker, names.source, [("call", b"1")])
        await until(lambda: states.get("call") == [1])
        assert not app.failure.has_failed


async def test_a_deleted_state_leaves_a_tombstone(broker: KafkaConnection, tmp_path: Path) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    agent.run(app, states, {names.source: int}, step=append_or_delete)
    async with running(app):
        await produce(broker, names.source, [("call", b"1")])
        await until(lambda: states.store.values.get("call") == b"1")
        await produce(broker, names.source, [("call", b"0")])
        changelog = await read(
            broker, f"{names.app}-sums-changelog", lambda records: any(item.value is None for item in records)
        )
    assert [item.value for item in changelog] == [b"1", None]
    assert states.get("call") is None


def at_rest(states: KeyedStates[Any], key: str) -> bool:
    """Whether only the snapshot of `key` is held."""
    return key in states.store.values and key not in states._entries


def covered(app: App, names: Names) -> bool:
    """Whether no offset of the source topic is uncommitted."""
    return all(app.coverage.floor(TP(names.source, number)) is None for number in range(PARTITIONS))


async def test_a_state_that_nothing_touches_is_held_as_its_snapshot_and_goes_on_from_it(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app, evict=True)
    agent.run(app, states, {names.source: int}, step=append)
    looked_at: list[list[int]] = []

    def counts(numbers: list[int]) -> bool:
        looked_at.append(numbers)
        return len(numbers) == 2

    async with running(app):
        await produce(broker, names.source, [("resting", b"1"), ("busy", b"1")])
        await until(lambda: states.store.values.keys() == {"resting", "busy"})
        states.sweep()
        assert "resting" in states._entries, "it was covered at one look only"
        await produce(broker, names.source, [("busy", b"2")])
        await until(lambda: states.get("busy") == [1, 2])
        states.sweep()
        assert at_rest(states, "resting") and not at_rest(states, "busy")
        assert states.get("resting") == [1]
        assert dict(states) == {"resting": [1], "busy": [1, 2]}
        for _ in range(2):
            assert dict(states.match(counts)) == {"resting": False, "busy": True}
        assert looked_at.count([1]) == 1, "of what rests the verdict is kept"

        await produce(broker, names.source, [("resting", b"2")])
        await until(lambda: states.store.values["resting"] == b"1,2")
        assert dict(states.match(counts)) == {"resting": True, "busy": True}
        await until(lambda: covered(app, names))
    assert await committed(broker, names) == 4


async def test_a_state_that_owes_something_does_not_rest(broker: KafkaConnection, tmp_path: Path) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app, evict=True)
    allowed = asyncio.Event()

    async def perform(key: str, effect: int) -> None:
        await allowed.wait()

    effects: Effects[int] = Effects(states, perform)
    app.on_close.append(effects.close)
    agent.run(
        app,
        states,
        {names.source: int},
        step=lambda key, numbers, new: agent.Stepped(append(key, numbers, new).state, effects=new),
        effects=effects,
    )
    async with running(app):
        await produce(broker, names.source, [("call", b"1")])
        await until(lambda: states.get("call") == [1])
        for _ in range(3):
            states.sweep()
            await asyncio.sleep(2 * ROUND_PAUSE_S)
        assert states.get("call") == [1]
        assert "call" not in states.store.values
        allowed.set()
        await until(lambda: "call" in states.store.values)
        for _ in range(2):
            states.sweep()
        assert at_rest(states, "call")
        await produce(broker, names.source, [("call", b"2")])
        await until(lambda: states.store.values["call"] == b"1,2")


async def test_a_state_at_rest_can_be_deleted(broker: KafkaConnection, tmp_path: Path) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app, evict=True)
    agent.run(app, states, {names.source: int}, step=append_or_delete)
    async with running(app):
        await produce(broker, names.source, [("call", b"1")])
        await until(lambda: states.store.values.get("call") == b"1")
        for _ in range(2):
            states.sweep()
        assert at_rest(states, "call")
        assert dict(states.match(bool)) == {"call": True}
        await produce(broker, names.source, [("call", b"0")])
        await until(lambda: "call" not in states.store.values)
        assert states.get("call") is None
        assert dict(states) == {} == dict(states.match(bool))
        assert states._entries == {} == states._matches


async def test_a_position_that_was_only_sought_is_not_committed(broker: KafkaConnection, tmp_path: Path) -> None:
    """A commit of the former owner may come later than the question for it, and must not be undone."""
    names = await make_topics(broker)
    await produce(broker, names.source, [("call", b"1"), ("call", b"2")])

    async def append_in_a_new_process(number: int) -> None:
        app = make_app(broker, names, tmp_path / str(number))
        states = make_states(app)
        agent.run(app, states, {names.source: int}, step=append)
        async with running(app):
            await until(app.is_processing)
            if number == 4:
                assert {app.consumer._new_offset(tp) for tp in app.stalls.partitions()} == {None}
            await produce(broker, names.source, [("call", str(number).encode())])
            await until(lambda: states.get("call") == list(range(1, number + 1)))

    for number in (3, 4):
        await append_in_a_new_process(number)
        assert await committed(broker, names) == number
