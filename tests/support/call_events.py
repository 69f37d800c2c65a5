"""The webhooks of one call as events, for the tests of call state and call control."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dispatchai.calls.config import CallControlConfig
from dispatchai.calls.state import fold
from dispatchai.records import CallEvent, CallState

CALL = "428c31b6-abf1-4b2c-9d67-0242ac120002"
S = 1_000_000
T0 = 1_772_567_551 * S
CONFIG = CallControlConfig(
    stream_url="wss://example.com/ws",
    greeting="Please describe your emergency.",
    greeting_voice="female",
    greeting_language="en-US",
    call_deadline_s=30,
    call_expiry_s=3600,
    call_longest_s=14_400,
    help_prompt="Help is being arranged.",
    human_line="+15550100999",
)
DELIVERY = 40_000
"""How long the delivery of a webhook takes, in microseconds."""


def event(
    kind: str, at_s: float = 0.0, *, event_id: str | None = None, received_s: float | None = None, **payload: Any
) -> CallEvent:
    """An event `at_s` after the call began, received at once unless `received_s` is given."""
    moment = T0 + round(at_s * S)
    body = {"data": {"event_type": kind, "payload": {"call_control_id": "v3:abc", "call_session_id": CALL, **payload}}}
    return CallEvent(
        event_id=event_id or f"{kind}@{at_s}",
        type=kind,
        occurred_at=moment,
        received_at=moment + DELIVERY if received_s is None else T0 + round(received_s * S),
        call_control_id="v3:abc",
        from_number="+15550101234" if kind.startswith("call.") else None,
        to_number="+15550100911" if kind.startswith("call.") else None,
        attempt=1,
        payload=json.dumps(body).encode(),
    )


INITIATED = event("call.initiated", 0, direction="incoming", state="parked")
ANSWERED = event("call.answered", 1)
STREAMING = event("streaming.started", 1.5)
STOPPED = event("streaming.stopped", 20)
HANGUP = event("call.hangup", 20.5, hangup_cause="normal_clearing")
MAIN = (INITIATED, ANSWERED, STREAMING, STOPPED, HANGUP)
FAILED = event("streaming.failed", 10, failure_reason="connection_failed")


def folded(events: Iterable[CallEvent]) -> CallState:
    """The state after `events`, in their order."""
    state: CallState | None = None
    for each in events:
        state = fold(state, each)
    assert state is not None
    return state


def unordered(state: CallState) -> CallState:
    """The state without the part that may depend on the order of events."""
    return replace(state, seen_event_ids=tuple(sorted(state.seen_event_ids)))
