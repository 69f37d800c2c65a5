"""The values of the topics and tables, as frozen dataclasses.

Each class mirrors the Avro record of its name in `schemas/`, where every field is documented; a test compares the two.
Times are microseconds since the Unix epoch, UTC.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeVar

from dispatchai.resources import data_path

Micros = int
"""Microseconds since the Unix epoch, UTC."""

T = TypeVar("T")


def _in_schema_order(cls: type[T]) -> type[T]:
    """`cls`, a dataclass, with its fields in the order of its schema, which JSON shows: inherited ones come first."""
    schema = json.loads((data_path("schemas") / f"{cls.__name__}.avsc").read_text(encoding="utf-8"))
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    cls.__dataclass_fields__ = {field["name"]: known[field["name"]] for field in schema["fields"]}  # type: ignore[attr-defined]
    return cls


@dataclass(frozen=True, slots=True)
class CallEvent:
    """One webhook of a call as the carrier sent it, or one fact that the calls agent recorded (type dispatchai.*)."""

    event_id: str
    type: str
    occurred_at: Micros
    received_at: Micros
    call_control_id: str
    from_number: str | None
    to_number: str | None
    attempt: int
    payload: bytes


class FrameKind(StrEnum):
    """The kind of the record."""

    START = "START"
    FRAME = "FRAME"
    END = "END"


class Track(StrEnum):
    """Whose voice it is: INBOUND is the caller."""

    INBOUND = "INBOUND"
    OUTBOUND = "OUTBOUND"


@dataclass(frozen=True, slots=True)
class AudioFrame:
    """One media frame of a call as the carrier sent it, or the start or end of a stream."""

    stream_id: str
    kind: FrameKind
    track: Track
    sequence: int
    captured_at: Micros
    encoding: str
    sample_rate: int
    payload: bytes
    detail: str | None


class SignalKind(StrEnum):
    """The place of the record in its stream."""

    START = "START"
    UPDATE = "UPDATE"
    END = "END"


@dataclass(frozen=True, slots=True)
class Signal:
    """The figures of the caller's voice up to one frame of a stream."""

    stream_id: str
    sequence: int
    captured_at: Micros
    kind: SignalKind
    audio_ms: int
    voiced_ms: int
    voiced: bool
    rms: float
    loudness_distress: float
    loudness_distress_max: float
    loudness_distress_mean: float
    missing_frames: int


class UtteranceKind(StrEnum):
    """The kind of the record."""

    PARTIAL = "PARTIAL"
    FINAL = "FINAL"
    END = "END"


@dataclass(frozen=True, slots=True)
class Word:
    """One recognised word."""

    text: str
    start_ms: int
    end_ms: int
    confidence: float | None


@dataclass(frozen=True, slots=True)
class Utterance:
    """One revision of an utterance that the recogniser heard. Topic transcripts, key call_id."""

    stream_id: str
    utterance_id: str
    revision: int
    kind: UtteranceKind
    text: str
    start_ms: int
    end_ms: int
    confidence: float | None
    words: tuple[Word, ...]
    engine: str
    recognized_at: Micros
    sequence: int


class AssessmentKind(StrEnum):
    """The kind of the record."""

    LIVE = "LIVE"
    FINAL = "FINAL"
    EXPIRED = "EXPIRED"


class CallStatus(StrEnum):
    """The stage of a call's life. It only moves down this list."""

    RINGING = "RINGING"
    ACTIVE = "ACTIVE"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class AudioSummary:
    """A summary of a call's voice signals."""

    distress_score: float
    distress_max: float
    distress_now: float
    voiced: bool
    voiced_seconds: float
    audio_seconds: float
    missing_frames: int


@dataclass(frozen=True, slots=True)
class Emotion:
    """The caller's state by words and voice."""

    label: str
    intensity: float
    sentiment: str


class Category(StrEnum):
    """The leading service category of a call."""

    EMS = "EMS"
    FIRE = "FIRE"
    POLICE = "POLICE"
    OTHER = "OTHER"
    UNKNOWN = "UNKNOWN"


class Service(StrEnum):
    """A service that may be sent."""

    EMS = "EMS"
    FIRE = "FIRE"
    POLICE = "POLICE"


