"""The signals agent: measures the caller's voice. Reads `audio-frames`, writes `signals`.

What is measured is decided in `dispatchai.audio.signals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dispatchai.audio import signals
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.state import States
from dispatchai.records import AudioFrame, SignalState, decode_as, encode

NAME: Final = "signals"
SOURCE: Final = "audio-frames"
TOPIC: Final = "signals"


def decode(value: bytes) -> AudioFrame:
    """The frame in a record's value. Raises DecodeError."""
    return decode_as(AudioFrame, value)


def fold(call_id: str, state: SignalState | None, frames: Sequence[AudioFrame]) -> agent.Stepped[SignalState]:
    """The pure step, with its signals as outputs."""
    stepped = signals.step(state, frames)
    outputs = [agent.Output(TOPIC, encode(signal)) for signal in stepped.signals]
    return agent.Stepped(stepped.state, outputs, snapshot=stepped.snapshot)


def make(app: App, partitions: int) -> States[SignalState]:
    """Make the agent."""
    states: States[SignalState] = app.states(
        NAME, encode=encode, decode=lambda value: decode_as(SignalState, value), partitions=partitions
    )
    agent.run(app, states, [SOURCE], decode=decode, step=fold)
    return states
