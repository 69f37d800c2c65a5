"""The speech of one call: audio frames become commands for a recogniser, and its events become utterances.

Decides which frames are heard, how utterances are numbered, what must be heard again after a failure or a restart, and
when a stream's speech is complete. Pure: no asyncio, and the time is an argument; `call_sessions` holds offsets, the
speech agent runs the recogniser. Ids, texts and times of final utterances depend on the frames and the engine's finals,
not on how frames were batched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from dispatchai.audio import g711
from dispatchai.records.values import (
    AudioFrame,
    FrameKind,
    Micros,
    SpeechState,
    StreamSpeech,
    Track,
    Utterance,
    UtteranceKind,
)
from dispatchai.speech.recognizer import (
    AudioFormat,
    Ended,
    Event,
    Failed,
    Hypothesis,
    Progress,
    Recognizer,
    RecognizerStream,
    StreamKey,
)

FIRST_SEQUENCE: Final = 1
"""The carrier's first chunk number."""

LONGEST_GAP_MS: Final = 5_000
"""Longest silence that stands for missing frames. A longer gap is shortened: a wild number must not cost memory."""

LONGEST_RETAINED_MS: Final = 120_000
"""Audio that is kept to be heard again when the recogniser loses a stream: ten times its longest segment, 960 kB of
G.711."""

FINAL_REVISION: Final = 1_000_000
"""Revision of every FINAL. It is above that of any partial (one for each 20 ms of the utterance), also of those before
a restart, and the same in a run without the restart."""

PARTIAL_STEP_MS: Final = 20
"""A partial's revision counts its audio in these steps, so that it rises across a restart too."""

MAX_FAILURES: Final = 5
"""Failures in a row, with no audio covered in between, after which a stream's speech is given up."""

MAX_ENDED_STREAMS: Final = 32
"""Ended streams that a call's state remembers. Each reconnect of the carrier makes one."""

MAX_OPEN_STREAMS: Final = 32
"""Streams of a call that are heard at once: one speaks, and those whose gateway was killed wait for the deadline."""

MAX_TEXT_CHARS: Final = 16_384
MAX_WORDS: Final = 2_048
"""Longest text and most words of an utterance: far above a segment's. Triage shows a call as degraded that has one."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open a recogniser stream whose first sample is at `start_ms` of the audio. It replaces one that failed."""

    stream_id: str
    audio: AudioFormat
    start_ms: int


@dataclass(frozen=True, slots=True)
class Feed:
    """Feed the next audio."""

    stream_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """No more audio."""

    stream_id: str


Command = Open | Feed | Finish