class RiskLevel(StrEnum):
    """Levels of risk, in rising order."""

    UNKNOWN = "UNKNOWN"
    LOW = "LOW"
    MEDIUM = "MEDIUM"
    HIGH = "HIGH"
    CRITICAL = "CRITICAL"


@dataclass(frozen=True, slots=True)
class Risk:
    """The risk that triage sees."""

    level: RiskLevel
    score: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Words of the caller that support a part."""

    text: str
    utterance_id: str | None
    start_ms: int | None
    end_ms: int | None


@dataclass(frozen=True, slots=True)
class Part:
    """One addend of the risk score. The parts of a call add up to its score."""

    name: str
    points: float
    reason: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _CallFacts:
    """The fields of a call that `Assessment`, `LiveCall` and `CallPacket` share."""

    call_control_id: str
    from_number: str | None
    to_number: str | None
    started_at: Micros | None
    answered_at: Micros | None
    ended_at: Micros | None
    hangup_cause: str | None
    degraded: str | None
    audio: AudioSummary
    services: tuple[Service, ...]
    risk: Risk
    parts: tuple[Part, ...]
    unknowns: tuple[str, ...]
    summary: str
    rules_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _CallInProgress(_CallFacts):
    """The fields of a call that `Assessment` and `LiveCall` share beside those."""

    status: CallStatus
    transcript: str
    transcript_omitted: int = 0
    partial: str
    emotion: Emotion
    category: Category
    tags: tuple[str, ...]


@_in_schema_order
@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment(_CallInProgress):
    """The conclusions of triage about a call, each time that they change. Topic assessments, key call_id."""

    version: int
    kind: AssessmentKind
    as_of: Micros
    complete: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """The place of a call in the queue. Order by weight descending, then created_at, then call_id."""

    priority: int
    weight: int
    created_at: Micros


@_in_schema_order
@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCall(_CallInProgress):
    """A call in progress, as a dispatcher sees it."""

    call_id: str
    updated_at: Micros
    ranking: Ranking


class PacketStatus(StrEnum):
    """The stage of the dispatcher's work on the packet."""

    OPEN = "OPEN"


@dataclass(frozen=True, slots=True)
class Nlp:
    """The caller's words and their meaning."""

    transcript: str
    emotion: Emotion
    category: Category
    tags: tuple[str, ...]
    transcript_omitted: int = 0


@_in_schema_order
@dataclass(frozen=True, slots=True, kw_only=True)
class CallPacket(_CallFacts):
    """The triage of a call that is over."""

    call_id: str
    version: int
    complete: bool
    status: PacketStatus
    duration_seconds: int
    nlp: Nlp
    ranking: Ranking


def shared_with_live(assessment: Assessment) -> dict[str, Any]:
    """The fields of `assessment` that a `LiveCall` has too."""
    return {field.name: getattr(assessment, field.name) for field in fields(_CallInProgress)}


def shared_with_packet(assessment: Assessment) -> dict[str, Any]:
    """The fields of `assessment` that a `CallPacket` has too, with the same meaning."""
    return {field.name: getattr(assessment, field.name) for field in fields(_CallFacts)}


class ActionKind(StrEnum):
    """The kind of an action."""

    ACKNOWLEDGE = "ACKNOWLEDGE"
    ASSIGN = "ASSIGN"
    NOTE = "NOTE"
    OVERRIDE = "OVERRIDE"
    CLOSE = "CLOSE"
    REOPEN = "REOPEN"
    MERGE = "MERGE"
    SPEAK = "SPEAK"
    TRANSFER = "TRANSFER"
    HANGUP = "HANGUP"


@dataclass(frozen=True, slots=True)
class Action:
    """An action of a dispatcher on a call. Topic dispatch-actions, key call_id."""

    action_id: str
    kind: ActionKind
    actor: str
    occurred_at: Micros
    text: str | None
    level: RiskLevel | None
    other_call_id: str | None


class StreamStatus(StrEnum):
    """The last recorded status of a call's media stream. Of two at one moment the later in this list counts."""

    STARTED = "STARTED"
    STOPPED = "STOPPED"
    LOST = "LOST"
    FAILED = "FAILED"


