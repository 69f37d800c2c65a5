"""The calls agent: follows a call's life from its events and gives the carrier its commands.

Reads `call-events` and `dispatch-actions`; writes to `call-events` how each command ended and the timers of calls
that fired. What a call's events and a dispatcher's actions call for is decided in
`dispatchai.calls`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.control import Refusal, act, is_settled, outcome_event, round_of, step, with_token
from dispatchai.calls.events import OWN_EVENTS, EventType
from dispatchai.calls.state import takes_commands
from dispatchai.calls.timers import due_timers
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.effects import Effects
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic
from dispatchai.process.clock import now_micros
from dispatchai.records import Action, ActionKind, CallEvent, CallState, decode_as, encode
from dispatchai.telnyx.client import TelnyxClient
from dispatchai.telnyx.commands import AlreadyEnded, Command, Rejected, achieved

log = structlog.get_logger(__name__)

NAME: Final = "calls"

SOURCES: Final[dict[str, Callable[[bytes], CallEvent | Action]]] = {
    Topic.CALL_EVENTS: partial(decode_as, CallEvent),
    Topic.DISPATCH_ACTIONS: partial(decode_as, Action),
}
"""What is read, and how."""

TIMERS_EVERY_S: Final = 1.0
"""How often calls are looked through for timers that are due; they are set in whole seconds."""


@dataclass(frozen=True, slots=True)
class Owed:
    """A command to be given, in its round."""

    command: Command
    round: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A dispatcher's action that has no effect, to be told."""

    action_id: str
    kind: ActionKind
    why: Refusal


def make(
    app: App,
    partitions: int,
    *,
    config: CallControlConfig,
    client: TelnyxClient,
    token_for: Callable[[str, str], str],
) -> KeyedStates[CallState]:
    """Make the agent. `token_for(call_id, call_control_id)` is the token that the media socket asks for."""
    states: KeyedStates[CallState] = app.keyed_states(
        NAME, encode=encode, decode=partial(decode_as, CallState), partitions=partitions
    )
    over: set[str] = set()
    """Calls that the carrier said are over, until that is known of their state."""

    def fold(call_id: str, state: CallState | None, records: Sequence[CallEvent | Action]) -> agent.Stepped[CallState]:
        effects: list[Owed | Refused] = []
        for record in records:
            commands: tuple[Command, ...] = ()
            match record:
                case CallEvent(type=EventType.EXPIRED):
                    state = None
                case CallEvent() if state is None and record.type.startswith(OWN_EVENTS):
                    continue  # of a call whose state was given up meanwhile
                case CallEvent():
                    state, commands = step(state, call_id, record, config)
                case Action() if state is None:
                    effects.append(Refused(record.action_id, record.kind, Refusal.UNKNOWN_CALL))
                case Action():
                    state, commands, why = act(state, record, config)
                    if why is not None:
                        effects.append(Refused(record.action_id, record.kind, why))
            if state is not None:
                effects.extend(Owed(command, round_of(state, command)) for command in commands)
        return agent.Stepped(state, effects=effects)

    async def perform(call_id: str, owed: Owed | Refused) -> None:
        match owed:
            case Refused():
                log.warning(
                    "action_refused", call_id=call_id, action_id=owed.action_id, kind=owed.kind, reason=owed.why
                )
            case Owed(command, number):
                await give(call_id, command, number)

    async def give(call_id: str, command: Command, number: int) -> None:
        """Give `command` and record how that ended, unless the call is over by then."""
        told = log.bind(call_id=call_id, action=command.action, round=number)
        state = states.get(call_id)
        if state is None or not takes_commands(state) or call_id in over or is_settled(state, command):
            told.info("command_left_out")
            return
        outcome = await client.run(with_token(command, partial(token_for, call_id)))
        say = told.info if achieved(command, outcome) else told.error
        code = outcome.code if isinstance(outcome, Rejected) else None
        say("command", outcome=type(outcome).__name__, **({} if code is None else {"code": code}))
        state = states.get(call_id)
        if state is None or not takes_commands(state):
            return  # what is owed to a call that is over is of no account
        if isinstance(outcome, AlreadyEnded):
            over.add(call_id)
        event = outcome_event(command, number, outcome, now_micros())
        await app.emitter.send(
            Topic.CALL_EVENTS, call_id.encode(), encode(event), partition=states.partition_of(call_id)
        )

    effects: Effects[Owed | Refused] = Effects(states, perform)
    agent.run(app, states, SOURCES, step=fold, effects=effects)

    async def timers() -> None:
        """Write each timer that is due to `call-events`; what it means is decided when it is read from there."""
        written: set[str] = set()
        app.on_reset.append(written.clear)
        while True:
            now = now_micros()
            due: set[str] = set()
            for call_id, state in states:
                if not takes_commands(state):
                    over.discard(call_id)
                for event in due_timers(state, call_id, now, config):
                    due.add(event.event_id)
                    if event.event_id not in written:
                        written.add(event.event_id)
                        await app.emitter.send(
                            Topic.CALL_EVENTS, call_id.encode(), encode(event), partition=states.partition_of(call_id)
                        )
            written &= due  # what is due no more was read back
            await asyncio.sleep(TIMERS_EVERY_S)

    app.background(timers)
    app.on_reset.append(over.clear)
    app.on_close.append(effects.close)
    return states
