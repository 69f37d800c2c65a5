"""Whether a run is right: compares the records in Kafka with those that the oracle expects, field by field.

Decides what counts as a difference, and which fields are times of processing and not compared. Pure.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dispatchai.app import SPEECH, WORKER
from dispatchai.calls.events import OWN_EVENTS, EventType
from dispatchai.kafka.topics import Topic
from dispatchai.records import (
    AudioFrame,
    CallEvent,
    CallPacket,
    CallState,
    FrameKind,
    Signal,
    SignalState,
    SpeechState,
    Track,
    TriageState,
    Utterance,
    UtteranceKind,
    decode_as,
)
from dispatchai.simulator import CallReport, StreamReport
from tests.crash.oracle import Expected
from tests.crash.recorded import Recorded
from tests.support.recorded_run import carriers_id, command_differences

PROCESSING_TIMES: Final = {"recognized_at", "as_of"}
"""Times of processing, which are not compared in states and utterances. A packet has neither."""

ONE_RUN_ONLY: Final = {
    "call_id",
    "call_control_id",
    "utterance_id",
    "started_at",
    "answered_at",
    "ended_at",
    "created_at",
    "duration_seconds",
}
"""Fields that differ between two runs of one seed: ids that the carrier draws, and times of the call. The length of a
call includes the time until it was answered."""

SHOWN: Final = 3
"""How many differences of one kind are shown for a call."""

SLACK_S: Final = 1.0
"""How long a frame may be in flight: linger, acknowledgement, and the delay of a busy machine."""

VALUE_SHOWN: Final = 200
"""How many characters of a value are shown."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A difference. `about` is a call id, or empty if it concerns no single call."""

    text: str
    about: str = ""

    def __str__(self) -> str:
        return f"call {self.about}: {self.text}" if self.about else self.text

    @property
    def kind(self) -> str:
        """The text without ids and numbers, which differ from call to call."""
        return _PARTICULAR.sub("…", self.text)


_PARTICULAR: Final = re.compile(r"'[^']*'|\b[\w-]*\d[\w.:~-]*")


