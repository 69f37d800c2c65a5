"""The loop around a step leaves the event loop to others, and an agent that fails is seen at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dispatchai.engine import agent
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.fetch import Batch, Fetch
from dispatchai.kafka.connection import KafkaConnection
from tests.engine.test_app import make_app, make_states, make_topics, produce, running, until
from tests.support.stored_record import StoredRecord


async def test_an_agent_that_fails_outside_its_step_makes_the_application_fail_at_once(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    make_states(app)

    async def process(batch: Batch) -> None:
        raise OverflowError("too large")

    agent.run_batches(app, "sums", [names.source], process)
    async with running(app):
        await until(lambda: app.lease.open)
        assert app.checks["running"]()
        with capture_logs() as logs:
            await produce(broker, names.source, [("call", b"1")])
            await until(lambda: app.failure.has_failed)
    assert not app.checks["running"]()
    assert [(line["event"], line.get("agent")) for line in logs if line["log_level"] == "error"][:2] == [
        ("agent_failed", "sums"),
        ("application_failed", None),
    ]


SOURCE = TP("source", 0)


@dataclass
class Sums:
    """States, and the part of an application that applying a batch needs."""

    name: str = "sums"
    states: dict[str, tuple[int, ...]] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    sent: list[bytes | None] = field(default_factory=list)
    lease: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(generation=1))

    @property
    def app(self) -> Any:
        return SimpleNamespace(lease=self.lease, emitter=self)

    async def ready(self) -> None:
        """There is always room."""

    def send_soon(self, topic: str, partition: int, records: Any, *, timestamp_ms: int) -> None:
        self.sent += [value for _, value in records]

    def get(self, key: str) -> tuple[int, ...] | None:
        return self.states.get(key)

    def put(self, key: str, state: tuple[int, ...] | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        assert state is not None
        self.states[key] = state
        self.held[key] = min(offset, self.held.get(key, offset))


def append(key: str, state: tuple[int, ...] | None, numbers: Sequence[int]) -> agent.Stepped[tuple[int, ...]]:
    return agent.Stepped((*(state or ()), *numbers), [agent.Output("sink", b"%d" % numbers[-1])])


def batch(*records: tuple[bytes, int]) -> Batch:
    """Records with these keys, each of this many bytes."""
    made = [StoredRecord(offset, key, b"%d" % offset + b" " * size) for offset, (key, size) in enumerate(records)]
    return Batch(SOURCE, tuple(made))


@pytest.mark.parametrize(
    ("count", "size", "most"),
    [(400, 16_000, 2), (2_000, 100, agent.STEP_RECORDS)],
    ids=["large records", "many records"],
)
async def test_no_key_keeps_the_loop_from_others(count: int, size: int, most: int) -> None:
    sums, since, turns, over = Sums(), [0], [0], asyncio.Event()

    def step(key: str, state: tuple[int, ...] | None, numbers: Sequence[int]) -> agent.Stepped[tuple[int, ...]]:
        since[0] += len(numbers)
        return append(key, state, numbers)

    async def other() -> None:
        while not over.is_set():
            turns.append(since[0])
            since[0] = 0
            assert not sums.states, "others see no half of a batch"
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await agent.apply(sums.app, sums, batch(*[(b"call", size)] * count), decode=int, step=step)
    over.set()
    await task
    assert sum(turns) + since[0] == count
    assert max(turns) <= most
    assert sums.states["call"] == tuple(range(count))
    assert sums.held["call"] == 0
    assert sums.sent[-1] == b"%d" % (count - 1)


async def test_many_keys_do_not_keep_the_loop_from_others_either() -> None:
    sums, longest = Sums(), [0]
    stepped = 0

    def step(key: str, state: tuple[int, ...] | None, numbers: Sequence[int]) -> agent.Stepped[tuple[int, ...]]:
        nonlocal stepped
        stepped += len(numbers)
        return append(key, state, numbers)

    async def other() -> None:
        seen = 0
        while stepped < 1_000:
            longest.append(stepped - seen)
            seen = stepped
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await agent.apply(
        sums.app, sums, batch(*((b"call-%d" % number, 100) for number in range(1_000))), decode=int, step=step
    )
    await task
    assert max(longest) <= agent.STEP_RECORDS
    assert len(sums.states) == 1_000


async def test_a_batch_whose_assignment_ends_while_others_have_their_turn_changes_nothing() -> None:
    sums = Sums()

    def step(key: str, state: tuple[int, ...] | None, numbers: Sequence[int]) -> agent.Stepped[tuple[int, ...]]:
        if 100 in numbers:
            asyncio.get_running_loop().call_soon(setattr, sums.lease, "generation", 2)
        return append(key, state, numbers)

    with pytest.raises(AssignmentOverError):
        await agent.apply(sums.app, sums, batch(*[(b"call", 100)] * 500), decode=int, step=step)
    assert (sums.states, sums.sent) == ({}, [])


async def test_a_record_that_fails_among_many_takes_no_other_with_it() -> None:
    sums, dead = Sums(), []

    async def dead_letter(record: Any, *, reader: str, error: Exception) -> None:
        dead.append(record.offset)

    def step(key: str, state: tuple[int, ...] | None, numbers: Sequence[int]) -> agent.Stepped[tuple[int, ...]]:
        if 7 in numbers or 130 in numbers:
            raise RuntimeError("not this one")
        return append(key, state, numbers)

    app = sums.app
    app.emitter = SimpleNamespace(ready=sums.ready, send_soon=sums.send_soon, dead_letter=dead_letter)
    await agent.apply(app, sums, batch(*[(b"call", 100)] * 300), decode=int, step=step)
    assert dead == [7, 130]
    assert sums.states["call"] == tuple(number for number in range(300) if number not in dead)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 10), st.integers(1, 100))
def test_the_parts_of_a_batch_are_all_of_it_and_no_larger(sizes: list[int], most: int, most_bytes: int) -> None:
    whole = batch(*((b"k", size) for size in sizes))
    parts = list(whole.parts(most, most_bytes))
    assert [record for part in parts for record in part.records] == list(whole.records)
    for part in parts:
        assert 1 <= len(part.records) <= most
        size = sum(len(record.key or b"") + len(record.value or b"") for record in part.records)
        assert len(part.records) == 1 or size <= most_bytes


def test_a_small_fetch_stays_whole_and_a_large_one_comes_in_parts() -> None:
    whole = Fetch((batch((b"a", 10), (b"b", 10)), batch((b"c", 10))), generation=3)
    assert list(whole.parts(3, 1_000)) == [whole]
    for parts in (list(whole.parts(1, 1_000)), list(whole.parts(3, 15))):
        assert [[one.key for one in part.batches[0].records] for part in parts] == [[b"a"], [b"b"], [b"c"]]
        assert {part.generation for part in parts} == {3}