class CommandOutcome(StrEnum):
    """How a command to the carrier ended. Of two outcomes of one round the later in this list counts."""

    UNAVAILABLE = "UNAVAILABLE"
    NOT_ANSWERED = "NOT_ANSWERED"
    REJECTED = "REJECTED"
    ALREADY_ENDED = "ALREADY_ENDED"
    ALREADY_STREAMING = "ALREADY_STREAMING"
    DONE = "DONE"


@dataclass(frozen=True, slots=True)
class CommandState:
    """The last round of one command to the carrier."""

    command_id: str
    action: str
    round: int
    outcome: CommandOutcome
    code: str
    at: Micros
    retry_at: Micros | None
    request: str | None


@dataclass(frozen=True, slots=True)
class CallState:
    """State of the calls agent for one call. Table calls."""

    call_control_id: str
    status: CallStatus
    from_number: str | None
    to_number: str | None
    started_at: Micros | None
    answered_at: Micros | None
    ended_at: Micros | None
    hangup_cause: str | None
    degraded: str | None
    streams_started: int
    stream: StreamStatus | None
    stream_at: Micros | None
    stream_seen_at: Micros | None
    stream_failed_at: tuple[Micros, ...]
    first_seen_at: Micros
    deadline_passed: bool
    deadline_seen_at: Micros | None
    stray: bool
    commands: tuple[CommandState, ...]
    seen_event_ids: tuple[str, ...]
    seen_action_ids: tuple[str, ...]
    record_refused: bool = False
    hangup_seen_at: Micros | None = None


@dataclass(frozen=True, slots=True)
class StreamSignal:
    """The figures of one stream."""

    stream_id: str
    next_sequence: int
    ended: bool
    ema: float
    distress: float
    voiced: bool
    rms: float
    captured_at: Micros
    position_samples: int
    signalled_at_samples: int
    signalled_voiced: bool


@dataclass(frozen=True, slots=True)
class SignalState:
    """State of the signals agent for one call. Table signals."""

    streams: tuple[StreamSignal, ...]
    audio_ms: float
    voiced_ms: float
    voiced_frames: int
    distress_sum: float
    distress_max: float
    missing_frames: int
    frames: int


@dataclass(frozen=True, slots=True)
class StreamSpeech:
    """The speech of one stream."""

    stream_id: str
    next_sequence: int
    position_ms: int
    utterances: int
    ended: bool


@dataclass(frozen=True, slots=True)
class SpeechState:
    """State of the speech agent for one call: how far its audio need not be heard again. Table speech."""

    streams: tuple[StreamSpeech, ...]


@dataclass(frozen=True, slots=True)
class StreamFold:
    """The last signal of one stream, and the time in which it was heard."""

    stream_id: str
    sequence: int
    ended: bool
    began_at: Micros | None
    heard_until: Micros | None


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that was found in the folded words of a stream, with the words that support it."""

    rule: str
    quotes: tuple[Evidence, ...]
    seam_quotes: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class StatedPlace:
    """A place in the folded words of a stream."""

    kind: int
    text: str


@dataclass(frozen=True, slots=True)
class StreamWords:
    """The words of a stream that do not change any more: what triage found in them, and the ends of their text."""

    stream_id: str
    until_ms: int
    until_id: str
    last: Utterance | None
    words: int
    beginning: str
    omitted: int
    end: str
    findings: tuple[Finding, ...]
    facts: tuple[str, ...]
    fear: tuple[float, ...]
    anger: tuple[float, ...]
    relief: tuple[float, ...]
    place: StatedPlace | None
    seam_place: StatedPlace | None


@dataclass(frozen=True, slots=True)
class TriageState:
    """State of the triage agent for one call: one fold for each topic it reads. Table triage."""

    call: CallState | None
    expired: bool
    signals: tuple[StreamFold, ...]
    last_signal: Signal | None
    utterances: tuple[Utterance, ...]
    transcripts_ended: tuple[str, ...]
    late_events: int
    final_digest: str | None
    as_of: Micros
    words: tuple[StreamWords, ...] = ()
    text_cut: bool = False
    streams_cut: bool = False
