"""The speech sessions of all calls between Kafka and the recogniser, with the offsets that they hold.

A frame's offset is held until a final utterance covers the frame, so that a crash loses no word and repeats none that
was final; a deadline's offset is held until the streams that it ends have ended. `session` decides what is heard,
numbered and heard again, `stream_end` when a stream without END is over, `pending` which offset is still needed. The
speech agent reads the records and writes the utterances.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeAlias

import structlog
from faust.types import TP

from dispatchai.process.log_limit import LogLimit
from dispatchai.records import Micros, SpeechState, Track, Utterance
from dispatchai.speech.frame_runs import CallInputs, R
from dispatchai.speech.pending_records import PendingRecords
from dispatchai.speech.recognizer import Ended, Event, Failed, Recognizer
from dispatchai.speech.session import CallSpeech, Step, Streams
from dispatchai.speech.stream_end import Deadline, OverdueCalls, still_speaks

log = structlog.get_logger(__name__)

NO_END: Final = "no END by the call's deadline"
"""Why a stream is abandoned whose END never came."""


class Coverage(Protocol):
    """The offsets that are held; see `dispatchai.engine.commits.Coverage`."""

    def hold(self, tp: TP, holder: Hashable, offset: int) -> None:
        """Keep commits of `tp` at or below `offset`."""

    def advance(self, tp: TP, holder: Hashable, offset: int) -> None:
        """Hold the later `offset` instead."""

    def release(self, tp: TP, holder: Hashable) -> None:
        """Hold nothing of `tp` any more."""


class States(Protocol):
    """The stored states of calls; see `dispatchai.engine.keyed_state.KeyedStates`."""

    def get(self, key: str) -> SpeechState | None:
        """The state of a call, or None."""

    def put(self, key: str, state: SpeechState | None, tp: TP, offset: int, *, snapshot: bool) -> None:
        """Set the state of a call as it is after the records of `tp` from `offset` on; None deletes it."""


Write = Callable[[str, int, Utterance], Awaitable[None]]
"""Writes an utterance of a call: (call id, partition, utterance)."""

DeadLetter: TypeAlias = Callable[[TP, R, Exception], Awaitable[None]]
"""Sends a record of the partition to the dead-letter topic, with the error that it caused."""


@dataclass(frozen=True, slots=True)
class ReadDeadline(Deadline, Generic[R]):
    """A call's deadline, and where it was read."""

    tp: TP
    record: R


@dataclass(slots=True)
class _Call(Generic[R]):
    """A call that is being heard."""

    session: CallSpeech
    tp: TP
    """The partition of its audio."""
    pending: PendingRecords = field(default_factory=PendingRecords)
    held_from: int | None = None
    """The offset of the audio that is held; None if none is."""
    heard_ms: int = 0
    """Time of the last record that was read, in ms since the epoch; 0 before the first."""
    deadline: ReadDeadline[R] | None = None
    """Why its streams are being ended; None if they are not."""
    writing: int = 0
    """Steps whose utterances are being written. The last of them stores the state: a snapshot must not contain an
    utterance that is not in the producer's buffer yet."""
    changed: bool = False
    """Whether the state is to be stored then."""


