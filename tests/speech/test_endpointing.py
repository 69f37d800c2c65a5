"""Where segments begin and end."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.speech.endpointing import HANG_MS, LEAD_IN_MS, LONGEST_MS, WINDOW_MS, Segment, Segmenter

WINDOW = 256


def run(probabilities: list[float]) -> tuple[list[Segment], Segmenter]:
    segmenter = Segmenter(8000)
    closed = []
    for number, probability in enumerate(probabilities):
        segment = segmenter.push(np.full(WINDOW, number, np.int16), probability)
        closed += [segment] if segment else []
    last = segmenter.finish()
    return closed + ([last] if last else []), segmenter


def test_speech_between_pauses_is_one_segment_with_its_lead_in() -> None:
    [segment], _ = run([0.0] * 30 + [0.9] * 40 + [0.0] * 30)
    assert segment.start == (30 - LEAD_IN_MS // WINDOW_MS) * WINDOW
    assert 70 * WINDOW < segment.end < (70 + HANG_MS // WINDOW_MS) * WINDOW
    assert len(segment.audio) == segment.end - segment.start


def test_a_click_opens_no_segment() -> None:
    segments, segmenter = run([0.0] * 20 + [0.9] * 2 + [0.0] * 20)
    assert segments == []
    assert segmenter.position - segmenter.covered <= (LEAD_IN_MS // WINDOW_MS + 1) * WINDOW


def test_a_pause_shorter_than_the_hang_does_not_split_a_sentence() -> None:
    segments, _ = run([0.9] * 20 + [0.0] * 10 + [0.9] * 20 + [0.0] * 30)
    assert len(segments) == 1


def test_endless_speech_is_cut_in_its_deepest_pause() -> None:
    windows = LONGEST_MS // WINDOW_MS
    dip = windows - 40
    segments, _ = run([0.9] * dip + [0.3] * 2 + [0.9] * windows)
    assert dip * WINDOW <= segments[0].end <= (dip + 3) * WINDOW


@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 1.0]), max_size=900))
def test_segments_do_not_overlap_are_in_order_and_have_the_audio_of_their_range(probabilities: list[float]) -> None:
    segments, segmenter = run(probabilities)
    assert segmenter.position == len(probabilities) * WINDOW
    end = 0
    for number, segment in enumerate(segments):
        assert segment.index == number
        assert end <= segment.start < segment.end <= segmenter.position
        assert segment.end - segment.start <= LONGEST_MS * 8
        expected = np.repeat(np.arange(segment.start // WINDOW, segment.end // WINDOW), WINDOW)
        assert np.array_equal(segment.audio, expected)
        end = segment.end
    assert end <= segmenter.covered


@given(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=40, max_size=300))
def test_loud_speech_is_always_in_a_segment(probabilities: list[float]) -> None:
    segments, _ = run(probabilities)
    for at in range(len(probabilities) - 2):
        if all(probability == 1.0 for probability in probabilities[at : at + 3]):
            assert any(s.start <= at * WINDOW and (at + 3) * WINDOW <= s.end for s in segments) or len(segments) > 1
