"""Moonshine in worker processes behind the recognizer interface: the parent's side.

Decides in which process a stream is heard, and what happens when a process dies: its streams fail retryable, and a new
process replaces it. `dispatchai.speech.moonshine_worker` decides what is heard; nothing slow runs in this process.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
from collections.abc import AsyncIterator
from multiprocessing.process import BaseProcess
from typing import Final

import structlog

from dispatchai.audio import g711
from dispatchai.speech import moonshine_worker as worker
from dispatchai.speech.endpointing import WINDOW_MS
from dispatchai.speech.errors import RecognizerError, UnsupportedFormatError
from dispatchai.speech.moonshine_worker import Kind
from dispatchai.speech.recognizer import (
    BACKLOG_LIMIT_MS,
    ROOM_MS,
    AudioFormat,
    Ended,
    Event,
    EventQueue,
    Failed,
    Hypothesis,
    RecognizerStats,
    StreamKey,
)

log = structlog.get_logger(__name__)

START_TIMEOUT_S: Final = 60.0
"""How long a process may take from its spawning to READY. Two seconds on an idle core; a loaded machine needs more."""

HUNG_S: Final = 20.0
"""A process with audio to hear that gives no answer for this long, twice, is killed. One decoding takes up to 2 s."""

RESTART_FIRST_S: Final = 0.2
RESTART_LONGEST_S: Final = 5.0
"""Pause before a process is replaced; doubled each time that a process dies before it is ready."""

STOP_TIMEOUT_S: Final = 2.0
"""How long a process has between SIGTERM and SIGKILL."""


class MoonshineStream:
    """One stream; see `RecognizerStream`. It stays with its process."""

    def __init__(self, slot: _Slot, number: int, key: StreamKey, audio: AudioFormat, start_ms: int) -> None:
        self.key = key
        self.start_ms = start_ms
        self.heard_ms = 0
        self.cancelled = False
        self.finishing = False
        self.done = False
        self._slot = slot
        self._number = number
        self._bytes = 0
        self._bytes_per_second = audio.sample_rate // g711.samples_in(audio.encoding, 2) * 2
        slot.send(worker.message(Kind.OPEN, number, json.dumps([audio.encoding, audio.sample_rate]).encode()))

    @property
    def backlog_ms(self) -> int:
        """See `RecognizerStream.backlog_ms`. A part of a detector's window always remains until `finish`."""
        return 0 if self.done else self._bytes * 1000 // self._bytes_per_second - self.heard_ms

    def feed(self, payload: bytes) -> None:
        """See `RecognizerStream.feed`."""
        if self.done or self.finishing:
            return
        self._bytes += len(payload)
        backlog_ms = self.backlog_ms
        if backlog_ms > BACKLOG_LIMIT_MS:
            self._slot.drop(self._number, Failed(self.key, True, "backlog"))
            return
        self._slot.send(worker.message(Kind.AUDIO, self._number, payload))
        if backlog_ms > ROOM_MS:
            self._slot.crowded.add(self)

    def finish(self) -> None:
        """See `RecognizerStream.finish`."""
        if not self.done and not self.finishing:
            self.finishing = True
            self._slot.send(worker.message(Kind.FINISH, self._number))

    def cancel(self) -> None:
        """See `RecognizerStream.cancel`."""
        self.cancelled = True
        if not self.done:
            self._slot.drop(self._number, None)


