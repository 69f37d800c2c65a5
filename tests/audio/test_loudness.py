"""The loudness measure is that of the telephony guide, and does not depend on which frames arrive together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.audio import g711
from dispatchai.audio.loudness import Loudness, frame_rms, step

PAYLOADS = st.lists(st.binary(min_size=0, max_size=200), min_size=1, max_size=20)


@given(PAYLOADS, st.sampled_from(["PCMU", "PCMA"]))
def test_frames_measure_alike_together_and_alone(payloads: list[bytes], encoding: str) -> None:
    together = frame_rms(encoding, payloads).tolist()
    assert together == [frame_rms(encoding, [payload])[0] for payload in payloads]


@given(st.binary(min_size=1, max_size=200))
def test_rms_is_the_root_mean_square_of_the_samples(payload: bytes) -> None:
    samples = [int(value) / 32768 for value in g711.decode("PCMU", payload)]
    expected = math.sqrt(sum(value * value for value in samples) / len(samples))
    assert frame_rms("PCMU", [payload])[0] == pytest.approx(expected, abs=1e-12)


def test_l16_and_mulaw_of_the_same_sound_measure_alike() -> None:
    tone = (np.sin(np.arange(160) / 5) * 8000).astype(np.int16)
    linear = frame_rms("L16", [tone.astype("<i2").tobytes()])[0]
    assert frame_rms("PCMU", [g711.encode_mulaw(tone)])[0] == pytest.approx(linear, rel=0.02)


def guide(rms_of_frames: list[float]) -> tuple[float, float]:
    """The guide's loop as written there, with the decay between frames."""
    ema = distress = largest = 0.0
    for rms in rms_of_frames:
        ema = 0.15 * rms + (1 - 0.15) * ema
        diff = max(0.0, rms - ema)
        distress = max(min(1.0, diff * 8.0), distress * 0.9)
        largest = max(largest, distress)
    return distress, largest


@given(st.lists(st.floats(0, 1), max_size=100))
def test_distress_is_that_of_the_guide(rms_of_frames: list[float]) -> None:
    state, largest = Loudness(), 0.0
    for rms in rms_of_frames:
        state = step(state, rms)
        assert 0.0 <= state.distress <= 1.0
        assert state.voiced == (rms >= 0.02)
        largest = max(largest, state.distress)
    assert (state.distress, largest) == guide(rms_of_frames)


def test_an_encoding_that_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(ValueError, match="OPUS"):
        frame_rms("OPUS", [b"x"])
