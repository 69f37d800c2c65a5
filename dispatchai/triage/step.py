"""The pure step of the triage agent: what was recorded of one call in, what is concluded of it out.

Each topic is folded by itself, so what is emitted as FINAL does not depend on how the topics interleaved. Live
assessments may differ on the way. How text is understood is decided in `rules`.

A packet's version is a function of the folds too (`version_of`), not a count of what was emitted: how often a packet
is made depends on how the topics interleaved and on where batches were cut, what the last one says does not.
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
    StreamFold,
    TriageState,
    Utterance,
    UtteranceKind,
    encode,
)
from dispatchai.triage.finality import is_complete, version_of
from dispatchai.triage.rules import Rules
from dispatchai.triage.scoring import Reading, read, weigh

SNAPSHOT_EVERY: Final[Micros] = 5_000_000
"""Signals and partial texts ask for a snapshot only when this much time of the call has passed since the one before:
a snapshot holds all that was said, and a crash makes no more of them than that they are read again."""

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
"""The voice signals of a call that was not heard yet."""


@dataclass(frozen=True, slots=True)
class TriageStep:
    """What a run of records made: the state (None when it is given up) and the assessments, in order.

    `snapshot`: the state is worth storing now. Otherwise what it lacks is read again after a crash. `reading` is worth
    giving to the call's next step.
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
    """Fold `records` of one call, each topic in the order of its offsets, and conclude if anything changed.

    `reading`, which the step before gave, only makes this one cheaper.
    """
    state = before or NO_STATE
    for record in records:
        if state.expired:
            break  # late events of a call that is given up, wherever the batch was cut
        match record:
            case CallEvent():
                state = fold_event(state, record)
            case Signal():
                state = fold_signal(state, record)
            case Utterance():
                state = fold_utterance(state, record)
    if state == (before or NO_STATE):
        return TriageStep(before)  # nothing of nothing is no state either
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
        # Deadline and expiry can come together: the packet goes before the end.
        return TriageStep(None, (*finals, assess(state, rules, reading, AssessmentKind.EXPIRED)))
    if state.final_digest is not None or deadline_passed or not is_call:
        # After the packet nothing is live: the end of a stream that came late makes a new version.
        # Of a call that is not complete more words may come, each of which makes another draft.
        return TriageStep(state, finals, reading=None if complete else reading)
    live = assess(state, rules, reading, AssessmentKind.LIVE)
    return TriageStep(state, (live,), _is_worth_storing(before, state, records), reading)


def fold_event(state: TriageState, event: CallEvent) -> TriageState:
    """The state with `event` in it. Repeats and late events change nothing, as `fold_call` sees to.

    A signal or text that is read after its call expired makes a state of a call that nothing is known of. It is given
    up when it is said once more that the call expired, which follows after a while (`agents.orphans`).
    """
    before = state.call
    if before is None and event.type.startswith(OWN_EVENTS):
        # Facts of a call whose state was given up meanwhile make no call of it.
        return replace(state, expired=True) if event.type == EventType.EXPIRED and state != NO_STATE else state
    call = fold_call(before, event)
    if call == before:
        return state
    over = before is not None and (before.status is CallStatus.ENDED or before.deadline_passed)
    late = before is not None and over and _told(before) != _told(call)
    return replace(
        state,
        call=call,
        expired=state.expired or event.type == EventType.EXPIRED,
        late_events=state.late_events + late,
        as_of=max(state.as_of, event.occurred_at),
    )


def _told(call: CallState) -> tuple[object, ...]:
    """What a packet says of a call's life, and what its completeness rests on."""
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
    """The state with `signal` in it. One that is not later in its stream than what is folded changes nothing."""
    known = {fold.stream_id: fold for fold in state.signals}
    fold = known.get(signal.stream_id)
    ended = signal.kind is SignalKind.END
    if fold is not None and (fold.ended or (signal.sequence <= fold.sequence and not ended)):
        return state
    known[signal.stream_id] = StreamFold(signal.stream_id, signal.sequence, ended)
    return replace(
        state,
        signals=tuple(known.values()),
        last_signal=signal,
        as_of=max(state.as_of, signal.captured_at),
    )


