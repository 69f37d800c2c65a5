"""When something of a call is due though nobody says anything: its deadline, its end, another round of a command.

Decides the waits. A timer that fires is a record of `call-events`, written by the calls agent; what it changes is
decided by `fold` and `step` when it is read from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from dispatchai.calls.config import CallFlowConfig
from dispatchai.calls.events import EventType, derived_id, micros, own_event
from dispatchai.calls.state import STOP_GRACE_S, audio_comes_in, is_wanted, takes_commands
from dispatchai.records.values import CallEvent, CallState, Micros, StreamStatus

RESTART_WINDOW_S: Final = 60.0
"""A stream is started again at once, unless it failed within this time already: then what it goes to needs a while,
such as a gateway that is being replaced, and the waits grow as those between the rounds of a command."""

RETRY_FIRST_S: Final = 2.0
RETRY_FACTOR: Final = 2.0
RETRY_LONGEST_S: Final = 60.0
"""Waits of 2, 4, 8, 16, 32, 60, 60 ... s between the rounds of a command, each of which is several tries within 10 s.
A caller is waiting, so the first come soon; an outage of minutes must not be answered with a storm."""


def due_timers(state: CallState, call_id: str, now: Micros, config: CallFlowConfig) -> tuple[CallEvent, ...]:
    """The timers of a call that are due at `now` and were not recorded yet, as events to be written to `call-events`.

    dispatchai.deadline is due `call_deadline_s` after the hangup, and `call_longest_s` after the first event of a call
    that never hung up, or whose hangup carries a time beyond that, which a carrier's wrong clock can bring about.
    dispatchai.expired is due `call_expiry_s` after the deadline was written: however long nobody ran, what is unread of
    a call has that time to be read. Of what is no call (`CallState.stray`) there is no deadline, hence no packet, and
    dispatchai.expired is due `call_expiry_s` after its first event.

    While the call takes commands, dispatchai.retry is due when a command is to be given again, dispatchai.stream_lost
    STOP_GRACE_S after its stream stopped, dispatchai.stream_due when a stream that failed repeatedly is to be started
    again. The event ids follow from the call and what the timer is about, so that a timer that is written twice is one
    event.
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
    """One timer. `about` tells it from others of its type in the call; `payload` is JSON-ready, None for nothing."""

    type: EventType
    due: Micros
    about: str = ""
    payload: dict[str, Any] | None = None

    def event_id(self, call_id: str) -> str:
        return derived_id(f"{call_id}:{self.type}:{self.about}" if self.about else f"{call_id}:{self.type}")


def _timers(state: CallState, config: CallFlowConfig) -> Iterator[_Timer]:
    expiry = micros(config.call_expiry_s)
    if state.stray:
        yield _Timer(EventType.EXPIRED, state.first_seen_at + expiry)
        return
    longest = state.first_seen_at + micros(config.call_longest_s)
    over = longest if state.ended_at is None else min(state.ended_at, longest) + micros(config.call_deadline_s)
    yield _Timer(EventType.DEADLINE, over)
    if state.deadline_passed:
        # A state that was stored before this time was kept has only the time when it should have been written.
        yield _Timer(EventType.EXPIRED, max(over, state.deadline_seen_at or 0) + expiry)
    if not takes_commands(state):
        return
    for command in state.commands:
        if command.retry_at is not None and command.retry_at < longest and is_wanted(state, command):
            yield _Timer(
                EventType.RETRY,
                command.retry_at,
                about=f"{command.command_id}:{command.round}",
                payload={"command_id": command.command_id, "round": command.round},
            )
    if state.stream is StreamStatus.STOPPED and state.stream_seen_at is not None:
        yield _Timer(
            EventType.STREAM_LOST,
            state.stream_seen_at + micros(STOP_GRACE_S),
            about=str(state.stream_at),
            payload={"stopped_at": state.stream_at},
        )
    if (wait_s := restart_wait_s(state, config)) and state.stream_seen_at is not None:
        yield _Timer(
            EventType.STREAM_DUE,
            state.stream_seen_at + micros(wait_s),
            about=str(state.stream_at),
            payload={"failed_at": state.stream_at},
        )


def timer_id(call_id: str, timer: EventType) -> str:
    """The event id of a timer that a call has one of: dispatchai.deadline, dispatchai.expired."""
    return _Timer(timer, due=0).event_id(call_id)


def restart_wait_s(state: CallState, config: CallFlowConfig) -> float | None:
    """How long after its failure the stream is to be started again; None where it is not to be."""
    if audio_comes_in(state) is not False or state.stream_at is None:
        return None
    if len(state.stream_failed_at) > config.stream_restarts_max:
        return None
    since = state.stream_at - micros(RESTART_WINDOW_S)
    recent = sum(since < at <= state.stream_at for at in state.stream_failed_at)
    return backoff_s(recent - 1) if recent > 1 else 0.0


def backoff_s(number: int) -> float:
    """Seconds to wait after round `number`."""
    growth = RETRY_FACTOR ** min(number - 1, 16)  # beyond which it is the longest anyway
    return min(RETRY_LONGEST_S, RETRY_FIRST_S * growth)
