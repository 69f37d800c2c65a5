"""The sessions hold an offset for as long as its record must be read again after a crash. Needs no broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from faust.types import TP

from dispatchai.engine.commits import Coverage
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.records import AudioFrame, FrameKind, SpeechState, Utterance, UtteranceKind, encode
from dispatchai.records.frame_decoder import decode_frame
from dispatchai.speech.call_sessions import CallSessions, ReadDeadline
from dispatchai.speech.frame_runs import FrameBatch
from dispatchai.speech.recognizer import AudioFormat
from dispatchai.speech.scripted import ScriptedRecognizer
from dispatchai.speech.stream_end import SILENT_S
from tests.speech.audio import pcmu, quiet, record, records, tone
from tests.support.stored_record import StoredRecord

AUDIO, EVENTS = TP("audio-frames", 0), TP("call-events", 0)
HEARD_MS = 1_772_567_551_000
"""Time of the first frame."""

CALL = records(pcmu(quiet(200), tone(600), quiet(600), tone(600, 1), quiet(200)))
"""START, 110 frames with two utterances, END."""

LAST_RUN = 564
"""Where CALL is stored from 500 on: offset of frame 64. A run of frames begins there: its number is a byte longer."""


@dataclass
class States:
    """States that are stored at once; a snapshot of one holds an offset until `written`."""

    coverage: Coverage
    values: dict[str, SpeechState] = field(default_factory=dict)

    def get(self, key: str) -> SpeechState | None:
        return self.values.get(key)

    def put(self, key: str, state: SpeechState | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        assert snapshot
        self.coverage.hold(tp, ("states", key), offset)
        if state is None:
            self.values.pop(key, None)
        else:
            self.values[key] = state

    def written(self) -> None:
        for key in [*self.values, "call"]:
            for tp in (AUDIO, EVENTS):
                self.coverage.release(tp, ("states", key))


class Process:
    """A speech process in small: what it wrote, and how far its offsets may be committed."""

    def __init__(self, states: dict[str, SpeechState] | None = None) -> None:
        self.coverage = Coverage()
        self.states = States(self.coverage, dict(states or {}))
        self.recognizer = ScriptedRecognizer()
        self.written: list[Utterance] = []
        self.dead: list[int] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.sessions: CallSessions[StoredRecord] = CallSessions(
            "speech",
            self.recognizer,
            states=self.states,
            coverage=self.coverage,
            write=self._write,
            dead_letter=self._dead_letter,
            assignment_over=AssignmentOverError,
            clock=lambda: 0,
        )

    async def _write(self, call_id: str, partition: int, utterance: Utterance) -> None:
        assert (call_id, partition) == ("call", AUDIO.partition)
        await self.may_write.wait()
        self.written.append(utterance)

    async def _dead_letter(self, tp: TP, record: StoredRecord, error: Exception) -> None:
        self.dead.append(record.offset)

    async def read(self, frames: Sequence[AudioFrame], offset: int) -> None:
        """Read `frames` of the call, stored from `offset` on, and take what the recogniser hears."""
        stored = [
            StoredRecord(offset + number, b"call", encode(frame), HEARD_MS + frame.sequence * 20)
            for number, frame in enumerate(frames)
        ]
        batch = FrameBatch(stored)
        decoded = [(one, decode_frame(one.value or b"")) for one in batch.others]
        for key, heard in batch.by_call(decoded).items():
            await self.sessions.hear(key.decode(), AUDIO, heard)
        await self.take()

    async def take(self) -> None:
        """Take the events that wait."""
        self.recognizer.report(1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):  # events that wait come at once; the first that does not wait ends it
                async for event in self.recognizer.events():
                    await self.sessions.take(event)

    async def end_overdue(self, *, idle_s: float = SILENT_S) -> None:
        """A round for overdue calls, long after their deadlines were read."""
        await self.sessions.end_overdue(AUDIO, 1000.0, idle_s)
        await self.take()

    def floors(self) -> tuple[int | None, int | None]:
        """The lowest offset of audio and of events that must be read again, once all snapshots are written."""
        self.states.written()
        return self.coverage.floor(AUDIO), self.coverage.floor(EVENTS)

    def kinds(self, *kinds: UtteranceKind) -> list[UtteranceKind]:
        return [one.kind for one in self.written if one.kind in kinds]


def deadline(offset: int, after_frames: int = len(CALL)) -> ReadDeadline[StoredRecord]:
    """A deadline that was recorded when so many frames had come in."""
    return ReadDeadline(HEARD_MS + after_frames * 20, 0.0, EVENTS, StoredRecord(offset, b"call", b"", 0))


async def test_frames_hold_their_offset_until_a_final_covers_them() -> None:
    process = Process()
    await process.read(CALL[:11], 500)
    await process.read(CALL[11:30], 511)
    assert process.floors()[0] == 511, "the silence before the open utterance is covered"
    await process.read(CALL[30:80], 530)
    assert process.kinds(UtteranceKind.FINAL) == [UtteranceKind.FINAL]
    assert process.floors()[0] == LAST_RUN, "the first record of the run with the first uncovered frame"
    await process.read(CALL[80:], 580)
    assert process.kinds(UtteranceKind.FINAL, UtteranceKind.END)[-1] is UtteranceKind.END
    assert process.floors() == (None, None)


async def test_a_deadline_holds_its_offset_until_the_streams_that_it_ends_have_ended() -> None:
    process = Process()
    await process.read(CALL[:60], 500)
    process.sessions.deadline_passed("call", deadline(7))
    assert process.floors()[1] == 7
    await process.end_overdue(idle_s=0.0)
    assert process.floors()[1] == 7, "audio may be unread"
    await process.end_overdue()
    assert process.kinds(UtteranceKind.FINAL, UtteranceKind.END) == [UtteranceKind.FINAL, UtteranceKind.END]
    assert process.states.values["call"].streams[0].ended
    assert process.floors() == (None, None)


async def test_a_call_that_still_speaks_is_not_ended_by_its_deadline() -> None:
    process = Process()
    await process.read(CALL[:60], 500)
    process.sessions.deadline_passed("call", deadline(7, after_frames=30))
    await process.end_overdue()
    assert not process.sessions.overdue.call_ids
    assert process.floors()[1] is None
    await process.read(CALL[60:], 560)
    assert len(process.kinds(UtteranceKind.FINAL)) == 2


async def test_a_deadline_ends_a_stream_that_was_heard_before_a_restart() -> None:
    before = Process()
    await before.read(CALL[:70], 500)
    after = Process(before.states.values)
    after.sessions.deadline_passed("call", deadline(7))
    await after.end_overdue()
    assert [one.kind for one in after.written] == [UtteranceKind.END]
    assert after.floors() == (None, None)


async def test_a_deadline_of_a_call_that_is_not_known_or_has_ended_holds_nothing() -> None:
    process = Process()
    process.sessions.deadline_passed("call", deadline(7))
    await process.end_overdue()
    assert process.floors() == (None, None)
    await process.read(CALL, 500)
    written = len(process.written)
    process.sessions.deadline_passed("call", deadline(8))
    await process.end_overdue()
    assert process.floors() == (None, None)
    assert len(process.written) == written


async def test_the_first_deadline_counts_while_it_waits() -> None:
    process = Process()
    await process.read(CALL[:60], 500)
    process.sessions.deadline_passed("call", deadline(7))
    process.sessions.deadline_passed("call", deadline(9))
    assert process.floors()[1] == 7
    await process.end_overdue()
    assert process.floors()[1] is None


async def test_a_call_that_is_given_up_holds_nothing_and_writes_nothing_more() -> None:
    process = Process()
    await process.read(CALL[:40], 500)
    process.sessions.deadline_passed("call", deadline(7))
    process.sessions.give_up("call", EVENTS, 8)
    assert process.floors() == (None, None)
    assert not process.states.values
    written = len(process.written)
    await process.take()
    await process.end_overdue()
    assert len(process.written) == written


async def test_a_state_is_stored_only_when_its_utterances_were_handed_to_the_producer() -> None:
    process = Process()
    await process.read(CALL[:11], 500)
    await process.read(CALL[11:30], 511)
    process.may_write.clear()
    reading = asyncio.ensure_future(process.read(CALL[30:80], 530))
    await asyncio.sleep(0)
    assert process.states.values["call"].streams[0].utterances == 0
    assert process.floors()[0] == 511
    process.may_write.set()
    await reading
    await process.take()
    assert process.states.values["call"].streams[0].utterances == 1
    assert process.floors()[0] == LAST_RUN


async def test_after_a_reset_nothing_is_held_or_heard_and_the_call_is_read_again() -> None:
    process = Process()
    await process.read(CALL[:40], 500)
    process.sessions.deadline_passed("call", deadline(7))
    process.sessions.reset()
    process.coverage.reset()
    await process.take()
    assert not process.sessions.overdue.call_ids
    process.written.clear()
    process.states.values.clear()
    await process.read(CALL, 500)
    assert len(process.kinds(UtteranceKind.FINAL)) == 2


async def test_records_on_which_a_session_fails_are_dead_lettered_and_an_assignment_that_is_over_is_not_their_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = Process()
    errors: list[Exception] = [RuntimeError("broken"), AssignmentOverError()]

    def accepts(_: AudioFormat) -> bool:
        raise errors.pop(0)

    monkeypatch.setattr(process.recognizer, "accepts", accepts)
    frames = [record(FrameKind.FRAME, number, bytes(160)) for number in (1, 2)]
    await process.read(frames, 500)
    assert process.dead == [500, 501]
    with pytest.raises(AssignmentOverError):
        await process.read(frames, 502)
    assert process.dead == [500, 501]
