"""The pure step of the triage agent: the records of one call in, its assessments out.

Each topic is folded by itself, so the FINAL assessment does not depend on how the topics interleaved. Live assessments
may differ on the way. `finality` decides when a call is complete, `scoring` what follows from its words and voice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from dispatchai.calls.events import OWN_EVENTS, EventType
from dispatchai.calls.state import fold as fold_call
from dispatchai.records import (
    Assessment,
    AssessmentKind,
    AudioSummary,
    CallEvent,
    CallState,
    CallStatus,
    Micros,
    Signal,
    SignalKind,
    TriageState,
    Utterance,
    UtteranceKind,
    encode,
)
from dispatchai.records.frame_decoder import MISSING_FRAMES_MAX
from dispatchai.triage.finality import is_complete, version_of
from dispatchai.triage.lost_audio import degraded_by, heard_span, lost_audio
from dispatchai.triage.rules import Rules
from dispatchai.triage.scoring import Reading, read, weigh
from dispatchai.triage.summary import summary_without_words
from dispatchai.triage.words import ANALYSED_CHARS, STREAMS_MAX, Analyses, is_folded, settle, trimmed, whole

SNAPSHOT_EVERY: Final[Micros] = 5_000_000
"""Signals and partial texts ask for a snapshot only when this much of the call's time has passed since the last one.
A snapshot contains all words of the call, and after a crash these records are only read again."""

NO_STATE: Final = TriageState(
    call=None,
    expired=False,
    signals=(),
    last_signal=None,
    utterances=(),
    transcripts_ended=(),
    late_events=0,
    final_digest=None,
    as_of=0,
)
"""The state of a call before its first record."""

NO_AUDIO: Final = AudioSummary(
    distress_score=0.0,
    distress_max=0.0,
    distress_now=0.0,
    voiced=False,
    voiced_seconds=0.0,
    audio_seconds=0.0,
    missing_frames=0,
)
"""The voice signals of a call without audio."""


@dataclass(frozen=True, slots=True)
class TriageStep:
    """The result of a run of records: the state (None when it is deleted) and the assessments, in order.

    `snapshot`: the state is worth storing now; otherwise the records are read again after a crash. `reading` makes the
    call's next step cheaper.
    """

    state: TriageState | None
    assessments: tuple[Assessment, ...] = ()
    snapshot: bool = True
    reading: Reading | None = None


def step(
    before: TriageState | None,
    records: Sequence[CallEvent | Signal | Utterance],
    *,
    rules: Rules,
    reading: Reading | None = None,
) -> TriageStep:
    """Fold `records` of one call, each topic in the order of its offsets, and assess the call if anything changed.

    `reading` is that of the step before. It makes this one cheaper and changes nothing else.
    """
    state = before or NO_STATE
    analyses = Analyses(rules) if reading is None else reading.source.known(rules)
    for record in records:
        if state.expired:
            break  # late events of a call that has expired, wherever the batch was cut
        match record:
            case CallEvent():
                state = fold_event(state, record)
            case Signal():
                state = fold_signal(state, record)
            case Utterance():
                state = fold_utterance(state, record, analyses)
    if state == (before or NO_STATE):
        return TriageStep(before)  # None stays None: no state is made of records that change nothing
    if state.call is None:
        return TriageStep(None if state.expired else state)
    is_call, deadline_passed, complete = _is_call(state), state.call.deadline_passed, is_complete(state)
    reading = read_call(state, rules, reading)
    finals: tuple[Assessment, ...] = ()
    if is_call and (complete or deadline_passed):
        final = assess(state, rules, reading, AssessmentKind.FINAL)
        digest = _digest(final)
        if digest != state.final_digest:
            state = replace(state, final_digest=digest)
            finals = (final,)
    if state.expired:
        # Deadline and expiry can come together: then the packet goes first.
        return TriageStep(None, (*finals, assess(state, rules, reading, AssessmentKind.EXPIRED)))
    if state.final_digest is not None or deadline_passed or not is_call:
        # After the packet there are no live assessments: a late end of a stream makes a new version. More words may
        # come of a call that is not complete, and each of them makes another draft.
        return TriageStep(state, finals, reading=None if complete else reading)
    live = assess(state, rules, reading, AssessmentKind.LIVE)
    return TriageStep(state, (live,), _is_worth_storing(before, state, records), reading)


def fold_event(state: TriageState, event: CallEvent) -> TriageState:
    """The state with `event` in it. Repeated and late events change nothing; `fold_call` sees to that.

    A signal or text that is read after its call has expired makes an orphaned state: nothing else is known of the call.
    It is deleted when a second `dispatchai.expired` is read, which follows after a while (`agents.orphaned_states`).
    """
    if event.type == EventType.PURGED:
        return state  # about the packet, which outlives the call's state
    before = state.call
    if before is None and event.type.startswith(OWN_EVENTS):
        # The program's own events do not make a call of one whose state was deleted.
        return replace(state, expired=True) if event.type == EventType.EXPIRED and state != NO_STATE else state
    call = fold_call(before, event)
    if call == before:
        return state
    over = before is not None and (before.status is CallStatus.ENDED or before.deadline_passed)
    late = before is not None and over and _life_of(before) != _life_of(call)
    return replace(
        state,
        call=call,
        expired=state.expired or event.type == EventType.EXPIRED,
        late_events=state.late_events + late,
        as_of=max(state.as_of, event.occurred_at),
    )


def _life_of(call: CallState) -> tuple[object, ...]:
    """The facts of a call's life that a packet contains, or that decide whether it is complete."""
    return (
        call.call_control_id,
        call.status,
        call.from_number,
        call.to_number,
        call.started_at,
        call.answered_at,
        call.ended_at,
        call.hangup_cause,
        call.degraded,
        call.streams_started,
    )


