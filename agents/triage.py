"""The triage agent: concludes what a call is about. Reads `call-events`, `signals` and `transcripts`, writes
`assessments`.

`dispatchai.triage.step` decides how the topics are folded, `dispatchai.triage.scoring` what is concluded of the words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from dispatchai.calls.events import EventType
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic
from dispatchai.records import CallEvent, Micros, Signal, TriageState, Utterance, decode_as, encode
from dispatchai.triage.rules import Rules
from dispatchai.triage.scoring import Reading
from dispatchai.triage.step import step

NAME: Final = "triage"

Input = CallEvent | Signal | Utterance
SOURCES: Final[dict[str, Callable[[bytes], Input]]] = {
    Topic.CALL_EVENTS: partial(decode_as, CallEvent),
    Topic.SIGNALS: partial(decode_as, Signal),
    Topic.TRANSCRIPTS: partial(decode_as, Utterance),
}
"""The topics that are read, each with its decoder."""

Begin = Callable[[str, Micros], None]
"""Notes when something of a call began: (call id, time)."""


class TriageAgent:
    """Steps over the records of a call, and keeps what its words were found to say."""

    def __init__(self, rules: Rules, *, on_initiated: Begin, on_hangup: Begin) -> None:
        """`on_initiated` and `on_hangup` are called with the time at which such an event was received."""
        self._rules = rules
        self._on_initiated = on_initiated
        self._on_hangup = on_hangup
        self._readings: dict[str, Reading] = {}
        """By live call. A reading makes the next step cheaper and changes nothing of it."""

    def step(self, call_id: str, state: TriageState | None, inputs: Sequence[Input]) -> agent.Stepped[TriageState]:
        """The state of a call after `inputs`, and its assessments."""
        for value in inputs:
            match value:
                case CallEvent(type=EventType.INITIATED):
                    self._on_initiated(call_id, value.received_at)
                case CallEvent(type=EventType.HANGUP):
                    self._on_hangup(call_id, value.received_at)
        reading = self._readings.pop(call_id, None)
        stepped = step(state, inputs, rules=self._rules, reading=reading)
        if stepped.reading is not None:
            self._readings[call_id] = stepped.reading
        outputs = [agent.Output(Topic.ASSESSMENTS, encode(assessment)) for assessment in stepped.assessments]
        return agent.Stepped(stepped.state, outputs, snapshot=stepped.snapshot)

    def reset(self) -> None:
        """Partitions were reassigned: discard the readings."""
        self._readings.clear()


def make(app: App, partitions: int, rules: Rules) -> KeyedStates[TriageState]:
    """Make the agent."""
    states: KeyedStates[TriageState] = app.keyed_states(
        NAME, encode=encode, decode=partial(decode_as, TriageState), partitions=partitions, evict=True
    )
    made = TriageAgent(
        rules,
        on_initiated=app.metrics.journey("webhook_to_live").begin,
        on_hangup=app.metrics.journey("hangup_to_packet").begin,
    )
    agent.run(app, states, SOURCES, step=made.step)
    app.on_reset.append(made.reset)
    return states
