"""A state that is made of a call after the call has expired is not kept for ever."""

from __future__ import annotations

from pathlib import Path

from agents import orphaned_states, triage
from dispatchai.calls.events import EventType
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topics
from tests.support.application import PARTITIONS, call_name, new_group, produce, read_call, running, until
from tests.support.recorded_call import RULES, event, signal

HOUR_S = 3600.0


async def test_a_call_of_which_only_signals_are_known_expires_and_one_that_is_known_does_not(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    orphan, known = call_name("orphan"), call_name("known")
    group = await new_group(broker, tmp_path, tables=[triage.NAME], sources=tuple(triage.SOURCES))
    app = group.app()
    states = triage.make(app, PARTITIONS, RULES)
    made = orphaned_states.make(app, states, is_orphaned=lambda state: state.call is None, after_s=HOUR_S)
    async with running(app):
        for call_id in (orphan, known):
            await produce(broker, "signals", call_id, [signal(50)])
        await produce(broker, "call-events", known, [event("call.initiated", call=known)])
        await until(lambda: states.get(orphan) is not None)
        await until(lambda: (state := states.get(known)) is not None and bool(state.call and state.signals))
        await made.look(0.0)
        await made.look(HOUR_S)
        [expired] = await read_call(broker, "call-events", orphan, bool)
        await until(lambda: states.get(orphan) is None and orphan not in states.store.values)
        assert states.get(known) is not None
    assert expired.type == EventType.EXPIRED