def fold_signal(state: TriageState, signal: Signal) -> TriageState:
    """The state with `signal` in it. A signal that is not later in its stream than the last one changes nothing."""
    known = {fold.stream_id: fold for fold in state.signals}
    fold = known.get(signal.stream_id)
    ended = signal.kind is SignalKind.END
    if fold is None and len(known) >= STREAMS_MAX:
        return replace(state, streams_cut=True)
    if fold is not None and (fold.ended or (signal.sequence <= fold.sequence and not ended)):
        return state
    known[signal.stream_id] = heard_span(fold, signal, state.last_signal)
    return replace(
        state,
        signals=tuple(known.values()),
        last_signal=signal,
        as_of=max(state.as_of, signal.captured_at),
    )


def fold_utterance(state: TriageState, utterance: Utterance, analyses: Analyses) -> TriageState:
    """The state with `utterance` in it: the highest revision of an utterance counts, and a FINAL does not change.

    END makes all of a stream final: a partial that is left was heard by a recogniser that failed, and was not heard
    again. `as_of` does not depend on when an utterance was recognised, which follows from the machine and not from the
    call. Nor does the order of utterances depend on which stream's text came first, since streams are recognised side
    by side: they are sorted by the ids of their streams. `words` decides which of them are kept in full.
    """
    stream_id = utterance.stream_id
    if stream_id in state.transcripts_ended:
        return state
    before = _streams_with_text(state)
    if stream_id not in before and len(before) >= STREAMS_MAX:
        return replace(state, streams_cut=True)
    if utterance.kind is UtteranceKind.END:
        kept = tuple(
            item for item in state.utterances if item.stream_id != stream_id or item.kind is not UtteranceKind.PARTIAL
        )
        state = replace(state, utterances=kept, transcripts_ended=tuple(sorted((*state.transcripts_ended, stream_id))))
        return state if stream_id in before else _settled(state, before | {stream_id}, analyses)
    known = {item.utterance_id: item for item in state.utterances}
    old = known.get(utterance.utterance_id)
    if old is not None and (old.kind is UtteranceKind.FINAL or old.revision >= utterance.revision):
        return state
    words = next((one for one in state.words if one.stream_id == stream_id), None)
    if old is None and is_folded(words, utterance):
        return state
    known[utterance.utterance_id] = trimmed(utterance)
    ordered = sorted(known.values(), key=lambda item: (item.stream_id, item.start_ms, item.utterance_id))
    cut = state.text_cut or len(utterance.text) > ANALYSED_CHARS
    return _settled(
        replace(state, utterances=tuple(ordered), text_cut=cut),
        before | {stream_id},
        analyses,
        only=stream_id if stream_id in before else None,
    )


def _streams_with_text(state: TriageState) -> frozenset[str]:
    """The streams of which a text, or the end of the speech, was read."""
    return frozenset(
        (
            *state.transcripts_ended,
            *(one.stream_id for one in state.words),
            *(one.stream_id for one in state.utterances),
        )
    )


def _settled(
    state: TriageState, streams: frozenset[str], analyses: Analyses, *, only: str | None = None
) -> TriageState:
    """The state with no more of each stream, or of `only` one, than its share among `streams`."""
    words = {one.stream_id: one for one in state.words}
    kept: dict[str, list[Utterance]] = {}
    for item in state.utterances:
        kept.setdefault(item.stream_id, []).append(item)
    changed = False
    for stream_id in (only,) if only is not None else sorted({*words, *kept}):
        before, of_stream = words.get(stream_id), kept.get(stream_id, [])
        after, folded = settle(of_stream, before, len(streams), analyses)
        if len(after) != len(of_stream) or folded is not before:
            changed = True
            kept[stream_id] = list(after)
            if folded is not None:
                words[stream_id] = folded
    if not changed:
        return state
    return replace(
        state,
        utterances=tuple(item for stream_id in sorted(kept) for item in kept[stream_id]),
        words=tuple(words[stream_id] for stream_id in sorted(words)),
    )