@dataclass(slots=True)
class Verdict:
    """The result of a comparison. A run is good if there are no `problems`."""

    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    """Counts of things that are allowed, such as records written twice with the same content."""

    @property
    def good(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def add(self, texts: Iterable[str], about: str = "") -> None:
        """Add `problems` about a call."""
        self.problems.extend(Problem(text, about) for text in texts)


def to_come(recorded: Recorded, reports: Iterable[CallReport]) -> Iterator[str]:
    """The records that are still to come of the calls themselves: each of them gets a deadline."""
    for report in reports:
        call_id = report.leg.call_session_id
        kinds = {event.type for event in recorded.values(Topic.CALL_EVENTS, call_id, CallEvent)}
        if EventType.DEADLINE not in kinds:
            yield f"call {call_id}: its deadline is not recorded"


def compare(
    recorded: Recorded,
    expected: Mapping[str, Expected],
    reports: Sequence[CallReport],
    *,
    lossy_from: Sequence[float],
) -> Verdict:
    """Compare the records of the calls of `reports` in `recorded` with those that are `expected`.

    `lossy_from` has for each kill of the gateway the time, in seconds since the epoch, from which it may have held
    frames that Kafka did not have and that were lost with it.
    """
    verdict = Verdict()
    for report in reports:
        call_id = report.leg.call_session_id
        wanted = expected.get(call_id)
        if wanted is None:
            verdict.add(["nothing is recorded of it"], call_id)
            continue
        for found in (
            _carrier(report),
            _webhooks(report, recorded),
            _frames(report, recorded, verdict.notes, lossy_from=lossy_from),
            _signals(wanted, recorded, verdict.notes),
            _transcripts(wanted, recorded, verdict.notes),
            _packets(wanted, recorded, verdict.notes),
            _live(wanted, recorded),
            _states(wanted, recorded),
        ):
            verdict.add(found, call_id)
    strangers = set(recorded.call_ids(Topic.DISPATCH_QUEUE)) - {report.leg.call_session_id for report in reports}
    verdict.add(f"a packet of {call_id}, who never called" for call_id in sorted(strangers))
    if count := sum(1 for _ in recorded.of(Topic.DEAD_LETTERS)):
        verdict.add([f"{count} dead letters, of good records"])
    return verdict


def without(value: Any, names: Iterable[str]) -> Any:
    """`value` as plain values, without the fields `names` at any depth."""
    left_out = frozenset(names)

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {
                each.name: plain(getattr(item, each.name))
                for each in dataclasses.fields(item)
                if each.name not in left_out
            }
        if isinstance(item, tuple | list):
            return [plain(each) for each in item]
        return item

    return plain(value)


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """The differences between two plain values, one line each, with the path to each."""
    match wanted, found:
        case dict(), dict():
            for name in wanted:
                yield from differences(wanted[name], found.get(name), f"{path}.{name}" if path else name)
        case list(), list() if len(wanted) == len(found):
            for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
                yield from differences(one, other, f"{path}[{number}]")
        case list(), list():
            yield f"{path}: expected {len(wanted)} items, found {len(found)}"
        case _ if wanted != found:
            yield f"{path}: expected {_short(wanted)}, found {_short(found)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_SHOWN else f"{text[:VALUE_SHOWN]}…"


# ---- what the carrier saw and sent -------------------------------------------------------------------------------


def _carrier(report: CallReport) -> Iterator[str]:
    if report.failure is not None:
        yield f"the carrier says: {report.failure}"
    yield from command_differences(report)


def _webhooks(report: CallReport, recorded: Recorded) -> Iterator[str]:
    """Every event that the gateway acknowledged is recorded: all events of the carrier except those that it gave up."""
    effects = Counter[str]()
    for command in report.commands:
        effects[command.action] += command.effects
    posted = Counter(
        {
            EventType.INITIATED.value: 1,
            EventType.ANSWERED.value: effects["answer"],
            EventType.STREAMING_STARTED.value: len(report.streams),
            EventType.STREAMING_FAILED.value: report.failed_streams,
            EventType.HANGUP.value: 1,
        }
    )
    ids: dict[str, set[str]] = defaultdict(set)
    for event in recorded.values(Topic.CALL_EVENTS, report.leg.call_session_id, CallEvent):
        if not event.type.startswith(OWN_EVENTS):
            ids[event.type].add(event.event_id)
    given_up = Counter(report.undelivered)
    for kind, count in posted.items():
        if not count - given_up[kind] <= len(ids[kind]) <= count:
            yield f"{count} webhooks {kind} were sent, {given_up[kind]} given up, {len(ids[kind])} are recorded"
    # A stream that did not fail was stopped, and one that was never opened failed.
    ends = len(ids[EventType.STREAMING_STOPPED]) + len(ids[EventType.STREAMING_FAILED])
    if ends + given_up[EventType.STREAMING_STOPPED] + given_up[EventType.STREAMING_FAILED] < len(report.streams):
        yield f"of {len(report.streams)} streams {ends} ends are recorded"


def _frames(
    report: CallReport, recorded: Recorded, notes: Counter[str], *, lossy_from: Sequence[float]
) -> Iterator[str]:
    """Every frame that was sent is recorded, except those that the line lost and the tail of a stream that was cut
    off."""
    records: dict[str, list[AudioFrame]] = defaultdict(list)
    for frame in recorded.values(Topic.AUDIO_FRAMES, report.leg.call_session_id, AudioFrame):
        if frame.track is Track.INBOUND:
            records[carriers_id(frame.stream_id)].append(frame)
    sent = {stream.stream_id: stream for stream in report.streams}
    for stream_id in records.keys() - sent.keys():
        yield f"stream {stream_id} is recorded and was never sent"
    for stream_id, stream in sent.items():
        yield from _stream_frames(stream, records[stream_id], notes, lossy_from=lossy_from)


def _stream_frames(
    sent: StreamReport, records: Sequence[AudioFrame], notes: Counter[str], *, lossy_from: Sequence[float]
) -> Iterator[str]:
    numbers = [frame.sequence for frame in records if frame.kind is FrameKind.FRAME]
    notes["frames recorded twice"] += len(numbers) - len(set(numbers))
    due = set(range(1, sent.chunks + 1)) - set(sent.lost)
    if surplus := set(numbers) - due:
        yield f"stream {sent.stream_id}: {len(surplus)} frames are recorded that were never sent"
    missing = due - set(numbers)
    tail = {number for number in missing if number > max(numbers, default=0)}
    cut_off = False
    if tail or not any(frame.kind is FrameKind.END for frame in records):
        ended_at = sent.first_due_at + (min(tail, default=sent.chunks + 1) - 1) * sent.frame_s
        over_at = sent.first_due_at + sent.chunks * sent.frame_s
        # Sent to the gateway that was killed, or held by it: after the time from which it held frames, and sent at most
        # a little before the kill.
        cut_off = any(since <= ended_at and over_at >= since - SLACK_S for since in lossy_from)
    if cut_off:
        notes["frames that died with a gateway"] += len(tail)
        missing -= tail
    if missing:
        first, last = min(missing), max(missing)
        yield f"stream {sent.stream_id}: {len(missing)} frames from {first} to {last} were sent and are not recorded"
    kinds = Counter(frame.kind for frame in records)
    if not cut_off and (not kinds[FrameKind.START] or not kinds[FrameKind.END]):
        yield f"stream {sent.stream_id}: {kinds[FrameKind.START]} START and {kinds[FrameKind.END]} END are recorded"
    elif cut_off and not kinds[FrameKind.END]:
        notes["streams without an end"] += 1


# ---- what was made of it -----------------------------------------------------------------------------------------


def _signals(wanted: Expected, recorded: Recorded, notes: Counter[str]) -> Iterator[str]:
    """Each signal is the one that the step makes at its frame, none is missing, and their first records are in order:
    then the figures contain each frame once."""
    by_place = {(each.stream_id, each.kind, each.sequence): each for each in wanted.signals}
    found: dict[tuple[str, str, int], None] = {}
    wrong: list[str] = []
    for each in recorded.values(Topic.SIGNALS, wanted.call_id, Signal):
        place = (each.stream_id, each.kind, each.sequence)
        if place not in by_place:
            wrong.append(f"a signal {each.kind} at frame {each.sequence} that should not be there")
        elif each != by_place[place]:
            lines = differences(without(by_place[place], ()), without(each, ()))
            wrong.append(f"signal {each.kind} at frame {each.sequence}: {'; '.join(lines)}")
        notes["signals written twice"] += place in found
        found.setdefault(place)
    if [place for place in by_place if place in found] != [place for place in found if place in by_place]:
        wrong.append("signals are not written in the order of the frames")
    if missing := by_place.keys() - found:
        wrong.append(f"{len(missing)} signals are missing, the first at frame {min(place[2] for place in missing)}")
    yield from _some(wrong)


def _transcripts(wanted: Expected, recorded: Recorded, notes: Counter[str]) -> Iterator[str]:
    """Each utterance is the one that the recogniser hears in the recorded frames, and none is missing."""
    by_place = {(each.utterance_id, each.kind, each.revision): each for each in wanted.utterances}
    found: set[tuple[str, str, int]] = set()
    wrong: list[str] = []
    for each in recorded.values(Topic.TRANSCRIPTS, wanted.call_id, Utterance):
        place = (each.utterance_id, each.kind, each.revision)
        if place not in by_place:
            wrong.append(f"{each.kind} {each.utterance_id} revision {each.revision} should not be there")
        elif lines := list(differences(without(by_place[place], PROCESSING_TIMES), without(each, PROCESSING_TIMES))):
            wrong.append(f"{each.kind} {each.utterance_id} revision {each.revision}: {'; '.join(lines)}")
        notes[f"{each.kind} utterances written twice"] += place in found
        found.add(place)
    missing = [place for place in by_place if place not in found]
    # Of partials only the last one of an utterance without a final matters in the end.
    final_ids = {each.utterance_id for each in wanted.utterances if each.kind is UtteranceKind.FINAL}
    needed = [each for each in missing if each[1] != UtteranceKind.PARTIAL or each[0] not in final_ids]
    if needed:
        wrong.append(f"utterances are missing: {', '.join(f'{kind} {name}' for name, kind, _ in needed[:SHOWN])}")
    yield from _some(wrong)


def _packets(wanted: Expected, recorded: Recorded, notes: Counter[str]) -> Iterator[str]:
    packets = recorded.values(Topic.DISPATCH_QUEUE, wanted.call_id, CallPacket)
    if wanted.packet is None or not packets:
        if wanted.packet is not None or packets:
            yield "no packet" if wanted.packet is not None else f"{len(packets)} packets where there should be none"
        return
    yield from _some([f"packet {line}" for line in differences(without(wanted.packet, ()), without(packets[-1], ()))])
    versions = [each.version for each in packets]
    if max(versions) != versions[-1]:
        yield f"the last packet has version {versions[-1]}, an earlier one {max(versions)}"
    # A packet of a call that is not complete has an even version, and may be replaced under that version.
    contents: dict[int, CallPacket] = {}
    for each in packets:
        if each.complete and contents.setdefault(each.version, each) != each:
            lines = differences(without(contents[each.version], ()), without(each, ()))
            yield f"two packets of version {each.version} differ: {'; '.join(list(lines)[:SHOWN])}"
    notes["packets after the first of their call"] += len(packets) - 1


def _live(wanted: Expected, recorded: Recorded) -> Iterator[str]:
    entries = recorded.stored(Topic.LIVE_CALLS, wanted.call_id)
    if wanted.packet is not None and (not entries or entries[-1].value is not None):
        yield "its live entry was not removed" if entries else "it never had a live entry, nor its tombstone"


def _states(wanted: Expected, recorded: Recorded) -> Iterator[str]:
    """The last snapshots are the states that the steps end with."""
    yield from _state("calls", wanted.call, wanted, recorded, CallState)
    yield from _state("signals", wanted.signal_state, wanted, recorded, SignalState)
    yield from _state("speech", wanted.speech_state, wanted, recorded, SpeechState)
    yield from _state("triage", wanted.triage_state, wanted, recorded, TriageState)


def _state(name: str, state: Any, wanted: Expected, recorded: Recorded, kind: type) -> Iterator[str]:
    stored = _last(_changelog(name), wanted.call_id, recorded)
    if stored is None:
        if state is not None:
            yield f"no snapshot of {name}"
        return
    lines = differences(without(state, PROCESSING_TIMES), without(decode_as(kind, stored), PROCESSING_TIMES))
    yield from _some([f"state of {name}: {line}" for line in lines])


def _changelog(name: str) -> str:
    return f"{SPEECH if name == 'speech' else WORKER}-{name}-changelog"


def _last(topic: str, call_id: str, recorded: Recorded) -> bytes | None:
    stored = recorded.stored(topic, call_id)
    return stored[-1].value if stored else None


def _some(lines: list[str]) -> Iterator[str]:
    yield from lines[:SHOWN]
    if len(lines) > SHOWN:
        yield f"and {len(lines) - SHOWN} more of this kind"


# ---- against another run -----------------------------------------------------------------------------------------


def comparable(packet: CallPacket) -> Any:
    """The fields of a packet that two runs of one seed must share."""
    return without(packet, ONE_RUN_ONLY)


def run_differences(undisturbed: Mapping[str, CallPacket], found: Mapping[str, CallPacket]) -> Iterator[str]:
    """The differences between the packets of a run and those of the undisturbed run, both by the caller's number."""
    for number, wanted in undisturbed.items():
        if number not in found:
            yield f"caller {number}: no packet, unlike in the undisturbed run"
            continue
        for line in _some(list(differences(comparable(wanted), comparable(found[number])))):
            yield f"caller {number}, against the undisturbed run: {line}"
