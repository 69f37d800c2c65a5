"""The records of a call's speech: numbering, gaps, restarts, failures, the end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.records import codec
from dispatchai.records.values import AudioFrame, FrameKind, SpeechState, Track, Utterance, UtteranceKind, Word
from dispatchai.speech.recognizer import AudioFormat, Ended, Event, Failed, Hypothesis, Progress, StreamKey
from dispatchai.speech.scripted import ScriptedRecognizer
from dispatchai.speech.session import (
    LONGEST_GAP_MS,
    LONGEST_RETAINED_MS,
    MAX_ENDED_STREAMS,
    MAX_FAILURES,
    MAX_OPEN_STREAMS,
    MAX_TEXT_CHARS,
    CallSpeech,
    Feed,
    Finish,
    FrameRun,
    Open,
    Step,
    Streams,
)
from tests.speech.audio import pcmu, quiet, record, records, tone

KEY = StreamKey("call", "s1")
NOW = 1_000_000
PCMU = AudioFormat("PCMU", 8000)

SPEECH = pcmu(
    quiet(300),
    tone(800, 1),
    quiet(600),
    tone(1500, 2),
    quiet(500),
    tone(13_000, 3),
    quiet(900),
    tone(400, 4),
    quiet(100),
)
"""Four utterances. The third is longer than a segment of the engine."""


def session(state: SpeechState | None = None) -> CallSpeech:
    return CallSpeech(state, "scripted", lambda audio: audio == PCMU)


class Agent:
    """A speech process in small: session, recogniser, and the frames it may commit."""

    def __init__(self, state: SpeechState | None = None) -> None:
        self.recognizer = ScriptedRecognizer()
        self.streams = Streams(self.recognizer)
        self.session = CallSpeech(state, self.recognizer.name, self.recognizer.accepts)
        self.written: list[Utterance] = []

    async def read(self, frames: Iterable[AudioFrame]) -> None:
        self._apply(self.session.frames(frames, NOW))
        self.recognizer.report(1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):  # events that wait come at once; the first that does not wait ends it
                async for event in self.recognizer.events():
                    self._take(event)

    async def end(self) -> None:
        """End the streams, as the agent does when no END will come."""
        self._apply(self.session.end("no END", NOW))
        await self.read([])

    def _take(self, event: Event) -> None:
        if isinstance(event, Ended | Failed):
            self.streams.ended(event.key)
        self._apply(self.session.event(event, NOW))

    def _apply(self, step: Step) -> None:
        self.streams.apply("call", step.commands)
        self.written += step.utterances


def final_facts(utterances: Iterable[Utterance]) -> list[Utterance]:
    """The facts that must not differ between runs: each final once, in order, without the time of recognition."""
    seen: dict[tuple[str, int, UtteranceKind], Utterance] = {}
    for utterance in utterances:
        if utterance.kind is not UtteranceKind.PARTIAL:
            fact = dataclasses.replace(utterance, recognized_at=0)
            key = (utterance.utterance_id, utterance.revision, utterance.kind)
            assert seen.setdefault(key, fact) == fact
    return list(seen.values())


async def whole_run() -> list[Utterance]:
    agent = Agent()
    await agent.read(records(SPEECH))
    return agent.written


def test_a_call_of_a_thousand_streams_without_an_end_has_a_bounded_state() -> None:
    heard, ends = session(), list[str]()
    for number in range(1_000):
        frames = [dataclasses.replace(one, stream_id=f"s{number}") for one in records(pcmu(quiet(40)))[:2]]
        step = heard.frames(frames, NOW)
        ends += [one.stream_id for one in step.utterances if one.kind is UtteranceKind.END]
        for finish in step.commands:
            if isinstance(finish, Finish):
                ended = heard.event(Ended(StreamKey("call", finish.stream_id)), NOW)
                ends += [one.stream_id for one in ended.utterances]
    assert len(heard.state.streams) <= MAX_OPEN_STREAMS + MAX_ENDED_STREAMS
    assert ends == [f"s{number}" for number in range(1_000 - MAX_OPEN_STREAMS)], "each gets its END, the oldest first"


def test_a_text_of_a_megabyte_is_cut() -> None:
    heard = session()
    heard.frames(records(pcmu(quiet(40))), NOW)
    words = tuple(Word("word", 0, 1, None) for _ in range(200_000))
    [written] = heard.event(Hypothesis(KEY, 0, True, "word " * 200_000, 0, 20, words), NOW).utterances
    assert (len(written.text), written.words) == (MAX_TEXT_CHARS, ())


async def test_a_stream_becomes_numbered_finals_and_one_end() -> None:
    written = await whole_run()
    finals = [u for u in written if u.kind is UtteranceKind.FINAL]
    assert [u.utterance_id for u in finals] == [f"s1:{n}" for n in range(5)]
    assert finals[0].start_ms == 300
    assert finals[0].end_ms == 1100
    assert finals[0].sequence == 55
    assert finals[3].start_ms == finals[2].end_ms == 3700 + 12_000
    [end] = [u for u in written if u.kind is UtteranceKind.END]
    assert written[-1] == end
    assert end.text == ""


async def test_revisions_rise_and_a_final_is_above_all_partials() -> None:
    by_id: dict[str, list[int]] = {}
    for utterance in await whole_run():
        if utterance.kind is not UtteranceKind.END:
            by_id.setdefault(utterance.utterance_id, []).append(utterance.revision)
    assert any(len(revisions) > 5 for revisions in by_id.values())
    for revisions in by_id.values():
        assert revisions == sorted(set(revisions))


@given(st.lists(st.integers(1, 900), max_size=6), st.data())
@settings(max_examples=25, deadline=None)
def test_a_process_killed_anywhere_writes_the_same_final_records_after_a_restart(
    batches: list[int], data: st.DataObject
) -> None:
    async def crashing() -> list[Utterance]:
        frames = records(SPEECH)
        written: list[Utterance] = []
        stored: bytes | None = None
        committed = 0
        for batch in batches:
            state = codec.decode_as(SpeechState, stored) if stored else None
            agent = Agent(state)
            position = committed
            for frame in frames[committed : committed + batch]:
                await agent.read([frame])
                position += 1
            written += agent.written
            if data.draw(st.booleans(), label="the last snapshot was stored"):
                stored = codec.encode(agent.session.state)
                uncovered = agent.session.uncovered
                held = (n for n, f in enumerate(frames[:position]) if f.sequence >= uncovered.get(f.stream_id, 10**9))
                committed = max(committed, min(held, default=position))
        state = codec.decode_as(SpeechState, stored) if stored else None
        agent = Agent(state)
        await agent.read(frames[committed:])
        return written + agent.written

    async def both() -> tuple[list[Utterance], list[Utterance]]:
        return final_facts(await crashing()), final_facts(await whole_run())

    with_crashes, without = asyncio.run(both())
    assert sorted(with_crashes, key=lambda u: u.start_ms) == sorted(without, key=lambda u: u.start_ms)


@given(st.integers(0, len(SPEECH) // 160), st.data())
@settings(max_examples=25, deadline=None)
def test_a_stream_that_is_ended_has_the_text_that_an_end_record_would_have_given(cut: int, data: st.DataObject) -> None:
    """Also if the process is killed before that is stored, and the uncovered frames are read again."""

    async def both() -> tuple[list[Utterance], list[Utterance]]:
        frames = records(SPEECH)[: cut + 1]
        whole, ended = Agent(), Agent()
        await whole.read([*frames, record(FrameKind.END, cut + 1)])
        await ended.read(frames)
        state, uncovered = ended.session.state, ended.session.uncovered["s1"]
        if data.draw(st.booleans(), label="the END was written"):
            await ended.end()
        restarted = Agent(codec.decode_as(SpeechState, codec.encode(state)))
        await restarted.read([frame for frame in frames if frame.sequence >= uncovered])
        await restarted.end()
        await restarted.end()
        assert restarted.session.uncovered == {}
        return final_facts(whole.written), final_facts(ended.written + restarted.written)

    with_end, without = asyncio.run(both())
    assert without == with_end


def test_frames_after_the_end_of_a_stream_are_not_heard_and_its_end_is_written_once() -> None:
    speech = session()
    frames = records(bytes(160 * 20))
    speech.frames(frames[:10], NOW)
    step = speech.end("no END", NOW)
    assert step.commands == (Finish("s1"),)
    assert speech.end("no END", NOW) == Step()
    assert speech.frames(frames[10:], NOW) == Step()
    assert [u.kind for u in speech.event(Ended(KEY), NOW).utterances] == [UtteranceKind.END]
    assert speech.end("no END", NOW) == speech.frames(frames, NOW) == Step()
    assert session(speech.state).end("no END", NOW) == Step()


def test_a_partial_of_a_stream_that_is_ended_becomes_final_even_if_the_recogniser_fails() -> None:
    speech = session()
    speech.frames(records(bytes(160 * 100))[:-1], NOW)
    speech.event(Hypothesis(KEY, 0, False, "help my", 100, 700), NOW)
    speech.end("no END", NOW)
    final, end = speech.event(Failed(KEY, False, "broken"), NOW).utterances
    assert (final.kind, final.text, end.kind) == (UtteranceKind.FINAL, "help my", UtteranceKind.END)


@given(st.integers(1, 1500))
@settings(max_examples=15, deadline=None)
def test_finals_do_not_depend_on_how_frames_are_batched(size: int) -> None:
    async def batched() -> list[Utterance]:
        frames, agent = records(SPEECH), Agent()
        for at in range(0, len(frames), size):
            await agent.read(frames[at : at + size])
        return final_facts(agent.written)

    assert asyncio.run(batched()) == final_facts(asyncio.run(whole_run()))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 6)), min_size=1, max_size=12), st.integers(0, 900))
@settings(max_examples=60, deadline=None)
def test_runs_of_frames_are_heard_like_single_frames(parts: list[tuple[int, int]], covered_ms: int) -> None:
    """Runs may begin anywhere: behind a gap, or before frames that were heard."""
    one_by_one, in_runs = session(), session()
    fed: list[list[bytes]] = [[], []]
    for first, count in parts:
        numbers = [first + offset * (1 + offset // 3) for offset in range(count)]
        frames = [record(FrameKind.FRAME, number, bytes([number]) * 160) for number in numbers]
        run = FrameRun("s1", Track.INBOUND, "PCMU", 8000, numbers, [frame.payload for frame in frames])
        for speech, inputs, heard in ((one_by_one, frames, fed[0]), (in_runs, [run], fed[1])):
            step = speech.frames(inputs, NOW)
            heard += [command.payload for command in step.commands if isinstance(command, Feed)]
    assert b"".join(fed[0]) == b"".join(fed[1])
    for hypothesis in (
        Progress(KEY, covered_ms, covered_ms),
        Hypothesis(KEY, 0, True, "help", covered_ms, covered_ms + 130),
    ):
        expected, found = (speech.event(hypothesis, NOW) for speech in (one_by_one, in_runs))
        assert found == expected
        assert in_runs.state == one_by_one.state
    [again, expected] = (speech.event(Failed(KEY, True, "process died"), NOW) for speech in (in_runs, one_by_one))
    assert again == expected


def test_the_same_audio_is_dropped_from_runs_and_single_frames() -> None:
    frames = [record(FrameKind.FRAME, n, bytes([n % 256]) * 160) for n in range(1, 6100)]
    kept = []
    for size in (1, 7, 6099):
        speech = session()
        for at in range(0, len(frames), size):
            part = frames[at : at + size]
            run = FrameRun("s1", Track.INBOUND, "PCMU", 8000, [f.sequence for f in part], [f.payload for f in part])
            speech.frames([run], NOW)
        kept.append(speech.event(Failed(KEY, True, "process died"), NOW).commands)
    assert kept[0] == kept[1] == kept[2]
    assert kept[0][0] == Open("s1", PCMU, 6099 * 20 - LONGEST_RETAINED_MS)


def test_a_partial_of_a_stream_that_is_given_up_becomes_final() -> None:
    speech = session()
    speech.frames(records(bytes(160 * 100))[:-1], NOW)
    speech.event(Hypothesis(KEY, 0, False, "help my", 100, 700), NOW)
    final, end = speech.event(Failed(KEY, False, "broken"), NOW).utterances
    assert (final.kind, final.text, end.kind) == (UtteranceKind.FINAL, "help my", UtteranceKind.END)
    assert end.utterance_id == "s1:1"


def test_duplicates_other_tracks_and_frames_below_the_state_are_skipped() -> None:
    state = session().state
    speech = session(state)
    frames = [record(FrameKind.FRAME, n, bytes([n]) * 160) for n in (1, 2, 2, 1, 3)]
    outbound = record(FrameKind.FRAME, 4, b"\0" * 160, track=Track.OUTBOUND)
    step = speech.frames([*frames, outbound], NOW)
    assert step.commands == (Open("s1", PCMU, 0), Feed("s1", b"\1" * 160 + b"\2" * 160 + b"\3" * 160))


def test_missing_frames_are_silence_of_the_same_length() -> None:
    step = session().frames([record(FrameKind.FRAME, n, b"\1" * 160) for n in (1, 4)], NOW)
    assert step.commands[-1] == Feed("s1", b"\1" * 160 + b"\xff" * 320 + b"\1" * 160)


def test_a_wild_sequence_number_costs_at_most_five_seconds_of_silence() -> None:
    step = session().frames([record(FrameKind.FRAME, n, b"\1" * 160) for n in (1, 2**40)], NOW)
    [_, feed] = step.commands
    assert isinstance(feed, Feed)
    assert len(feed.payload) == 320 + LONGEST_GAP_MS * 8


def test_offsets_are_held_from_the_oldest_open_utterance_and_move_through_silence() -> None:
    speech = session()
    speech.frames(records(bytes(160 * 100))[:-1], NOW)
    assert speech.uncovered == {"s1": 1}
    step = speech.event(Progress(KEY, covered_ms=590, heard_ms=2000), NOW)
    assert step.changed
    assert speech.uncovered == {"s1": 30}, "frame 30 ends at 600 ms: it is covered in part only"
    speech.event(Hypothesis(KEY, 0, True, "help", 700, 1500), NOW)
    assert speech.uncovered == {"s1": 76}
    assert speech.state.streams[0].position_ms == 1500


def test_a_final_and_its_coverage_enter_the_state_together() -> None:
    """After a snapshot between the two a restart would number the utterance again."""
    speech = session()
    speech.frames(records(bytes(160 * 100))[:-1], NOW)
    speech.event(Hypothesis(KEY, 0, True, "help", 700, 1500), NOW)
    [stream] = speech.state.streams
    assert (stream.utterances, stream.next_sequence) == (1, 76)


def test_a_restored_stream_opens_at_its_stored_position_and_goes_on_numbering() -> None:
    before = session()
    frames = records(bytes(160 * 100))
    before.frames(frames[:80], NOW)
    before.event(Hypothesis(KEY, 0, True, "help", 700, 1000), NOW)
    after = session(before.state)
    step = after.frames(frames[:81], NOW)
    assert step.commands[0] == Open("s1", PCMU, 1000)
    assert isinstance(step.commands[1], Feed)
    assert len(step.commands[1].payload) == 160 * 30, "frames 51 to 80"
    [utterance] = after.event(Hypothesis(KEY, 0, True, "fire", 1100, 1400), NOW).utterances
    assert (utterance.utterance_id, utterance.sequence) == ("s1:1", 70)


def test_a_stream_that_ended_before_a_restart_repeats_nothing() -> None:
    before = session()
    frames = records(bytes(160 * 10))
    before.frames(frames, NOW)
    assert len(before.event(Ended(KEY), NOW).utterances) == 1
    assert before.uncovered == {}
    after = session(before.state)
    assert after.frames(frames, NOW) == Step()
    assert after.state == before.state


def test_the_end_is_held_until_its_utterance_is_written() -> None:
    speech = session()
    frames = records(bytes(160 * 10))
    step = speech.frames(frames, NOW)
    assert step.commands[-1] == Finish("s1")
    speech.event(Progress(KEY, 200, 200), NOW)
    assert speech.uncovered == {"s1": 11}, "the END's own number"
    restored = session(speech.state)
    [end] = restored.frames(frames, NOW).utterances
    assert end.kind is UtteranceKind.END, "all was covered: nothing is opened for the END alone"


def test_a_codec_that_cannot_be_decoded_ends_its_speech_at_once_with_a_reason() -> None:
    step = session().frames([record(FrameKind.FRAME, n, b"\0" * 160, encoding="G722") for n in (1, 2, 3)], NOW)
    assert [u.kind for u in step.utterances] == [UtteranceKind.END]
    assert [a.reason for a in step.abandoned] == ["format not decodable"]
    assert step.commands == ()


def test_a_codec_that_changes_within_a_stream_keeps_what_was_heard() -> None:
    speech = session()
    step = speech.frames(
        [record(FrameKind.FRAME, 1, b"\0" * 160), record(FrameKind.FRAME, 2, b"\0" * 320, encoding="L16")], NOW
    )
    assert step.commands[-1] == Finish("s1")
    assert [a.reason for a in step.abandoned] == ["format changed"]
    assert [u.kind for u in speech.event(Ended(KEY), NOW).utterances] == [UtteranceKind.END]


@pytest.mark.parametrize("encoding", ["L16", "L16BE"])
def test_half_a_sample_at_the_end_of_a_frame_is_not_heard_and_shifts_nothing(encoding: str) -> None:
    frames = [
        record(FrameKind.FRAME, 1, b"\1\0" * 160 + b"x", encoding=encoding),
        record(FrameKind.FRAME, 3, b"\2\0" * 160, encoding=encoding),
    ]
    step = CallSpeech(None, "engine", lambda _: True).frames(frames, NOW)
    assert step.abandoned == ()
    fed = b"".join(command.payload for command in step.commands if isinstance(command, Feed))
    assert fed == b"\1\0" * 160 + bytes(320) + b"\2\0" * 160


def test_after_a_failure_all_uncovered_audio_is_heard_again() -> None:
    speech = session()
    frames = [record(FrameKind.FRAME, n, bytes([n]) * 160) for n in range(1, 11)]
    speech.frames(frames, NOW)
    speech.event(Progress(KEY, 100, 200), NOW)
    speech.frames([record(FrameKind.END, 11)], NOW)
    step = speech.event(Failed(KEY, True, "process died"), NOW)
    again = b"".join(bytes([n]) * 160 for n in range(6, 11))
    assert step.commands == (Open("s1", PCMU, 100), Feed("s1", again), Finish("s1"))


def test_a_stream_that_fails_again_and_again_is_given_up_and_ends() -> None:
    speech = session()
    speech.frames([record(FrameKind.FRAME, 1, bytes(160))], NOW)
    steps = [speech.event(Failed(KEY, True, "process died"), NOW) for _ in range(MAX_FAILURES + 1)]
    assert [bool(step.commands) for step in steps] == [True] * MAX_FAILURES + [False]
    assert [u.kind for u in steps[-1].utterances] == [UtteranceKind.END]
    assert [a.reason for a in steps[-1].abandoned] == ["process died"]


def test_a_partial_without_a_final_text_is_withdrawn() -> None:
    speech = session()
    speech.frames(records(bytes(160 * 100))[:-1], NOW)
    speech.event(Hypothesis(KEY, 0, False, "you", 100, 700), NOW)
    [back] = speech.event(Hypothesis(KEY, 0, True, "", 100, 900), NOW).utterances
    assert (back.kind, back.text, back.utterance_id) == (UtteranceKind.PARTIAL, "", "s1:0")
    [final] = speech.event(Hypothesis(KEY, 1, True, "help", 1000, 1500), NOW).utterances
    assert final.utterance_id == "s1:0"
    assert final.revision > back.revision


def test_the_state_survives_encoding() -> None:
    speech = session()
    speech.frames(records(bytes(160 * 100)), NOW)
    speech.event(Progress(KEY, 590, 2000), NOW)
    assert codec.decode(codec.encode(speech.state)) == speech.state