def _is_call(state: TriageState) -> bool:
    """Whether this is a call. Records that come after a call's state was deleted (`CallState.stray`), and the timers
    that follow them, must neither replace its packet by an empty one nor make a live entry."""
    return state.call is not None and (not state.call.stray or bool(state.signals or state.words or state.utterances))


def _is_worth_storing(
    before: TriageState | None, after: TriageState, records: Sequence[CallEvent | Signal | Utterance]
) -> bool:
    return (
        before is None
        or before.as_of // SNAPSHOT_EVERY != after.as_of // SNAPSHOT_EVERY
        or any(
            isinstance(record, CallEvent)
            or (isinstance(record, Utterance) and record.kind is not UtteranceKind.PARTIAL)
            or (isinstance(record, Signal) and record.kind is not SignalKind.UPDATE)
            for record in records
        )
    )


def summarize_audio(signal: Signal | None) -> AudioSummary:
    """A summary of a call's voice signals, from its last signal."""
    if signal is None:
        return NO_AUDIO
    return AudioSummary(
        distress_score=round(signal.loudness_distress_mean, 4),
        distress_max=round(signal.loudness_distress_max, 4),
        distress_now=round(signal.loudness_distress, 4),
        voiced=signal.voiced,
        voiced_seconds=signal.voiced_ms / 1000,
        audio_seconds=signal.audio_ms / 1000,
        missing_frames=min(signal.missing_frames, MISSING_FRAMES_MAX),
    )


def read_call(state: TriageState, rules: Rules, before: Reading | None = None) -> Reading:
    """The reading of the call's words. `before` is an earlier reading of the call, which makes this one cheaper."""
    # For a single stream no order is needed, so that its first signal changes nothing.
    several = len({*(one.stream_id for one in state.words), *(one.stream_id for one in state.utterances)}) > 1
    order = tuple(fold.stream_id for fold in state.signals) if several else ()
    return read(state.utterances, rules, order, words=state.words, before=before)


def assess(state: TriageState, rules: Rules, reading: Reading, kind: AssessmentKind) -> Assessment:
    """The assessment of the call, by its state and the reading of its words. `state.call` must not be None."""
    call = state.call
    assert call is not None  # noqa: S101 - required above
    lost = lost_audio(state)
    audio = summarize_audio(state.last_signal)
    audio = replace(audio, missing_frames=min(audio.missing_frames + lost.frames, MISSING_FRAMES_MAX))
    conclusion = weigh(reading, audio, rules)
    live = kind is AssessmentKind.LIVE
    # A packet gets no more text: a partial is all that is known of its words.
    transcript, omitted = (reading.final_end, reading.final_before) if live else whole(reading.text)
    return Assessment(
        version=0 if live else version_of(state),
        kind=kind,
        as_of=state.as_of,
        complete=is_complete(state),
        call_control_id=call.call_control_id,
        status=call.status,
        from_number=call.from_number,
        to_number=call.to_number,
        started_at=call.started_at,
        answered_at=call.answered_at,
        ended_at=call.ended_at,
        hangup_cause=call.hangup_cause,
        degraded=degraded_by(state, lost) or _left_out(state),
        transcript=transcript,
        transcript_omitted=omitted,
        partial=reading.partial_end if live else "",
        audio=audio,
        emotion=conclusion.emotion,
        category=conclusion.category,
        services=conclusion.services,
        tags=conclusion.tags,
        risk=conclusion.risk,
        parts=conclusion.parts,
        unknowns=conclusion.unknowns,
        summary=conclusion.summary if reading.understood else summary_without_words(call, audio),
        rules_version=rules.version,
    )


STREAMS_CUT: Final = f"not all of the caller's audio is followed: it came in more than {STREAMS_MAX} streams"
TEXT_CUT: Final = "not all of what was recognised is taken into account: an utterance was too long"
"""Why a call is degraded whose records go beyond what a state may hold."""


def _left_out(state: TriageState) -> str | None:
    return STREAMS_CUT if state.streams_cut else TEXT_CUT if state.text_cut else None


def _digest(final: Assessment) -> str:
    """A digest of the packet's content: of two equal packets only one is written. The packet of a call that did not
    hang up contains the time of its last record; that of another call does not."""
    return hashlib.sha256(encode(final if final.ended_at is None else replace(final, as_of=0))).hexdigest()
