"""Workers that come and go lose no record of a key, apply none twice, and take none out of order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiokafka

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.connection import KafkaConnection
from tests.engine.test_app import Names, make_app, make_states, make_topics, read, running, until

KEYS = [f"call-{number}" for number in range(20)]
ROUND_S = 0.02
"""Each key gets a record so often, as a call gets a frame."""


def step(key: str, state: list[int] | None, numbers: Sequence[int]) -> agent.Stepped[list[int]]:
    """State: next number, and how often a number came that was neither it nor an earlier one."""
    expected, gaps = state or [0, 0]
    for number in numbers:
        if number > expected:
            gaps += 1
        expected = max(expected, number + 1)
    # One in five batches is snapshotted, so that what is read again after a rebalance has to be skipped.
    return agent.Stepped([expected, gaps], snapshot=expected % 5 == 0)


def worker(broker: KafkaConnection, names: Names, folder: Path) -> tuple[App, KeyedStates[list[int]]]:
    app = make_app(broker, names, folder)
    states = make_states(app)
    agent.run(app, states, {names.source: int}, step=step)
    return app, states


async def test_rebalances_lose_and_repeat_nothing(broker: KafkaConnection, tmp_path: Path) -> None:
    names = await make_topics(broker)
    done = asyncio.Event()
    rounds = 0

    async def speak() -> None:
        nonlocal rounds
        async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
            while not done.is_set():
                for key in KEYS:
                    await producer.send(names.source, str(rounds).encode(), key=key.encode())
                rounds += 1
                await asyncio.sleep(ROUND_S)

    speaking = asyncio.create_task(speak())
    async with AsyncExitStack() as stack:
        last, last_states = worker(broker, names, tmp_path / "last")
        first, _ = worker(broker, names, tmp_path / "first")
        async with running(first):
            await until(first.is_processing)
            second, _ = worker(broker, names, tmp_path / "second")
            async with running(second):
                await until(lambda: second.is_processing() and first.is_processing())
            await until(first.is_processing)
            await stack.enter_async_context(running(last))
            await until(lambda: last.is_processing() and first.is_processing())
        # `first` is gone in its turn; `last` takes over everything.
        await until(lambda: last.is_processing() and len(last.consumer.assignment()) == 4)
        done.set()
        await speaking
        # A snapshot is due at every fifth number: the end of each key is made one.
        closing = -rounds % 5 or 5
        async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
            for number in range(rounds, rounds + closing):
                for key in KEYS:
                    await producer.send(names.source, str(number).encode(), key=key.encode())
        total = rounds + closing
        await until(lambda: all((last_states.get(key) or [0])[0] == total for key in KEYS))
        final = {key: last_states.get(key) for key in KEYS}
        changelog = await read(
            broker,
            f"{names.app}-sums-changelog",
            lambda records: (
                {item.key.decode() for item in records if int(item.value.split(b",")[0]) == total} == set(KEYS)
            ),
        )
    assert final == {key: [total, 0] for key in KEYS}
    assert all(item.value.endswith(b",0") for item in changelog)
