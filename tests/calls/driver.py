"""One call under the pure steps of call control, for the tests of commands and streams."""

from __future__ import annotations

from dataclasses import dataclass, field

from dispatchai.calls.commands import Refusal, act, outcome_event, round_of, step
from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.timers import due_timers
from dispatchai.records import Action, ActionKind, CallEvent, CallState
from dispatchai.telnyx.commands import Command, Outcome, Unavailable
from tests.support.call_events import ANSWERED, CALL, CONFIG, INITIATED, STREAMING, T0, S

AWAY = Unavailable(5, "503")


@dataclass
class Call:
    """One call under the pure steps, driven as by the agent: commands are kept, outcomes and timers become events."""

    config: CallControlConfig = CONFIG
    state: CallState | None = None
    given: list[Command] = field(default_factory=list)
    events: list[CallEvent] = field(default_factory=list)

    @property
    def now(self) -> CallState:
        assert self.state is not None
        return self.state

    @property
    def actions(self) -> list[str]:
        return [command.action for command in self.given]

    def take(self, *events: CallEvent) -> tuple[Command, ...]:
        """The commands that `events` call for."""
        commands: tuple[Command, ...] = ()
        for each in events:
            self.events.append(each)
            self.state, called_for = step(self.state, CALL, each, self.config)
            commands += called_for
        self.given.extend(commands)
        return commands

    def ends(self, command: Command, outcome: Outcome, at_s: float) -> tuple[Command, ...]:
        """Record that the next round of `command` ended with `outcome`."""
        return self.take(outcome_event(command, round_of(self.now, command), outcome, T0 + round(at_s * S)))

    def tick(self, at_s: float) -> tuple[Command, ...]:
        """Record the timers that are due."""
        return self.take(*due_timers(self.now, CALL, T0 + round(at_s * S), self.config))

    def acts(self, kind: ActionKind, text: str | None = None, action_id: str = "action-1") -> Refusal | None:
        """Apply a dispatcher's action, and keep its commands."""
        self.state, commands, refusal = act(self.now, action(kind, text, action_id), self.config)
        self.given.extend(commands)
        return refusal


def action(kind: ActionKind, text: str | None = None, action_id: str = "action-1") -> Action:
    return Action(action_id, kind, "dispatcher 7", T0, text, None, None)


def ringing() -> Call:
    call = Call()
    call.take(INITIATED)
    return call


def active(config: CallControlConfig = CONFIG) -> Call:
    call = Call(config)
    call.take(INITIATED, ANSWERED, STREAMING)
    return call
