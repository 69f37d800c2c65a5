"""The one interface of speech recognisers: audio in, hypotheses with times out, many streams at once.

It decides the vocabulary that engines and the speech session share. How an engine works, where it runs and how
utterances become records is left to the engines and to `dispatchai.speech.session`.

An engine in worker processes fits it, and so does a live service over one websocket a stream. Payloads go through as
the carrier sent them. A service's final ranges are consecutive: what was final since the last endpoint is the text of
the open segment, the endpoint makes the final hypothesis, and an empty final range between segments is `Progress`.
`finish` is its request to flush. A dropped connection is `Failed(retryable=True)`; the session then opens a new stream
at the first position that is not covered.
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
"""Audio that a stream may hold unheard before it is failed: ten minutes, 4.8 MB of 8 kHz G.711."""

ROOM_MS: Final = 30_000
"""`Recognizer.room` waits while any stream holds more unheard audio than this."""


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """What a stream's payloads are: codec as the carrier names it (PCMU, PCMA, L16), samples per second."""

    encoding: str
    sample_rate: int


@dataclass(frozen=True, slots=True)
class StreamKey:
    """Which audio a stream carries."""

    call_id: str
    stream_id: str


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What the engine makes of one segment of speech so far. Times are milliseconds of audio from the stream's origin.

    `segment` counts the speech segments of one opened stream from 0; only the newest is open. A final hypothesis
    closes it and is the last of its segment. `text` may be empty: nothing intelligible after all. `words` is empty
    and `confidence` None where the engine gives none.
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
    """How far the engine is. Audio before `covered_ms` never needs a second hearing: it was silence, or its final
    hypothesis was delivered before this event. `heard_ms` is how far the audio was listened to. Neither goes back.

    Delivered when `Recognizer.report` asks for it, and before a stream's last event: an event for each frame would cost
    more than the frame.
    """

    key: StreamKey
    covered_ms: int
    heard_ms: int


@dataclass(frozen=True, slots=True)
class Ended:
    """All audio up to `finish` was heard and all finals were delivered. The stream's last event."""

    key: StreamKey


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream is lost. The stream's last event. `retryable`: a new stream with the same audio may succeed.

    `reason` is for logs and counters: a few fixed words, nothing of the audio or the text.
    """

    key: StreamKey
    retryable: bool
    reason: str


Event = Hypothesis | Progress | Ended | Failed


@dataclass(frozen=True, slots=True)
class RecognizerStats:
    """How a recogniser is doing, for operators. Counts are since its start.

    `processes` are those that should hear, `processes_ready` those that do: connections, where the engine is a service.
    `failures` are streams that were lost, by `Failed.reason`.
    """

    streams: int
    unheard_ms: int
    """Audio that was fed and is not heard yet, of all streams."""
    unheard_longest_ms: int
    """The same of the stream that is furthest behind."""
    processes: int
    processes_ready: int
    restarts: int
    failures: Mapping[str, int]


class RecognizerStream(Protocol):
    """One stream of audio into a recogniser. No method blocks. After `cancel`, `Ended` or `Failed` calls do nothing."""

    @property
    def backlog_ms(self) -> int:
        """Audio that was fed and is not heard yet."""

    def feed(self, payload: bytes) -> None:
        """The next audio, any number of whole samples in the stream's format, contiguous with what went before.

        A stream with more than `BACKLOG_LIMIT_MS` unheard fails, retryable.
        """

    def finish(self) -> None:
        """No more audio: close the open segment, deliver its final, then `Ended`."""

    def cancel(self) -> None:
        """Forget the stream. No event of it is delivered any more, not even one that was already waiting."""


class Recognizer(Protocol):
    """An engine. One consumer reads `events` of all streams, in order within a stream."""

    @property
    def name(self) -> str:
        """Engine and model, as it is written into the records."""

    async def start(self) -> None:
        """Make ready to hear. Raises RecognizerError."""

    async def close(self) -> None:
        """Cancel all streams, end `events`, release processes and connections."""

    def accepts(self, audio: AudioFormat) -> bool:
        """Whether `open` takes this format."""

    def open(self, key: StreamKey, audio: AudioFormat, start_ms: int = 0) -> RecognizerStream:
        """A stream whose first sample lies `start_ms` after the origin. Raises UnsupportedFormatError."""

    def events(self) -> AsyncIterator[Event]:
        """Events of all streams, until `close`."""

    async def room(self) -> None:
        """Return when no stream holds more than `ROOM_MS` unheard. Awaited before more is read from Kafka."""

    def report(self, most: int) -> None:
        """Deliver the `Progress` of those `most` streams that moved and have waited longest to tell it."""

    def stats(self) -> RecognizerStats:
        """How it is doing now."""


class Cancellable(Protocol):
    """What an `EventQueue` asks of the stream that an event belongs to."""

    @property
    def cancelled(self) -> bool:
        """Whether its events are unwanted."""


class EventQueue:
    """The events of an engine on the way to its one consumer. Drops those of cancelled streams, waiting ones too."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Cancellable, Event] | None] = asyncio.Queue()
        self._moved: dict[StreamKey, tuple[Cancellable, int, int]] = {}
        """Streams that moved since their last `Progress`, the longest ago first: covered and heard, in ms."""
        self.failures: Counter[str] = Counter()
        """Streams that failed, by reason."""

    def put(self, stream: Cancellable, event: Event) -> None:
        """Deliver `event` of `stream`."""
        if isinstance(event, Failed):
            self.failures[event.reason] += 1
        if isinstance(event, Ended | Failed):
            self._tell(event.key)
        self._queue.put_nowait((stream, event))

    def moved(self, stream: Cancellable, key: StreamKey, covered_ms: int, heard_ms: int) -> None:
        """Remember how far `stream` is; see `report`."""
        self._moved[key] = (stream, covered_ms, heard_ms)

    def report(self, most: int) -> None:
        """See `Recognizer.report`. What was put before is delivered before."""
        for key in list(islice(self._moved, most)):
            self._tell(key)

    def _tell(self, key: StreamKey) -> None:
        if (moved := self._moved.pop(key, None)) is not None:
            stream, covered_ms, heard_ms = moved
            self._queue.put_nowait((stream, Progress(key, covered_ms, heard_ms)))

    def close(self) -> None:
        """End the iteration after what was put before."""
        self._queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (item := await self._queue.get()) is not None:
            stream, event = item
            if not stream.cancelled:
                yield event
