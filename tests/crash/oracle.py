"""The expected records of each call, by the pure steps alone.

Takes the recorded `call-events` and `audio-frames` as given, and folds them as one undisturbed process would: every
record once and in order. Knows nothing of the records of the real processes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dispatchai.audio import signals
from dispatchai.calls.events import EventType
from dispatchai.calls.state import fold
from dispatchai.records import (
    AssessmentKind,
    AudioFrame,
    CallEvent,
    CallPacket,
    CallState,
    Signal,
    SignalState,
    SpeechState,
    TriageState,
    Utterance,
)
from dispatchai.speech.call_sessions import NO_END
from dispatchai.speech.engines import RECORDINGS
from dispatchai.speech.recognizer import Ended, Failed, StreamKey
from dispatchai.speech.scripted import ScriptedRecognizer, load_script
from dispatchai.speech.session import CallSpeech, Step, Streams
from dispatchai.triage.ranking import packet
from dispatchai.triage.rules import Rules
from dispatchai.triage.step import step as triage_step

NO_TIME = 0
"""Stands for the time of recognition, which is a time of processing."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The expected records of a call. Times of recognition are 0."""

    call_id: str
    call: CallState | None
    signals: tuple[Signal, ...]
    signal_state: SignalState | None
    utterances: tuple[Utterance, ...]
    speech_state: SpeechState | None
    """None if no frame is recorded: there was nothing to hear."""
    triage_state: TriageState | None
    packet: CallPacket | None
    """None if the call is not final."""


@cache
def rules() -> Rules:
    """The rules, read once."""
    return Rules.load()


@cache
def _script() -> dict[str, str]:
    return dict(load_script(RECORDINGS / "script.json"))


async def expected(call_id: str, events: Sequence[CallEvent], frames: Sequence[AudioFrame]) -> Expected:
    """The records that follow from the `events` and `frames` of a call, each in the order of its offsets."""
    call: CallState | None = None
    for event in events:
        call = fold(call, event)
    stepped = signals.step(None, frames) if frames else None
    utterances, speech_state = await heard(
        call_id, frames, over=any(each.type == EventType.DEADLINE for each in events)
    )
    made = () if stepped is None else stepped.signals
    triaged = triage_step(None, [*events, *made, *utterances], rules=rules())
    finals = [each for each in triaged.assessments if each.kind is AssessmentKind.FINAL]
    return Expected(
        call_id=call_id,
        call=call,
        signals=made,
        signal_state=None if stepped is None else stepped.state,
        utterances=utterances,
        speech_state=speech_state if frames else None,
        triage_state=triaged.state,
        packet=packet(call_id, finals[-1]) if finals else None,
    )


async def heard(call_id: str, frames: Sequence[AudioFrame], *, over: bool) -> tuple[tuple[Utterance, ...], SpeechState]:
    """The utterances that the scripted recogniser hears in `frames`, and the session's state after them.

    Streams without END are ended if the call is `over`, which means that its deadline has passed.
    """
    recognizer = ScriptedRecognizer(_script())
    streams = Streams(recognizer)
    session = CallSpeech(None, recognizer.name, recognizer.accepts)
    written: list[Utterance] = []

    def apply(step: Step) -> None:
        streams.apply(call_id, step.commands)
        written.extend(step.utterances)

    async def follow() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):  # events that wait come at once; the first that does not wait ends it
                async for event in recognizer.events():
                    if isinstance(event, Ended | Failed):
                        streams.ended(StreamKey(call_id, event.key.stream_id))
                    apply(session.event(event, NO_TIME))

    apply(session.frames(frames, NO_TIME))
    await follow()
    if over:
        apply(session.end(NO_END, NO_TIME))
        await follow()
    return tuple(written), session.state
