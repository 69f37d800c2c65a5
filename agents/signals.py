"""The signals agent: measures the caller's voice. Reads `audio-frames`, and `call-events` for the end of a call's
state; writes `signals`.

What is measured is decided in `dispatchai.audio.signals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dispatchai.audio import signals
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.state import States
from dispatchai.records import AudioFrame, CallEvent, DecodeError, SignalState, decode_as, encode
from dispatchai.records import decode as decode_any
from dispatchai.telephony.callflow import EventType

NAME: Final = "signals"
SOURCES: Final = ("audio-frames", "call-events")
TOPIC: Final = "signals"


def decode(value: bytes) -> AudioFrame | CallEvent:
    """What is in a record's value. Raises DecodeError."""
    record = decode_any(value)
    if not isinstance(record, AudioFrame | CallEvent):
        raise DecodeError(f"expected a frame or an event, found {type(record).__name__}")
    return record


def fold(
    call_id: str, state: SignalState | None, inputs: Sequence[AudioFrame | CallEvent]
) -> agent.Stepped[SignalState]:
    """The pure step, with its signals as outputs. Of the events only the one counts that gives the state up."""
    if any(isinstance(value, CallEvent) and value.type == EventType.EXPIRED for value in inputs):
        return agent.Stepped(None)
    frames = [value for value in inputs if isinstance(value, AudioFrame)]
    if not frames:
        return agent.Stepped(state)
    stepped = signals.step(state, frames)
    outputs = [agent.Output(TOPIC, encode(signal)) for signal in stepped.signals]
    return agent.Stepped(stepped.state, outputs, snapshot=stepped.snapshot)


def make(app: App, partitions: int) -> States[SignalState]:
    """Make the agent."""
    states: States[SignalState] = app.states(
        NAME, encode=encode, decode=lambda value: decode_as(SignalState, value), partitions=partitions
    )
    agent.run(app, states, SOURCES, decode=decode, step=fold)
    return states
