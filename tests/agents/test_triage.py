"""The triage agent writes the assessments of the step, whatever it remembers of a call. Needs no broker."""

from __future__ import annotations

from agents.triage import TriageAgent
from dispatchai.kafka.topics import Topic
from dispatchai.records import Assessment, AssessmentKind, CallEvent, Signal, TriageState, Utterance, decode_as
from tests.support.recorded_call import RULES, T0, S, whole_call

CALL = whole_call()
RECORDS: list[CallEvent | Signal | Utterance] = [*CALL.events[:-1], *CALL.signals, *CALL.transcripts, CALL.events[-1]]


class Process:
    """A worker in small."""

    def __init__(self) -> None:
        self.initiated: list[tuple[str, int]] = []
        self.hung_up: list[tuple[str, int]] = []
        self.written: list[Assessment] = []
        self.state: TriageState | None = None
        self.agent = TriageAgent(
            RULES,
            on_initiated=lambda call_id, at: self.initiated.append((call_id, at)),
            on_hangup=lambda call_id, at: self.hung_up.append((call_id, at)),
        )

    def read_one_by_one(self, *, forgetful: bool = False) -> None:
        for record in RECORDS:
            stepped = self.agent.step("call", self.state, [record])
            self.state = stepped.state
            assert {output.topic for output in stepped.outputs} <= {Topic.ASSESSMENTS}
            self.written += [decode_as(Assessment, output.value or b"") for output in stepped.outputs]
            if forgetful:
                self.agent.reset()


def test_a_call_becomes_live_assessments_and_one_final_one() -> None:
    process = Process()
    process.read_one_by_one()
    kinds = [one.kind for one in process.written]
    assert kinds == [AssessmentKind.LIVE] * (len(kinds) - 1) + [AssessmentKind.FINAL]
    assert "CARDIAC_ARREST" in process.written[-1].tags


def test_the_agents_memory_of_a_call_changes_no_output() -> None:
    remembering, forgetful = Process(), Process()
    remembering.read_one_by_one()
    forgetful.read_one_by_one(forgetful=True)
    assert remembering.written == forgetful.written
    assert remembering.state == forgetful.state


def test_the_times_of_a_calls_start_and_hangup_are_noted() -> None:
    process = Process()
    process.read_one_by_one()
    assert process.initiated == [("call", T0 + 40_000)]
    assert process.hung_up == [("call", T0 + 30 * S + 40_000)]
