"""The calls agent gives the carrier each command once, keeps a failing call to itself and records its timers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agents import calls
from dispatchai.engine.kafka import KafkaConnection
from dispatchai.engine.topics import Topics
from dispatchai.records import CallEvent
from dispatchai.telephony.callflow import CallFlowConfig, EventType, command_id, timer_id
from dispatchai.telephony.client import RetryPolicy, TelnyxClient
from tests.agents.carrier import running_carrier
from tests.agents.recorded import S, event
from tests.agents.support import (
    PARTITIONS,
    RESTARTS,
    call_name,
    committed,
    new_group,
    produce,
    read_call,
    running,
    until,
)

CONFIG = CallFlowConfig(
    stream_url="wss://example.com/ws",
    greeting="Please describe your emergency.",
    greeting_voice="female",
    greeting_language="en-US",
    call_deadline_s=30,
    call_expiry_s=3600,
    call_longest_s=14_400,
)
POLICY = RetryPolicy(attempts=2, budget_s=60, total_s=60, first_delay_s=0.01)
"""Two tries, soon after each other; a carrier that does not answer is waited for until the test is over."""

KEY = "KEY-of-the-test"


def ended(call: str, seconds_ago: int) -> list[CallEvent]:
    """A call that was hung up some time ago."""
    start = time.time_ns() // 1000 - (seconds_ago + 20) * S
    return [
        event("call.initiated", start=start, call=call, direction="incoming"),
        event("call.hangup", 20, start=start, call=call),
    ]


def timers(events: Sequence[Any]) -> list[CallEvent]:
    return [one for one in events if one.type in (EventType.DEADLINE, EventType.EXPIRED)]


async def test_commands_reach_the_carrier_and_timers_the_topic(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    good, refused, silent = call_name("good"), call_name("refused"), call_name("silent")
    over, recent, fence = call_name("over"), call_name("recent"), call_name("fence")
    group = await new_group(broker, tmp_path, tables=[calls.NAME], sources=[calls.TOPIC, calls.ACTIONS_TOPIC])
    app = group.app()

    async with running_carrier() as carrier:
        carrier.refusals[f"v3:{refused}"] = 422
        carrier.silent.add(f"v3:{silent}")
        client = TelnyxClient(carrier.url, SecretStr(KEY), policy=POLICY)
        states = calls.make(
            app, PARTITIONS, config=CONFIG, client=client, token_for=lambda call, leg: f"token of {call} and {leg}"
        )
        app.on_close.append(client.close)

        async with running(app):
            # The calls that fail come first: those after them must not wait for them.
            now = time.time_ns() // 1000
            initiated = {
                name: event("call.initiated", start=now, call=name, direction="incoming")
                for name in (silent, refused, good)
            }
            answered = {name: event("call.answered", 1, start=now, call=name) for name in (silent, refused, good)}
            places = {
                name: await produce(broker, calls.TOPIC, name, [initiated[name], initiated[name], answered[name]])
                for name in (silent, refused, good)
            }
            await produce(broker, calls.TOPIC, good, [answered[good], event("call.speak.ended", 5, call=good)])
            asked = await carrier.until_asked(f"v3:{good}", 3)
            assert len(await carrier.until_asked(f"v3:{refused}", 3)) == 3
            assert [one.action for one in carrier.of(f"v3:{silent}")] == ["answer"]

            # Timers: of a call that is long over, of one that ended a minute ago, and later of a third.
            await produce(broker, calls.TOPIC, over, ended(over, 4000))
            await produce(broker, calls.TOPIC, recent, ended(recent, 60))
            await read_call(broker, calls.TOPIC, over, lambda events: len(timers(events)) >= 2)
            await read_call(broker, calls.TOPIC, recent, lambda events: len(timers(events)) >= 1)
            await until(lambda: states.get(over) is None)
            await produce(broker, calls.TOPIC, fence, ended(fence, 4000))
            await until(lambda: states.partition_of(fence) is not None)
            await until(lambda: states.get(fence) is None)
            of_over = timers(await read_call(broker, calls.TOPIC, over, lambda events: len(timers(events)) >= 2))
            of_recent = await read_call(broker, calls.TOPIC, recent, lambda events: len(timers(events)) >= 1)
            state = states.get(recent)
            assert state is not None
            assert state.deadline_passed

            # Nothing more was asked meanwhile, though every call had more events.
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

    assert [one.type for one in of_over] == [EventType.DEADLINE, EventType.EXPIRED]
    assert [one.event_id for one in of_over] == [timer_id(over, one.type) for one in of_over]
    (hung_up,) = [one.occurred_at for one in of_recent if one.type == EventType.HANGUP]
    assert [(one.type, one.occurred_at) for one in timers(of_recent)] == [(EventType.DEADLINE, hung_up + 30 * S)]
    owed = places[silent][0]
    assert await committed(group, owed) <= owed.offset, "the call whose answer is still owed was committed as done"


@RESTARTS
async def test_a_command_that_was_not_answered_is_given_again_after_a_restart_under_the_same_id(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    call = call_name("call")
    group = await new_group(broker, tmp_path, tables=[calls.NAME], sources=[calls.TOPIC, calls.ACTIONS_TOPIC])
    initiated = event("call.initiated", start=time.time_ns() // 1000, call=call, direction="incoming")
    async with running_carrier() as carrier:
        for silent in (True, False):
            carrier.silent = {f"v3:{call}"} if silent else set()
            app = group.app()
            client = TelnyxClient(carrier.url, SecretStr(KEY), policy=POLICY)
            states = calls.make(app, PARTITIONS, config=CONFIG, client=client, token_for=lambda call, leg: "")
            app.on_close.append(client.close)
            async with running(app):
                if silent:
                    (place,) = await produce(broker, calls.TOPIC, call, [initiated])
                    await carrier.until_asked(f"v3:{call}", 1)
                else:
                    await carrier.until_asked(f"v3:{call}", 2)
                    await until(lambda states=states: states.table.data.get(call) is not None)
    assert [one.body["command_id"] for one in carrier.of(f"v3:{call}")] == [command_id(initiated, "answer")] * 2
    assert await committed(group, place) > place.offset
