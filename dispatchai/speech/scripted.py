"""A recogniser whose words are a pure function of the audio: for tests that compare runs, and for demonstrations.

Decides where loud runs begin and end and which text stands for each: the one that a script file has for the digest of
the run's samples, else words drawn from the digest. It understands nothing. Selected with SPEECH_ENGINE=scripted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from dispatchai.audio import g711
from dispatchai.records.values import Word
from dispatchai.speech.errors import RecognizerError, UnsupportedFormatError
from dispatchai.speech.recognizer import (
    AudioFormat,
    Ended,
    Event,
    EventQueue,
    Hypothesis,
    RecognizerStats,
    StreamKey,
)

Samples = npt.NDArray[np.int16]
"""Linear samples, shape (n,)."""

WINDOW_MS: Final = 20
"""Length of the windows of the loudness measure: one frame of the carrier, so that a stream that is resumed at a frame
has the same windows."""

VOICED_RMS: Final = 0.02
"""A window is voiced from this root mean square up, of full scale: the threshold of the telephony guide."""

HANG_WINDOWS: Final = 20
"""Unvoiced windows that end a run: 400 ms, above the pauses within the shipped sentences, below those between."""

LONGEST_WINDOWS: Final = 600
"""A run is cut after 12 s, as a segment of the real engine is."""

FIRST_WORDS: Final = ("red", "green", "blue", "white", "black", "brown", "grey", "gold")
SECOND_WORDS: Final = ("river", "stone", "field", "bridge", "tower", "harbor", "garden", "window")


def digest(run: Samples) -> str:
    """The name of a voiced run in a script: BLAKE2b-64 of its little-endian samples, in hex."""
    return hashlib.blake2b(run.astype("<i2").tobytes(), digest_size=8).hexdigest()


def words_of(name: str) -> str:
    """Four words that follow from the digest `name`."""
    value = int(name, 16)
    first, second = FIRST_WORDS[value & 7], SECOND_WORDS[value >> 3 & 7]
    return f"{first} {second} {FIRST_WORDS[value >> 6 & 7]} {SECOND_WORDS[value >> 9 & 7]}"


_SQUARES: Final = {encoding: table.astype(np.int64) ** 2 for encoding, table in g711.TABLES.items()}
"""Square of the sample of each code, shape (256,)."""


class _Runs:
    """Cuts a stream of windows into voiced runs. `start` and `position` count windows; `run` is the open run as it was
    sent, which is decoded when its digest is needed."""

    def __init__(self, encoding: str, sample_rate: int) -> None:
        self.run: list[bytes] = []
        self.start = 0
        self.position = 0
        self._encoding = encoding
        self._unvoiced = 0
        self._samples = sample_rate * WINDOW_MS // 1000
        self._loud = ceil((VOICED_RMS * 32768) ** 2 * self._samples)
        self.window_bytes = self._samples * (2 // g711.samples_in(encoding, 2))

    def push(self, audio: bytes) -> Iterator[Samples | None]:
        """Take whole windows. Gives for each the run that it closed, without the pause behind it, or None."""
        size = self.window_bytes
        for number, loud in enumerate(self._loudness(audio)):
            yield self._push(audio[number * size : (number + 1) * size], loud >= self._loud)

    def _loudness(self, audio: bytes) -> list[int]:
        """The sum of squares of each window. Integers, so that it does not depend on which are measured together."""
        squares = _SQUARES.get(self._encoding)
        if squares is not None:
            of_samples = squares[np.frombuffer(audio, np.uint8)]
        else:
            of_samples = g711.decode(self._encoding, audio).astype(np.int64) ** 2
        if len(of_samples) == self._samples:
            return [int(np.add.reduce(of_samples))]
        sums: list[int] = np.add.reduce(of_samples.reshape(-1, self._samples), axis=1).tolist()
        return sums

    def _push(self, window: bytes, voiced: bool) -> Samples | None:
        if not self.run and voiced:
            self.start = self.position
        self.position += 1
        if not self.run and not voiced:
            return None
        self.run.append(window)
        self._unvoiced = 0 if voiced else self._unvoiced + 1
        if self._unvoiced >= HANG_WINDOWS or len(self.run) >= LONGEST_WINDOWS:
            return self.close()
        return None

    def so_far(self) -> Samples:
        """The whole open run."""
        return g711.decode(self._encoding, b"".join(self.run))

    def close(self) -> Samples | None:
        """Close the open run, if any, and return it."""
        if not self.run:
            return None
        run = g711.decode(self._encoding, b"".join(self.run[: len(self.run) - self._unvoiced]))
        self.run, self._unvoiced = [], 0
        return run


def voiced_runs(samples: Samples, sample_rate: int) -> list[Samples]:
    """The runs that the scripted recogniser hears in `samples`, shape (n,), of a stream from its origin on."""
    runs = _Runs(g711.L16_LITTLE, sample_rate)
    audio = samples.astype("<i2").tobytes()
    heard = list(runs.push(audio[: len(audio) // runs.window_bytes * runs.window_bytes]))
    return [run for run in [*heard, runs.close()] if run is not None]


class ScriptedStream:
    """One stream; see `RecognizerStream`. Hears at once: its backlog is at most a part of a window."""

    def __init__(
        self,
        key: StreamKey,
        audio: AudioFormat,
        start_ms: int,
        events: EventQueue,
        script: Mapping[str, str],
        update_ms: int,
    ) -> None:
        self._key = key
        self._window = audio.sample_rate * WINDOW_MS // 1000
        self._start_ms = start_ms
        self._events = events
        self._script = script
        self._update_windows = max(1, update_ms // WINDOW_MS)
        self._rest = b""
        self._runs = _Runs(audio.encoding, audio.sample_rate)
        self._segment = 0
        self._done = False
        self.cancelled = False

    @property
    def backlog_ms(self) -> int:
        """Always 0: audio is heard at once."""
        return 0

    def feed(self, payload: bytes) -> None:
        """See `RecognizerStream.feed`."""
        if self._done:
            return
        audio = self._rest + payload if self._rest else payload
        whole = len(audio) // self._runs.window_bytes * self._runs.window_bytes
        self._rest = audio[whole:]
        if whole < len(audio):
            audio = audio[:whole]
        if audio:
            for run in self._runs.push(audio):
                if run is not None:
                    self._final(run)
                elif self._runs.run and len(self._runs.run) % self._update_windows == 0:
                    self._partial()
            self._progress()

    def finish(self) -> None:
        """See `RecognizerStream.finish`."""
        if self._done:
            return
        self._done = True
        run = self._runs.close()
        if run is not None:
            self._final(run)
        self._progress()
        self._events.put(self, Ended(self._key))

    def cancel(self) -> None:
        """See `RecognizerStream.cancel`."""
        self._done = self.cancelled = True

    def _ms(self, windows: int) -> int:
        return self._start_ms + windows * WINDOW_MS

    def _progress(self) -> None:
        covered = self._runs.start if self._runs.run else self._runs.position
        self._events.moved(self, self._key, self._ms(covered), self._ms(self._runs.position))

    def _partial(self) -> None:
        text = words_of(digest(self._runs.so_far()))
        end_ms = self._ms(self._runs.position)
        self._events.put(self, Hypothesis(self._key, self._segment, False, text, self._ms(self._runs.start), end_ms))

    def _final(self, run: Samples) -> None:
        name = digest(run)
        text = self._script.get(name) or words_of(name)
        start_ms = self._ms(self._runs.start)
        length_ms = len(run) // self._window * WINDOW_MS
        words = _spread(text, start_ms, length_ms)
        self._events.put(
            self, Hypothesis(self._key, self._segment, True, text, start_ms, start_ms + length_ms, words, 1.0)
        )
        self._segment += 1


def _spread(text: str, start_ms: int, length_ms: int) -> tuple[Word, ...]:
    """The words of `text`, spread evenly over the run."""
    parts = text.split()
    edges = [start_ms + length_ms * number // len(parts) for number in range(len(parts) + 1)]
    return tuple(Word(part, edges[n], edges[n + 1], 1.0) for n, part in enumerate(parts))


def load_script(path: Path) -> dict[str, str]:
    """The script in the JSON file `path`: an object of digests to texts. Raises RecognizerError for anything else."""
    try:
        script = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecognizerError(f"cannot read the script {path}: {type(error).__name__}") from error
    if not isinstance(script, dict) or not all(isinstance(text, str) and text for text in script.values()):
        raise RecognizerError(f"the script {path} is not an object of digests to texts")
    return script


class ScriptedRecognizer:
    """The engine; see `Recognizer`. `script` maps digests to texts, `update_ms` is the audio between partial texts."""

    def __init__(self, script: Mapping[str, str] | None = None, update_ms: int = 1000) -> None:
        self._script = dict(script or {})
        self._update_ms = update_ms
        self._events = EventQueue()
        self._streams: list[ScriptedStream] = []

    @property
    def name(self) -> str:
        """See `Recognizer.name`."""
        return "scripted"

    async def start(self) -> None:
        """Ready at once."""

    async def close(self) -> None:
        """See `Recognizer.close`."""
        for stream in self._streams:
            stream.cancel()
        self._events.close()

    def accepts(self, audio: AudioFormat) -> bool:
        """Whether the codec can be decoded, and a window has a whole number of samples."""
        return audio.encoding in g711.DECODABLE and audio.sample_rate in (8000, 16000)

    def open(self, key: StreamKey, audio: AudioFormat, start_ms: int = 0) -> ScriptedStream:
        """See `Recognizer.open`."""
        if not self.accepts(audio):
            raise UnsupportedFormatError(audio.encoding, audio.sample_rate)
        self._streams = [stream for stream in self._streams if not stream._done]
        stream = ScriptedStream(key, audio, start_ms, self._events, self._script, self._update_ms)
        self._streams.append(stream)
        return stream

    def events(self) -> AsyncIterator[Event]:
        """See `Recognizer.events`."""
        return aiter(self._events)

    async def room(self) -> None:
        """Returns at once: there always is room."""

    def report(self, most: int) -> None:
        """See `Recognizer.report`."""
        self._events.report(most)

    def stats(self) -> RecognizerStats:
        """See `Recognizer.stats`. It hears in this process, at once."""
        streams = sum(not stream._done for stream in self._streams)
        return RecognizerStats(streams, 0, 0, 1, 1, 0, dict(self._events.failures))