def fold_utterance(state: TriageState, utterance: Utterance) -> TriageState:
    """The state with `utterance` in it: of one utterance the highest revision counts, and FINAL does not change.

    With END all of a stream is final: what is still partial was heard by a recogniser that failed, and not again.
    When an utterance was recognised does not enter `as_of`: that depends on the machine and not on the call. So does
    which stream's text comes first, for streams are recognised side by side: here they are in the order of their ids.
    """
    stream_id = utterance.stream_id
    if stream_id in state.transcripts_ended:
        return state
    if utterance.kind is UtteranceKind.END:
        return replace(
            state,
            utterances=tuple(
                item
                for item in state.utterances
                if item.stream_id != stream_id or item.kind is not UtteranceKind.PARTIAL
            ),
            transcripts_ended=tuple(sorted((*state.transcripts_ended, stream_id))),
        )
    known = {item.utterance_id: item for item in state.utterances}
    old = known.get(utterance.utterance_id)
    if old is not None and (old.kind is UtteranceKind.FINAL or old.revision >= utterance.revision):
        return state
    known[utterance.utterance_id] = utterance
    ordered = sorted(known.values(), key=lambda item: (item.stream_id, item.start_ms, item.utterance_id))
    return replace(state, utterances=tuple(ordered))


def _is_call(state: TriageState) -> bool:
    """Whether there is a call to speak of. What comes of one after its state was given up (`CallState.stray`), and the
    timers that follow, must neither put an empty packet over the one that was made nor make a live entry."""
    return state.call is not None and (not state.call.stray or bool(state.signals or state.utterances))


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
    """The voice signals of a call in short, from its last signal."""
    if signal is None:
        return NO_AUDIO
    return AudioSummary(
        distress_score=round(signal.loudness_distress_mean, 4),
        distress_max=round(signal.loudness_distress_max, 4),
        distress_now=round(signal.loudness_distress, 4),
        voiced=signal.voiced,
        voiced_seconds=signal.voiced_ms / 1000,
        audio_seconds=signal.audio_ms / 1000,
        missing_frames=signal.missing_frames,
    )


def read_call(state: TriageState, rules: Rules, before: Reading | None = None) -> Reading:
    """What the words of the call say. `before` is an earlier reading of it, and only makes this one cheaper."""
    said = state.utterances
    # Those of a stream lie together. Of one stream no order is asked for: its first signal is to change nothing.
    several = bool(said) and said[0].stream_id != said[-1].stream_id
    order = tuple(fold.stream_id for fold in state.signals) if several else ()
    return read(said, rules, order, before=before)


def assess(state: TriageState, rules: Rules, reading: Reading, kind: AssessmentKind) -> Assessment:
    """What is concluded of the call as `state` has it and `reading` says. `state.call` must be known."""
    call = state.call
    assert call is not None  # noqa: S101 - said above
    audio = summarize_audio(state.last_signal)
    conclusion = weigh(reading, audio, rules)
    live = kind is AssessmentKind.LIVE
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
        degraded=call.degraded,
        # In a packet no more will come: what was only partly heard is all there is of it.
        transcript=reading.final_text if live else reading.text,
        partial=reading.partial_text if live else "",
        audio=audio,
        emotion=conclusion.emotion,
        category=conclusion.category,
        services=conclusion.services,
        tags=conclusion.tags,
        risk=conclusion.risk,
        parts=conclusion.parts,
        unknowns=conclusion.unknowns,
        summary=conclusion.summary,
        rules_version=rules.version,
    )


def _digest(final: Assessment) -> str:
    """A digest of what the packet says: two equal ones need to be written once. Of a call that did not hang up the
    packet says when the last of it was recorded, of another one not."""
    return hashlib.sha256(encode(final if final.ended_at is None else replace(final, as_of=0))).hexdigest()
