"""The triage agent: concludes what a call is about. Reads `call-events`, `signals` and `transcripts`, writes
`assessments`.

How topics are folded is decided in `dispatchai.triage.folds`, what text means in `dispatchai.triage.rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.state import States
from dispatchai.records import CallEvent, DecodeError, Signal, TriageState, Utterance, decode_as, encode
from dispatchai.records import decode as decode_any
from dispatchai.telephony.callflow import fold as fold_call
from dispatchai.triage import folds
from dispatchai.triage.rules import Rules

NAME: Final = "triage"
SOURCES: Final = ("call-events", "signals", "transcripts")
TOPIC: Final = "assessments"

Input = CallEvent | Signal | Utterance


def decode(value: bytes) -> Input:
    """What is in a record's value. Raises DecodeError."""
    record = decode_any(value)
    if not isinstance(record, CallEvent | Signal | Utterance):
        raise DecodeError(f"expected an event, a signal or an utterance, found {type(record).__name__}")
    return record


def make(app: App, partitions: int, rules: Rules) -> States[TriageState]:
    """Make the agent."""
    states: States[TriageState] = app.states(
        NAME, encode=encode, decode=lambda value: decode_as(TriageState, value), partitions=partitions
    )

    def fold(call_id: str, state: TriageState | None, inputs: Sequence[Input]) -> agent.Stepped[TriageState]:
        stepped = folds.step(state, inputs, fold_call=fold_call, rules=rules)
        outputs = [agent.Output(TOPIC, encode(assessment)) for assessment in stepped.assessments]
        return agent.Stepped(stepped.state, outputs)

    agent.run(app, states, SOURCES, decode=decode, step=fold)
    return states
