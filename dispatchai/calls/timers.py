"""When something is due in a call although no event arrives: its deadline, its expiry, the next round of a command.

Decides the waits. A timer that fires is a record of `call-events`, written by the calls agent; `state` and `control`
decide what it changes when it is read from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.events import (
    EventType,
    OwnPayload,
    RetryDue,
    StreamDue,
    StreamLost,
    derived_id,
    micros,
    own_event,
)
from dispatchai.calls.state import STOP_GRACE_S, audio_comes_in, is_wanted, takes_commands
from dispatchai.records.values import CallEvent, CallState, Micros, StreamStatus

RESTART_WINDOW_S: Final = 60.0
"""A stream is started again at once, unless it has already failed within this time. Then its target, such as a gateway
that is being replaced, needs a while, and the waits grow like those between the rounds of a command."""

RETRY_FIRST_S: Final = 2.0
RETRY_FACTOR: Final = 2.0
RETRY_LONGEST_S: Final = 60.0
"""Waits of 2, 4, 8, 16, 32, 60, 60 ... s between the rounds of a command, each of which is several tries within 10 s.
A caller is waiting, so the first rounds come soon; an outage of minutes must not lead to a storm of commands."""


def due_timers(state: CallState, call_id: str, now: Micros, config: CallControlConfig) -> tuple[CallEvent, ...]:
    """The timers of a call that are due at `now` and not recorded yet, as events to be written to `call-events`.

    dispatchai.deadline is due `call_deadline_s` after the hangup. Without a hangup, or with one whose time lies beyond
    `call_longest_s` because the carrier's clock is wrong, it is due `call_longest_s` after the first event.
    dispatchai.expired is due `call_expiry_s` after the deadline was written: even if no process ran for a long time,
    the unread records of a call have that long to be read. A state that is no call (`CallState.stray`) has no deadline,
    hence no packet, and its dispatchai.expired is due `call_expiry_s` after its first event.

    While the call accepts commands, dispatchai.retry is due when a command must be sent again, dispatchai.stream_lost
    STOP_GRACE_S after its stream stopped, and dispatchai.stream_due when a stream that failed repeatedly must be
    started again. The event ids follow from the call and the subject of the timer, so that a timer that is written
    twice is one event.
    """
    return tuple(
        own_event(
            timer.type,
            timer.event_id(call_id),
            occurred_at=timer.due,
            received_at=now,
            call_control_id=state.call_control_id,
            payload=timer.payload,
        )
        for timer in _timers(state, config)
        if timer.due <= now and timer.event_id(call_id) not in state.seen_event_ids
    )


@dataclass(frozen=True, slots=True)
class _Timer:
    """One timer. `about` distinguishes it from others of its type in the call."""

    type: EventType
    due: Micros
    about: str = ""
    payload: OwnPayload | None = None

    def event_id(self, call_id: str) -> str:
        return derived_id(f"{call_id}:{self.type}:{self.about}" if self.about else f"{call_id}:{self.type}")


def _timers(state: CallState, config: CallControlConfig) -> Iterator[_Timer]:
    expiry = micros(config.call_expiry_s)
    if state.stray:
        yield _Timer(EventType.EXPIRED, state.first_seen_at + expiry)
        return
    longest = state.first_seen_at + micros(config.call_longest_s)
    over = longest if state.ended_at is None else min(state.ended_at, longest) + micros(config.call_deadline_s)
    yield _Timer(EventType.DEADLINE, over)
    if state.deadline_passed:
        # A state stored by a version without `deadline_seen_at` has only the time when the deadline was due.
        yield _Timer(EventType.EXPIRED, max(over, state.deadline_seen_at or 0) + expiry)
    if not takes_commands(state):
        return
    for command in state.commands:
        if command.retry_at is not None and command.retry_at < longest and is_wanted(state, command):
            yield _Timer(
                EventType.RETRY,
                command.retry_at,
                about=f"{command.command_id}:{command.round}",
                payload=RetryDue(command.command_id, command.round),
            )
    if state.stream is StreamStatus.STOPPED and state.stream_seen_at is not None:
        yield _Timer(
            EventType.STREAM_LOST,
            state.stream_seen_at + micros(STOP_GRACE_S),
            about=str(state.stream_at),
            payload=StreamLost(state.stream_at),
        )
    if (wait_s := restart_wait_s(state, config)) and state.stream_seen_at is not None:
        yield _Timer(
            EventType.STREAM_DUE,
            state.stream_seen_at + micros(wait_s),
            about=str(state.stream_at),
            payload=StreamDue(state.stream_at),
        )


def timer_id(call_id: str, timer: EventType) -> str:
    """The event id of a timer that a call has only once: dispatchai.deadline or dispatchai.expired."""
    return _Timer(timer, due=0).event_id(call_id)


def restart_wait_s(state: CallState, config: CallControlConfig) -> float | None:
    """How long after its failure to start the stream again; None if it must not be started again."""
    if audio_comes_in(state) is not False or state.stream_at is None:
        return None
    if len(state.stream_failed_at) > config.stream_restarts_max:
        return None
    since = state.stream_at - micros(RESTART_WINDOW_S)
    recent = sum(since < at <= state.stream_at for at in state.stream_failed_at)
    return backoff_s(recent - 1) if recent > 1 else 0.0


def backoff_s(number: int) -> float:
    """Seconds to wait after round `number`."""
    growth = RETRY_FACTOR ** min(number - 1, 16)  # larger exponents give the longest wait anyway
    return min(RETRY_LONGEST_S, RETRY_FIRST_S * growth)
