"""Endpointing: where speech begins and ends, from the voice probabilities of short windows.

Decides which segments of audio the engine gets, and how far audio is covered. A voice activity detector gives the
probabilities, an engine the text. Segments are a function of the audio alone, not of how it was chunked, nor of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]
"""Linear samples, shape (n,)."""

WINDOW_MS: Final = 32
"""Length of the detector's windows: 256 samples at 8 kHz, as Silero's model needs them."""

ONSET_PROBABILITY: Final = 0.35
"""A window from here up is speech. Silero separates telephone speech best between .15 and .35; noise costs text."""

OFFSET_PROBABILITY: Final = 0.2
"""Within speech a window is a pause only below this, so that a soft syllable does not end the segment."""

ONSET_WINDOWS: Final = 3
"""Windows of speech in a row that open a segment: 96 ms, shorter than "help", longer than a click."""

LEAD_IN_MS: Final = 320
"""Audio that is kept before the first window of speech: unvoiced consonants come before the detector is sure."""

HANG_MS: Final = 480
"""The pause that closes a segment. Pauses within a sentence are mostly shorter, those between sentences longer."""

TRAIL_MS: Final = 224
"""The part of that pause that stays in the segment."""

LONGEST_MS: Final = 12_000
"""A segment is cut at this length. Beyond it the engine's text gets worse, and decoding costs more."""

CUT_SEARCH_MS: Final = 4_000
"""The cut is made at the deepest pause within this distance from the end."""


class _Phase(Enum):
    SILENCE = auto()
    ONSET = auto()
    SPEECH = auto()
    PAUSE = auto()


@dataclass(frozen=True, slots=True)
class Segment:
    """A closed segment: its position in samples from the first one, and its audio."""

    index: int
    start: int
    end: int
    audio: Samples


class Segmenter:
    """The endpointing of one stream.

    `SILENCE → ONSET → SPEECH ⇄ PAUSE → SILENCE`; an onset that is too short goes back to silence. Keeps at most the
    open segment (`LONGEST_MS`) or the lead-in.
    """

    def __init__(self, sample_rate: int) -> None:
        self._window = sample_rate * WINDOW_MS // 1000
        self._phase = _Phase.SILENCE
        self._run = 0  # windows of speech in ONSET, of silence in PAUSE
        self._kept: list[Samples] = []
        self._probabilities: list[float] = []
        self._start = 0  # sample position of _kept[0]
        self._index = 0

    @property
    def position(self) -> int:
        """Samples heard so far."""
        return self._start + len(self._kept) * self._window

    @property
    def covered(self) -> int:
        """Samples that need not be heard again once closed segments are decoded: all before open segment or lead-in."""
        return self._start

    @property
    def speaking(self) -> bool:
        """Whether a segment is open."""
        return self._phase in (_Phase.SPEECH, _Phase.PAUSE)

    def open_segment(self) -> Segment:
        """The open segment so far. To be called only while `speaking`."""
        return Segment(self._index, self._start, self.position, np.concatenate(self._kept))

    def push(self, window: Samples, probability: float) -> Segment | None:
        """Take the next window, shape (window,), and its probability of speech, 0-1. Returns the segment it closed."""
        self._kept.append(window)
        self._probabilities.append(probability)
        match self._phase:
            case _Phase.SILENCE if probability >= ONSET_PROBABILITY:
                self._phase, self._run = _Phase.ONSET, 1
            case _Phase.SILENCE:
                self._drop_before(len(self._kept) - LEAD_IN_MS // WINDOW_MS)
            case _Phase.ONSET if probability >= ONSET_PROBABILITY:
                self._run += 1
                if self._run >= ONSET_WINDOWS:
                    self._phase = _Phase.SPEECH
            case _Phase.ONSET:
                self._phase = _Phase.SILENCE
                self._drop_before(len(self._kept) - LEAD_IN_MS // WINDOW_MS)
            case _Phase.SPEECH if probability < OFFSET_PROBABILITY:
                self._phase, self._run = _Phase.PAUSE, 1
            case _Phase.PAUSE if probability >= OFFSET_PROBABILITY:
                self._phase = _Phase.SPEECH
            case _Phase.PAUSE:
                self._run += 1
                if self._run >= HANG_MS // WINDOW_MS:
                    return self._close(len(self._kept) - self._run + TRAIL_MS // WINDOW_MS, _Phase.SILENCE)
        if self.speaking and len(self._kept) >= LONGEST_MS // WINDOW_MS:
            return self._close(self._deepest_pause(), _Phase.SPEECH)
        return None

    def finish(self) -> Segment | None:
        """Close the segment that is still open at the end of the audio, if any, and return it."""
        if not self.speaking:
            return None
        return self._close(len(self._kept), _Phase.SILENCE)

    def _deepest_pause(self) -> int:
        """The number of windows at which a segment that is too long is cut: behind the last of the least probable."""
        first = len(self._kept) - CUT_SEARCH_MS // WINDOW_MS
        smoothed = np.convolve(self._probabilities[first:], (0.25, 0.5, 0.25), mode="same")[1:-1]
        return first + 2 + int(len(smoothed) - 1 - np.argmin(smoothed[::-1]))

    def _close(self, windows: int, then: _Phase) -> Segment:
        end = self._start + windows * self._window
        closed = Segment(self._index, self._start, end, np.concatenate(self._kept[:windows]))
        self._index += 1
        self._phase, self._run = then, 0
        self._drop_before(windows)
        return closed

    def _drop_before(self, windows: int) -> None:
        if windows > 0:
            del self._kept[:windows], self._probabilities[:windows]
            self._start += windows * self._window
