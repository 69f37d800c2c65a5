"""Records of many calls that were read together become each call's frames, in order, live ones in runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from dispatchai.records import AudioFrame, FrameKind, Track, encode
from dispatchai.records.frame_decoder import decode_frame
from dispatchai.speech.frame_runs import FrameBatch, Input
from dispatchai.speech.session import FrameRun
from tests.speech.audio import record


@dataclass
class Stored:
    """A record as it was read."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 0


def stored(frames: Iterable[tuple[str, AudioFrame]]) -> list[Stored]:
    return [Stored(100 + number, call.encode(), encode(frame)) for number, (call, frame) in enumerate(frames)]


def inputs(records: Sequence[Stored]) -> dict[bytes, list[Input]]:
    """The inputs of each call, where every record that is not in a run is good."""
    batch = FrameBatch(records)
    decoded = [(one, decode_frame(one.value or b"")) for one in batch.others]
    return {key: call.inputs for key, call in batch.by_call(decoded).items()}


def audio(sequence: int, size: int = 160, **fields: object) -> AudioFrame:
    return replace(record(FrameKind.FRAME, sequence, bytes([sequence % 256]) * size), **fields)  # type: ignore[arg-type]


def flat(heard: Iterable[Input]) -> list[tuple[str, int, bytes, str]]:
    """Each frame of the caller that a session is handed."""
    frames = []
    for one in heard:
        match one.heard:
            case FrameRun() as run:
                assert run.track is Track.INBOUND
                frames += [
                    (run.stream_id, number, payload, run.encoding)
                    for number, payload in zip(run.sequences, run.payloads, strict=True)
                ]
            case AudioFrame(track=Track.INBOUND) as frame:
                frames.append((frame.stream_id, frame.sequence, frame.payload, frame.encoding))
    return frames


def test_frames_of_a_stream_are_one_run_though_another_calls_lie_between_them() -> None:
    records = stored((call, audio(number)) for number in (1, 2, 3) for call in ("a", "b"))
    found = inputs(records)
    assert [len(one) for one in found.values()] == [1, 1]
    [of_a], [of_b] = found.values()
    assert (of_a.sequences, of_a.offset) == ([1, 2, 3], 100)
    assert (of_b.sequences, of_b.offset) == ([1, 2, 3], 101)


def test_a_start_or_another_stream_or_another_length_ends_a_run() -> None:
    frames = [audio(1), record(FrameKind.START, 0), audio(2), audio(3, stream_id="s2"), audio(4), audio(5, size=80)]
    found = inputs(stored(("a", frame) for frame in frames))
    assert [one.sequences for one in found[b"a"]] == [[1], (0,), [2], [3], [4], [5]]
    assert [one.offset for one in found[b"a"]] == [100, 101, 102, 103, 104, 105]


def test_records_that_are_no_frames_are_left_to_the_caller_and_are_in_no_call() -> None:
    records = [
        Stored(1, b"a", b"no record"),
        Stored(2, None, encode(audio(1))),
        Stored(3, b"\xff", encode(audio(1))),
        Stored(4, b"a", None),
        Stored(5, b"a", encode(record(FrameKind.END, 2))),
        Stored(6, b"a", encode(audio(1))),
    ]
    batch = FrameBatch(records)
    assert [one.offset for one in batch.others] == [1, 2, 3, 4, 5]
    end = records[4]
    found = batch.by_call([(end, decode_frame(end.value or b""))])
    assert [one.offset for one in found[b"a"].records] == [5, 6]
    assert found.keys() == {b"a"}


def test_the_dispatchers_own_voice_is_in_no_run() -> None:
    found = inputs(
        stored([("a", audio(1, track=Track.OUTBOUND)), ("a", audio(1)), ("b", audio(1, track=Track.OUTBOUND))])
    )
    assert {key: [one.sequences for one in heard] for key, heard in found.items()} == {b"a": [[1]]}


frames = st.builds(
    AudioFrame,
    stream_id=st.sampled_from(["s1", "s2", "long" * 20]),
    kind=st.sampled_from([FrameKind.FRAME, FrameKind.FRAME, FrameKind.FRAME, FrameKind.START, FrameKind.END]),
    track=st.sampled_from([Track.INBOUND, Track.INBOUND, Track.OUTBOUND]),
    sequence=st.integers(0, 300),
    captured_at=st.just(1_772_567_551_000_000),
    encoding=st.sampled_from(["PCMU", "PCMU", "L16", "G729"]),
    sample_rate=st.sampled_from([8000, 16_000]),
    payload=st.sampled_from([b"", bytes(range(160)), bytes(80)]),
    detail=st.none() | st.just("why"),
)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), frames), max_size=40))
def test_each_session_is_handed_the_callers_frames_as_they_were_recorded(sent: list[tuple[str, AudioFrame]]) -> None:
    found = inputs(stored(sent))
    for call in ("a", "b"):
        expected = [
            (frame.stream_id, frame.sequence, frame.payload, frame.encoding)
            for name, frame in sent
            if name == call and frame.track is Track.INBOUND
        ]
        assert flat(found.get(call.encode(), [])) == expected
