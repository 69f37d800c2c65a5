"""Claims about call control in the calls agent, on both brokers, against a carrier on loopback."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiokafka
import pytest
import structlog
from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from pydantic import SecretStr

from agents import calls
from dispatchai.calls.commands import command_id
from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.state import NO_AUDIO, takes_commands
from dispatchai.engine.app import App, create_app
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.process.log_limit import LogLimits
from dispatchai.records import Action, ActionKind, CallEvent, CallState, CallStatus, CommandOutcome, encode
from dispatchai.telnyx.client import RetryPolicy, TelnyxClient
from tests.calls.driver import action
from tests.support.call_events import CONFIG, T0, event

PATIENCE_S = 60.0
QUICK = RetryPolicy(attempts=1, first_delay_s=0.001, connect_s=1.0, total_s=2.0, budget_s=5.0)


@dataclass
class Carrier:
    """Accepts commands. `replies` has the (status, error code) of the next commands of an action; then all succeed.

    None is accepted while it is `unavailable`.
    """

    url: str = ""
    unavailable: bool = False
    replies: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def handle(self, request: web.Request) -> web.Response:
        name = request.match_info["action"]
        async with self.changed:
            self.asked.append((request.match_info["id"], name, await request.json()))
            self.changed.notify_all()
        if self.unavailable:
            return web.json_response({"errors": [{"code": "10000", "title": "unavailable"}]}, status=503)
        if not self.replies[name]:
            return web.json_response({"data": {"result": "ok"}})
        status, code = self.replies[name].pop(0)
        return web.json_response({"errors": [{"code": code, "title": "refused"}]}, status=status)

    def actions(self, control_id: str) -> list[str]:
        return [name for asked, name, _ in self.asked if asked == control_id]

    async def until(self, control_id: str, actions: list[str], after: int = 0) -> list[dict[str, Any]]:
        """Wait until a call has received `actions`, `after` others. Returns their bodies."""
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(lambda: len(self.actions(control_id)) >= after + len(actions))
        assert self.actions(control_id)[after:] == actions
        return [body for asked, _, body in self.asked if asked == control_id][after:]


@dataclass
class Running:
    """The calls agent on a broker, and the carrier it commands."""

    broker: KafkaConnection
    app: App
    states: KeyedStates[CallState]
    carrier: Carrier
    producer: aiokafka.AIOKafkaProducer

    async def send(self, call_id: str, *records: CallEvent | Action) -> None:
        for record in records:
            topic = Topic.CALL_EVENTS if isinstance(record, CallEvent) else Topic.DISPATCH_ACTIONS
            await self.producer.send_and_wait(topic, encode(record), call_id.encode())

    async def until(self, call_id: str, true: Callable[[CallState], bool]) -> CallState:
        async with asyncio.timeout(PATIENCE_S):
            while (state := self.states.get(call_id)) is None or not true(state):  # noqa: ASYNC110 - in memory
                await asyncio.sleep(0.02)
        return state


@asynccontextmanager
async def running(broker: KafkaConnection, folder: Path, config: CallControlConfig) -> AsyncIterator[Running]:
    carrier = Carrier()
    application = web.Application()
    application.add_routes([web.post("/v2/calls/{id}/actions/{action}", carrier.handle)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    carrier.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v2"
    partitions = Topics.load().partitions
    app_id = f"test-{uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**broker.client_options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(f"{app_id}-{calls.NAME}-changelog", partitions, 1)])
    finally:
        await admin.close()
    app = create_app(
        app_id,
        broker,
        dead_letter_topic=Topic.DEAD_LETTERS,
        partitions=partitions,
        web_host="127.0.0.1",
        web_port=free_port(),
        data_dir=folder,
    )
    client = TelnyxClient(carrier.url, SecretStr("KEY-of-the-test"), policy=QUICK)
    states = calls.make(app, partitions, config=config, client=client, token_for=lambda call, leg: "")
    app.on_close.append(client.close)
    try:
        async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
            await app.start()
            try:
                yield Running(broker, app, states, carrier, producer)
            finally:
                await app.stop()
    finally:
        await runner.cleanup()


def live(kind: str, call: str, at_s: float = 0.0, **payload: Any) -> CallEvent:
    """An event of a call in progress."""
    shift = time.time_ns() // 1000 - T0
    made = event(kind, at_s, event_id=f"{call}:{kind}@{at_s}", **payload)
    return replace(
        made,
        call_control_id=f"v3:{call}",
        occurred_at=made.occurred_at + shift,
        received_at=made.received_at + shift,
    )


async def test_a_dispatchers_actions_reach_the_carrier_once_and_an_ended_call_gets_none(
    broker: KafkaConnection, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Actions of other tests, which are read at the start, must not use up the lines of this one.
    monkeypatch.setattr(LogLimits, "add", lambda *_: 1)
    call, other = f"call-{uuid4().hex[:8]}", f"other-{uuid4().hex[:8]}"
    leg = f"v3:{call}"
    async with running(broker, tmp_path, CONFIG) as agent:
        await agent.send(call, live("call.initiated", call, direction="incoming"), live("call.answered", call, 0.1))
        actions = ["answer", "streaming_start", "speak"]
        await agent.carrier.until(leg, actions)
        await agent.until(call, lambda state: len(state.commands) == 3)
        with structlog.testing.capture_logs() as lines:
            speak = action(ActionKind.SPEAK, "A private word.", f"{call}-1")
            await agent.send(call, speak, speak, action(ActionKind.TRANSFER, None, f"{call}-2"))
            actions += ["speak", "transfer"]
            bodies = await agent.carrier.until(leg, actions)
            await agent.send(other, action(ActionKind.HANGUP, None, f"{other}-1"))
            await agent.until(call, lambda state: len(state.commands) == 5)
            await agent.send(call, live("call.hangup", call, 1))
            await agent.until(call, lambda state: state.status is CallStatus.ENDED)
            await agent.send(call, action(ActionKind.HANGUP, None, f"{call}-3"))
            async with asyncio.timeout(PATIENCE_S):
                while len([line for line in lines if line["event"] == "action_refused"]) < 3:  # noqa: ASYNC110 - in memory
                    await asyncio.sleep(0.02)
        assert agent.carrier.actions(leg) == actions
        assert agent.carrier.actions(f"v3:{other}") == []
    assert bodies[3] == {
        "command_id": command_id(speak, "speak"),
        "payload": "A private word.",
        "voice": "female",
        "language": "en-US",
    }
    assert bodies[4]["to"] == "+15550100999"
    refused = {(line["action_id"], str(line["reason"])) for line in lines if line["event"] == "action_refused"}
    assert refused == {(f"{call}-1", "repeated"), (f"{other}-1", "unknown call"), (f"{call}-3", "the call is over")}
    assert "private" not in repr(lines)
    assert "+15550100999" not in repr(lines)


async def test_a_command_to_an_unavailable_carrier_is_sent_again_and_a_failed_stream_is_started_again(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    call = f"call-{uuid4().hex[:8]}"
    leg = f"v3:{call}"
    async with running(broker, tmp_path, replace(CONFIG, greeting="", stream_restarts_max=1)) as agent:
        agent.carrier.unavailable = True
        await agent.send(call, live("call.initiated", call, direction="incoming"))
        state = await agent.until(call, lambda state: state.degraded is not None)
        assert state.commands[0].outcome is CommandOutcome.UNAVAILABLE
        # A timer starts the next round; it is a record like any other.
        agent.carrier.unavailable = False
        state = await agent.until(call, lambda state: state.degraded is None)
        answers = agent.carrier.actions(leg)
        assert set(answers) == {"answer"}
        assert [(one.round, one.outcome) for one in state.commands] == [(len(answers), CommandOutcome.DONE)]
        assert len(answers) >= 2
        bodies = await agent.carrier.until(leg, answers)
        assert all(body == bodies[0] for body in bodies)

        agent.carrier.replies["streaming_start"] = [(422, "90034")]
        await agent.send(call, live("call.answered", call, 0.1))
        bodies = await agent.carrier.until(leg, ["streaming_start"] * 2, after=len(answers))
        assert bodies[0] == bodies[1], "a command that came too early is sent again unchanged"
        await agent.send(call, live("streaming.started", call, 0.2), live("streaming.failed", call, 3))
        bodies = await agent.carrier.until(leg, ["streaming_start"] * 3, after=len(answers))
        assert bodies[2]["command_id"] != bodies[1]["command_id"]
        await agent.send(call, live("streaming.failed", call, 4))
        state = await agent.until(call, lambda state: len(state.stream_failed_at) == 2)
        assert state.degraded == NO_AUDIO

        # Once the carrier reports the call as over, no more commands are sent, with or without a hangup.
        agent.carrier.replies["speak"] = [(422, "90018")]
        await agent.send(
            call, action(ActionKind.SPEAK, None, f"{call}-1"), action(ActionKind.HANGUP, None, f"{call}-2")
        )
        await agent.until(call, lambda state: not takes_commands(state))
        assert agent.carrier.actions(leg)[len(answers) + 3 :] in (["speak"], ["speak", "hangup"])
        assert (await agent.until(call, lambda _: True)).status is CallStatus.ACTIVE
