"""The byte order of linear audio follows from the audio, or stays open."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dispatchai
from dispatchai.audio import g711
from dispatchai.audio.byte_order import ByteOrderCheck

RECORDINGS = sorted((Path(dispatchai.__file__).parent / "recordings").glob("*.wav"))


def verdict(payload: bytes) -> str | None:
    check = ByteOrderCheck()
    check.add(payload)
    return check.verdict


def recorded(path: Path) -> g711.Samples:
    with wave.open(str(path)) as audio:
        return np.frombuffer(audio.readframes(audio.getnframes()), "<i2").astype(np.int16)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_every_second_of_a_call_has_its_byte_order_as_verdict_or_is_silent(path: Path) -> None:
    samples = recorded(path)
    verdicts = 0
    for start in range(0, len(samples) - 8000, 8000):
        second = samples[start : start + 8000]
        little, big = verdict(second.astype("<i2").tobytes()), verdict(second.astype(">i2").tobytes())
        assert (little, big) in (("L16", "L16BE"), (None, None))
        verdicts += little is not None
        if np.abs(second).max() > 300:
            assert little == "L16"
    assert verdicts > 10


@given(st.integers(0, 2**32 - 1), st.floats(1, 16_000))
def test_a_noisy_line_of_any_loudness_never_gets_the_wrong_verdict(seed: int, deviation: float) -> None:
    noise = np.random.default_rng(seed).normal(0, deviation, 8000).clip(-32768, 32767).astype(np.int16)
    assert verdict(noise.astype("<i2").tobytes()) in ("L16", None)
    assert verdict(noise.astype(">i2").tobytes()) in ("L16BE", None)


def test_silence_and_noise_at_full_scale_get_no_verdict() -> None:
    assert verdict(bytes(16_000)) is None
    assert verdict(np.random.default_rng(1).bytes(16_000)) is None
    assert verdict(b"") is None
    assert verdict(b"x") is None


def test_half_a_sample_at_the_end_of_a_payload_does_not_count() -> None:
    samples = np.array([0, 100, 200], "<i2").tobytes()
    one, two = ByteOrderCheck(), ByteOrderCheck()
    one.add(samples)
    two.add(samples + b"x")
    assert one == two
    assert one.samples == 3