class CallSessions(Generic[R]):
    """The sessions of the calls that are being heard. Used from one event loop."""

    def __init__(
        self,
        name: str,
        recognizer: Recognizer,
        *,
        states: States,
        coverage: Coverage,
        write: Write,
        dead_letter: DeadLetter[R],
        assignment_over: type[Exception],
        clock: Callable[[], Micros],
    ) -> None:
        """`name` is the agent's, which holds the offsets. `clock` is the wall clock, for the time of recognition.

        `write` and `dead_letter` raise `assignment_over` when partitions were reassigned; no record is to blame then.
        """
        self.overdue: OverdueCalls[ReadDeadline[R]] = OverdueCalls()
        self._name = name
        self._recognizer = recognizer
        self._states = states
        self._coverage = coverage
        self._write = write
        self._dead_letter = dead_letter
        self._assignment_over = assignment_over
        self._clock = clock
        self._streams = Streams(recognizer)
        self._abandoned_log = LogLimit()
        self._calls: dict[str, _Call[R]] = {}

    async def hear(self, call_id: str, tp: TP, heard: CallInputs[R]) -> None:
        """Hear audio of a call in the partition `tp`. Records on which its session fails are dead-lettered.

        Raises `assignment_over`.
        """
        try:
            await self._hear(call_id, tp, heard)
        except self._assignment_over:
            raise
        except Exception as error:  # noqa: BLE001 - an agent never raises
            for record in heard.records:
                await self._dead_letter(tp, record, error)

    async def _hear(self, call_id: str, tp: TP, heard: CallInputs[R]) -> None:
        call = self._calls.get(call_id) or self._new_call(call_id, tp)
        call.heard_ms = max(call.heard_ms, heard.records[-1].timestamp)
        for one in heard.inputs:
            if one.heard.track is Track.INBOUND:
                call.pending.add(one.heard.stream_id, min(one.sequences), max(one.sequences), one.offset)
        step = call.session.frames([one.heard for one in heard.inputs], self._clock())
        if call.held_from is None:
            call.held_from = heard.inputs[0].offset
            self._coverage.advance(tp, self._audio_of(call_id), call.held_from)
        await self._apply(call_id, call, step)

    async def take(self, event: Event) -> None:
        """Take an event of the recogniser."""
        call_id = event.key.call_id
        if (call := self._calls.get(call_id)) is None:
            return
        if isinstance(event, Ended | Failed):
            self._streams.ended(event.key)
        await self._apply(call_id, call, call.session.event(event, self._clock()))

    def deadline_passed(self, call_id: str, deadline: ReadDeadline[R]) -> None:
        """The deadline of a call was read. Without effect if an earlier one waits or is ending its streams."""
        call = self._calls.get(call_id)
        if call is not None and call.deadline is not None:
            return
        if self.overdue.add(deadline.tp.partition, call_id, deadline):
            self._coverage.hold(deadline.tp, self._deadline_of(call_id), deadline.record.offset)

    async def end_overdue(self, audio: TP, now_s: float, idle_s: float) -> None:
        """End the streams of those calls whose deadline has passed and of which no audio in `audio` is unread.

        `now_s` and `idle_s` as in `OverdueCalls.due`. A deadline on which this fails is dead-lettered. Raises
        `assignment_over`.
        """
        for call_id, deadline in self.overdue.due(audio.partition, now_s, idle_s):
            if not self.overdue.remove(audio.partition, call_id, deadline):
                continue  # another round ends it, the call was given up, or partitions were reassigned meanwhile
            try:
                await self._end_streams(call_id, audio, deadline)
            except self._assignment_over:
                raise
            except Exception as error:  # noqa: BLE001 - an agent never raises
                await self._dead_letter(deadline.tp, deadline.record, error)
                self._release_deadline(call_id, deadline)

    async def _end_streams(self, call_id: str, audio: TP, deadline: ReadDeadline[R]) -> None:
        call = self._calls.get(call_id)
        if call is None:
            state = self._states.get(call_id)
            if state is not None and not all(stream.ended for stream in state.streams):
                call = self._new_call(call_id, audio)  # all of it was heard before a restart, but no END
        if call is None or still_speaks(call.heard_ms, deadline):
            self._release_deadline(call_id, deadline)
            return
        call.deadline = deadline
        await self._apply(call_id, call, call.session.end(NO_END, self._clock()))

    def give_up(self, call_id: str, tp: TP, offset: int) -> None:
        """Discard a call and its state, because of the record of `tp` at `offset` or what was read before it."""
        self._streams.cancel(call_id)
        if (call := self._calls.get(call_id)) is not None:
            # Its END will not come. What was not heard to the end must not hold the partition's offsets for ever.
            self._let_go(call_id, call)
        if (deadline := self.overdue.discard(tp.partition, call_id)) is not None:
            self._release_deadline(call_id, deadline)
        if self._states.get(call_id) is not None:
            self._states.put(call_id, None, tp, offset, snapshot=True)

    def reset(self) -> None:
        """Discard every call: partitions were reassigned, and what was not covered is read again."""
        for call_id in self._calls:
            self._streams.cancel(call_id)
        self._calls.clear()
        self.overdue.reset()

    def _new_call(self, call_id: str, tp: TP) -> _Call[R]:
        session = CallSpeech(self._states.get(call_id), self._recognizer.name, self._recognizer.accepts)
        call = self._calls[call_id] = _Call(session, tp)
        return call

    async def _apply(self, call_id: str, call: _Call[R], step: Step) -> None:
        """Do what a step of the call asks for. Its commands are given before anything is awaited."""
        self._streams.apply(call_id, step.commands)
        call.changed = call.changed or step.changed
        call.writing += 1
        try:
            for utterance in step.utterances:
                await self._write(call_id, call.tp.partition, utterance)
        finally:
            call.writing -= 1
        for abandoned in step.abandoned:
            if count := self._abandoned_log.add():
                log.warning(
                    "speech_abandoned",
                    call_id=call_id,
                    stream_id=abandoned.stream_id,
                    reason=abandoned.reason,
                    streams=count,
                )
        if call.writing or self._calls.get(call_id) is not call:
            return  # another step still writes and stores the state, or the call was given up meanwhile
        over = not call.session.uncovered
        if call.changed:
            call.changed = False
            self._store(call_id, call, over=over)
        if over:
            # Every stream has ended. If another begins, the session is made again from its state.
            self._let_go(call_id, call)

    def _store(self, call_id: str, call: _Call[R], *, over: bool) -> None:
        """Store the state, and let offsets be committed up to the first record that must be read again."""
        if call.held_from is not None:
            self._states.put(call_id, call.session.state, call.tp, call.held_from, snapshot=True)
        if over and (deadline := call.deadline) is not None:
            self._states.put(call_id, call.session.state, deadline.tp, deadline.record.offset, snapshot=True)
        call.held_from = call.pending.first_offset(call.session.uncovered)
        if call.held_from is None:
            self._coverage.release(call.tp, self._audio_of(call_id))
        else:
            self._coverage.advance(call.tp, self._audio_of(call_id), call.held_from)

    def _let_go(self, call_id: str, call: _Call[R]) -> None:
        """Stop hearing a call, and hold nothing for it but what its state holds until its snapshot."""
        self._calls.pop(call_id, None)
        self._coverage.release(call.tp, self._audio_of(call_id))
        if call.deadline is not None:
            self._release_deadline(call_id, call.deadline)

    def _release_deadline(self, call_id: str, deadline: ReadDeadline[R]) -> None:
        self._coverage.release(deadline.tp, self._deadline_of(call_id))

    def _audio_of(self, call_id: str) -> Hashable:
        return self._name, "frames", call_id

    def _deadline_of(self, call_id: str) -> Hashable:
        return self._name, "deadline", call_id