class _Slot:
    """A place for one process: spawns it, reads from it, replaces it."""

    def __init__(self, recognizer: MoonshineRecognizer) -> None:
        self.streams: dict[int, MoonshineStream] = {}
        self.ready = asyncio.Event()
        self.tried = asyncio.Event()
        self.restarts = 0
        self.crowded = recognizer.crowded
        self._recognizer = recognizer
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: list[bytes] = []
        self._opened = 0

    def open(self, key: StreamKey, audio: AudioFormat, start_ms: int) -> MoonshineStream:
        """A new stream in this slot."""
        self._opened += 1
        stream = MoonshineStream(self, self._opened, key, audio, start_ms)
        self.streams[self._opened] = stream
        return stream

    def send(self, data: bytes) -> None:
        """Send to the process, or to its successor. Does not block; the streams' backlogs bound what waits."""
        if self._writer is None:
            self._unsent.append(data)
        elif not self._writer.is_closing():
            self._writer.write(data)

    def drop(self, number: int, event: Failed | None) -> None:
        """Drop stream `number`, and deliver `event` if there is one."""
        stream = self.streams.pop(number)
        self.send(worker.message(Kind.CANCEL, number))
        self._end(stream, event)

    async def run(self) -> None:
        """Keep a process in this slot until cancelled."""
        pause_s = RESTART_FIRST_S
        while True:
            self.ready.clear()
            await self._serve()
            self.restarts += 1
            self.tried.set()
            pause_s = RESTART_FIRST_S if self.ready.is_set() else min(pause_s * 2, RESTART_LONGEST_S)
            await asyncio.sleep(pause_s)

    async def _serve(self) -> None:
        """Run one process. Returns when it has ended; its streams have failed then."""
        ours, theirs = socket.socketpair()
        process = multiprocessing.get_context("spawn").Process(
            target=worker.main, args=(theirs, self._recognizer.update_ms), name="dispatchai-speech", daemon=True
        )
        try:
            await asyncio.to_thread(process.start)
            theirs.close()
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            self._writer.writelines(self._unsent)
            self._unsent.clear()
            await self._read(reader)
        finally:
            theirs.close()
            if self._writer is None:
                ours.close()
            else:
                self._writer.transport.abort()  # unsent messages are for a process that has ended or is not wanted
                self._writer = None
            if process.pid is not None:
                await asyncio.shield(asyncio.to_thread(_stop, process))
        log.warning("speech_process_ended", exit_code=process.exitcode, streams_lost=len(self.streams))
        # Waiting messages are for these streams, which their owner opens again.
        self._unsent.clear()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            self._end(stream, Failed(stream.key, True, "process died"))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Deliver the events of the process, until it ends or hangs."""
        suspected = False
        while True:
            try:
                async with asyncio.timeout(HUNG_S if self.ready.is_set() else START_TIMEOUT_S):
                    kind, number, length = worker.HEADER.unpack(await reader.readexactly(worker.HEADER.size))
                    payload = await reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            except TimeoutError:
                is_busy = any(s.finishing or s.backlog_ms > WINDOW_MS for s in self.streams.values())
                if not self.ready.is_set() or (is_busy and suspected):
                    log.warning("speech_process_hung")
                    return
                suspected = is_busy
                continue
            suspected = False
            self._deliver(Kind(kind), number, payload)

    def _deliver(self, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.READY:
            self.ready.set()
            self.tried.set()
            return
        stream = self.streams.get(number)
        if stream is None:  # cancelled meanwhile
            return
        match kind:
            case Kind.HYPOTHESIS:
                segment, final, text, start_ms, end_ms = json.loads(payload)
                at = stream.start_ms
                self._recognizer.queue.put(
                    stream, Hypothesis(stream.key, segment, final, text, at + start_ms, at + end_ms)
                )
            case Kind.PROGRESS:
                covered_ms, stream.heard_ms = worker.POSITIONS.unpack(payload)
                at = stream.start_ms
                self._recognizer.queue.moved(stream, stream.key, at + covered_ms, at + stream.heard_ms)
                self._recognizer.heard(stream)
            case Kind.ENDED:
                del self.streams[number]
                self._end(stream, Ended(stream.key))

    def _end(self, stream: MoonshineStream, event: Ended | Failed | None) -> None:
        stream.done = True
        if event is not None:
            self._recognizer.queue.put(stream, event)
        self._recognizer.heard(stream)


def _stop(process: BaseProcess) -> None:
    """End the process and wait for it. Blocks for little more than `STOP_TIMEOUT_S`."""
    process.terminate()
    process.join(STOP_TIMEOUT_S)
    if process.is_alive():  # frozen: SIGTERM waits, SIGKILL does not
        process.kill()
        process.join()


class MoonshineRecognizer:
    """The engine; see `Recognizer`. `processes`: how many hear; `update_ms`: least audio between two partial texts."""

    def __init__(self, processes: int, update_ms: int) -> None:
        self.update_ms = update_ms
        self.queue = EventQueue()
        self.crowded: set[MoonshineStream] = set()
        """Streams that hold more unheard audio than `room` allows."""
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._slots = [_Slot(self) for _ in range(processes)]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def name(self) -> str:
        """See `Recognizer.name`."""
        return f"moonshine/{worker.MODEL}"

    async def start(self) -> None:
        """See `Recognizer.start`. Returns when every process has loaded its models."""
        self._tasks = [asyncio.create_task(slot.run(), name="speech-process") for slot in self._slots]
        try:
            await asyncio.gather(*(slot.tried.wait() for slot in self._slots))
        except asyncio.CancelledError:
            await self.close()
            raise
        if not all(slot.ready.is_set() for slot in self._slots):
            await self.close()
            raise RecognizerError("a speech process did not become ready; it printed its error on standard error")

    async def close(self) -> None:
        """See `Recognizer.close`."""
        for slot in self._slots:
            for stream in list(slot.streams.values()):
                stream.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        self.queue.close()
        self.crowded.clear()
        self._roomy.set()

    def accepts(self, audio: AudioFormat) -> bool:
        """See `Recognizer.accepts`: PCMU, PCMA and L16 at 8 or 16 kHz."""
        return audio.encoding in g711.DECODABLE and audio.sample_rate in worker.SAMPLE_RATES

    def open(self, key: StreamKey, audio: AudioFormat, start_ms: int = 0) -> MoonshineStream:
        """See `Recognizer.open`. The slot with the fewest streams takes it, ready ones first."""
        if not self.accepts(audio):
            raise UnsupportedFormatError(audio.encoding, audio.sample_rate)
        slot = min(self._slots, key=lambda candidate: (not candidate.ready.is_set(), len(candidate.streams)))
        return slot.open(key, audio, start_ms)

    def events(self) -> AsyncIterator[Event]:
        """See `Recognizer.events`."""
        return aiter(self.queue)

    async def room(self) -> None:
        """See `Recognizer.room`."""
        while self.crowded:
            self._roomy.clear()
            await self._roomy.wait()

    def heard(self, stream: MoonshineStream) -> None:
        """`stream` has less unheard audio than before."""
        if stream in self.crowded and stream.backlog_ms <= ROOM_MS:
            self.crowded.discard(stream)
            if not self.crowded:
                self._roomy.set()

    def report(self, most: int) -> None:
        """See `Recognizer.report`."""
        self.queue.report(most)

    def stats(self) -> RecognizerStats:
        """See `Recognizer.stats`."""
        unheard_ms = [stream.backlog_ms for slot in self._slots for stream in slot.streams.values()]
        return RecognizerStats(
            streams=len(unheard_ms),
            unheard_ms=sum(unheard_ms),
            unheard_longest_ms=max(unheard_ms, default=0),
            processes=len(self._slots),
            processes_ready=sum(slot.ready.is_set() for slot in self._slots),
            restarts=sum(slot.restarts for slot in self._slots),
            failures=dict(self.queue.failures),
        )
