"""Many calls heard together have the same signals as each alone, to the last bit, wherever batches are cut."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.audio import signals
from dispatchai.audio.g711 import encode_mulaw
from dispatchai.audio.voice_columns import Voices, hear
from dispatchai.records import AudioFrame, FrameKind, Signal, SignalState, Track, decode_as, encode
from dispatchai.records.column_encoder import encode_columns
from dispatchai.records.frame_decoder import MISSING_FRAMES_MAX, SEQUENCE_MAX, decode_frames

TONE = encode_mulaw((np.sin(np.arange(160) / 4) * 12_000).astype(np.int16))
PAYLOADS = (b"\xff" * 160, TONE, TONE[:80], encode_mulaw((np.sin(np.arange(160) / 9) * 900).astype(np.int16)))


@dataclass
class Together:
    """Calls as the agent hears them: frames of live streams at once, other records by the step of one call."""

    voices: Voices = field(default_factory=Voices)
    others: dict[int, SignalState] = field(default_factory=dict)
    made: list[tuple[int, Signal]] = field(default_factory=list)
    heard_at_once: int = 0

    def state(self, call: int) -> SignalState | None:
        return self.voices.state(call) if self.voices.is_set(call) else self.others.get(call)

    def take(self, batch: list[tuple[int, AudioFrame]]) -> None:
        calls = np.array([call for call, _ in batch], np.int64)
        columns = decode_frames([encode(frame) for _, frame in batch])
        heard = hear(columns)
        usual = heard.usual & self.voices.go_on(calls, columns)
        usual &= ~np.isin(calls, calls[~usual])
        heard = heard.only(usual[heard.record])
        step = self.voices.step(calls[heard.record], heard)
        self.voices.keep(step)
        made = encode_columns("Signal", step.signals, len(step.signalled))
        self.made += zip(step.signalled.tolist(), (decode_as(Signal, one) for one in made), strict=True)
        self.heard_at_once += len(heard.record)
        for call in dict.fromkeys(calls[~usual].tolist()):
            one = signals.step(self.state(call), [frame for number, frame in batch if number == call])
            self.made += [(call, signal) for signal in one.signals]
            self.voices.clear(call)
            self.others.pop(call, None)
            if not self.voices.set(call, one.state):
                self.others[call] = one.state


def frame(stream: str, sequence: int, payload: bytes, kind: FrameKind = FrameKind.FRAME, **other: object) -> AudioFrame:
    values = {"track": Track.INBOUND, "encoding": "PCMU", "sample_rate": 8000} | other
    return AudioFrame(
        stream_id=stream, kind=kind, sequence=sequence, captured_at=1_700_000_000_000_000 + 20_000 * sequence,
        payload=payload, detail=None, **values,  # type: ignore[arg-type]
    )  # fmt: skip


@st.composite
def calls_frames(draw: st.DrawFn) -> list[AudioFrame]:
    """A call with streams one after the other, and frames lost, doubled, swapped, in another codec or track."""
    frames: list[AudioFrame] = []
    for number in range(draw(st.integers(1, 3))):
        stream = draw(st.sampled_from(["s1", "s2", "a-rather-long-stream-id-0123456789~deadbeef"])) + str(number)
        frames.append(frame(stream, 0, b"", FrameKind.START))
        for sequence in range(1, draw(st.integers(1, 90))):
            if draw(st.integers(0, 40)) == 0:
                continue
            frames.append(frame(stream, sequence, draw(st.sampled_from(PAYLOADS))))
            match draw(st.integers(0, 40)):
                case 0:
                    frames.append(frames[-1])
                case 1:
                    frames.append(frame(stream, sequence, b"", track=Track.OUTBOUND))
                case 2:
                    frames.append(frame(stream, sequence + 1, bytes(range(99)), encoding="L16"))
                case 3:
                    frames.append(frame(stream, sequence + 1, b"x", encoding="G722"))
                case 4:
                    frames[-2:] = reversed(frames[-2:])
                case 5 if number:
                    frames.append(frames[draw(st.integers(0, len(frames) - 1))])
                case _:
                    pass
        if draw(st.booleans()):
            frames.append(frame(stream, 99, b"", FrameKind.END))
    return frames


@settings(deadline=None, max_examples=60)
@given(st.lists(calls_frames(), min_size=1, max_size=4), st.randoms(use_true_random=False), st.data())
def test_calls_heard_together_have_the_signals_of_each_alone(
    calls: list[list[AudioFrame]], random: object, data: st.DataObject
) -> None:
    left = [list(frames) for frames in calls]
    mixed: list[tuple[int, AudioFrame]] = []
    while any(left):
        call = data.draw(st.sampled_from([number for number, frames in enumerate(left) if frames]))
        count = data.draw(st.integers(1, 30))
        mixed += [(call, one) for one in left[call][:count]]
        del left[call][:count]
    cuts = sorted({0, len(mixed), *data.draw(st.lists(st.integers(0, len(mixed)), max_size=12))})
    together = Together()
    for start, end in itertools.pairwise(cuts):
        together.take(mixed[start:end])
    stored = [row for row in range(len(calls)) if together.voices.is_set(row) and together.voices.has_one_stream(row)]
    snapshots = encode_columns("SignalState", together.voices.states(stored), len(stored))
    assert snapshots == [encode(together.voices.state(row)) for row in stored]
    for number, frames in enumerate(calls):
        alone = signals.step(None, frames)
        assert together.state(number) == alone.state
        assert tuple(signal for call, signal in together.made if call == number) == alone.signals


def test_frame_numbers_that_leap_are_counted_alike_together_and_alone() -> None:
    first = frame("s", 1, TONE)
    together, alone = Together(), signals.step(None, [first])
    together.take([(0, first)])
    for leap in (replace(first, sequence=SEQUENCE_MAX - 10), replace(first, sequence=SEQUENCE_MAX)):
        together.take([(0, leap)])
        alone = signals.step(alone.state, [leap])
        assert together.state(0) == alone.state
    assert alone.state.missing_frames == MISSING_FRAMES_MAX
    assert together.heard_at_once == 2


def test_a_count_of_missing_frames_that_was_stored_without_a_bound_does_not_overflow() -> None:
    first = frame("s", 1, TONE)
    together = Together()
    together.voices.set(0, replace(signals.step(None, [first]).state, missing_frames=2**63 - 1))
    together.take([(0, replace(first, sequence=SEQUENCE_MAX))])
    state = together.state(0)
    assert state is not None
    assert state.missing_frames == MISSING_FRAMES_MAX


def test_a_live_stream_needs_no_step_of_one_call() -> None:
    together = Together()
    batch = [(call, frame(f"s{call}", 0, b"", FrameKind.START)) for call in range(200)]
    together.take(batch)
    for sequence in range(1, 21):
        together.take([(call, frame(f"s{call}", sequence, PAYLOADS[call % 4])) for call in range(200)])
    assert together.heard_at_once == 4000


def test_a_cleared_row_keeps_nothing_of_its_last_call() -> None:
    together = Together()
    together.take([(0, frame("s", 0, b"", FrameKind.START)), (0, frame("s", 1, TONE))])
    together.voices.clear(0)
    together.take([(0, frame("s", 1, TONE))])
    assert together.state(0) == signals.step(None, [frame("s", 1, TONE)]).state
