"""The speech agent, stopped in mid call, hears on where it was: no final utterance is lost, none comes twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents import speech
from dispatchai.engine.app import App
from dispatchai.engine.kafka import KafkaConnection
from dispatchai.engine.topics import Topics
from dispatchai.records import Utterance, UtteranceKind
from dispatchai.settings import Settings, SpeechEngine
from dispatchai.telephony.callflow.events import EventType
from tests.agents.recorded import event
from tests.agents.support import (
    PARTITIONS,
    RESTARTS,
    Group,
    call_name,
    committed,
    new_group,
    produce,
    read_call,
    running,
    until,
)
from tests.speech.audio import FRAME_MS, recording, records

SETTINGS = Settings(speech_engine=SpeechEngine.SCRIPTED)

FRAMES, EVENTS = speech.SOURCES


def of_kind(kind: UtteranceKind, utterances: Sequence[Any]) -> list[Utterance]:
    return [one for one in utterances if one.kind is kind]


def said(utterances: Sequence[Utterance]) -> list[tuple[object, ...]]:
    """All of each utterance but when it was recognised."""
    return [
        (one.utterance_id, one.revision, one.kind, one.text, one.start_ms, one.end_ms, one.words, one.sequence)
        for one in utterances
    ]


def speech_app(group: Group) -> tuple[App, speech.SpeechAgent]:
    app = group.app()
    return app, speech.make(app, PARTITIONS, SETTINGS)


@RESTARTS
async def test_finals_after_a_restart_in_mid_call_equal_those_of_an_undisturbed_call(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    whole, broken, unended = call_name("whole"), call_name("broken"), call_name("unended")
    frames = records(recording("cardiac_arrest"))
    group = await new_group(broker, tmp_path, tables=[speech.NAME], sources=speech.SOURCES)

    first, _ = speech_app(group)
    async with running(first):
        await produce(broker, FRAMES, whole, frames)
        undisturbed = await read_call(
            broker, speech.TOPIC, whole, lambda found: bool(of_kind(UtteranceKind.END, found))
        )
        finals = of_kind(UtteranceKind.FINAL, undisturbed)
        # Stopped in the middle of the third utterance, when the first two are final.
        middle = (finals[2].start_ms + finals[2].end_ms) // 2 // FRAME_MS
        await produce(broker, FRAMES, broken, frames[:middle])
        before = await read_call(
            broker, speech.TOPIC, broken, lambda found: len(of_kind(UtteranceKind.FINAL, found)) >= 2
        )
    assert not of_kind(UtteranceKind.END, before)

    second, made = speech_app(group)
    async with running(second):
        await until(lambda: second.is_processing() and made.is_listening())
        places = await produce(broker, FRAMES, broken, frames[middle:])
        disturbed = await read_call(broker, speech.TOPIC, broken, lambda found: bool(of_kind(UtteranceKind.END, found)))

        # A call whose stream never ends holds its frames only until its state is given up.
        open_places = await produce(broker, FRAMES, unended, frames[:middle])
        await read_call(broker, speech.TOPIC, unended, lambda found: bool(of_kind(UtteranceKind.FINAL, found)))
        await until(lambda: made.states.get(unended) is not None)
        await produce(broker, EVENTS, unended, [event(EventType.EXPIRED, call=unended)])
        await until(lambda: made.states.get(unended) is None)

    assert [one.text for one in finals][:2] == ["I need an ambulance please.", "My husband has collapsed on the floor."]
    assert said(of_kind(UtteranceKind.FINAL, disturbed)) == said(finals)
    assert said(of_kind(UtteranceKind.END, disturbed)) == said(of_kind(UtteranceKind.END, undisturbed))
    for partial in of_kind(UtteranceKind.PARTIAL, disturbed):
        assert partial.revision < finals[0].revision

    assert await committed(group, places[-1]) > places[-1].offset
    assert await committed(group, open_places[-1]) > open_places[-1].offset, "an expired call holds its partition"
