"""The speech agent: turns the caller's voice into text. Reads `audio-frames`, and `call-events` for the end
of a call; writes `transcripts`.

What is heard, numbered and heard again is decided in `dispatchai.speech.session`. Offsets are committed only up to the
first frame that no final utterance covers, so that a crash loses no word and repeats none that was final.

A stream whose gateway was killed has no END. It must not hold its partition's offsets until the call expires, so it is
ended once the call's deadline was read from `call-events` and SILENT_S of the partition's audio from after the deadline
were read with no frame of the call in them, or for SILENT_S there was none to read. The audio of a partition is read in
its order: an END that is in the log is read before that, however late this agent is, and which streams are ended does
not follow from how the topics interleaved. A call that still speaks, beyond `CALL_LONGEST_S`, is heard on. The
deadline's offset is held until its streams have ended.

A frame that is read after its call expired makes a state that no event gives up. So no state is kept for longer than
the longest call and what follows it take together, by the clock of this process (`agents.orphans`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import structlog
from faust.types import TP

from agents.orphans import Leftovers
from dispatchai.calls.events import EventType
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.fetch import Batch, Record, consumer_record
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic
from dispatchai.process.clock import now_micros
from dispatchai.records import AudioFrame, CallEvent, SpeechState, Track, decode_as, encode
from dispatchai.records.frames import decode_frame, decode_frames
from dispatchai.settings import Settings
from dispatchai.speech.engines import recognizer as make_recognizer
from dispatchai.speech.recognizer import Ended, Failed, Recognizer
from dispatchai.speech.session import CallSpeech, FrameRun, Step, Streams

log = structlog.get_logger(__name__)

NAME: Final = "speech"
SOURCES: Final = (Topic.AUDIO_FRAMES, Topic.CALL_EVENTS)

REPORT_EVERY_S: Final = 0.05
REPORTS_A_ROUND: Final = 20
"""Each stream tells about once a second how far it is covered, spread over the second: each time the call's state is
stored, so that offsets can be committed. What is heard of more streams than fit takes its turn later."""

SILENT_S: Final = 5.0
"""A stream that sent nothing for so long after its call's deadline sends no more: a live one has 50 frames a second,
and the deadline itself comes `CALL_DEADLINE_S` after the hangup."""


@dataclass(slots=True)
class _Read:
    """Records of one stream that came together: numbers of the first and the last frame, offset of the first."""

    first: int
    last: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Deadline:
    """A call's deadline, as it lies in `call-events`. `at_ms` is when it was recorded, not when it was due: of a call
    that hung up while nobody ran, or by a wrong clock, audio may have come in since then."""

    tp: TP
    record: Record
    at_ms: int
    seen_s: float
    """When it was read here, in seconds of the event loop's clock."""


@dataclass(slots=True)
class _Span:
    """Times of the first and the last record that were read of a partition's audio, in ms since the epoch."""

    first_ms: int
    last_ms: int


@dataclass(slots=True)
class _Call:
    """One call that is being heard: its session, and where the records lie that no final utterance covers yet."""

    session: CallSpeech
    tp: TP
    uncovered: dict[str, deque[_Read]] = field(default_factory=dict)
    """Stream id to its records from the first uncovered frame on."""
    held_from: int | None = None
    """The offset that is held: what is heard since it was is owed from there. None when nothing is owed."""
    heard_ms: int = 0
    """Time of the last record that was read, in ms since the epoch; 0 before the first."""
    deadline: _Deadline | None = None
    """Why its streams are being ended; None if they are not. Its offset is held until they have."""
    writing: int = 0
    """Steps whose utterances are being written. The last of them stores the state: a snapshot must not say of an
    utterance that is not in the producer's buffer yet that it was made."""
    changed: bool = False
    """Whether the state is to be stored then."""

    def read(self, stream_id: str, first: int, last: int, offset: int) -> None:
        """Remember that the frames `first` to `last` lie from `offset` on."""
        self.uncovered.setdefault(stream_id, deque()).append(_Read(first, last, offset))

    def first_offset(self) -> int | None:
        """Offset at or before the first record that must be read again after a crash; None when there is none."""
        open_streams = self.session.uncovered
        for stream_id in list(self.uncovered):
            records = self.uncovered[stream_id]
            needed_from = open_streams.get(stream_id)
            while records and (needed_from is None or records[0].last < needed_from):
                records.popleft()
            if not records:
                del self.uncovered[stream_id]
        return min((records[0].offset for records in self.uncovered.values()), default=None)


@dataclass(frozen=True, slots=True)
class _Input:
    """What is handed to a call's session, and the offset of its first record."""

    heard: AudioFrame | FrameRun
    offset: int


