"""The verdict of a call that went well is good, and each way in which a crash could harm it is found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import aiokafka
import pytest
from aiokafka.structs import TopicPartition

from dispatchai.calls.events import EventType
from dispatchai.kafka.topics import Topic
from dispatchai.records import (
    AudioFrame,
    CallEvent,
    CallPacket,
    FrameKind,
    Signal,
    Track,
    Utterance,
    UtteranceKind,
    encode,
)
from dispatchai.simulator import (
    CallReport,
    CommandReport,
    HangupCause,
    HangupSource,
    Leg,
    StreamEnd,
    StreamReport,
    load,
)
from dispatchai.speech.engines import RECORDINGS
from tests.crash.oracle import Expected, expected
from tests.crash.recorded import Recorded
from tests.crash.verdict import Verdict, comparable, compare, run_differences, to_come
from tests.support.recorded_call import T0, S, event

STREAM = "S1"
FRAMES = 400
LEG = Leg.new("+15550101234", "+15550100911")
CALL = LEG.call_session_id
CHANGELOGS = {
    "call": "dispatchai-worker-calls-changelog",
    "signal_state": "dispatchai-worker-signals-changelog",
    "triage_state": "dispatchai-worker-triage-changelog",
    "speech_state": "dispatchai-speech-speech-changelog",
}


def call_events(*, deadline: bool = True) -> list[CallEvent]:
    events = [
        event(EventType.INITIATED, 0, direction="incoming"),
        event(EventType.ANSWERED, 1),
        event(EventType.STREAMING_STARTED, 1.2),
        event(EventType.STREAMING_STOPPED, 10),
        event(EventType.HANGUP, 10.1, hangup_cause="normal_clearing"),
    ]
    return [*events, event(EventType.DEADLINE, 30.1)] if deadline else events


def audio(*, end: bool = True, upto: int = FRAMES) -> list[AudioFrame]:
    said = load(RECORDINGS / "cardiac_arrest.wav")

    def frame(kind: FrameKind, sequence: int, payload: bytes = b"") -> AudioFrame:
        at = T0 + 2 * S + sequence * 20_000
        return AudioFrame(f"{STREAM}~1a2b3c4d", kind, Track.INBOUND, sequence, at, "PCMU", 8000, payload, None)

    frames = [frame(FrameKind.FRAME, number, said.frame(number - 1)) for number in range(1, upto + 1)]
    return [frame(FrameKind.START, 0), *frames, *([frame(FrameKind.END, upto + 1)] if end else [])]


REPORT = CallReport(
    leg=LEG,
    hangup_cause=HangupCause.NORMAL_CLEARING,
    hangup_source=HangupSource.CALLER,
    hung_up_at=0.0,
    streams=(StreamReport(STREAM, 0, FRAMES, (), FRAMES, 0.0, 0.02, StreamEnd.STOPPED),),
    failed_streams=0,
    commands=tuple(CommandReport(action, action, 1, 1) for action in ("answer", "streaming_start", "speak")),
    undelivered=(),
    webhook_answers_s=(),
    failure=None,
)


class Topics:
    """The topics of a run with one call. A test changes the records and then has them compared."""

    def __init__(self, events: Sequence[CallEvent], frames: Sequence[AudioFrame], wanted: Expected) -> None:
        self.wanted = wanted
        self.values: dict[str, list[Any]] = {
            Topic.CALL_EVENTS: list(events),
            Topic.AUDIO_FRAMES: list(frames),
            Topic.SIGNALS: list(wanted.signals),
            Topic.TRANSCRIPTS: list(wanted.utterances),
            Topic.DISPATCH_QUEUE: [wanted.packet],
            Topic.LIVE_CALLS: [None],
            Topic.DEAD_LETTERS: [],
            **{topic: [getattr(wanted, name)] for name, topic in CHANGELOGS.items()},
        }

    @property
    def recorded(self) -> Recorded:
        recorded = Recorded()
        for topic, values in self.values.items():
            for offset, value in enumerate(values):
                stored = None if value is None else encode(value)
                recorded.add(TopicPartition(topic, 0), record(topic, offset, stored))
        return recorded

    def verdict(self, report: CallReport = REPORT, lossy_from: Sequence[float] = ()) -> Verdict:
        return compare(self.recorded, {CALL: self.wanted}, [report], lossy_from=lossy_from)


def record(topic: str, offset: int, value: bytes | None) -> aiokafka.ConsumerRecord:
    return aiokafka.ConsumerRecord(topic, 0, offset, 0, 0, CALL.encode(), value, None, 0, 0, ())


@pytest.fixture
async def topics() -> Topics:
    return Topics(call_events(), audio(), await expected(CALL, call_events(), audio()))


async def test_a_call_that_went_well_is_good(topics: Topics) -> None:
    assert topics.verdict().problems == []
    assert topics.wanted.packet is not None
    assert topics.wanted.packet.complete
    assert "CARDIAC_ARREST" in topics.wanted.packet.nlp.tags
    assert topics.wanted.packet.audio.audio_seconds == FRAMES / 50
    assert list(to_come(topics.recorded, [REPORT])) == []


async def test_records_that_are_read_and_written_again_are_no_problem(topics: Topics) -> None:
    for topic in (Topic.SIGNALS, Topic.TRANSCRIPTS, Topic.DISPATCH_QUEUE, Topic.LIVE_CALLS):
        topics.values[topic] *= 2
    topics.values[Topic.TRANSCRIPTS] = [replace(each, recognized_at=T0) for each in topics.values[Topic.TRANSCRIPTS]]
    assert topics.verdict().problems == []


def frame_applied_twice(topics: Topics) -> None:
    signals: list[Signal] = topics.values[Topic.SIGNALS]
    signals[3:] = [replace(each, audio_ms=each.audio_ms + 20) for each in signals[3:]]


def signal_lost(topics: Topics) -> None:
    del topics.values[Topic.SIGNALS][2]


def signals_swapped(topics: Topics) -> None:
    signals: list[Signal] = topics.values[Topic.SIGNALS]
    signals[2], signals[3] = signals[3], signals[2]


def final_text_lost(topics: Topics) -> None:
    topics.values[Topic.TRANSCRIPTS] = [
        each for each in topics.values[Topic.TRANSCRIPTS] if not each.utterance_id.endswith(":1")
    ]


def final_text_doubled(topics: Topics) -> None:
    final: Utterance = next(each for each in topics.values[Topic.TRANSCRIPTS] if each.kind is UtteranceKind.FINAL)
    topics.values[Topic.TRANSCRIPTS].append(replace(final, utterance_id=f"{final.stream_id}:9"))


def final_text_changed(topics: Topics) -> None:
    topics.values[Topic.TRANSCRIPTS] = [
        replace(each, text="something else") if each.kind is UtteranceKind.FINAL else each
        for each in topics.values[Topic.TRANSCRIPTS]
    ]


def packet_lost(topics: Topics) -> None:
    topics.values[Topic.DISPATCH_QUEUE].clear()


def packet_without_its_last_words(topics: Topics) -> None:
    (packet,) = topics.values[Topic.DISPATCH_QUEUE]
    topics.values[Topic.DISPATCH_QUEUE] = [replace(packet, nlp=replace(packet.nlp, transcript="My husband"))]


def older_packet_over_the_last(topics: Topics) -> None:
    (packet,) = topics.values[Topic.DISPATCH_QUEUE]
    topics.values[Topic.DISPATCH_QUEUE] = [packet, replace(packet, version=packet.version - 1, complete=False)]


def two_packets_of_one_version(topics: Topics) -> None:
    (packet,) = topics.values[Topic.DISPATCH_QUEUE]
    topics.values[Topic.DISPATCH_QUEUE] = [replace(packet, summary="other"), packet]


def live_entry_left(topics: Topics) -> None:
    topics.values[Topic.LIVE_CALLS] = [None, topics.wanted.packet]


def snapshot_of_an_expelled_worker(topics: Topics) -> None:
    topic = CHANGELOGS["signal_state"]
    (state,) = topics.values[topic]
    topics.values[topic].append(replace(state, frames=state.frames - 50))


def webhook_acknowledged_and_lost(topics: Topics) -> None:
    topics.values[Topic.CALL_EVENTS] = [
        each for each in topics.values[Topic.CALL_EVENTS] if each.type != EventType.ANSWERED
    ]


def frame_not_recorded(topics: Topics) -> None:
    del topics.values[Topic.AUDIO_FRAMES][50]


def stream_without_an_end(topics: Topics) -> None:
    topics.values[Topic.AUDIO_FRAMES].pop()


def good_record_dead_lettered(topics: Topics) -> None:
    topics.values[Topic.DEAD_LETTERS].append(topics.values[Topic.CALL_EVENTS][0])


HARMS: dict[Callable[[Topics], None], str] = {
    frame_applied_twice: "audio_ms: expected",
    signal_lost: "1 signals are missing",
    signals_swapped: "signals are not written in the order of the frames",
    final_text_lost: "utterances are missing: FINAL",
    final_text_doubled: "should not be there",
    final_text_changed: "expected 'My husband",
    packet_lost: "no packet",
    packet_without_its_last_words: "packet nlp.transcript: expected",
    older_packet_over_the_last: "the last packet has version",
    two_packets_of_one_version: "two packets of version",
    live_entry_left: "its live entry was not removed",
    snapshot_of_an_expelled_worker: "state of signals: frames: expected 400, found 350",
    webhook_acknowledged_and_lost: "1 webhooks call.answered were sent, 0 given up, 0 are recorded",
    frame_not_recorded: "1 frames from 50 to 50 were sent and are not recorded",
    stream_without_an_end: "1 START and 0 END",
    good_record_dead_lettered: "1 dead letters",
}


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
async def test_every_harm_of_a_crash_is_found(topics: Topics, harm: Callable[[Topics], None]) -> None:
    harm(topics)
    found = [str(problem) for problem in topics.verdict().problems]
    assert any(HARMS[harm] in problem for problem in found), found


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        (replace(REPORT, failure="nobody answered"), "the carrier says: nobody answered"),
        (
            replace(REPORT, commands=(*REPORT.commands[:2], replace(REPORT.commands[2], effects=2))),
            "speak speak had 2 effects",
        ),
        (replace(REPORT, leg=Leg.new("+15550101235", "+15550100911")), "nothing is recorded of it"),
    ],
)
async def test_a_problem_that_only_the_carrier_knows_is_found(topics: Topics, report: CallReport, problem: str) -> None:
    assert problem in [each.text for each in topics.verdict(report).problems]


async def test_only_the_tail_of_a_stream_that_a_killed_gateway_cut_off_may_be_missing() -> None:
    frames = audio(end=False, upto=300)
    cut_off = Topics(call_events(), frames, await expected(CALL, call_events(), frames))
    sent = replace(REPORT, streams=(replace(REPORT.streams[0], end=StreamEnd.LOST),))
    assert cut_off.verdict(sent, [5.5]).problems == []
    assert cut_off.verdict(sent, [6.5]).problems != [], "frames from before the kill are not the gateway's to lose"
    assert cut_off.wanted.packet is not None
    assert not cut_off.wanted.packet.complete

    assert [each.text for each in cut_off.verdict(sent).problems] == [
        f"stream {STREAM}: 100 frames from 301 to 400 were sent and are not recorded",
        f"stream {STREAM}: 1 START and 0 END are recorded",
    ]
    del cut_off.values[Topic.AUDIO_FRAMES][100]
    problems = [each.text for each in cut_off.verdict(sent, [5.5]).problems]
    assert f"stream {STREAM}: 1 frames from 100 to 100 were sent and are not recorded" in problems


async def test_a_run_goes_on_until_the_deadline_of_each_call_is_recorded() -> None:
    events = call_events(deadline=False)
    topics = Topics(events, audio(), await expected(CALL, events, audio()))
    assert list(to_come(topics.recorded, [REPORT])) == [f"call {CALL}: its deadline is not recorded"]


async def test_two_runs_share_a_packet_except_for_ids_and_times(topics: Topics) -> None:
    packet = topics.wanted.packet
    assert isinstance(packet, CallPacket)
    later = replace(packet, call_id="other", call_control_id="v3:other", started_at=1, answered_at=2, ended_at=3)
    assert list(run_differences({"+1": packet}, {"+1": later})) == []
    assert comparable(packet) != comparable(replace(packet, risk=replace(packet.risk, score=0.5)))
    assert list(run_differences({"+1": packet}, {})) == ["caller +1: no packet, unlike in the undisturbed run"]
