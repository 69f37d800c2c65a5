"""Effects are carried out in order for each key, side by side for different keys, and one that fails holds up nothing.

A poison record is dealt with in the same way: it costs no other record of its key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from dispatchai.engine import agent
from dispatchai.engine.effects import Effects
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topics
from tests.support.application import PARTITIONS, call_name, dead_letters, new_group, produce, running, until

SOURCE = "dispatch-actions"
"""A topic of the project that nothing else writes to in these tests: the values are numbers all the same."""

FAILING, POISON, DELETING = 99, 13, 0


async def test_neither_a_failing_effect_nor_a_poison_record_harms_its_neighbours(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    slow, quick, poisoned, gone = (call_name(what) for what in ("slow", "quick", "poisoned", "gone"))
    group = await new_group(broker, tmp_path, tables=["sums"], sources=[SOURCE])
    app = group.app()
    states: KeyedStates[list[int]] = app.keyed_states(
        "sums",
        encode=lambda numbers: ",".join(map(str, numbers)).encode(),
        decode=lambda value: [int(number) for number in value.decode().split(",")],
        partitions=PARTITIONS,
    )
    done: list[tuple[str, int]] = []
    allowed = asyncio.Event()
    batches: list[int] = []

    async def perform(key: str, number: int) -> None:
        if key == slow:
            await allowed.wait()
        if number == FAILING:
            raise ConnectionError("nobody there")
        done.append((key, number))

    def step(key: str, numbers: list[int] | None, new: Sequence[int]) -> agent.Stepped[list[int]]:
        batches.append(len(new))
        if POISON in new:
            raise RuntimeError("thirteen")
        if DELETING in new:
            return agent.Stepped(None)
        return agent.Stepped([*(numbers or []), *new], effects=new)

    effects: Effects[int] = Effects(states, perform)
    app.on_close.append(effects.close)
    agent.run(app, states, {SOURCE: int}, step=step, effects=effects)
    # Written before the application reads, so that the records of a key come in one batch.
    await produce(broker, SOURCE, poisoned, [b"1", b"13", b"2", b"3"])
    await produce(broker, SOURCE, slow, [b"1", b"2"])
    await produce(broker, SOURCE, quick, [b"1", b"99", b"2"])

    async with running(app):
        await until(lambda: [number for key, number in done if key == quick] == [1, 2])
        await until(lambda: states.store.values.get(quick) == b"1,99,2")
        await until(lambda: states.get(slow) == [1, 2])
        assert states.store.values.get(slow) is None, "a state was stored while its effect was not performed yet"
        allowed.set()
        await until(lambda: states.store.values.get(slow) == b"1,2")

        assert [letter.value for letter in await dead_letters(broker, poisoned, 1)] == [b"13"]
        await until(lambda: states.get(poisoned) == [1, 2, 3])
        assert max(batches) > 1, "the records came one by one: nothing was shown"

        # The state that is given up while its key is written to again is not stored in between.
        await produce(broker, SOURCE, gone, [b"1"])
        await until(lambda: states.store.values.get(gone) == b"1")
        await produce(broker, SOURCE, gone, [b"0"])
        await until(lambda: gone not in states.store.values)
        await produce(broker, SOURCE, gone, [b"7"])
        await until(lambda: states.store.values.get(gone) == b"7")
    assert [number for key, number in done if key == slow] == [1, 2]
    assert dict(states)[gone] == [7]
