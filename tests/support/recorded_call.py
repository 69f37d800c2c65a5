"""The records of a call, topic by topic, as the gateway and the agents write them. Pure: times are arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from dispatchai.calls.events import EventType
from dispatchai.records import Assessment, AssessmentKind, CallEvent, Signal, SignalKind, Utterance, UtteranceKind
from dispatchai.triage.rules import Rules
from dispatchai.triage.step import NO_STATE, assess, fold_event, read_call

S = 1_000_000
T0 = 1_772_567_551 * S
"""2026-03-03T19:52:31Z."""

RULES = Rules.load()

CARDIAC_ARREST = (
    "My husband has collapsed on the floor.",
    "He is not breathing.",
    "We are at forty two Garden Street.",
)


def event(kind: str, at_s: float = 0.0, *, start: int = T0, call: str = "call", **payload: Any) -> CallEvent:
    """A webhook, or a timer (dispatchai.*), `at_s` seconds after `start`. Its id follows from call, type and time."""
    moment = start + round(at_s * S)
    body = {"data": {"event_type": kind, "payload": {"call_control_id": f"v3:{call}", **payload}}}
    numbered = kind.startswith("call.")
    return CallEvent(
        event_id=f"{call}:{kind}@{at_s}",
        type=kind,
        occurred_at=moment,
        received_at=moment + 40_000,
        call_control_id=f"v3:{call}",
        from_number="+15550101234" if numbered else None,
        to_number="+15550100911" if numbered else None,
        attempt=1,
        payload=json.dumps(body).encode(),
    )


def signal(sequence: int, kind: SignalKind = SignalKind.UPDATE, *, stream: str = "s1", at_s: float = 0.0) -> Signal:
    """A signal whose figures follow from `sequence`, a frame number."""
    return Signal(
        stream_id=stream,
        sequence=sequence,
        captured_at=T0 + round(at_s * S) + sequence * 20_000,
        kind=kind,
        audio_ms=20 * sequence,
        voiced_ms=10 * sequence,
        voiced=kind is SignalKind.UPDATE,
        rms=0.1,
        loudness_distress=sequence % 7 / 7,
        loudness_distress_max=0.9,
        loudness_distress_mean=sequence % 5 / 5,
        missing_frames=0,
    )


def utterance(
    number: int,
    text: str,
    kind: UtteranceKind = UtteranceKind.FINAL,
    *,
    revision: int = 1_000_000,
    stream: str = "s1",
) -> Utterance:
    """A revision of the utterance `number` of a stream."""
    start_ms = 1000 * number
    return Utterance(
        stream_id=stream,
        utterance_id=f"{stream}:{number}",
        revision=revision,
        kind=kind,
        text=text,
        start_ms=start_ms,
        end_ms=start_ms + 900,
        confidence=None,
        words=(),
        engine="typed",
        recognized_at=T0 + (start_ms + revision % 1000) * 1000,
        sequence=50 * number,
    )


def partial(number: int, text: str, revision: int, *, stream: str = "s1") -> Utterance:
    """A partial of the utterance `number`."""
    return utterance(number, text, UtteranceKind.PARTIAL, revision=revision, stream=stream)


def speech_end(*, stream: str = "s1", after: int = 99) -> Utterance:
    """The END of a stream's speech."""
    return utterance(after, "", UtteranceKind.END, stream=stream)


Record = CallEvent | Signal | Utterance


@dataclass(frozen=True, slots=True)
class Recorded:
    """The records of one call that triage reads, each topic in the order of its offsets."""

    events: tuple[CallEvent, ...]
    signals: tuple[Signal, ...] = ()
    transcripts: tuple[Utterance, ...] = ()

    @property
    def topics(self) -> tuple[tuple[Record, ...], ...]:
        """One sequence for each topic."""
        return (self.events, self.signals, self.transcripts)

    def with_events(self, *events: CallEvent) -> Recorded:
        """This call, with `events` after its own."""
        return replace(self, events=(*self.events, *events))


def stream_signals(stream: str, at_s: float) -> tuple[Signal, ...]:
    """The signals of a stream of three seconds."""
    return (
        signal(0, SignalKind.START, stream=stream, at_s=at_s),
        signal(50, stream=stream, at_s=at_s),
        signal(101, stream=stream, at_s=at_s),
        signal(151, SignalKind.END, stream=stream, at_s=at_s),
    )


def stream_speech(stream: str, said: tuple[str, ...]) -> tuple[Utterance, ...]:
    """Each text of `said` as a partial of its first words and as a final, then END."""
    spoken: list[Utterance] = []
    for number, text in enumerate(said):
        spoken.append(partial(number, " ".join(text.split()[:2]), 10 + number, stream=stream))
        spoken.append(utterance(number, text, stream=stream))
    return (*spoken, speech_end(stream=stream))


def whole_call(said: tuple[str, ...] = CARDIAC_ARREST, *, streams: int = 1) -> Recorded:
    """A call from call.initiated to call.hangup; `said` is spread over `streams` streams that follow each other."""
    names = [f"s{number}" for number in range(1, streams + 1)]
    share = -(-len(said) // streams)
    return Recorded(
        events=(
            event("call.initiated", 0, direction="incoming"),
            event("call.answered", 1),
            *(event("streaming.started", 1.5 + 4 * number) for number in range(streams)),
            event("call.hangup", 30, hangup_cause="normal_clearing"),
        ),
        signals=tuple(one for number, name in enumerate(names) for one in stream_signals(name, 2 + 4 * number)),
        transcripts=tuple(
            one
            for number, name in enumerate(names)
            for one in stream_speech(name, said[number * share : (number + 1) * share])
        ),
    )


DEADLINE = event(EventType.DEADLINE, 60)
EXPIRED = event(EventType.EXPIRED, 3600)


def assessment(
    kind: AssessmentKind = AssessmentKind.LIVE, *, transcript: str = "", version: int = 0, call: str = "call"
) -> Assessment:
    """An assessment of a call that rang, with another transcript."""
    state = fold_event(NO_STATE, event("call.initiated", call=call))
    return replace(assess(state, RULES, read_call(state, RULES), kind), transcript=transcript, version=version)
