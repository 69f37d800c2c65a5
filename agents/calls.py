"""The calls agent: follows a call's life from its events and gives the carrier its commands.

Reads `call-events`; writes the timers of calls that fired back to it. What a call's events call for is decided in
`dispatchai.telephony.callflow`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.effects import Effects
from dispatchai.engine.state import States
from dispatchai.records import CallEvent, CallState, decode_as, encode
from dispatchai.telephony.callflow import CallFlowConfig, EventType, due_timers, step, with_token
from dispatchai.telephony.client import Command, TelnyxClient, achieved

log = structlog.get_logger(__name__)

NAME: Final = "calls"
TOPIC: Final = "call-events"

TIMERS_EVERY_S: Final = 1.0
"""How often calls are looked through for timers that are due; they are set in whole seconds."""


def decode(value: bytes) -> CallEvent:
    """The event in a record's value. Raises DecodeError."""
    return decode_as(CallEvent, value)


def make(
    app: App,
    partitions: int,
    *,
    config: CallFlowConfig,
    client: TelnyxClient,
    token_for: Callable[[str], str],
) -> States[CallState]:
    """Make the agent. `token_for(call_control_id)` is the token that the media socket asks for."""
    states: States[CallState] = app.states(
        NAME, encode=encode, decode=lambda value: decode_as(CallState, value), partitions=partitions
    )

    def fold(call_id: str, state: CallState | None, events: Sequence[CallEvent]) -> agent.Stepped[CallState]:
        commands: list[Command] = []
        for event in events:
            if event.type == EventType.EXPIRED:
                return agent.Stepped(None)
            state, called_for = step(state, call_id, event, config)
            commands.extend(called_for)
        return agent.Stepped(state, effects=commands)

    async def perform(call_id: str, command: Command) -> None:
        outcome = await client.run(with_token(command, token_for))
        say = log.info if achieved(command, outcome) else log.error
        say("command", call_id=call_id, action=command.action, outcome=type(outcome).__name__)

    effects: Effects[Command] = Effects(states, perform)
    agent.run(app, states, [TOPIC], decode=decode, step=fold, effects=effects)

    async def timers() -> None:
        """Write each timer that is due to `call-events`; what it means is decided when it is read from there."""
        written: set[str] = set()
        app.on_forget.append(written.clear)
        while True:
            now = time.time_ns() // 1000
            for call_id, state in states:
                for event in due_timers(state, call_id, now, config):
                    if event.event_id not in written:
                        written.add(event.event_id)
                        await app.emitter.send(
                            TOPIC, call_id.encode(), encode(event), partition=states.partition_of(call_id)
                        )
            await asyncio.sleep(TIMERS_EVERY_S)

    app.background(timers)
    app.on_close.append(effects.close)
    return states
