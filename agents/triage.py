"""The triage agent: concludes what a call is about. Reads `call-events`, `signals` and `transcripts`, writes
`assessments`.

How topics are folded is decided in `dispatchai.triage.step`, what text means in `dispatchai.triage.scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from dispatchai.calls.events import EventType
from dispatchai.calls.state import fold as fold_call
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic
from dispatchai.records import CallEvent, Signal, TriageState, Utterance, decode_as, encode
from dispatchai.triage import step as folds
from dispatchai.triage.scoring import Reading, Rules

NAME: Final = "triage"

Input = CallEvent | Signal | Utterance
SOURCES: Final[dict[str, Callable[[bytes], Input]]] = {
    Topic.CALL_EVENTS: partial(decode_as, CallEvent),
    Topic.SIGNALS: partial(decode_as, Signal),
    Topic.TRANSCRIPTS: partial(decode_as, Utterance),
}
"""What is read, and how."""


def make(app: App, partitions: int, rules: Rules) -> KeyedStates[TriageState]:
    """Make the agent."""
    states: KeyedStates[TriageState] = app.keyed_states(
        NAME, encode=encode, decode=partial(decode_as, TriageState), partitions=partitions, evict=True
    )

    readings: dict[str, Reading] = {}
    """Of each live call, what its words were found to say."""
    app.on_reset.append(readings.clear)

    to_live, to_packet = app.metrics.journey("webhook_to_live"), app.metrics.journey("hangup_to_packet")

    def fold(call_id: str, state: TriageState | None, inputs: Sequence[Input]) -> agent.Stepped[TriageState]:
        for value in inputs:
            match value:
                case CallEvent(type=EventType.INITIATED):
                    to_live.begin(call_id, value.received_at)
                case CallEvent(type=EventType.HANGUP):
                    to_packet.begin(call_id, value.received_at)
        stepped = folds.step(state, inputs, fold_call=fold_call, rules=rules, reading=readings.pop(call_id, None))
        if stepped.reading is not None:
            readings[call_id] = stepped.reading
        outputs = [agent.Output(Topic.ASSESSMENTS, encode(assessment)) for assessment in stepped.assessments]
        return agent.Stepped(stepped.state, outputs, snapshot=stepped.snapshot)

    agent.run(app, states, SOURCES, step=fold)
    return states
