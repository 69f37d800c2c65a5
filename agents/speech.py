"""The speech agent: turns the caller's voice into text. Reads `audio-frames`, and `call-events` for the end
of a call's state; writes `transcripts`.

What is heard, numbered and heard again is decided in `dispatchai.speech.sessions`. Offsets are committed only up to the
first frame that no final utterance covers, so that a crash loses no word and repeats none that was final.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import structlog
from faust.types import TP

from dispatchai.engine import agent
from dispatchai.engine.app import App
from dispatchai.engine.deadletters import bury
from dispatchai.engine.state import States
from dispatchai.engine.transport import Batch
from dispatchai.records import AudioFrame, CallEvent, DecodeError, Micros, SpeechState, Track, decode_as, encode
from dispatchai.records import decode as decode_any
from dispatchai.settings import Settings
from dispatchai.speech.engines import recognizer as make_recognizer
from dispatchai.speech.recognizer import Ended, Failed, Recognizer
from dispatchai.speech.sessions import CallSpeech, Step, Streams
from dispatchai.telephony.callflow import EventType

log = structlog.get_logger(__name__)

NAME: Final = "speech"
SOURCES: Final = ("audio-frames", "call-events")
TOPIC: Final = "transcripts"


def decode(value: bytes) -> AudioFrame | CallEvent:
    """What is in a record's value. Raises DecodeError."""
    record = decode_any(value)
    if not isinstance(record, AudioFrame | CallEvent):
        raise DecodeError(f"expected a frame or an event, found {type(record).__name__}")
    return record


def now_micros() -> Micros:
    """The time of recognition."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class _Call:
    """One call that is being heard: its session, and the offsets of what no final utterance covers yet."""

    session: CallSpeech
    tp: TP
    uncovered: dict[str, deque[tuple[int, int]]] = field(default_factory=dict)
    """Stream id to (frame number, offset) of each record from the first uncovered frame on."""
    first_offset_held: int | None = None
    """What `first_offset` was when it was last held: what is heard since then is owed from there."""

    def read(self, frame: AudioFrame, offset: int) -> None:
        """Remember where `frame` lies."""
        if frame.track is Track.INBOUND:
            self.uncovered.setdefault(frame.stream_id, deque()).append((frame.sequence, offset))

    def first_offset(self) -> int | None:
        """Offset of the first record that must be read again after a crash; None when there is none."""
        open_streams = self.session.uncovered
        for stream_id in list(self.uncovered):
            records = self.uncovered[stream_id]
            needed_from = open_streams.get(stream_id)
            while records and (needed_from is None or records[0][0] < needed_from):
                records.popleft()
            if not records:
                del self.uncovered[stream_id]
        return min((records[0][1] for records in self.uncovered.values()), default=None)


class SpeechAgent:
    """Between Kafka and the recogniser: hands frames on, writes what is heard, holds offsets of what is not."""

    def __init__(self, app: App, states: States[SpeechState], recognizer: Recognizer) -> None:
        self._app = app
        self.states = states
        self._recognizer = recognizer
        self._streams = Streams(recognizer)
        self._calls: dict[str, _Call] = {}
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

    def is_listening(self) -> bool:
        """Whether the recogniser is up."""
        return self._started.is_set()

    async def process(self, batch: Batch) -> None:
        """Take the records that one fetch brought of one partition."""
        await self._started.wait()
        await self._recognizer.room()
        for key, records in batch.by_key():
            inputs = await agent.decoded(self._app, NAME, decode, records)
            if not inputs or key is None:
                continue
            call_id = key.decode()
            frames = [(record.offset, value) for record, value in inputs if isinstance(value, AudioFrame)]
            expired = any(isinstance(value, CallEvent) and value.type == EventType.EXPIRED for _, value in inputs)
            try:
                if frames:
                    await self._hear(call_id, batch.tp, frames)
                if expired:
                    await self._give_up(call_id, batch)
            except Exception as error:  # noqa: BLE001 - an agent never raises: what failed goes to the dead letters
                for record, _ in inputs:
                    await bury(self._app.emitter, record, reader=NAME, error=error)

    async def _hear(self, call_id: str, tp: TP, frames: list[tuple[int, AudioFrame]]) -> None:
        call = self._calls.get(call_id)
        if call is None:
            session = CallSpeech(self.states.get(call_id), self._recognizer.name, self._recognizer.accepts)
            call = self._calls[call_id] = _Call(session, tp)
        for offset, frame in frames:
            call.read(frame, offset)
        step = call.session.frames([frame for _, frame in frames], now_micros())
        # Held after the session knows the streams of these frames: what it does not know counts as not needed.
        if call.first_offset_held is None:
            call.first_offset_held = frames[0][0]
        self._hold(call_id, call)
        await self._apply(call_id, call, step)

    async def _apply(self, call_id: str, call: _Call, step: Step) -> None:
        self._streams.apply(call_id, step.commands)
        for utterance in step.utterances:
            await self._app.emitter.send(TOPIC, call_id.encode(), encode(utterance), partition=call.tp.partition)
        for abandoned in step.abandoned:
            log.warning("speech_abandoned", call_id=call_id, stream_id=abandoned.stream_id, reason=abandoned.reason)
        if step.changed:
            owed_from = call.first_offset_held
            if owed_from is not None:
                self.states.put(call_id, call.session.state, call.tp, owed_from, snapshot=True)
        self._hold(call_id, call)
        if not call.session.uncovered:
            # Every stream ended. Should another come, the session is made again from its state.
            self._calls.pop(call_id, None)

    def _hold(self, call_id: str, call: _Call) -> None:
        """Let offsets be committed up to the first record that must be read again."""
        first = call.first_offset()
        if first is None:
            self._app.coverage.release(call.tp, (NAME, "frames", call_id))
        else:
            self._app.coverage.advance(call.tp, (NAME, "frames", call_id), first)
            call.first_offset_held = first

    async def _give_up(self, call_id: str, batch: Batch) -> None:
        self._streams.forget(call_id)
        call = self._calls.pop(call_id, None)
        if call is not None:
            # Its END will not come: what was not heard to the end must not keep the partition's offsets for ever.
            self._app.coverage.release(call.tp, (NAME, "frames", call_id))
        if self.states.get(call_id) is not None:
            self.states.put(call_id, None, batch.tp, batch.first_offset, snapshot=True)

    def forget(self) -> None:
        """Drop every call: partitions were assigned anew, and what was not covered is read again."""
        for call_id in list(self._calls):
            self._streams.forget(call_id)
        self._calls.clear()


def make(app: App, partitions: int, settings: Settings) -> SpeechAgent:
    """Make the agent with the recogniser of `settings`."""
    recognizer = make_recognizer(settings)
    states: States[SpeechState] = app.states(
        NAME, encode=encode, decode=lambda value: decode_as(SpeechState, value), partitions=partitions
    )
    made = SpeechAgent(app, states, recognizer)
    agent.run_batches(app, NAME, SOURCES, made.process)
    app.background(made.run)
    app.on_forget.append(made.forget)
    app.on_close.append(recognizer.close)
    return made
