"""The calls agent gives the carrier each command once, does not let a failing call delay others, and records timers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agents import calls
from dispatchai.calls.commands import command_id
from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.events import EventType
from dispatchai.calls.timers import timer_id
from dispatchai.engine.app import App
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import CallEvent, CallState
from dispatchai.telnyx.client import RetryPolicy, TelnyxClient
from tests.support.application import (
    PARTITIONS,
    RESTARTS,
    Group,
    call_name,
    committed,
    new_group,
    produce,
    read_call,
    running,
    until,
)
from tests.support.call_control_api import Carrier, running_carrier
from tests.support.call_events import CONFIG
from tests.support.recorded_call import S, event

SHORT_EXPIRY = replace(CONFIG, call_expiry_s=1)
"""Calls expire a second after their deadline was written."""

POLICY = RetryPolicy(attempts=2, budget_s=60, total_s=60, first_delay_s=0.01)
"""Two tries in quick succession; a carrier that does not answer is awaited until the test ends."""

KEY = "KEY-of-the-test"


def ended(call: str, seconds_ago: int) -> list[CallEvent]:
    """The events of a call that was hung up some time ago."""
    start = time.time_ns() // 1000 - (seconds_ago + 20) * S
    return [
        event("call.initiated", start=start, call=call, direction="incoming"),
        event("call.hangup", 20, start=start, call=call),
    ]


def timers(events: Sequence[Any]) -> list[CallEvent]:
    return [one for one in events if one.type in (EventType.DEADLINE, EventType.EXPIRED)]


def make_worker(
    group: Group, carrier: Carrier, *, config: CallControlConfig = CONFIG
) -> tuple[App, KeyedStates[CallState]]:
    """A worker with the calls agent alone, whose commands go to `carrier`."""
    app = group.app()
    client = TelnyxClient(carrier.url, SecretStr(KEY), policy=POLICY)
    app.on_close.append(client.close)
    states = calls.make(
        app, PARTITIONS, config=config, client=client, token_for=lambda call, leg: f"token of {call} and {leg}"
    )
    return app, states


async def test_commands_reach_the_carrier_and_timers_the_topic(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    good, refused, silent = call_name("good"), call_name("refused"), call_name("silent")
    over, recent = call_name("over"), call_name("recent")
    group = await new_group(broker, tmp_path, tables=[calls.NAME], sources=[Topic.CALL_EVENTS, Topic.DISPATCH_ACTIONS])

    async with running_carrier() as carrier:
        carrier.refusals[f"v3:{refused}"] = 422
        carrier.silent.add(f"v3:{silent}")
        app, states = make_worker(group, carrier)
        async with running(app):
            # The calls that fail come first: the others must not wait for them.
            now = time.time_ns() // 1000
            initiated = {
                name: event("call.initiated", start=now, call=name, direction="incoming")
                for name in (silent, refused, good)
            }
            answered = {name: event("call.answered", 1, start=now, call=name) for name in (silent, refused, good)}
            places = {
                name: await produce(broker, Topic.CALL_EVENTS, name, [initiated[name], initiated[name], answered[name]])
                for name in (silent, refused, good)
            }
            await produce(broker, Topic.CALL_EVENTS, good, [answered[good], event("call.speak.ended", 5, call=good)])
            asked = await carrier.until_asked(f"v3:{good}", 3)
            assert len(await carrier.until_asked(f"v3:{refused}", 3)) == 3
            assert [one.action for one in carrier.of(f"v3:{silent}")] == ["answer"]

            # Timers of a call that is long over, as after a night without a worker, and of one a minute ago.
            await produce(broker, Topic.CALL_EVENTS, over, ended(over, 4000))
            await produce(broker, Topic.CALL_EVENTS, recent, ended(recent, 60))
            of_over = await read_call(broker, Topic.CALL_EVENTS, over, lambda events: len(timers(events)) >= 1)
            of_recent = await read_call(broker, Topic.CALL_EVENTS, recent, lambda events: len(timers(events)) >= 1)
            await until(lambda: all((one := states.get(name)) and one.deadline_passed for name in (over, recent)))

            # No more commands were given meanwhile, though every call had more events.
            assert carrier.of(f"v3:{good}") == asked
            assert [one.action for one in carrier.of(f"v3:{silent}")] == ["answer"]
            assert not carrier.of(f"v3:{over}")[1:], "a call that is over is given commands"

    assert [one.action for one in asked] == ["answer", "streaming_start", "speak"]
    assert {one.authorization for one in asked} == {f"Bearer {KEY}"}
    assert [one.body["command_id"] for one in asked] == [
        command_id(initiated[good], "answer"),
        command_id(answered[good], "streaming_start"),
        command_id(answered[good], "speak"),
    ]
    assert asked[1].body["stream_auth_token"] == f"token of {good} and v3:{good}"
    assert [one.action for one in carrier.of(f"v3:{refused}")] == ["answer", "streaming_start", "speak"]

    for events in (of_over, of_recent):
        (hung_up,) = [one.occurred_at for one in events if one.type == EventType.HANGUP]
        assert [(one.type, one.occurred_at) for one in timers(events)] == [(EventType.DEADLINE, hung_up + 30 * S)]
    pending = places[silent][0]
    assert await committed(group, pending) <= pending.offset, "a call with a pending answer was committed as done"


async def test_a_call_expires_after_its_deadline_and_a_late_event_of_it_expires_too(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    over = call_name("over")
    group = await new_group(broker, tmp_path, tables=[calls.NAME], sources=[Topic.CALL_EVENTS, Topic.DISPATCH_ACTIONS])
    async with running_carrier() as carrier:
        app, states = make_worker(group, carrier, config=SHORT_EXPIRY)
        async with running(app):
            await produce(broker, Topic.CALL_EVENTS, over, ended(over, 4000))
            await read_call(broker, Topic.CALL_EVENTS, over, lambda events: len(timers(events)) == 2)
            await until(lambda: states.get(over) is None)
            (_, hangup) = ended(over, 4000)
            await produce(broker, Topic.CALL_EVENTS, over, [replace(hangup, received_at=time.time_ns() // 1000)])
            events = await read_call(broker, Topic.CALL_EVENTS, over, lambda events: len(timers(events)) == 3)
            await until(lambda: states.get(over) is None)
    assert [one.type for one in timers(events)] == [EventType.DEADLINE, EventType.EXPIRED, EventType.EXPIRED]
    assert [one.event_id for one in timers(events)] == [timer_id(over, EventType(one.type)) for one in timers(events)]
    deadline, expired, _ = timers(events)
    assert expired.occurred_at == deadline.received_at + S, "the time to read what is unread counts from the deadline"


@RESTARTS
async def test_a_command_that_was_not_answered_is_given_again_after_a_restart_under_the_same_id(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    call = call_name("call")
    group = await new_group(broker, tmp_path, tables=[calls.NAME], sources=[Topic.CALL_EVENTS, Topic.DISPATCH_ACTIONS])
    initiated = event("call.initiated", start=time.time_ns() // 1000, call=call, direction="incoming")
    async with running_carrier() as carrier:
        carrier.silent = {f"v3:{call}"}
        app, _ = make_worker(group, carrier)
        async with running(app):
            (place,) = await produce(broker, Topic.CALL_EVENTS, call, [initiated])
            await carrier.until_asked(f"v3:{call}", 1)
        carrier.silent = set()
        app, states = make_worker(group, carrier)
        async with running(app):
            await carrier.until_asked(f"v3:{call}", 2)
            await until(lambda: states.store.values.get(call) is not None)
    assert [one.body["command_id"] for one in carrier.of(f"v3:{call}")] == [command_id(initiated, "answer")] * 2
    assert await committed(group, place) > place.offset
