"""The decoder of frames in columns reads what the codec reads, and leaves other records to the codec."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from dispatchai.records import AudioFrame, FrameKind, Track, decode_as, encode
from dispatchai.records.frame_decoder import ENCODINGS, SEQUENCE_MAX, STREAM_BYTES, decode_frames, stream_key
from tests.records.examples import RECORD_NAMES, example, record_class

FRAMES = st.builds(
    AudioFrame,
    stream_id=st.text(max_size=STREAM_BYTES),
    kind=st.sampled_from(FrameKind),
    track=st.sampled_from(Track),
    sequence=st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 100_000),
    captured_at=st.integers(0, (1 << 62)) | st.integers(1_779_233_415_000_000, 1_779_233_420_000_000),
    encoding=st.sampled_from([*sorted(ENCODINGS), "G722", "", "PCMUU", "L16LE"]),
    sample_rate=st.sampled_from([8000, 16_000, 0, -1, (1 << 31) - 1]),
    payload=st.binary(max_size=40) | st.sampled_from([80, 160, 640, 9000]).map(bytes),
    detail=st.none() | st.text(max_size=5),
)


def read(values: list[bytes]) -> list[AudioFrame | None]:
    """The frame in each value; None for a value that is left to the codec. Raises UnicodeDecodeError."""
    columns = decode_frames(values)
    assert len(columns) == len(values)
    found: list[AudioFrame | None] = [None] * len(values)
    for run in columns.runs:
        for index, row in enumerate(run.rows):
            found[row] = AudioFrame(
                stream_id=bytes(columns.stream[row]).rstrip(b"\0").decode(),
                kind=FrameKind.FRAME,
                track=Track.INBOUND if columns.inbound[row] else Track.OUTBOUND,
                sequence=int(columns.sequence[row]),
                captured_at=int(columns.captured_at[row]),
                encoding=run.encoding,
                sample_rate=run.sample_rate,
                payload=run.payloads[index].tobytes(),
                detail=None,
            )
    assert [frame is not None for frame in found] == columns.plain.tolist()
    return found


def is_usual(frame: AudioFrame) -> bool:
    """Whether a gateway writes such a frame for a live stream."""
    name = frame.stream_id.encode()
    return (
        frame.kind is FrameKind.FRAME
        and frame.detail is None
        and frame.encoding in ENCODINGS
        and len(name) <= STREAM_BYTES
        and b"\0" not in name
        and 0 <= frame.sequence <= SEQUENCE_MAX
        and frame.captured_at < 1 << 54
    )


@given(st.lists(FRAMES, max_size=20))
def test_frames_are_read_as_by_the_codec_and_all_usual_ones_in_columns(frames: list[AudioFrame]) -> None:
    for frame, found in zip(frames, read([encode(frame) for frame in frames]), strict=True):
        assert found == frame or (found is None and not is_usual(frame))


@given(st.lists(FRAMES, min_size=1, max_size=6), st.data())
def test_broken_bytes_that_the_codec_refuses_are_not_read(frames: list[AudioFrame], data: st.DataObject) -> None:
    values = [bytearray(encode(frame)) for frame in frames]
    for value in values:
        for _ in range(data.draw(st.integers(0, 3))):
            value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del value[data.draw(st.integers(0, len(value))) :]
    with suppress(UnicodeDecodeError):  # the codec refuses what is not UTF-8; so does whoever asks for the name
        for value, found in zip(values, read([bytes(value) for value in values]), strict=True):
            assert found is None or found == decode_as(AudioFrame, bytes(value))


def test_live_streams_of_many_calls_are_read_whatever_their_frame_numbers() -> None:
    frames = [
        AudioFrame(f"stream-{call}~x", FrameKind.FRAME, track, sequence, 1_779_233_415_000_000 + sequence, codec, 8000,
                   bytes([call]) * size, None)
        for call in range(12)
        for sequence in (1, 63, 64, 8191, 8192, 1 << 30)
        for track in Track
        for codec, size in (("PCMU", 160), ("L16", 320))
    ]  # fmt: skip
    assert read([encode(frame) for frame in frames]) == frames


def test_records_of_other_types_are_left_to_the_codec() -> None:
    values = [encode(example(record_class(name))) for name in RECORD_NAMES if name != "AudioFrame"]
    assert not decode_frames([*values, b"", b"\xc3\x01", bytes(200)]).plain.any()
    assert len(decode_frames([])) == 0


def test_a_stream_is_found_by_its_key() -> None:
    frame = AudioFrame("ström~1", FrameKind.FRAME, Track.INBOUND, 1, 1, "PCMU", 8000, bytes(160), None)
    key = stream_key("ström~1")
    assert key is not None
    assert (decode_frames([encode(frame)]).stream[0] == key).all()
    assert stream_key("x" * (STREAM_BYTES + 1)) is None
    assert stream_key("x\0") is None
