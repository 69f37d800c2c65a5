"""What is read of a call after its state was given up is not kept for ever."""

from __future__ import annotations

from pathlib import Path

from agents import orphans as leftovers
from agents import triage
from agents.orphans import Ages
from dispatchai.calls.events import EventType
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topics
from tests.support.application import PARTITIONS, call_name, new_group, produce, read_call, running, until
from tests.support.recorded_call import RULES, event, signal

HOUR_S = 3600.0


async def test_a_key_is_told_when_its_state_counted_for_as_long_as_the_limit_and_then_not_again_so_soon() -> None:
    ages = Ages(HOUR_S)
    assert await ages.over([("a", True), ("b", False)], 0.0) == []
    assert await ages.over([("a", True), ("b", True)], HOUR_S - 1) == []
    assert await ages.over([("a", True), ("b", True)], HOUR_S) == ["a"]
    assert await ages.over([("a", True), ("b", True)], 2 * HOUR_S - 1) == ["b"]
    assert await ages.over([("a", True), ("b", True)], 2 * HOUR_S) == ["a"]


async def test_a_state_that_did_not_count_for_one_look_begins_anew() -> None:
    ages = Ages(HOUR_S)
    for now_s, counts in ((0.0, True), (HOUR_S - 1, False), (HOUR_S, True), (2 * HOUR_S - 1, True)):
        assert await ages.over([("known meanwhile", counts)], now_s) == []
    assert await ages.over([], 2 * HOUR_S) == []
    assert await ages.over([("known meanwhile", True)], 3 * HOUR_S) == []


async def test_a_call_of_which_only_signals_are_known_expires_and_one_that_is_known_does_not(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    left, known = call_name("left"), call_name("known")
    group = await new_group(broker, tmp_path, tables=[triage.NAME], sources=tuple(triage.SOURCES))
    app = group.app()
    states = triage.make(app, PARTITIONS, RULES)
    made = leftovers.make(app, states, counts=lambda state: state.call is None, after_s=HOUR_S)
    async with running(app):
        for call_id in (left, known):
            await produce(broker, "signals", call_id, [signal(50)])
        await produce(broker, "call-events", known, [event("call.initiated", call=known)])
        await until(lambda: states.get(left) is not None)
        await until(lambda: (state := states.get(known)) is not None and bool(state.call and state.signals))
        await made.look(0.0)
        await made.look(HOUR_S)
        [expired] = await read_call(broker, "call-events", left, bool)
        await until(lambda: states.get(left) is None and left not in states.store.values)
        assert states.get(known) is not None
    assert expired.type == EventType.EXPIRED
