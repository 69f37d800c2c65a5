"""A record that is too large for Kafka costs itself and not the process, and its dead letter says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dispatchai.engine import agent
from dispatchai.engine.emitter import RECORD_MAX_BYTES
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letters import TRUNCATED_VALUE_BYTES
from dispatchai.kafka.topics import Topic, Topics
from tests.engine.test_app import committed, make_app, make_states, make_topics, produce, read, running, until

HUGE = 2 * RECORD_MAX_BYTES


async def dead_letters(broker: KafkaConnection, key: str, count: int) -> list[dict[str, bytes]]:
    """The headers of the dead letters of a key."""

    def of_key(found: list[object]) -> list[object]:
        return [one for one in found if one.key == key.encode()]  # type: ignore[attr-defined]

    found = await read(broker, Topic.DEAD_LETTERS, lambda found: len(of_key(found)) >= count)
    assert all(len(one.value) <= TRUNCATED_VALUE_BYTES for one in of_key(found))  # type: ignore[attr-defined]
    return [dict(one.headers) for one in of_key(found)]  # type: ignore[attr-defined]


async def test_an_output_and_a_state_beyond_the_bound_are_set_aside_and_reported_once(
    broker: KafkaConnection, tmp_path: Path
) -> None:
    await apply(broker, Topics.load(), replication=1)
    names = await make_topics(broker)
    app = make_app(broker, names, tmp_path)
    states = make_states(app)
    key = names.app
    reported: list[tuple[str, str]] = []

    async def report(topic: str, of: str, partition: int | None) -> None:
        reported.append((topic, of))

    app.emitter.on_set_aside = report

    def step(of: str, state: list[int] | None, new: Sequence[int]) -> agent.Stepped[list[int]]:
        if of == key:
            return agent.Stepped(
                [1] * HUGE, [agent.Output(names.sink, bytes(HUGE)), agent.Output(names.sink, b"small")]
            )
        return agent.Stepped([*(state or []), *new], [agent.Output(names.sink, b"other")])

    agent.run(app, states, {names.source: int}, step=step)
    async with running(app):
        for number in range(3):
            await produce(broker, names.source, [(key, b"%d" % number), ("other", b"1")])
            await until(lambda number=number: len(states.get("other") or ()) == number + 1)  # type: ignore[misc]
        await until(lambda: len(reported) == 2)
        found = await read(broker, names.sink, lambda found: len(found) >= 4)
        assert {one.value for one in found} == {b"small", b"other"}
        assert not app.failure.has_failed
    assert await committed(broker, names) == 6
    letters = await dead_letters(broker, key, 2)
    assert len(letters) == 2, "each key once"
    assert {one["origin"].decode().rpartition("/")[0] for one in letters} == {topic for topic, _ in reported}
    assert {int(one["truncated"]) for one in letters} == {HUGE, 2 * HUGE - 1}
    assert all(one["error"].startswith(b"[Error 10]") or b"bytes" in one["error"] for one in letters)
