"""The one interface of speech recognisers: audio in, hypotheses with times out, many streams at once.

Decides the vocabulary that engines and the speech session share. The engines decide how they work and where they run,
`dispatchai.speech.session` how utterances become records.

The interface fits an engine in worker processes, and a live service with one WebSocket for each stream. Payloads are
passed on as the carrier sent them. A service's final ranges are consecutive: the ranges since the last endpoint are the
text of the open segment, the endpoint makes the final hypothesis, and an empty final range between segments is
`Progress`. `finish` is its request to flush. A dropped connection is `Failed(retryable=True)`; the session then opens a
new stream at the first position that is not covered.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from dispatchai.records.values import Word

BACKLOG_LIMIT_MS: Final = 600_000
"""Unheard audio beyond which a stream fails: ten minutes, 4.8 MB of 8 kHz G.711."""

ROOM_MS: Final = 30_000
"""`Recognizer.room` waits while any stream holds more unheard audio than this."""


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The format of a stream's payloads: codec as the carrier names it (PCMU, PCMA, L16), samples per second."""

    encoding: str
    sample_rate: int


@dataclass(frozen=True, slots=True)
class StreamKey:
    """Identifies the audio of a stream."""

    call_id: str
    stream_id: str


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """The text of one segment of speech so far. Times are milliseconds of audio from the stream's origin.

    `segment` counts the speech segments of an opened stream from 0; only the newest is open. A final hypothesis closes
    it and is the last of its segment. `text` may be empty, if nothing was intelligible after all. `words` is empty and
    `confidence` None if the engine gives none.
    """

    key: StreamKey
    segment: int
    final: bool
    text: str
    start_ms: int
    end_ms: int
    words: tuple[Word, ...] = ()
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the engine is with a stream.

    Audio before `covered_ms` need never be heard again: it was silence, or its final hypothesis was delivered before
    this event. `heard_ms` is how far the engine has listened. Neither goes back. Delivered when `Recognizer.report`
    asks for it, and before a stream's last event: an event for each frame would cost more than the frame.
    """

    key: StreamKey
    covered_ms: int
    heard_ms: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The audio up to `finish` was heard and all finals were delivered. The stream's last event."""

    key: StreamKey


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream is lost. Its last event. `retryable`: a new stream with the same audio may succeed.

    `reason` is for logs and counters: a few fixed words, without audio or text.
    """

    key: StreamKey
    retryable: bool
    reason: str


Event = Hypothesis | Progress | Ended | Failed


@dataclass(frozen=True, slots=True)
class RecognizerStats:
    """The condition of a recogniser, for operators. Counts are since its start.

    `processes` are those that should hear, `processes_ready` those that do; connections, if the engine is a service.
    `failures` are streams that were lost, by `Failed.reason`.
    """

    streams: int
    unheard_ms: int
    """Audio of all streams that was fed and not heard yet."""
    unheard_longest_ms: int
    """The same for the stream that is furthest behind."""
    processes: int
    processes_ready: int
    restarts: int
    failures: Mapping[str, int]


class RecognizerStream(Protocol):
    """One stream of audio into a recogniser. No method blocks. After `cancel`, `Ended` or `Failed` calls do nothing."""

    @property
    def backlog_ms(self) -> int:
        """Audio that was fed and not heard yet."""

    def feed(self, payload: bytes) -> None:
        """Hear the next audio: any number of whole samples in the stream's format, which follow those before.

        A stream with more than `BACKLOG_LIMIT_MS` of unheard audio fails, retryable.
        """

    def finish(self) -> None:
        """End the audio: close the open segment, deliver its final, then `Ended`."""

    def cancel(self) -> None:
        """Drop the stream. No event of it is delivered any more, not even one that is waiting."""


class Recognizer(Protocol):
    """An engine. One consumer reads `events` of all streams, in order within a stream."""

    @property
    def name(self) -> str:
        """Engine and model, as written into the records."""

    async def start(self) -> None:
        """Get ready to hear. Raises RecognizerError."""

    async def close(self) -> None:
        """Cancel all streams, end `events`, release processes and connections."""

    def accepts(self, audio: AudioFormat) -> bool:
        """Whether `open` takes this format."""

    def open(self, key: StreamKey, audio: AudioFormat, start_ms: int = 0) -> RecognizerStream:
        """A stream whose first sample is `start_ms` after the origin. Raises UnsupportedFormatError."""

    def events(self) -> AsyncIterator[Event]:
        """Events of all streams, until `close`."""

    async def room(self) -> None:
        """Return when no stream holds more than `ROOM_MS` of unheard audio: then more may be read from Kafka."""

    def report(self, most: int) -> None:
        """Deliver the `Progress` of up to `most` streams that moved, those that have waited longest."""

    def stats(self) -> RecognizerStats:
        """Its condition now."""


class Cancellable(Protocol):
    """A stream, as an `EventQueue` needs it."""

    @property
    def cancelled(self) -> bool:
        """Whether its events are not wanted any more."""


class EventQueue:
    """The events of an engine on the way to its one consumer. Drops events of cancelled streams, even waiting ones."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Cancellable, Event] | None] = asyncio.Queue()
        self._moved: dict[StreamKey, tuple[Cancellable, int, int]] = {}
        """Streams that moved since their last `Progress`, longest ago first: covered and heard, in ms."""
        self.failures: Counter[str] = Counter()
        """Streams that failed, by reason."""

    def put(self, stream: Cancellable, event: Event) -> None:
        """Deliver `event` of `stream`."""
        if isinstance(event, Failed):
            self.failures[event.reason] += 1
        if isinstance(event, Ended | Failed):
            self._report(event.key)
        self._queue.put_nowait((stream, event))

    def moved(self, stream: Cancellable, key: StreamKey, covered_ms: int, heard_ms: int) -> None:
        """Note how far `stream` is; see `report`."""
        self._moved[key] = (stream, covered_ms, heard_ms)

    def report(self, most: int) -> None:
        """See `Recognizer.report`. Events that were put before are delivered before."""
        for key in list(islice(self._moved, most)):
            self._report(key)

    def _report(self, key: StreamKey) -> None:
        if (moved := self._moved.pop(key, None)) is not None:
            stream, covered_ms, heard_ms = moved
            self._queue.put_nowait((stream, Progress(key, covered_ms, heard_ms)))

    def close(self) -> None:
        """End the iteration after the events that were put before."""
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (item := await self._queue.get()) is not None:
            stream, event = item
            if not stream.cancelled:
                yield event
