"""The calls agent: follows each call's life from its events and gives the carrier its commands.

Reads `call-events` and `dispatch-actions`; writes to `call-events` how each command ended and the timers that fired.
`dispatchai.calls` decides which commands a call's events and a dispatcher's actions call for, and when timers are due.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol

import structlog

from dispatchai.calls.commands import is_settled, outcome_event, with_token
from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.effects import Effect, PendingCommand, RefusedAction, follow
from dispatchai.calls.state import takes_commands
from dispatchai.calls.timers import due_timers
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.effects import Effects
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic
from dispatchai.process.clock import now_micros
from dispatchai.process.log_limit import LogLimits
from dispatchai.records import Action, CallEvent, CallState, Micros, decode_as, encode
from dispatchai.telnyx.client import TelnyxClient
from dispatchai.telnyx.commands import AlreadyEnded, Command, Outcome, Rejected, achieved

log = structlog.get_logger(__name__)

NAME: Final = "calls"

SOURCES: Final[dict[str, Callable[[bytes], CallEvent | Action]]] = {
    Topic.CALL_EVENTS: partial(decode_as, CallEvent),
    Topic.DISPATCH_ACTIONS: partial(decode_as, Action),
}
"""The topics that are read, each with its decoder."""

TIMERS_EVERY_S: Final = 1.0
"""How often calls are searched for due timers, which are set in whole seconds."""

TokenFor = Callable[[str, str], str]
"""(call id, call control id) -> the token that the call's media socket must present."""


class States(Protocol):
    """The states of the calls; see `KeyedStates`."""

    def get(self, key: str) -> CallState | None:
        """The state of a call, or None."""

    def __iter__(self) -> Iterator[tuple[str, CallState]]:
        """All calls with their states."""


Write = Callable[[str, CallEvent], Awaitable[None]]
"""Writes an event of a call to `call-events`: (call id, event)."""

Give = Callable[[Command], Awaitable[Outcome]]
"""Gives a command to the carrier, and again where that helps."""


class CallsAgent:
    """Steps over the records of a call, and the effects and timers that follow from its state."""

    def __init__(
        self,
        states: States,
        *,
        write: Write,
        give: Give,
        config: CallControlConfig,
        token_for: TokenFor,
        clock: Callable[[], Micros] = now_micros,
    ) -> None:
        self._states = states
        self._write = write
        self._give = give
        self._config = config
        self._token_for = token_for
        self._clock = clock
        self._over: set[str] = set()
        """Calls that the carrier reported over, until their states say so too."""
        self._refused_log = LogLimits()
        self._written: set[str] = set()
        """Event ids of the timers that were written and not read back yet."""

    def step(
        self, call_id: str, state: CallState | None, records: Sequence[CallEvent | Action]
    ) -> agent.Stepped[CallState]:
        """The state of a call after `records`, and the effects that they call for."""
        state, effects = follow(state, call_id, records, self._config)
        return agent.Stepped(state, effects=effects)

    async def perform(self, call_id: str, effect: Effect) -> None:
        """Carry out an effect of `step`."""
        match effect:
            case RefusedAction(action_id, kind, reason):
                if count := self._refused_log.add(reason):
                    log.warning(
                        "action_refused",
                        call_id=call_id,
                        action_id=action_id,
                        kind=kind,
                        reason=reason,
                        actions=count,
                    )
            case PendingCommand(command, number):
                await self._perform_command(call_id, command, number)

    async def _perform_command(self, call_id: str, command: Command, number: int) -> None:
        """Give `command`, unless the call is over, and record how it ended."""
        logger = log.bind(call_id=call_id, action=command.action, round=number)
        state = self._states.get(call_id)
        if state is None or not takes_commands(state) or call_id in self._over or is_settled(state, command):
            logger.info("command_skipped")
            return
        outcome = await self._give(with_token(command, partial(self._token_for, call_id)))
        code = {"code": outcome.code} if isinstance(outcome, Rejected) else {}
        report = logger.info if achieved(command, outcome) else logger.error
        report("command", outcome=type(outcome).__name__, **code)
        state = self._states.get(call_id)
        if state is None or not takes_commands(state):
            return  # how a command ended does not matter to a call that is over
        if isinstance(outcome, AlreadyEnded):
            self._over.add(call_id)
        await self._write(call_id, outcome_event(command, number, outcome, self._clock()))

    async def write_due_timers(self) -> None:
        """Write each timer that is due to `call-events`, once. What it changes is decided when it is read from there.

        Raises AssignmentOverError.
        """
        now = self._clock()
        due: set[str] = set()
        for call_id, state in self._states:
            if not takes_commands(state):
                self._over.discard(call_id)
            for event in due_timers(state, call_id, now, self._config):
                due.add(event.event_id)
                if event.event_id not in self._written:
                    self._written.add(event.event_id)
                    await self._write(call_id, event)
        self._written &= due  # a timer that is not due any more was read back

    async def keep_writing_timers(self) -> None:
        """Write due timers, until cancelled."""
        while True:
            await self.write_due_timers()
            await asyncio.sleep(TIMERS_EVERY_S)

    def reset(self) -> None:
        """Partitions were reassigned: their owner writes what is missing."""
        self._over.clear()
        self._written.clear()


def make(
    app: App, partitions: int, *, config: CallControlConfig, client: TelnyxClient, token_for: TokenFor
) -> KeyedStates[CallState]:
    """Make the agent."""
    states: KeyedStates[CallState] = app.keyed_states(
        NAME, encode=encode, decode=partial(decode_as, CallState), partitions=partitions
    )

    async def write(call_id: str, event: CallEvent) -> None:
        partition = states.partition_of(call_id)
        await app.emitter.send(Topic.CALL_EVENTS, call_id.encode(), encode(event), partition=partition)

    made = CallsAgent(states, write=write, give=client.run, config=config, token_for=token_for)
    effects: Effects[Effect] = Effects(states, made.perform)
    agent.run(app, states, SOURCES, step=made.step, effects=effects)
    app.background(made.keep_writing_timers)
    app.on_reset.append(made.reset)
    app.on_close.append(effects.close)
    return states
