"""The signals of a call depend on its frames' numbers and audio only; each frame is applied once."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.audio import g711
from dispatchai.audio.g711 import encode_mulaw
from dispatchai.audio.signals import step
from dispatchai.audio.voice_columns import Voices
from dispatchai.records import AudioFrame, FrameKind, Signal, SignalKind, SignalState, Track, decode_as, encode
from dispatchai.records.frame_decoder import MISSING_FRAMES_MAX, SEQUENCE_MAX

SILENCE = b"\xff" * 160
TONE = encode_mulaw((np.sin(np.arange(160) / 4) * 12_000).astype(np.int16))


def frame(
    sequence: int,
    payload: bytes = TONE,
    *,
    stream: str = "s1",
    kind: FrameKind = FrameKind.FRAME,
    encoding: str = "PCMU",
    track: Track = Track.INBOUND,
) -> AudioFrame:
    return AudioFrame(stream, kind, track, sequence, 1_000_000 + sequence * 20_000, encoding, 8000, payload, None)


def stream(payloads: list[bytes], name: str = "s1") -> list[AudioFrame]:
    return [
        frame(0, b"", stream=name, kind=FrameKind.START),
        *(frame(number, payload, stream=name) for number, payload in enumerate(payloads, 1)),
        frame(len(payloads) + 1, b"", stream=name, kind=FrameKind.END),
    ]


def run(frames: list[AudioFrame], cuts: list[int] | None = None) -> tuple[SignalState, list[Signal]]:
    state: SignalState | None = None
    signals: list[Signal] = []
    edges = [0, *sorted(cut % (len(frames) + 1) for cut in cuts or []), len(frames)]
    for start, end in itertools.pairwise(edges):
        made = step(state, frames[start:end])
        state, signals = made.state, [*signals, *made.signals]
    assert state is not None
    return state, signals


SPEECH = st.lists(st.sampled_from([SILENCE, TONE, TONE[:80], TONE + TONE]), max_size=150)


@given(SPEECH, st.lists(st.integers(0, 200), max_size=10))
@settings(deadline=None)
def test_batches_do_not_change_the_signals(payloads: list[bytes], cuts: list[int]) -> None:
    assert run(stream(payloads)) == run(stream(payloads), cuts)


@given(SPEECH, st.data())
@settings(deadline=None)
def test_a_repeated_frame_changes_nothing(payloads: list[bytes], data: st.DataObject) -> None:
    frames = stream(payloads)
    repeated = list(frames)
    for index in sorted(data.draw(st.sets(st.integers(0, len(frames) - 1), max_size=5)), reverse=True):
        later = data.draw(st.integers(index + 1, len(repeated)))
        repeated.insert(later, frames[index])
    assert run(repeated) == run(frames)
    assert run(repeated)[0].frames == len(payloads)


@given(st.sets(st.integers(1, 100), max_size=40))
@settings(deadline=None)
def test_every_lost_frame_is_counted_as_missing(lost: set[int]) -> None:
    frames = [item for item in stream([TONE] * 100) if item.kind is not FrameKind.FRAME or item.sequence not in lost]
    state, signals = run(frames)
    assert state.missing_frames == len(lost)
    assert state.frames == 100 - len(lost)
    assert signals[-1].kind is SignalKind.END
    assert signals[-1].missing_frames == len(lost)


@given(SPEECH)
@settings(deadline=None)
def test_signals_are_at_most_five_a_second_and_at_least_one(payloads: list[bytes]) -> None:
    _, signals = run(stream(payloads))
    updates = [signal.audio_ms for signal in signals if signal.kind is SignalKind.UPDATE]
    gaps = [later - earlier for earlier, later in zip([0, *updates], updates, strict=False)]
    assert all(200 <= gap <= 1040 for gap in gaps)


def test_a_reconnected_stream_goes_on_with_the_calls_figures() -> None:
    state, signals = run(stream([TONE] * 50) + stream([TONE] * 50, name="s2"))
    assert state.audio_ms == 2000.0
    assert signals[-1].audio_ms == 2000
    assert [item.ended for item in state.streams] == [True, True]


def test_the_callee_side_is_not_the_callers_voice() -> None:
    state, _ = run([frame(0, b"", kind=FrameKind.START), frame(1, track=Track.OUTBOUND)])
    assert state.frames == 0


def test_a_frame_that_cannot_be_decoded_is_missing() -> None:
    state, _ = run(
        [frame(0, b"", kind=FrameKind.START), frame(1, encoding="G722"), frame(2), frame(3, b"x", encoding="L16")]
    )
    assert (state.frames, state.missing_frames) == (1, 2)


@pytest.mark.parametrize("encoding", ["X", "PCMU"], ids=["not decoded", "decoded"])
@pytest.mark.parametrize("kind", [FrameKind.FRAME, FrameKind.END])
def test_frame_numbers_that_leap_add_up_to_no_more_than_a_state_holds(kind: FrameKind, encoding: str) -> None:
    wild = [
        replace(frame(1, stream=f"stream-{number}", kind=kind, encoding=encoding), sequence=SEQUENCE_MAX)
        for number in range(1_100)
    ]
    state, signals = run(wild)
    assert state.missing_frames == MISSING_FRAMES_MAX
    assert decode_as(SignalState, encode(state)) == state
    assert decode_as(Signal, encode(signals[-1])) == signals[-1]
    Voices().set(0, state)


@pytest.mark.parametrize("rate", [8000, 16_000])
@pytest.mark.parametrize("encoding", ["PCMU", "PCMA", "L16", "L16BE"])
@pytest.mark.parametrize("length_ms", [10, 20, 99])
def test_a_sound_is_equally_loud_and_long_in_every_codec_rate_and_frame_length(
    encoding: str, rate: int, length_ms: int
) -> None:
    sound = (8000 * np.sin(np.arange(rate * length_ms // 1000) * 2 * np.pi * 400 / rate)).astype(np.int16)
    payload = {
        "PCMU": g711.encode_mulaw(sound),
        "PCMA": g711.encode_alaw(sound),
        "L16": sound.astype("<i2").tobytes(),
        "L16BE": sound.astype(">i2").tobytes(),
    }[encoding]
    frames = [frame(0, b"", kind=FrameKind.START), *(frame(n, payload, encoding=encoding) for n in range(1, 21))]
    state, signals = run([replace(one, sample_rate=rate) for one in frames])
    assert state.audio_ms == pytest.approx(20 * length_ms)
    assert state.voiced_ms == pytest.approx(20 * length_ms)
    assert signals[-1].rms == pytest.approx(8000 / 32768 / 2**0.5, rel=0.03)


def test_half_a_sample_at_the_end_of_a_frame_does_not_count() -> None:
    whole, _ = run([frame(0, b"", kind=FrameKind.START), frame(1, b"\x00\x10" * 160, encoding="L16")])
    odd, _ = run([frame(0, b"", kind=FrameKind.START), frame(1, b"\x00\x10" * 160 + b"x", encoding="L16")])
    assert odd == whole


def test_a_late_frame_does_not_reopen_an_ended_stream() -> None:
    state, signals = run([*stream([TONE] * 3), frame(9)])
    assert state.streams[0].ended
    assert state.frames == 3
    assert signals[-1].kind is SignalKind.END
