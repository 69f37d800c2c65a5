"""The pure part of the speech agent: audio frames of one call to commands for a recogniser, its events to utterances.

It decides which frames are heard, how utterances are numbered, what must be heard again after a failure or a restart,
and when a stream's speech is complete. Kafka, offsets and the recogniser's life are left to the agent. No asyncio, no
clock: time comes in as an argument. Ids, texts and times of final utterances depend on the frames and the engine's
finals, not on how frames were batched.
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
"""Silence put in for one run of missing frames. A longer gap is shortened to it: a wild number must not cost memory."""

LONGEST_RETAINED_MS: Final = 120_000
"""Audio kept for hearing again when the recogniser loses a stream: ten times its longest segment. 960 kB of G.711."""

FINAL_REVISION: Final = 1_000_000
"""Revision of every FINAL. Above any partial's (one for each 20 ms of the utterance), also above those written before a
restart, and the same in a run without the restart."""

PARTIAL_STEP_MS: Final = 20
"""A partial's revision counts the audio behind it in these steps, so that it rises across a restart too."""

MOST_FAILURES: Final = 5
"""Failures in a row, without any audio done with in between, after which a stream's speech is given up."""

MOST_STREAMS: Final = 32
"""Ended streams that a call's state remembers. Each reconnect of the carrier makes one."""


