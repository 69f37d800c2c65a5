"""The encoder of frames writes the bytes that the codec writes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatchai.records import AudioFrame, FrameKind, Track, decode_as, encode
from dispatchai.records.frame_encoder import FrameEncoder


@given(
    st.builds(
        AudioFrame,
        stream_id=st.text(max_size=300),
        kind=st.just(FrameKind.FRAME),
        track=st.sampled_from(Track),
        sequence=st.integers(0, 1 << 40),
        captured_at=st.integers(0, 1 << 62),
        encoding=st.sampled_from(["PCMU", "PCMA", "L16", "L16BE"]),
        sample_rate=st.sampled_from([8000, 16_000]),
        payload=st.binary(max_size=300) | st.integers(0, 70_000).map(bytes),
        detail=st.none(),
    )
)
def test_each_byte_is_that_of_the_codec(frame: AudioFrame) -> None:
    encoder = FrameEncoder(frame.stream_id, frame.encoding, frame.sample_rate)
    record = encoder.encode(frame.track, frame.sequence, frame.captured_at, frame.payload)
    assert record == encode(frame)
    assert decode_as(AudioFrame, record) == frame


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Track),
            st.integers(0, 1 << 40),
            st.integers(0, 1 << 62)
            | st.integers(1_779_233_415_000_000, 1_779_233_420_000_000)
            | st.integers(0, 1 << 22),
            st.sampled_from([0, 1, 63, 64, 160, 792, 8191, 8192]).map(bytes),
        ),
        max_size=20,
    )
)
def test_a_frame_is_encoded_alike_whatever_was_encoded_before(
    frames: list[tuple[Track, int, int, bytes]],
) -> None:
    encoder = FrameEncoder("s", "PCMU", 8000)
    for track, sequence, at, payload in frames:
        frame = AudioFrame("s", FrameKind.FRAME, track, sequence, at, "PCMU", 8000, payload, None)
        assert encoder.encode(track, sequence, at, payload) == encode(frame)
