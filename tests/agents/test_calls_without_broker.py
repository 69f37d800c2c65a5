"""The calls agent gives commands only to calls in progress, and records each outcome and timer once. No broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from agents.calls import CallsAgent
from dispatchai.calls.effects import PendingCommand
from dispatchai.calls.events import CommandEnded, EventType, payload_of
from dispatchai.calls.state import fold
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.records import Action, ActionKind, CallEvent, CallState, CommandOutcome
from dispatchai.telnyx.commands import AlreadyEnded, Command, Done, Outcome, StreamingStart, Unavailable
from tests.support.call_events import ANSWERED, CALL, CONFIG, HANGUP, INITIATED, T0, S


class Process:
    """A worker in small: the states of calls, what was given to the carrier, and what was written to `call-events`."""

    def __init__(self) -> None:
        self.states: dict[str, CallState] = {}
        self.given: list[Command] = []
        self.written: list[CallEvent] = []
        self.outcome: Outcome = Done(1)
        self.meanwhile: Callable[[], None] = lambda: None
        """Called while the carrier answers."""
        self.refuse_writes = False
        self.now = T0
        self.agent = CallsAgent(
            self,
            write=self._write,
            give=self._give,
            config=CONFIG,
            token_for=lambda call_id, leg: f"token of {call_id} and {leg}",
            clock=lambda: self.now,
        )

    def get(self, key: str) -> CallState | None:
        return self.states.get(key)

    def __iter__(self) -> Iterator[tuple[str, CallState]]:
        return iter(list(self.states.items()))

    async def _write(self, call_id: str, event: CallEvent) -> None:
        assert call_id == CALL
        if self.refuse_writes:
            raise AssignmentOverError
        self.written.append(event)

    async def _give(self, command: Command) -> Outcome:
        self.given.append(command)
        self.meanwhile()
        return self.outcome

    def read(self, *records: CallEvent | Action) -> list[PendingCommand]:
        """Read records of the call; the commands that they call for."""
        stepped = self.agent.step(CALL, self.states.get(CALL), records)
        if stepped.state is None:
            self.states.pop(CALL, None)
        else:
            self.states[CALL] = stepped.state
        return [one for one in stepped.effects if isinstance(one, PendingCommand)]

    async def perform(self, effects: list[PendingCommand]) -> None:
        for effect in effects:
            await self.agent.perform(CALL, effect)


def outcomes(process: Process) -> list[CommandOutcome]:
    payloads = [payload_of(event) for event in process.written if event.type == EventType.COMMAND]
    ended = [payload for payload in payloads if isinstance(payload, CommandEnded)]
    assert len(ended) == len(payloads)
    return [payload.outcome for payload in ended]


async def test_commands_are_given_in_order_and_each_outcome_is_recorded_once() -> None:
    process = Process()
    effects = process.read(INITIATED, ANSWERED)
    await process.perform(effects)
    assert [command.action for command in process.given] == ["answer", "streaming_start", "speak"]
    assert outcomes(process) == [CommandOutcome.DONE] * 3
    started = process.given[1]
    assert isinstance(started, StreamingStart)
    assert started.stream_auth_token == f"token of {CALL} and v3:abc"

    # Made again, as after a crash, they are not given again once the outcomes were read.
    process.read(*process.written)
    await process.perform(effects)
    assert len(process.given) == 3
    assert len(process.written) == 3


async def test_a_repeated_event_calls_for_nothing() -> None:
    process = Process()
    assert len(process.read(INITIATED, INITIATED)) == 1
    assert process.read(INITIATED) == []


@pytest.mark.parametrize(
    "end", [HANGUP, replace(HANGUP, type=EventType.DEADLINE), replace(HANGUP, type=EventType.EXPIRED)]
)
async def test_a_pending_command_of_a_call_that_is_over_is_left_out(end: CallEvent) -> None:
    process = Process()
    effects = process.read(INITIATED, ANSWERED)
    process.read(end)
    await process.perform(effects)
    assert process.given == []
    assert process.written == []


async def test_an_outcome_is_not_recorded_for_a_call_that_ended_meanwhile() -> None:
    process = Process()
    effects = process.read(INITIATED)

    def hang_up() -> None:
        process.read(HANGUP)

    process.meanwhile = hang_up
    await process.perform(effects)
    assert len(process.given) == 1
    assert process.written == []


async def test_a_call_that_the_carrier_reports_over_gets_no_more_commands_even_before_that_is_read_back() -> None:
    process = Process()
    process.outcome = AlreadyEnded()
    effects = process.read(INITIATED, ANSWERED)
    await process.perform(effects)
    assert [command.action for command in process.given] == ["answer"]
    assert outcomes(process) == [CommandOutcome.ALREADY_ENDED]
    process.read(*process.written)
    assert process.read(speak("a1")) == [], "the state says so now"


def speak(action_id: str) -> Action:
    return Action(action_id, ActionKind.SPEAK, "desk 4", T0, "Help is coming.", None, None)


async def test_after_a_reset_commands_of_a_call_that_was_reported_over_are_given_again() -> None:
    process = Process()
    process.outcome = AlreadyEnded()
    effects = process.read(INITIATED)
    await process.perform(effects)
    await process.perform(effects)
    assert len(process.given) == 1
    process.agent.reset()
    await process.perform(effects)
    assert len(process.given) == 2


async def test_a_timer_is_written_once_however_long_it_takes_to_be_read_back() -> None:
    process = Process()
    process.read(INITIATED, HANGUP)
    process.now = HANGUP.occurred_at + 29 * S
    await process.agent.write_due_timers()
    assert process.written == []
    process.now = HANGUP.occurred_at + 31 * S
    for _ in range(3):
        await process.agent.write_due_timers()
    assert [event.type for event in process.written] == [EventType.DEADLINE]
    process.read(*process.written)
    await process.agent.write_due_timers()
    assert len(process.written) == 1


async def test_a_timer_is_written_again_in_the_next_assignment_under_the_same_id() -> None:
    process = Process()
    process.read(INITIATED, HANGUP)
    process.now = HANGUP.occurred_at + 31 * S
    await process.agent.write_due_timers()
    process.agent.reset()
    process.refuse_writes = True
    with pytest.raises(AssignmentOverError):
        await process.agent.write_due_timers()
    process.agent.reset()
    process.refuse_writes = False
    await process.agent.write_due_timers()
    first, second = process.written
    assert first == replace(second, received_at=first.received_at)


async def test_a_failed_command_is_given_again_when_its_timer_is_read() -> None:
    process = Process()
    process.outcome = Unavailable(2, "connection refused")
    await process.perform(process.read(INITIATED))
    process.read(*process.written)
    process.now += 3 * S
    await process.agent.write_due_timers()
    retry = process.written[-1]
    assert retry.type == EventType.RETRY
    process.outcome = Done(1)
    again = process.read(retry)
    assert [effect.round for effect in again] == [2]
    await process.perform(again)
    assert process.given[0] == process.given[1]
    assert outcomes(process) == [CommandOutcome.UNAVAILABLE, CommandOutcome.DONE]


async def test_an_expired_call_has_no_state_and_its_own_late_events_make_none() -> None:
    process = Process()
    process.read(INITIATED, HANGUP)
    late = replace(HANGUP, type=EventType.COMMAND, event_id="late")
    process.read(replace(HANGUP, type=EventType.EXPIRED, event_id="expired"), late)
    assert process.states == {}
    process.read(HANGUP)
    assert process.states[CALL] == fold(None, HANGUP), "a webhook does"
