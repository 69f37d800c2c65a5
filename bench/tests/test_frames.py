"""The records of a measurement are those of the program, and its arrivals those of real calls."""

from itertools import islice
from pathlib import Path
from random import Random

import pytest

from bench.arrivals import Arrivals, fit_gaps
from bench.frames import FRAME_BYTES, Call
from dispatchai.records import AudioFrame, FrameKind, Track, decode_as, encode
from dispatchai.records.avro_primitives import encode_long
from tests.support.callers import CALLERS
from tests.support.report import quantile, write_section

AT = 1_772_567_551_000_000


@pytest.mark.parametrize("number", range(len(CALLERS)))
def test_a_frame_is_byte_for_byte_what_the_codec_writes(number: int) -> None:
    call = Call("call-1", number)
    for sequence in range(1, 9000, 1):
        value = call.frame(encode_long(AT + sequence))
        if sequence in (1, 63, 64, 8191, 8192):
            frame = decode_as(AudioFrame, value)
            assert encode(frame) == value
            assert (frame.sequence, frame.captured_at, frame.stream_id) == (sequence, AT + sequence, call.stream_id)
            assert (frame.kind, frame.track, len(frame.payload)) == (FrameKind.FRAME, Track.INBOUND, FRAME_BYTES)


def test_a_call_is_opened_and_closed_around_its_frames() -> None:
    call = Call("call-1", 0)
    start = decode_as(AudioFrame, call.start(AT))
    call.frame(encode_long(AT))
    end = decode_as(AudioFrame, call.end(AT))
    assert (start.kind, start.sequence, end.kind, end.sequence) == (FrameKind.START, 0, FrameKind.END, 2)


def test_about_as_many_calls_are_live_as_requested() -> None:
    live, ramp_s, at_s = 500, 10.0, 300.0
    plan = islice(Arrivals.load().plan(live, ramp_s, Random(7)), 5000)
    going_on = sum(call.at_s <= at_s < call.at_s + call.length_s for call in plan)
    assert going_on == pytest.approx(live, rel=0.15)


def test_the_fitted_gaps_do_not_depend_on_the_hour_of_the_day() -> None:
    busy = [number * 36.0 for number in range(100)]
    quiet = [3600.0 + number * 360.0 for number in range(11)]
    gaps = fit_gaps([*busy, *quiet])
    assert gaps[0] == gaps[10] == pytest.approx(1.0)


def test_a_quantile_is_one_of_the_values() -> None:
    assert [quantile([3.0, 1.0, 2.0], part) for part in (0.0, 0.5, 0.99, 1.0)] == [1.0, 2.0, 3.0, 3.0]


def test_a_section_replaces_its_own_lines_only(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    for name, text in (("one", "first"), ("two", "second"), ("one", "again")):
        write_section(name, text, page)
    content = page.read_text()
    assert "first" not in content
    assert content.index("again") < content.index("second")
