"""A speech agent that is stopped in mid call goes on where it was: no final utterance is lost, none comes twice. A
stream without END ends with its call's deadline, and delays no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aiokafka.partitioner import DefaultPartitioner
from faust.types import TP

from agents import speech
from dispatchai.calls.events import EventType
from dispatchai.engine.app import App
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import AudioFrame, CallEvent, Utterance, UtteranceKind
from dispatchai.settings import Settings, SpeechEngine
from dispatchai.speech.stream_end import SILENT_S
from tests.speech.audio import FRAME_MS, pcmu, quiet, recording, records, tone
from tests.support.application import (
    PARTITIONS,
    RESTARTS,
    Group,
    Place,
    call_name,
    committed,
    new_group,
    produce,
    read_call,
    running,
    until,
)
from tests.support.recorded_call import event

SETTINGS = Settings(speech_engine=SpeechEngine.SCRIPTED)

FRAMES, EVENTS = speech.SOURCES


def of_kind(kind: UtteranceKind, utterances: Sequence[Any]) -> list[Utterance]:
    return [one for one in utterances if one.kind is kind]


def said(utterances: Sequence[Utterance]) -> list[tuple[str, *tuple[object, ...]]]:
    """Each utterance, without its time of recognition."""
    return [
        (one.utterance_id, one.revision, one.kind, one.text, one.start_ms, one.end_ms, one.words, one.sequence)
        for one in utterances
    ]


def speech_app(group: Group) -> tuple[App, speech.SpeechAgent]:
    app = group.app()
    return app, speech.make(app, PARTITIONS, SETTINGS)


def has_read(app: App, place: Place) -> bool:
    next_offset = app.stalls.next_offset(TP(place.topic, place.partition))
    return next_offset is not None and next_offset > place.offset


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
            broker, Topic.TRANSCRIPTS, whole, lambda found: bool(of_kind(UtteranceKind.END, found))
        )
        finals = of_kind(UtteranceKind.FINAL, undisturbed)
        # Stopped in the middle of the third utterance, when the first two are final.
        middle = (finals[2].start_ms + finals[2].end_ms) // 2 // FRAME_MS
        await produce(broker, FRAMES, broken, frames[:middle])
        before = await read_call(
            broker, Topic.TRANSCRIPTS, broken, lambda found: len(of_kind(UtteranceKind.FINAL, found)) >= 2
        )
    assert not of_kind(UtteranceKind.END, before)

    second, made = speech_app(group)
    async with running(second):
        await until(lambda: second.is_processing() and made.is_listening())
        places = await produce(broker, FRAMES, broken, frames[middle:])
        disturbed = await read_call(
            broker, Topic.TRANSCRIPTS, broken, lambda found: bool(of_kind(UtteranceKind.END, found))
        )

        # A call whose stream never ends holds its frames only until its state is deleted.
        open_places = await produce(broker, FRAMES, unended, frames[:middle])
        await read_call(broker, Topic.TRANSCRIPTS, unended, lambda found: bool(of_kind(UtteranceKind.FINAL, found)))
        await until(lambda: has_read(second, open_places[-1]))
        assert made.states.get(unended) is not None
        await produce(broker, EVENTS, unended, [event(EventType.EXPIRED, call=unended)])
        await until(lambda: made.states.get(unended) is None)

    assert [one.text for one in finals][:2] == ["I need an ambulance please.", "My husband has collapsed on the floor."]
    assert said(of_kind(UtteranceKind.FINAL, disturbed)) == said(finals)
    assert said(of_kind(UtteranceKind.END, disturbed)) == said(of_kind(UtteranceKind.END, undisturbed))
    for partial in of_kind(UtteranceKind.PARTIAL, disturbed):
        assert partial.revision < finals[0].revision

    assert await committed(group, places[-1]) > places[-1].offset
    assert await committed(group, open_places[-1]) > open_places[-1].offset, "an expired call holds its partition"


HEARD_MS = 1_772_567_551_000
"""The time of the first frame."""

DEADLINE_MS = HEARD_MS + 60_000

SILENT_MS = round(SILENT_S * 1000)


def deadline(call_id: str, at_ms: int = DEADLINE_MS) -> CallEvent:
    """A deadline that was recorded at `at_ms`."""
    return dataclasses.replace(event(EventType.DEADLINE, call=call_id), received_at=at_ms * 1000)


def of_one_partition() -> Iterator[str]:
    """Call ids whose records are in one partition."""
    partitioner, partitions = DefaultPartitioner(), list(range(PARTITIONS))
    wanted = None
    while True:
        name = call_name("met")
        partition = partitioner(name.encode(), partitions, partitions)
        wanted = partition if wanted is None else wanted
        if partition == wanted:
            yield name


def call_of(seconds: int) -> list[AudioFrame]:
    """A whole call of `seconds`, with an utterance in each second."""
    return records(pcmu(*(part for number in range(seconds) for part in (tone(400, number), quiet(600)))))


def has_ended(found: Sequence[Any]) -> bool:
    return bool(of_kind(UtteranceKind.END, found))


async def test_a_stream_without_end_ends_with_its_deadline_and_releases_its_partition(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    names = of_one_partition()
    whole, cut_off, soon, later, last = (next(names) for _ in range(5))
    frames = call_of(5)
    heard, unheard = frames[:211], frames[211:]  # cut in the fifth word, at 4.2 s
    group = await new_group(broker, tmp_path, tables=[speech.NAME], sources=speech.SOURCES)
    app, made = speech_app(group)
    async with running(app):
        await produce(broker, FRAMES, whole, [*heard, dataclasses.replace(frames[-1], sequence=211)], first_ms=HEARD_MS)
        undisturbed = await read_call(broker, Topic.TRANSCRIPTS, whole, has_ended)

        await produce(broker, FRAMES, cut_off, heard, first_ms=HEARD_MS)
        [passed] = await produce(broker, EVENTS, cut_off, [deadline(cut_off)])
        await produce(broker, FRAMES, soon, call_of(1), first_ms=DEADLINE_MS + SILENT_MS - 1_060)
        await read_call(broker, Topic.TRANSCRIPTS, soon, has_ended)
        state = made.states.get(cut_off)
        assert state is None or not state.streams[0].ended, "audio of the call may be unread yet"

        await produce(broker, FRAMES, later, call_of(2), first_ms=DEADLINE_MS + SILENT_MS)
        await read_call(broker, Topic.TRANSCRIPTS, cut_off, has_ended)

        # Frames after that, and a second deadline, change nothing and hold nothing.
        await produce(broker, FRAMES, cut_off, unheard, first_ms=DEADLINE_MS + 2 * SILENT_MS)
        [again] = await produce(broker, EVENTS, cut_off, [deadline(cut_off)])
        places = await produce(broker, FRAMES, last, call_of(1), first_ms=DEADLINE_MS + 3 * SILENT_MS)
        await read_call(broker, Topic.TRANSCRIPTS, last, has_ended)
        written = await read_call(broker, Topic.TRANSCRIPTS, cut_off, has_ended)

    assert said(of_kind(UtteranceKind.FINAL, written)) == [
        (one[0].replace(whole, cut_off), *one[1:]) for one in said(of_kind(UtteranceKind.FINAL, undisturbed))
    ]
    assert len(of_kind(UtteranceKind.FINAL, written)) == 5
    assert said(of_kind(UtteranceKind.END, written)) == said(of_kind(UtteranceKind.END, undisturbed))
    assert await committed(group, places[-1]) > places[-1].offset, "a stream without END holds its partition"
    assert await committed(group, again) > passed.offset, "a deadline holds its partition"


async def test_a_stream_without_end_ends_after_its_deadline_even_if_no_other_call_comes(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    cut_off = call_name("last")
    group = await new_group(broker, tmp_path, tables=[speech.NAME], sources=speech.SOURCES)
    app, made = speech_app(group)
    async with running(app):
        places = await produce(broker, FRAMES, cut_off, call_of(5)[:211], first_ms=HEARD_MS)
        await read_call(broker, Topic.TRANSCRIPTS, cut_off, lambda found: len(of_kind(UtteranceKind.FINAL, found)) == 4)
        [passed] = await produce(broker, EVENTS, cut_off, [deadline(cut_off)])
        found = await read_call(broker, Topic.TRANSCRIPTS, cut_off, has_ended)
        await until(lambda: not made.overdue)
    assert len(of_kind(UtteranceKind.FINAL, found)) == 5, "the words at the end of the audio are heard"
    assert await committed(group, places[-1]) > places[-1].offset
    assert await committed(group, passed) > passed.offset


async def test_a_deadline_that_is_read_early_cuts_off_neither_unread_audio_nor_a_call_that_still_speaks(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    names = of_one_partition()
    whole, behind, speaking, later = (next(names) for _ in range(4))
    frames = call_of(12)
    group = await new_group(broker, tmp_path, tables=[speech.NAME], sources=speech.SOURCES)
    # The deadline of `speaking` comes in the middle, that of `behind` after the end; both are read before their frames.
    await produce(broker, EVENTS, behind, [deadline(behind, HEARD_MS + 20_000)])
    await produce(broker, EVENTS, speaking, [deadline(speaking, HEARD_MS + 4_000)])
    app, made = speech_app(group)
    async with running(app):
        await until(lambda: made.overdue == {behind, speaking})
        await produce(broker, FRAMES, whole, frames, first_ms=HEARD_MS - 20_000)
        for call_id in (behind, speaking):
            for at in range(0, len(frames), 100):
                await produce(broker, FRAMES, call_id, frames[at : at + 100], first_ms=HEARD_MS + at * FRAME_MS)
        await produce(broker, FRAMES, later, call_of(2), first_ms=HEARD_MS + 40_000)
        undisturbed = await read_call(broker, Topic.TRANSCRIPTS, whole, has_ended)
        for call_id in (behind, speaking):
            found = await read_call(broker, Topic.TRANSCRIPTS, call_id, has_ended)
            for kind in (UtteranceKind.FINAL, UtteranceKind.END):
                assert said(of_kind(kind, found)) == said(of_kind(kind, undisturbed))
        await until(lambda: not made.overdue)


@RESTARTS
async def test_a_deadline_that_passed_before_a_restart_ends_the_open_streams_after_it(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    names = of_one_partition()
    speaking, silent, later = (next(names) for _ in range(3))
    frames = call_of(5)
    cuts = {speaking: frames[:211], silent: frames[:246]}  # in the fifth word; in the silence behind it, all covered
    await produce(broker, EVENTS, later, [event("call.initiated", call=later)])
    group = await new_group(broker, tmp_path, tables=[speech.NAME], sources=speech.SOURCES)
    first, made = speech_app(group)
    async with running(first):
        for call_id, heard in cuts.items():
            await produce(broker, FRAMES, call_id, heard, first_ms=HEARD_MS)
            await produce(broker, EVENTS, call_id, [deadline(call_id)])
        await until(lambda: made.overdue == set(cuts))
        await read_call(broker, Topic.TRANSCRIPTS, silent, lambda found: len(of_kind(UtteranceKind.FINAL, found)) == 5)
        await until(lambda: (state := made.states.get(silent)) is not None and state.streams[0].utterances == 5)

    second, _ = speech_app(group)
    async with running(second):
        places = await produce(broker, FRAMES, later, call_of(8), first_ms=DEADLINE_MS + 1_000)
        for call_id in cuts:
            found = await read_call(broker, Topic.TRANSCRIPTS, call_id, has_ended)
            assert len({one.utterance_id for one in of_kind(UtteranceKind.FINAL, found)}) == 5
            assert len(of_kind(UtteranceKind.END, found)) == 1
        await read_call(broker, Topic.TRANSCRIPTS, later, has_ended)
    assert await committed(group, places[-1]) > places[-1].offset


async def test_a_state_that_is_older_than_any_call_is_deleted(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    """Such as a state made by a frame that was read after its call had expired."""
    orphan = call_name("orphan")
    group = await new_group(broker, tmp_path, tables=[speech.NAME], sources=speech.SOURCES)
    app, made = speech_app(group)
    longest_s = SETTINGS.call_longest_s + SETTINGS.call_deadline_s + SETTINGS.call_expiry_s
    async with running(app):
        places = await produce(broker, FRAMES, orphan, call_of(3)[:-1])
        await until(lambda: has_read(app, places[-1]))
        assert made.states.get(orphan) is not None
        await made.orphans.look(0.0)
        await made.orphans.look(longest_s - 1)
        assert made.states.get(orphan) is not None
        await made.orphans.look(longest_s)
        assert made.states.get(orphan) is None
        await until(lambda: orphan not in made.states.store.values)
    assert await committed(group, places[-1]) > places[-1].offset