class SpeechAgent:
    """Between Kafka and the recogniser: hands frames on, writes what is heard, holds offsets of what is not."""

    def __init__(self, app: App, states: KeyedStates[SpeechState], recognizer: Recognizer, *, longest_s: float) -> None:
        """No state is kept for longer than `longest_s`, in seconds."""
        self._app = app
        self.states = states
        self._recognizer = recognizer
        self._streams = Streams(recognizer)
        self._calls: dict[str, _Call] = {}
        self._overdue: dict[int, dict[str, _Deadline]] = {}
        """By partition: calls whose deadline passed, until it is known that no audio of them is unread."""
        self._audio: dict[int, _Span] = {}
        """What was read of each partition's audio since it was assigned."""
        self.leftovers = Leftovers(app, states, Topic.AUDIO_FRAMES, self._give_up, after_s=longest_s)
        """States that are older than any call."""
        self._started = asyncio.Event()

    async def run(self) -> None:
        """Start the recogniser and take what it hears, until cancelled."""
        await self._recognizer.start()
        self._started.set()
        async for event in self._recognizer.events():
            call_id = event.key.call_id
            call = self._calls.get(call_id)
            if call is None:
                continue
            if isinstance(event, Ended | Failed):
                self._streams.ended(event.key)
            await self._apply(call_id, call, call.session.event(event, now_micros()))

    async def keep_reporting(self) -> None:
        """Ask the recogniser how far it is, until cancelled."""
        await self._started.wait()
        while True:
            self._recognizer.report(REPORTS_A_ROUND)
            await asyncio.sleep(REPORT_EVERY_S)

    @property
    def recognizer(self) -> Recognizer:
        """What hears."""
        return self._recognizer

    def is_listening(self) -> bool:
        """Whether the recogniser is up."""
        return self._started.is_set()

    @property
    def overdue(self) -> set[str]:
        """The calls whose deadline passed and of which audio may be unread."""
        return {call_id for waiting in self._overdue.values() for call_id in waiting}

    async def process(self, batch: Batch) -> None:
        """Take the records that one fetch brought of one partition; given up when partitions are assigned anew."""
        with self._app.stalls.excused(NAME):  # as below: the recogniser has limits of its own
            await self._started.wait()
        generation = self._app.lease.generation
        if batch.tp.topic == Topic.CALL_EVENTS:
            await self._follow_events(batch, generation)
        else:
            await self._follow_audio(batch, generation)
        await self._end_overdue(batch.tp.partition, generation)

    async def _follow_audio(self, batch: Batch, generation: int) -> None:
        """Hear the frames of a batch."""
        with self._app.stalls.excused(NAME):
            await self._recognizer.room()
        for key, (records, inputs) in (await self._inputs(batch)).items():
            if generation != self._app.lease.generation:
                return
            try:
                await self._hear(key.decode(), batch.tp, inputs, records[-1].timestamp)
            except AssignmentOverError:
                raise
            except Exception as error:  # noqa: BLE001 - an agent never raises: what failed goes to the dead letters
                for record in records:
                    await self._app.emitter.dead_letter(consumer_record(batch.tp, record), reader=NAME, error=error)
        if generation == self._app.lease.generation:
            first_ms, last_ms = batch.records[0].timestamp, batch.records[-1].timestamp
            span = self._audio.setdefault(batch.tp.partition, _Span(first_ms, last_ms))
            span.last_ms = max(span.last_ms, last_ms)

    async def _inputs(self, batch: Batch) -> dict[bytes, tuple[list[Record], list[_Input]]]:
        """The frames of each call, in order: those of live streams, which are nearly all there is, by the run."""
        columns = decode_frames([record.value or b"" for record in batch.records])
        run_of = np.full(len(columns), -1, np.int64)
        for number, run in enumerate(columns.runs):
            run_of[run.rows] = number
        inbound = columns.inbound.tolist()
        streams = columns.stream.view(f"S{columns.stream.shape[1]}")[:, 0].tolist()
        sequences = columns.sequence.tolist()
        calls: dict[bytes, tuple[list[Record], list[_Input]]] = {}
        open_runs: dict[bytes, tuple[int, str, list[int], list[bytes]]] = {}
        for row, (record, run_number) in enumerate(zip(batch.records, run_of.tolist(), strict=True)):
            key = record.key
            stream_id = None if run_number < 0 else _text(streams[row])
            value = record.value
            if stream_id is None or not key or not value or _text(key) is None:
                for _, frame in await agent.decoded(self._app, NAME, decode_frame, batch.tp, [record]):
                    assert key is not None  # noqa: S101 - `decoded` buries records without one
                    records, inputs = calls.setdefault(key, ([], []))
                    records.append(record)
                    inputs.append(_Input(frame, record.offset))
                    open_runs.pop(key, None)
                continue
            if not inbound[row]:
                continue
            size = columns.runs[run_number].payloads.shape[1]
            payload = value[len(value) - 1 - size : -1]  # the last byte says that there is no detail
            records, inputs = calls.setdefault(key, ([], []))
            records.append(record)
            known = open_runs.get(key)
            if known is not None and known[0] == run_number and known[1] == stream_id:
                known[2].append(sequences[row])
                known[3].append(payload)
                continue
            numbers, payloads = [sequences[row]], [payload]
            open_runs[key] = (run_number, stream_id, numbers, payloads)
            run = columns.runs[run_number]
            heard = FrameRun(stream_id, Track.INBOUND, run.encoding, run.sample_rate, numbers, payloads)
            inputs.append(_Input(heard, record.offset))
        return calls

    async def _follow_events(self, batch: Batch, generation: int) -> None:
        """Remember the calls whose deadline passed, give up those that expired."""
        now_s = asyncio.get_running_loop().time()
        for key, records in batch.by_key():
            events = await agent.decoded(self._app, NAME, partial(decode_as, CallEvent), batch.tp, records)
            if generation != self._app.lease.generation:
                return
            for record, event in events:
                assert key is not None  # noqa: S101 - `decoded` buries records without one
                match event.type:
                    case EventType.DEADLINE:
                        self._wait_for_end(key.decode(), _Deadline(batch.tp, record, event.received_at // 1000, now_s))
                    case EventType.EXPIRED:
                        await self._give_up(key.decode(), batch.tp, record.offset)

    def _wait_for_end(self, call_id: str, deadline: _Deadline) -> None:
        """Remember that `deadline` passed, unless an earlier one is remembered."""
        call = self._calls.get(call_id)
        waiting = self._overdue.setdefault(deadline.tp.partition, {})
        if call_id not in waiting and (call is None or call.deadline is None):
            waiting[call_id] = deadline
            self._app.coverage.hold(deadline.tp, (NAME, "deadline", call_id), deadline.record.offset)

    async def keep_ending(self) -> None:
        """End what is overdue where no audio comes any more, until cancelled."""
        while True:
            await asyncio.sleep(SILENT_S)
            for partition in list(self._overdue):
                await self._end_overdue(partition, self._app.lease.generation)

    async def _end_overdue(self, partition: int, generation: int) -> None:
        """End the streams of those calls whose deadline passed and of which no audio is unread."""
        for call_id, deadline in list(self._overdue.get(partition, {}).items()):
            if generation != self._app.lease.generation:
                return
            if not self._is_silent(partition, deadline):
                continue
            self._overdue[partition].pop(call_id, None)
            try:
                await self._end_streams(call_id, TP(Topic.AUDIO_FRAMES, partition), deadline)
            except AssignmentOverError:
                raise
            except Exception as error:  # noqa: BLE001 - as where frames are heard
                await self._app.emitter.dead_letter(
                    consumer_record(deadline.tp, deadline.record), reader=NAME, error=error
                )
                self._app.coverage.release(deadline.tp, (NAME, "deadline", call_id))

    def _is_silent(self, partition: int, deadline: _Deadline) -> bool:
        """Whether all audio of a partition was read that came until `SILENT_S` after `deadline`.

        Either later audio was read, or for so long there was none to read.
        """
        span = self._audio.get(partition)
        if span is not None and max(span.first_ms, deadline.at_ms) <= span.last_ms - SILENT_S * 1000:
            return True
        waited_s = asyncio.get_running_loop().time() - deadline.seen_s
        return waited_s >= SILENT_S and self._app.stalls.idle_s(TP(Topic.AUDIO_FRAMES, partition)) >= SILENT_S

    async def _end_streams(self, call_id: str, tp: TP, deadline: _Deadline) -> None:
        """End what is open of a call of which no audio is unread, unless it still speaks."""
        call = self._calls.get(call_id)
        if call is None:
            state = self.states.get(call_id)
            if state is not None and not all(stream.ended for stream in state.streams):
                call = self._new_call(call_id, tp)  # all that came of it was heard before a restart, but no END
        if call is None or call.heard_ms > deadline.at_ms:
            self._app.coverage.release(deadline.tp, (NAME, "deadline", call_id))
            return
        call.deadline = deadline
        await self._apply(call_id, call, call.session.end("no END by the call's deadline", now_micros()))

    def _new_call(self, call_id: str, tp: TP) -> _Call:
        session = CallSpeech(self.states.get(call_id), self._recognizer.name, self._recognizer.accepts)
        call = self._calls[call_id] = _Call(session, tp)
        return call

    async def _hear(self, call_id: str, tp: TP, inputs: Sequence[_Input], last_ms: int) -> None:
        """Hear `inputs`, which came in until `last_ms`."""
        call = self._calls.get(call_id) or self._new_call(call_id, tp)
        call.heard_ms = max(call.heard_ms, last_ms)
        for one in inputs:
            match one.heard:
                case FrameRun() as run:
                    call.read(run.stream_id, min(run.sequences), max(run.sequences), one.offset)
                case AudioFrame(track=Track.INBOUND) as frame:
                    call.read(frame.stream_id, frame.sequence, frame.sequence, one.offset)
        step = call.session.frames([one.heard for one in inputs], now_micros())
        if call.held_from is None:
            call.held_from = inputs[0].offset
            self._app.coverage.advance(tp, (NAME, "frames", call_id), call.held_from)
        await self._apply(call_id, call, step)

    async def _apply(self, call_id: str, call: _Call, step: Step) -> None:
        """Do what a step of the call asks for. Its commands are given before anything is awaited."""
        self._streams.apply(call_id, step.commands)
        call.changed = call.changed or step.changed
        call.writing += 1
        try:
            for utterance in step.utterances:
                await self._app.emitter.send(
                    Topic.TRANSCRIPTS, call_id.encode(), encode(utterance), partition=call.tp.partition
                )
        finally:
            call.writing -= 1
        for abandoned in step.abandoned:
            log.warning("speech_abandoned", call_id=call_id, stream_id=abandoned.stream_id, reason=abandoned.reason)
        if call.writing or self._calls.get(call_id) is not call:
            return  # stored by who writes still, or given up meanwhile
        over = not call.session.uncovered
        if call.changed:
            call.changed = False
            if call.held_from is not None:
                self.states.put(call_id, call.session.state, call.tp, call.held_from, snapshot=True)
            if over and call.deadline is not None:
                offset = call.deadline.record.offset
                self.states.put(call_id, call.session.state, call.deadline.tp, offset, snapshot=True)
            self._hold(call_id, call)
        if over:
            # Every stream ended. Should another come, the session is made again from its state.
            self._let_go(call_id, call)

    def _let_go(self, call_id: str, call: _Call) -> None:
        """Owe nothing more of a call, but for the snapshot of its state."""
        self._calls.pop(call_id, None)
        self._app.coverage.release(call.tp, (NAME, "frames", call_id))
        if call.deadline is not None:
            self._app.coverage.release(call.deadline.tp, (NAME, "deadline", call_id))

    def _hold(self, call_id: str, call: _Call) -> None:
        """Let offsets be committed up to the first record that must be read again."""
        call.held_from = call.first_offset()
        if call.held_from is None:
            self._app.coverage.release(call.tp, (NAME, "frames", call_id))
        else:
            self._app.coverage.advance(call.tp, (NAME, "frames", call_id), call.held_from)

    async def _give_up(self, call_id: str, tp: TP, offset: int) -> None:
        """Forget a call, as the record of `tp` at `offset` says, or what was read of `tp` before it."""
        self._streams.forget(call_id)
        if (call := self._calls.get(call_id)) is not None:
            # Its END will not come: what was not heard to the end must not keep the partition's offsets for ever.
            self._let_go(call_id, call)
        if (deadline := self._overdue.get(tp.partition, {}).pop(call_id, None)) is not None:
            self._app.coverage.release(deadline.tp, (NAME, "deadline", call_id))
        if self.states.get(call_id) is not None:
            self.states.put(call_id, None, tp, offset, snapshot=True)

    def forget(self) -> None:
        """Drop every call: partitions were assigned anew, and what was not covered is read again."""
        for call_id in list(self._calls):
            self._streams.forget(call_id)
        self._calls.clear()
        self._overdue.clear()
        self._audio.clear()


def _text(value: bytes) -> str | None:
    """`value` as UTF-8, or None if it is none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def make(app: App, partitions: int, settings: Settings) -> SpeechAgent:
    """Make the agent with the recogniser of `settings`."""
    recognizer = make_recognizer(settings)
    states: KeyedStates[SpeechState] = app.keyed_states(
        NAME, encode=encode, decode=partial(decode_as, SpeechState), partitions=partitions
    )
    longest_s = settings.call_longest_s + settings.call_deadline_s + settings.call_expiry_s
    made = SpeechAgent(app, states, recognizer, longest_s=longest_s)
    agent.run_batches(app, NAME, SOURCES, made.process)
    app.background(made.run)
    app.background(made.keep_reporting)
    app.background(made.leftovers.run)
    app.background(made.keep_ending)
    app.on_reset.append(made.forget)
    app.on_close.append(recognizer.close)
    return made
