"""What the records of a call call for outside Kafka: commands to be given, and actions to be refused.

Pure: `control` decides about one event or action, this about all records that were read together. The calls agent
carries the effects out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dispatchai.calls.commands import Refusal, act, round_of, step
from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.events import OWN_EVENTS, EventType
from dispatchai.records.values import Action, ActionKind, CallEvent, CallState
from dispatchai.telnyx.commands import Command


@dataclass(frozen=True, slots=True)
class PendingCommand:
    """A command to be given, in its round."""

    command: Command
    round: int


@dataclass(frozen=True, slots=True)
class RefusedAction:
    """A dispatcher's action that has no effect, to be logged."""

    action_id: str
    kind: ActionKind
    reason: Refusal


Effect: TypeAlias = PendingCommand | RefusedAction


def follow(
    state: CallState | None, call_id: str, records: Sequence[CallEvent | Action], config: CallControlConfig
) -> tuple[CallState | None, tuple[Effect, ...]]:
    """The state of a call after `records`, None when it is deleted, and the effects that they call for, in order."""
    effects: list[Effect] = []
    for record in records:
        commands: tuple[Command, ...] = ()
        match record:
            case CallEvent(type=EventType.EXPIRED):
                state = None
            case CallEvent(type=EventType.PURGED):
                continue  # about the packet, which outlives the call's state
            case CallEvent() if state is None and record.type.startswith(OWN_EVENTS):
                continue  # of a call whose state was deleted meanwhile
            case CallEvent():
                state, commands = step(state, call_id, record, config)
            case Action() if state is None:
                effects.append(RefusedAction(record.action_id, record.kind, Refusal.UNKNOWN_CALL))
            case Action():
                state, commands, reason = act(state, record, config)
                if reason is not None:
                    effects.append(RefusedAction(record.action_id, record.kind, reason))
        if state is not None:
            effects.extend(PendingCommand(command, round_of(state, command)) for command in commands)
    return state, tuple(effects)
