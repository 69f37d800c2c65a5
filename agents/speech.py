"""The speech agent: turns the caller's voice into text. Reads `audio-frames`, and `call-events` for the deadline and
the end of a call; writes `transcripts`.

`dispatchai.speech.call_sessions` holds offsets and gives the frames to the recogniser; `dispatchai.speech.session`
decides what is heard, numbered and heard again, `dispatchai.speech.stream_end` when a stream without END is over.

A frame that is read after its call has expired makes a state that no event deletes. So no state is kept for longer than
the longest call and what follows it take together, by the clock of this process (`agents.orphaned_states`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from faust.types import TP

from agents.orphaned_states import OrphanedStates
from dispatchai.calls.events import EventType
from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.errors import AssignmentOverError
from dispatchai.engine.fetch import Batch, Record, consumer_record
from dispatchai.engine.keyed_state import KeyedStates
from dispatchai.kafka.topics import Topic
from dispatchai.process.clock import now_micros
from dispatchai.records import CallEvent, SpeechState, Utterance, decode_as, encode
from dispatchai.records.frame_decoder import decode_frame
from dispatchai.settings import Settings
from dispatchai.speech.call_sessions import CallSessions, ReadDeadline
from dispatchai.speech.engines import recognizer as make_recognizer
from dispatchai.speech.frame_runs import FrameBatch
from dispatchai.speech.recognizer import Recognizer
from dispatchai.speech.stream_end import SILENT_S

NAME: Final = "speech"
SOURCES: Final = (Topic.AUDIO_FRAMES, Topic.CALL_EVENTS)

REPORT_EVERY_S: Final = 0.05
REPORTS_A_ROUND: Final = 20
"""Each stream reports about once a second how far it is covered, spread over the second: each time the call's state is
stored, so that offsets can be committed. With more streams than that each reports less often."""


class SpeechAgent:
    """Between Kafka and the recogniser: reads frames and events, writes utterances."""

    def __init__(self, app: App, states: KeyedStates[SpeechState], recognizer: Recognizer, *, longest_s: float) -> None:
        """No state is kept for longer than `longest_s`, in seconds."""
        self._app = app
        self.states = states
        self.recognizer = recognizer
        self._sessions: CallSessions[Record] = CallSessions(
            NAME,
            recognizer,
            states=states,
            coverage=app.coverage,
            write=self._write,
            dead_letter=self._dead_letter,
            assignment_over=AssignmentOverError,
            clock=now_micros,
        )
        self.orphans = OrphanedStates(app, states, Topic.AUDIO_FRAMES, self._give_up, after_s=longest_s)
        """States that are older than any call."""
        self._started = asyncio.Event()

    async def run(self) -> None:
        """Start the recogniser and take what it hears, until cancelled."""
        await self.recognizer.start()
        self._started.set()
        async for event in self.recognizer.events():
            await self._sessions.take(event)

    async def keep_reporting(self) -> None:
        """Ask the recogniser how far it is, until cancelled."""
        await self._started.wait()
        while True:
            self.recognizer.report(REPORTS_A_ROUND)
            await asyncio.sleep(REPORT_EVERY_S)

    def is_listening(self) -> bool:
        """Whether the recogniser is up."""
        return self._started.is_set()

    @property
    def overdue(self) -> set[str]:
        """The calls whose deadline has passed and of which audio may be unread."""
        return self._sessions.overdue.call_ids

    async def process(self, batch: Batch) -> None:
        """Take the records that one fetch brought of one partition. Stops when partitions are reassigned."""
        with self._app.stalls.excused(NAME):  # the recogniser has limits of its own, here and in `_follow_audio`
            await self._started.wait()
        generation = self._app.lease.generation
        if batch.tp.topic == Topic.CALL_EVENTS:
            await self._follow_events(batch, generation)
        else:
            await self._follow_audio(batch, generation)
        await self._end_overdue(batch.tp.partition)

    async def _follow_audio(self, batch: Batch, generation: int) -> None:
        """Hear the frames of a batch."""
        with self._app.stalls.excused(NAME):
            await self.recognizer.room()
        frames = FrameBatch(batch.records)
        decoded = await agent.decoded(self._app, NAME, decode_frame, batch.tp, frames.others)
        for key, call in frames.by_call(decoded).items():
            if generation != self._app.lease.generation:
                return
            await self._sessions.hear(key.decode(), batch.tp, call)
        if generation == self._app.lease.generation:
            # A time ahead of this clock would say that all audio was read, for every later deadline.
            now_ms = now_micros() // 1000
            first_ms, last_ms = (min(record.timestamp, now_ms) for record in (batch.records[0], batch.records[-1]))
            self._sessions.overdue.audio_read(batch.tp.partition, first_ms, last_ms)

    async def _follow_events(self, batch: Batch, generation: int) -> None:
        """Note the calls whose deadline has passed, and discard those that have expired."""
        now_s = asyncio.get_running_loop().time()
        for key, records in batch.by_key():
            events = await agent.decoded(self._app, NAME, partial(decode_as, CallEvent), batch.tp, records)
            if generation != self._app.lease.generation:
                return
            for record, event in events:
                call_id = (key or b"").decode()  # `decoded` dead-letters records without a key
                match event.type:
                    case EventType.DEADLINE:
                        deadline = ReadDeadline(event.received_at // 1000, now_s, batch.tp, record)
                        self._sessions.deadline_passed(call_id, deadline)
                    case EventType.EXPIRED:
                        self._sessions.give_up(call_id, batch.tp, record.offset)

    async def keep_ending(self) -> None:
        """End the streams of overdue calls where no audio comes any more, until cancelled."""
        while True:
            await asyncio.sleep(SILENT_S)
            for partition in self._sessions.overdue.partitions:
                await self._end_overdue(partition)

    async def _end_overdue(self, partition: int) -> None:
        audio = TP(Topic.AUDIO_FRAMES, partition)
        now_s, idle_s = asyncio.get_running_loop().time(), self._app.stalls.idle_s(audio)
        await self._sessions.end_overdue(audio, now_s, idle_s)

    async def _write(self, call_id: str, partition: int, utterance: Utterance) -> None:
        await self._app.emitter.send(Topic.TRANSCRIPTS, call_id.encode(), encode(utterance), partition=partition)

    async def _dead_letter(self, tp: TP, record: Record, error: Exception) -> None:
        await self._app.emitter.dead_letter(consumer_record(tp, record), reader=NAME, error=error)

    async def _give_up(self, call_id: str, tp: TP, offset: int) -> None:
        self._sessions.give_up(call_id, tp, offset)

    def reset(self) -> None:
        """Discard every call: partitions were reassigned, and what was not covered is read again."""
        self._sessions.reset()


def make(app: App, partitions: int, settings: Settings) -> SpeechAgent:
    """Make the agent with the recogniser of `settings`."""
    recognizer = make_recognizer(settings)
    states: KeyedStates[SpeechState] = app.keyed_states(
        NAME, encode=encode, decode=partial(decode_as, SpeechState), partitions=partitions
    )
    longest_s = settings.call_longest_s + settings.call_deadline_s + settings.call_expiry_s
    made = SpeechAgent(app, states, recognizer, longest_s=longest_s)
    agent.run_batches(app, NAME, SOURCES, made.process)
    for run in (made.run, made.keep_reporting, made.orphans.run, made.keep_ending):
        app.background(run)
    app.on_reset.append(made.reset)
    app.on_close.append(recognizer.close)
    return made