@dataclass(frozen=True, slots=True)
class FrameRun:
    """Audio frames of one stream that follow each other in the topic and agree in codec and length.

    Says the same as an `AudioFrame` for each, at a part of the cost. `sequences` and `payloads` have the same length,
    at least 1.
    """

    stream_id: str
    track: Track
    encoding: str
    sample_rate: int
    sequences: Sequence[int]
    payloads: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The speech of a stream ended before its audio. `reason` is for logs and counters, without any content."""

    stream_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """The result of frames or an event: commands for the recogniser and utterances to write, each in order.

    `changed`: the session's `state` differs from before, and is to be stored once the utterances were sent. Coverage
    alone changes it rarely; see `Recognizer.report`.
    """

    commands: tuple[Command, ...] = ()
    utterances: tuple[Utterance, ...] = ()
    abandoned: tuple[Abandoned, ...] = ()
    changed: bool = False


class _Phase(Enum):
    """`IDLE → LISTENING → FINISHING → ENDED`; IDLE and LISTENING may go to ENDED at once."""

    IDLE = auto()
    LISTENING = auto()
    FINISHING = auto()
    ENDED = auto()


@dataclass(slots=True)
class _Piece:
    """Audio of frames of one length without a gap, or the silence of a gap (`sequence` None, one frame).

    `start` and `length` (of one frame) are in samples from the stream's origin. `payload` is None once it was dropped.
    """

    sequence: int | None
    frames: int
    start: int
    length: int
    payload: bytes | None

    @property
    def end(self) -> int:
        """The position behind its last sample."""
        return self.start + self.frames * self.length

    def frames_within(self, samples: int) -> int:
        """How many of its frames end at or before `samples`."""
        if self.length == 0:
            return self.frames if self.start <= samples else 0
        return min(self.frames, max(0, (samples - self.start) // self.length))

    def split(self, frames: int) -> tuple[_Piece, _Piece]:
        """Its first `frames` frames, and the others."""
        payload, cut = self.payload, frames * self.length
        front = back = None
        if payload is not None:
            cut_bytes = len(payload) * frames // self.frames
            front, back = payload[:cut_bytes], payload[cut_bytes:]
        after = None if self.sequence is None else self.sequence + frames
        return (
            _Piece(self.sequence, frames, self.start, self.length, front),
            _Piece(after, self.frames - frames, self.start + cut, self.length, back),
        )


@dataclass(slots=True)
class _Stream:
    stream_id: str
    expected: int
    """The next frame number."""
    uncovered: int
    """The first frame number that no final covers, and its position."""
    uncovered_ms: int
    utterances: int
    phase: _Phase = _Phase.IDLE
    audio: AudioFormat | None = None
    origin_ms: int = 0
    """Position of this session's first sample; `samples` counts from there."""
    samples: int = 0
    pieces: deque[_Piece] = field(default_factory=deque)
    """Everything from the first uncovered frame on."""
    dropped: int = 0
    """Pieces at the front whose payload was dropped."""
    partial: Hypothesis | None = None
    """The text of the open segment that was written last."""
    revision: int = 0
    failures: int = 0

    @property
    def position_ms(self) -> int:
        """End of the audio taken so far."""
        return self.ms(self.samples)

    @property
    def rate(self) -> int:
        """Samples a second; 0 before the first audio."""
        return self.audio.sample_rate if self.audio else 0

    def ms(self, samples: int) -> int:
        """The position of the sample `samples`."""
        return self.origin_ms + (samples * 1000 // self.audio.sample_rate if self.audio else 0)

    def samples_until(self, position_ms: int) -> int:
        """The last sample at or before `position_ms`: the inverse of `ms`."""
        return ((position_ms - self.origin_ms + 1) * self.rate - 1) // 1000

    def snapshot(self) -> StreamSpeech:
        ended = self.phase is _Phase.ENDED
        return StreamSpeech(self.stream_id, self.uncovered, self.uncovered_ms, self.utterances, ended)


@dataclass(slots=True)
class _Output:
    """A step in the making."""

    commands: list[Command] = field(default_factory=list)
    utterances: list[Utterance] = field(default_factory=list)
    abandoned: list[Abandoned] = field(default_factory=list)
    changed: bool = False
    _feeding: str = ""
    _payloads: list[bytes] = field(default_factory=list)

    def feed(self, stream_id: str, payload: bytes) -> None:
        """Add audio to feed. It is joined with the audio before, if that belongs to the same stream."""
        if self._feeding != stream_id:
            self._flush()
            self._feeding = stream_id
        self._payloads.append(payload)

    def command(self, command: Command) -> None:
        """Add a command behind the audio fed so far."""
        self._flush()
        self.commands.append(command)

    def step(self) -> Step:
        """The finished step."""
        self._flush()
        return Step(tuple(self.commands), tuple(self.utterances), tuple(self.abandoned), self.changed)

    def _flush(self) -> None:
        if self._payloads:
            self.commands.append(Feed(self._feeding, b"".join(self._payloads)))
            self._payloads.clear()


class CallSpeech:
    """The speech of one call, from its first frame on. The caller applies each `Step` before the next."""

    def __init__(self, state: SpeechState | None, engine: str, accepts: Callable[[AudioFormat], bool]) -> None:
        """`state` is the stored state, if any; `engine` the recogniser's name, `accepts` its test of formats."""
        self._engine = engine
        self._accepts = accepts
        self._streams: dict[str, _Stream] = {}
        for stored in state.streams if state else ():
            self._streams[stored.stream_id] = _Stream(
                stream_id=stored.stream_id,
                expected=stored.next_sequence,
                uncovered=stored.next_sequence,
                uncovered_ms=stored.position_ms,
                utterances=stored.utterances,
                phase=_Phase.ENDED if stored.ended else _Phase.IDLE,
                origin_ms=stored.position_ms,
            )

    @property
    def state(self) -> SpeechState:
        """The state to store: how far the audio of each stream need not be heard again."""
        return SpeechState(tuple(stream.snapshot() for stream in self._streams.values()))

    @property
    def uncovered(self) -> dict[str, int]:
        """The first frame number that is not covered, by stream, for each stream that has not ended.

        After a restart the records of that stream from this number on, its END included, must be read again.
        """
        return {s.stream_id: s.uncovered for s in self._streams.values() if s.phase is not _Phase.ENDED}

    def frames(self, frames: Iterable[AudioFrame | FrameRun], now: Micros) -> Step:
        """Hear the next records of the call, in the order of the topic. `now` becomes `recognized_at` of an END."""
        output = _Output()
        for frame in frames:
            if frame.track is not Track.INBOUND:
                continue
            stream = self._streams.get(frame.stream_id) or self._new_stream(frame.stream_id, now, output)
            if stream.phase in (_Phase.FINISHING, _Phase.ENDED):
                continue
            match frame:
                case FrameRun():
                    self._take(stream, frame, now, output)
                case AudioFrame(kind=FrameKind.FRAME):
                    self._take(stream, _run_of(frame), now, output)
                case AudioFrame(kind=FrameKind.START):
                    self._check_format(stream, frame, now, output)
                case AudioFrame(kind=FrameKind.END):
                    self._finish(stream, now, output)
        return output.step()

    def end(self, reason: str, now: Micros) -> Step:
        """End the open streams, whose END records will not come. `reason` as in `Abandoned`.

        Their frames so far are heard to the end, as if END had followed. No effect on streams that end already, so it
        may be called again.
        """
        output = _Output()
        for stream in self._streams.values():
            if stream.phase in (_Phase.IDLE, _Phase.LISTENING):
                self._abandon(stream, reason, now, output)
        return output.step()

    def event(self, event: Event, now: Micros) -> Step:
        """Take an event of one of the call's recogniser streams. `now` becomes `recognized_at`."""
        output = _Output()
        stream = self._streams.get(event.key.stream_id)
        if stream is None or stream.phase not in (_Phase.LISTENING, _Phase.FINISHING):
            return output.step()
        match event:
            case Hypothesis(final=True):
                self._final(stream, event, now, output)
            case Hypothesis():
                self._partial(stream, event, now, output)
            case Progress():
                self._cover(stream, event.covered_ms, output)
            case Ended():
                self._end(stream, now, output)
            case Failed(retryable=True) if stream.failures < MAX_FAILURES:
                stream.failures += 1
                self._hear_again(stream, output)
            case Failed():
                output.abandoned.append(Abandoned(stream.stream_id, event.reason))
                self._end(stream, now, output)
        return output.step()

    def _new_stream(self, stream_id: str, now: Micros, output: _Output) -> _Stream:
        open_streams = [s for s in self._streams.values() if s.phase in (_Phase.IDLE, _Phase.LISTENING)]
        if len(open_streams) >= MAX_OPEN_STREAMS:
            self._abandon(open_streams[0], "too many streams", now, output)
        ended = [s.stream_id for s in self._streams.values() if s.phase is _Phase.ENDED]
        if len(ended) >= MAX_ENDED_STREAMS:
            del self._streams[ended[0]]
        stream = _Stream(stream_id, FIRST_SEQUENCE, FIRST_SEQUENCE, 0, 0)
        self._streams[stream_id] = stream
        output.changed = True
        return stream

    def _check_format(self, stream: _Stream, frame: AudioFrame | FrameRun, now: Micros, output: _Output) -> bool:
        audio = stream.audio
        if audio is not None and audio.encoding == frame.encoding and audio.sample_rate == frame.sample_rate:
            return True
        if audio is None and self._accepts(given := AudioFormat(frame.encoding, frame.sample_rate)):
            stream.audio = given
            return True
        reason = "format not decodable" if audio is None else "format changed"
        self._abandon(stream, reason, now, output)
        return False

    def _take(self, stream: _Stream, run: FrameRun, now: Micros, output: _Output) -> None:
        """Hear the frames of `run` that are new, and silence in place of missing frames before them."""
        sequences = run.sequences
        last = len(sequences) - 1
        if sequences[last] < stream.expected and max(sequences) < stream.expected:
            return  # all of them were heard before
        if not self._check_format(stream, run, now, output):
            return
        if stream.phase is _Phase.IDLE:
            stream.phase = _Phase.LISTENING
            output.command(Open(stream.stream_id, AudioFormat(run.encoding, run.sample_rate), stream.origin_ms))
        length = g711.samples_in(run.encoding, len(run.payloads[0]))
        at = 0
        while at <= last:
            sequence = sequences[at]
            if sequence < stream.expected:
                at += 1
                continue
            if sequence > stream.expected:
                longest = LONGEST_GAP_MS * run.sample_rate // 1000
                missing = min((sequence - stream.expected) * length, longest)
                if missing:
                    self._append(stream, None, 1, missing, _silence(run.encoding, missing), output)
            end = at + 1
            while end <= last and sequences[end] == sequence + end - at:
                end += 1
            payloads = [g711.whole_samples(run.encoding, payload) for payload in run.payloads[at:end]]
            audio = payloads[0] if end - at == 1 else b"".join(payloads)
            self._append(stream, sequence, end - at, length, audio, output)
            stream.expected = sequence + end - at
            at = end

    def _append(
        self, stream: _Stream, sequence: int | None, frames: int, length: int, payload: bytes, output: _Output
    ) -> None:
        pieces = stream.pieces
        pieces.append(_Piece(sequence, frames, stream.samples, length, payload))
        stream.samples += frames * length
        if (stream.samples - pieces[stream.dropped].start) * 1000 > LONGEST_RETAINED_MS * stream.rate:
            self._drop_old_audio(stream)
        output.feed(stream.stream_id, payload)

    def _drop_old_audio(self, stream: _Stream) -> None:
        """Drop the audio that was kept for longer than LONGEST_RETAINED_MS."""
        pieces = stream.pieces
        oldest_ms = stream.position_ms - LONGEST_RETAINED_MS
        while stream.ms(pieces[stream.dropped].start) < oldest_ms:
            piece = pieces[stream.dropped]
            # All frames that begin before, whether they are in one piece or in many.
            begun = piece.frames_within(stream.samples_until(oldest_ms - 1) + piece.length) or 1
            if begun < piece.frames:
                pieces[stream.dropped], rest = piece.split(begun)
                pieces.insert(stream.dropped + 1, rest)
            pieces[stream.dropped].payload = None
            stream.dropped += 1

    def _finish(self, stream: _Stream, now: Micros, output: _Output) -> None:
        if stream.phase is _Phase.IDLE:  # it has no audio, or all of it is covered
            self._end(stream, now, output)
            return
        stream.phase = _Phase.FINISHING
        output.command(Finish(stream.stream_id))

    def _partial(self, stream: _Stream, event: Hypothesis, now: Micros, output: _Output) -> None:
        if event.text == (stream.partial.text if stream.partial else ""):
            return
        stream.partial = event if event.text else None
        stream.revision = max(stream.revision + 1, (event.end_ms - event.start_ms) // PARTIAL_STEP_MS)
        output.utterances.append(self._utterance(stream, UtteranceKind.PARTIAL, stream.revision, event, now))

    def _final(self, stream: _Stream, event: Hypothesis, now: Micros, output: _Output) -> None:
        if event.text:
            output.utterances.append(self._utterance(stream, UtteranceKind.FINAL, FINAL_REVISION, event, now))
            stream.utterances += 1
            stream.partial, stream.revision = None, 0
            output.changed = True
        else:  # no text after all: withdraw the partial; the next utterance gets its number
            self._partial(stream, event, now, output)
        self._cover(stream, event.end_ms, output)

    def _cover(self, stream: _Stream, covered_ms: int, output: _Output) -> None:
        """All audio before `covered_ms` is covered. A frame that ends later is not."""
        until, pieces = stream.samples_until(covered_ms), stream.pieces
        while pieces:
            piece = pieces[0]
            covered = piece.frames_within(until)
            if covered == 0:
                break
            if covered < piece.frames:
                piece, pieces[0] = piece.split(covered)
            else:
                pieces.popleft()
                stream.dropped = max(stream.dropped - 1, 0)
            if piece.sequence is not None:
                stream.uncovered, stream.uncovered_ms = piece.sequence + piece.frames, stream.ms(piece.end)
                stream.failures = 0
                output.changed = True

    def _hear_again(self, stream: _Stream, output: _Output) -> None:
        """Open a new stream at the first uncovered audio that is still kept, and feed it from there."""
        kept = [piece for piece in stream.pieces if piece.payload is not None]
        start_ms = stream.ms(kept[0].start) if kept else stream.position_ms
        if stream.audio is not None:
            output.command(Open(stream.stream_id, stream.audio, start_ms))
        for piece in kept:
            output.feed(stream.stream_id, piece.payload or b"")
        if stream.phase is _Phase.FINISHING:
            output.command(Finish(stream.stream_id))

    def _abandon(self, stream: _Stream, reason: str, now: Micros, output: _Output) -> None:
        output.abandoned.append(Abandoned(stream.stream_id, reason))
        if stream.phase is _Phase.LISTENING:  # the audio so far is not lost; END follows its finals
            stream.phase = _Phase.FINISHING
            output.command(Finish(stream.stream_id))
            return
        self._end(stream, now, output)

    def _end(self, stream: _Stream, now: Micros, output: _Output) -> None:
        """Write END. A partial that is still open gets no final any more, and becomes one itself."""
        if stream.partial is not None:
            self._final(stream, stream.partial, now, output)
        stream.phase = _Phase.ENDED
        stream.uncovered, stream.uncovered_ms = stream.expected, stream.position_ms
        stream.pieces.clear()
        at = stream.position_ms
        utterance = Utterance(
            stream_id=stream.stream_id,
            utterance_id=f"{stream.stream_id}:{stream.utterances}",
            revision=FINAL_REVISION,
            kind=UtteranceKind.END,
            text="",
            start_ms=at,
            end_ms=at,
            confidence=None,
            words=(),
            engine=self._engine,
            recognized_at=now,
            sequence=stream.expected - 1,
        )
        output.utterances.append(utterance)
        output.changed = True

    def _utterance(
        self, stream: _Stream, kind: UtteranceKind, revision: int, event: Hypothesis, now: Micros
    ) -> Utterance:
        return Utterance(
            stream_id=stream.stream_id,
            utterance_id=f"{stream.stream_id}:{stream.utterances}",
            revision=revision,
            kind=kind,
            text=event.text[:MAX_TEXT_CHARS],
            start_ms=event.start_ms,
            end_ms=event.end_ms,
            confidence=event.confidence,
            words=event.words if len(event.words) <= MAX_WORDS and len(event.text) <= MAX_TEXT_CHARS else (),
            engine=self._engine,
            recognized_at=now,
            sequence=_reach(stream, event.end_ms),
        )


def _reach(stream: _Stream, end_ms: int) -> int:
    """The number of the last frame with audio before `end_ms`."""
    reached = stream.uncovered - 1
    until = stream.samples_until(end_ms - 1)
    for piece in stream.pieces:
        if piece.start > until:
            break
        if piece.sequence is not None:
            reached = piece.sequence + min(piece.frames, piece.frames_within(until) + 1) - 1
    return reached


def _run_of(frame: AudioFrame) -> FrameRun:
    return FrameRun(
        frame.stream_id, frame.track, frame.encoding, frame.sample_rate, (frame.sequence,), (frame.payload,)
    )


_SILENCE: Final = {"PCMU": b"\xff", "PCMA": b"\xd5", "L16": b"\x00\x00", "L16BE": b"\x00\x00"}
"""One sample of silence in each encoding that can be decoded."""


def _silence(encoding: str, samples: int) -> bytes:
    return _SILENCE[encoding] * samples


class Streams:
    """The open recogniser streams of all calls: carries out the sessions' commands. One for each recogniser."""

    def __init__(self, recognizer: Recognizer) -> None:
        self._recognizer = recognizer
        self._open: dict[str, dict[str, RecognizerStream]] = {}
        """By call, then by stream."""

    def apply(self, call_id: str, commands: Sequence[Command]) -> None:
        """Carry out `commands` of the session of `call_id`, in order."""
        for command in commands:
            match command:
                case Feed():
                    self._open[call_id][command.stream_id].feed(command.payload)
                case Open():
                    key = StreamKey(call_id, command.stream_id)
                    opened = self._recognizer.open(key, command.audio, command.start_ms)
                    self._open.setdefault(call_id, {})[command.stream_id] = opened
                case Finish():
                    self._open[call_id][command.stream_id].finish()

    def ended(self, key: StreamKey) -> None:
        """Drop a stream after its `Ended` or `Failed`, before the commands that follow from that are carried out."""
        streams = self._open.get(key.call_id, {})
        streams.pop(key.stream_id, None)
        if not streams:
            self._open.pop(key.call_id, None)

    def cancel(self, call_id: str) -> None:
        """Cancel all streams of a call: another process hears it now, or it is over."""
        for stream in self._open.pop(call_id, {}).values():
            stream.cancel()
