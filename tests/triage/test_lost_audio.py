"""Time on the line without a stream is missing audio, and shows in the packet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatchai.audio import signals
from dispatchai.records import Assessment, AssessmentKind, AudioFrame, FrameKind, Signal, Track, TriageState, encode
from dispatchai.records.frame_decoder import MISSING_FRAMES_MAX
from dispatchai.triage.step import step
from tests.support.recorded_call import DEADLINE, RULES, T0, Record, S, event, speech_end, utterance

PCMU = b"\xff" * 160


def frames(
    stream: str, began_s: float, until_s: float, *, ended: bool = True, silent_s: float = 0.0, first: int = 1
) -> list[AudioFrame]:
    """The records of a stream whose socket opens at `began_s`, whose first frame comes `silent_s` later, and which
    closes at `until_s`."""

    def record(kind: FrameKind, sequence: int, at_s: float) -> AudioFrame:
        payload = PCMU if kind is FrameKind.FRAME else b""
        return AudioFrame(stream, kind, Track.INBOUND, sequence, T0 + round(at_s * S), "PCMU", 8000, payload, None)

    count = round((until_s - began_s - silent_s) / 0.02)
    heard = [record(FrameKind.FRAME, first + n, began_s + silent_s + 0.02 * n) for n in range(count)]
    end = [record(FrameKind.END, first + count, until_s)] if ended else []
    return [record(FrameKind.START, 0, began_s), *heard, *end]


def measured(*streams: list[AudioFrame]) -> tuple[Signal, ...]:
    """What the signals agent writes of the streams, one after the other."""
    return signals.step(None, [frame for stream in streams for frame in stream]).signals


def events(hangup_s: float | None, *extra: Record) -> list[Record]:
    over = [] if hangup_s is None else [event("call.hangup", hangup_s, hangup_cause="normal_clearing")]
    return [event("call.initiated", 0, direction="incoming"), event("call.answered", 1), *extra, *over]


def assessed(*topics: Sequence[Record]) -> Assessment:
    """The last assessment of the call."""
    state: TriageState | None = None
    made: list[Assessment] = []
    for topic in topics:
        for record in topic:
            stepped = step(state, [record], rules=RULES)
            state = stepped.state
            made.extend(stepped.assessments)
    return made[-1]


def ends(*streams: str) -> list[Record]:
    return [speech_end(stream=stream) for stream in streams]


def test_a_call_that_was_heard_throughout_lacks_nothing() -> None:
    packet = assessed(events(18), measured(frames("s1", 1.3, 17.9)), ends("s1"))
    assert (packet.complete, packet.degraded, packet.audio.missing_frames) == (True, None, 0)
    assert packet.summary == "No words were understood."


def test_the_time_between_two_streams_is_missing() -> None:
    packet = assessed(events(18), measured(frames("s1", 1.3, 8), frames("s2", 11.6, 17.9)), ends("s1", "s2"))
    assert packet.complete
    assert packet.audio.missing_frames == pytest.approx(180, abs=2)
    assert packet.degraded == "about 3.6 s of the caller's audio are missing: between two streams"


def test_an_absurd_count_of_missing_frames_is_shown_as_the_largest() -> None:
    signals = [replace(one, missing_frames=2**63 - 1) for one in measured(frames("s1", 1.3, 8))]
    packet = assessed(events(18), signals, ends("s1"))
    assert packet.audio.missing_frames == MISSING_FRAMES_MAX
    encode(packet)


def test_the_time_between_two_streams_shows_while_the_call_is_live() -> None:
    live = assessed(events(None), measured(frames("s1", 1.3, 8), frames("s2", 11.6, 14, ended=False)))
    assert live.kind is AssessmentKind.LIVE
    assert live.summary == "Listening…"
    assert live.degraded == "about 3.6 s of the caller's audio are missing: between two streams"


def test_the_time_after_a_stream_that_never_ended_is_missing() -> None:
    packet = assessed(
        events(18, event("streaming.started", 1.2)), measured(frames("s1", 1.3, 8, ended=False)), [DEADLINE]
    )
    assert packet.kind is AssessmentKind.FINAL
    assert not packet.complete
    # Of a stream without an END the last signal counts, which is at most a second old.
    assert 500 <= packet.audio.missing_frames <= 550
    assert packet.degraded is not None
    assert packet.degraded.endswith("s of the caller's audio are missing: before the hangup")


def test_the_time_before_a_late_first_stream_is_missing() -> None:
    packet = assessed(events(18), measured(frames("s1", 7, 17.9)), ends("s1"))
    assert packet.degraded == "about 6.0 s of the caller's audio are missing: at the start"
    assert packet.audio.missing_frames == 300


def test_a_socket_without_audio_is_no_audio() -> None:
    """A socket may open long before its first frame, or stay open long after its last."""
    late = frames("s1", 1.3, 17.9, silent_s=6)
    packet = assessed(events(18), measured(late), ends("s1"))
    assert packet.degraded == "about 6.3 s of the caller's audio are missing: at the start"
    stalled = frames("s1", 1.3, 10)
    stalled[-1] = replace(stalled[-1], captured_at=T0 + round(17.9 * S))
    packet = assessed(events(18), measured(stalled), ends("s1"))
    assert packet.degraded == "about 8.0 s of the caller's audio are missing: before the hangup"


def test_a_caller_who_was_never_heard_is_said_to_be() -> None:
    packet = assessed(events(13, DEADLINE))
    assert packet.degraded == "the caller was never heard: no audio came in during the 12.0 s of the call"
    assert packet.audio.missing_frames == 600
    assert packet.summary == "The caller was never heard: no audio came in."
    opened = assessed(events(13), measured(frames("s1", 1.3, 1.3)), ends("s1"))
    assert opened.complete
    assert opened.degraded == packet.degraded


def test_a_caller_who_hangs_up_unanswered_or_at_once_lacks_nothing() -> None:
    unanswered = assessed([event("call.initiated", 0), event("call.hangup", 20)])
    assert unanswered.degraded is None
    assert unanswered.summary == "The caller hung up before the call was answered."
    assert assessed(events(2.5, DEADLINE)).degraded is None


def test_frames_that_waited_in_a_frozen_gateway_are_not_missing() -> None:
    """They are recorded late, all at once, and all of them are there."""
    frozen = [replace(frame, captured_at=max(frame.captured_at, T0 + 9 * S)) for frame in frames("s1", 1.2, 17.9)]
    packet = assessed(events(18), measured(frozen), ends("s1"))
    assert (packet.degraded, packet.audio.missing_frames) == (None, 0)


def test_a_wrong_clock_of_the_gateway_loses_nothing() -> None:
    shifted = [replace(frame, captured_at=frame.captured_at + 600 * S) for frame in frames("s1", 1.2, 17.9)]
    packet = assessed(events(18), measured(shifted), ends("s1"))
    assert (packet.degraded, packet.audio.missing_frames) == (None, 0)


def test_streams_that_overlap_leave_no_gap() -> None:
    packet = assessed(events(18), measured(frames("s1", 1.3, 9), frames("s2", 8.5, 17.9)), ends("s1", "s2"))
    assert (packet.degraded, packet.audio.missing_frames) == (None, 0)


def test_frames_missing_in_the_numbers_of_a_stream_show_from_one_second_on() -> None:
    def without(count: int) -> Assessment:
        stream = frames("s1", 1.3, 17.9)
        return assessed(events(18), measured(stream[:100] + stream[100 + count :]), ends("s1"))

    assert (without(49).degraded, without(49).audio.missing_frames) == (None, 49)
    assert without(75).degraded == "about 1.5 s of the caller's audio are missing: within a stream"


def test_the_reason_of_the_carrier_stays_first() -> None:
    failed = event("streaming.failed", 8.1)
    packet = assessed(events(18, failed), measured(frames("s1", 1.3, 8)), ends("s1"))
    assert packet.degraded == (
        "the caller's audio does not come in: its stream failed; "
        "about 10.0 s of the caller's audio are missing: before the hangup"
    )


@settings(max_examples=50)
@given(st.data())
def test_the_missing_audio_follows_from_the_records_and_not_from_how_they_are_read(data: st.DataObject) -> None:
    topics: list[list[Record]] = [
        events(18),
        list(measured(frames("s1", 3.5, 8, ended=data.draw(st.booleans())), frames("s2", 11.6, 15))),
        [utterance(1, "He is not breathing."), *ends("s1", "s2")],
    ]
    whole = assessed(*topics, [DEADLINE])
    order = data.draw(st.permutations([number for number, topic in enumerate(topics) for _ in topic]))
    positions = [iter(topic) for topic in topics]
    mixed = [next(positions[number]) for number in order]
    again = data.draw(st.integers(0, len(topics[1])))
    packet = assessed(mixed, topics[1][again:], [DEADLINE])
    assert (packet.degraded, packet.audio) == (whole.degraded, whole.audio)


@pytest.mark.parametrize("ended", [True, False])
def test_a_state_of_a_version_that_did_not_record_the_times_claims_nothing(ended: bool) -> None:
    state: TriageState | None = None
    for record in [*events(None), *measured(frames("s1", 6, 8, ended=ended))]:
        state = step(state, [record], rules=RULES).state
    assert state is not None
    old = replace(state, signals=tuple(replace(one, began_at=None, heard_until=None) for one in state.signals))
    made = step(old, [event("call.hangup", 30), DEADLINE], rules=RULES).assessments
    assert made[-1].degraded is None