@dataclass(frozen=True, slots=True)
class Open:
    """Open a recogniser stream whose first sample lies `start_ms` into the audio; it replaces one that failed."""

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
    """Audio frames of one stream, one after another in the topic, alike in codec and length: what `AudioFrame` says
    of each, at a part of its cost. `sequences` and `payloads` are of one length, at least 1."""

    stream_id: str
    track: Track
    encoding: str
    sample_rate: int
    sequences: Sequence[int]
    payloads: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The speech of a stream ended before its audio did. `reason` is for logs and counters: no content is in it."""

    stream_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from frames or an event: commands for the recogniser and records to emit, each in order.

    `changed`: the session's `state` differs from before and is to be stored once the utterances were sent. Where audio
    was only covered that may wait; see `Recognizer.report`.
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
    """Audio of frames without a gap, alike in length, or the silence of a gap (`sequence` None, one frame).

    `start` and `length` (of one frame) are in samples from the stream's origin. `payload` is None where it was kept no
    longer.
    """

    sequence: int | None
    frames: int
    start: int
    length: int
    payload: bytes | None

    @property
    def end(self) -> int:
        """Behind its last sample."""
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
    """Next frame number to take."""
    uncovered: int
    """First frame number that no final covers, and its position."""
    uncovered_ms: int
    utterances: int
    phase: _Phase = _Phase.IDLE
    audio: AudioFormat | None = None
    origin_ms: int = 0
    """Position of the first sample of this session; `samples` counts from there."""
    samples: int = 0
    pieces: deque[_Piece] = field(default_factory=deque)
    """Everything from the first uncovered frame on."""
    dropped: int = 0
    """Pieces at the front that have lost their payload."""
    partial: Hypothesis | None = None
    """What is shown of the open segment."""
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
        """Position of the sample `samples`."""
        return self.origin_ms + (samples * 1000 // self.audio.sample_rate if self.audio else 0)

    def samples_until(self, position_ms: int) -> int:
        """The last sample whose position is `position_ms` or earlier: the inverse of `ms`."""
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
        """Feed, joined with the feed before where that is the same stream's."""
        if self._feeding != stream_id:
            self._flush()
            self._feeding = stream_id
        self._payloads.append(payload)

    def command(self, command: Command) -> None:
        """A command behind what was fed."""
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
    """The speech of one call. Made when the call's first frame arrives, from the stored state if there is one.

    `engine` is the recogniser's name, `accepts` its test of formats. The caller applies each `Step` before the next.
    """

    def __init__(self, state: SpeechState | None, engine: str, accepts: Callable[[AudioFormat], bool]) -> None:
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
        """What to store: all that needs no second hearing."""
        return SpeechState(tuple(stream.snapshot() for stream in self._streams.values()))

    @property
    def uncovered(self) -> dict[str, int]:
        """Stream id to the first frame number that is not covered, for each stream whose END is not written.

        Records of that stream from this number on, its END included, must be read again after a restart.
        """
        return {s.stream_id: s.uncovered for s in self._streams.values() if s.phase is not _Phase.ENDED}

    def frames(self, frames: Iterable[AudioFrame | FrameRun], now: Micros) -> Step:
        """Take the next records of the call, in the order of the topic. `now` becomes `recognized_at` of an END."""
        output = _Output()
        for frame in frames:
            if frame.track is not Track.INBOUND:
                continue
            stream = self._streams.get(frame.stream_id) or self._new_stream(frame.stream_id, output)
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
        """End the streams that are open: their END records will not come. `reason` as in `Abandoned`.

        What was taken of them is heard to its end, as if END had come behind it. Without effect on streams that end
        already, so it may be asked for again.
        """
        output = _Output()
        for stream in self._streams.values():
            if stream.phase in (_Phase.IDLE, _Phase.LISTENING):
                self._abandon(stream, reason, now, output)
        return output.step()

    def event(self, event: Event, now: Micros) -> Step:
        """Take an event of this call's recogniser streams. `now` becomes `recognized_at`."""
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
            case Failed(retryable=True) if stream.failures < MOST_FAILURES:
                stream.failures += 1
                self._hear_again(stream, output)
            case Failed():
                output.abandoned.append(Abandoned(stream.stream_id, event.reason))
                self._end(stream, now, output)
        return output.step()

    def _new_stream(self, stream_id: str, output: _Output) -> _Stream:
        ended = [s.stream_id for s in self._streams.values() if s.phase is _Phase.ENDED]
        if len(ended) >= MOST_STREAMS:
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
        """Take those frames of `run` that are new; what is missing before one is silence."""
        sequences = run.sequences
        last = len(sequences) - 1
        if sequences[last] < stream.expected and max(sequences) < stream.expected:
            return  # all were heard
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
            self._keep_no_longer(stream)
        output.feed(stream.stream_id, payload)

    def _keep_no_longer(self, stream: _Stream) -> None:
        """Drop the audio that is kept for too long."""
        pieces = stream.pieces
        oldest_ms = stream.position_ms - LONGEST_RETAINED_MS
        while stream.ms(pieces[stream.dropped].start) < oldest_ms:
            piece = pieces[stream.dropped]
            # All frames that begin before, be they of one piece or of many.
            begun = piece.frames_within(stream.samples_until(oldest_ms - 1) + piece.length) or 1
            if begun < piece.frames:
                pieces[stream.dropped], rest = piece.split(begun)
                pieces.insert(stream.dropped + 1, rest)
            pieces[stream.dropped].payload = None
            stream.dropped += 1

    def _finish(self, stream: _Stream, now: Micros, output: _Output) -> None:
        if stream.phase is _Phase.IDLE:  # no audio, or none that is not covered
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
        else:  # nothing after all: take back what was shown; the number is free for the next utterance
            self._partial(stream, event, now, output)
        self._cover(stream, event.end_ms, output)

    def _cover(self, stream: _Stream, covered_ms: int, output: _Output) -> None:
        """All audio before `covered_ms` is done with. A frame that it reaches into only in part is not."""
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
        """Open anew at the first audio that is not covered and still there, and feed all that is."""
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
        if stream.phase is _Phase.LISTENING:  # what was heard so far is not lost; END follows its finals
            stream.phase = _Phase.FINISHING
            output.command(Finish(stream.stream_id))
            return
        self._end(stream, now, output)

    def _end(self, stream: _Stream, now: Micros, output: _Output) -> None:
        """Write END. What is still partial then, of a segment that no final will come of, was said all the same."""
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
            text=event.text,
            start_ms=event.start_ms,
            end_ms=event.end_ms,
            confidence=event.confidence,
            words=event.words,
            engine=self._engine,
            recognized_at=now,
            sequence=_reach(stream, event.end_ms),
        )


def _reach(stream: _Stream, end_ms: int) -> int:
    """Number of the last frame that audio up to `end_ms` reaches into."""
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
    """The open recogniser streams of all calls: applies the sessions' commands. One for each recogniser."""

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
        """Forget a stream after its `Ended` or `Failed`, before the commands that follow from that are applied."""
        streams = self._open.get(key.call_id, {})
        streams.pop(key.stream_id, None)
        if not streams:
            self._open.pop(key.call_id, None)

    def forget(self, call_id: str) -> None:
        """Cancel all streams of a call: it is heard elsewhere now, or over."""
        for stream in self._open.pop(call_id, {}).values():
            stream.cancel()
