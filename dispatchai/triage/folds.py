"""The pure step of the triage agent: what was recorded of one call in, what is concluded of it out.

Each topic is folded by itself, so what is emitted as FINAL does not depend on how the topics interleaved. Live
assessments may differ on the way. How text is understood is decided in `rules`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from dispatchai.records import (
    Assessment,
    AssessmentKind,
    AudioSummary,
    CallEvent,
    CallState,
    CallStatus,
    Signal,
    SignalKind,
    StreamFold,
    TriageState,
    Utterance,
    UtteranceKind,
    encode,
)
from dispatchai.triage.rules import Rules, conclude

FoldCall = Callable[[CallState | None, CallEvent], CallState]
"""How a call's life is folded from its events; the same fold that the calls agent uses."""

EXPIRED: Final = "dispatchai.expired"
"""Type of the event after which a call's state is given up."""

NO_STATE: Final = TriageState(
    call=None,
    expired=False,
    signals=(),
    last_signal=None,
    utterances=(),
    transcripts_ended=(),
    version=0,
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
    """What a run of records made: the state (None when it is given up) and the assessments, in order."""

    state: TriageState | None
    assessments: tuple[Assessment, ...] = ()


def step(
    before: TriageState | None,
    records: Sequence[CallEvent | Signal | Utterance],
    *,
    fold_call: FoldCall,
    rules: Rules,
) -> TriageStep:
    """Fold `records` of one call, each topic in the order of its offsets, and conclude if anything changed."""
    state = before or NO_STATE
    for record in records:
        if state.expired:
            break  # late events of a call that is given up, wherever the batch was cut
        match record:
            case CallEvent():
                state = fold_event(state, record, fold_call)
            case Signal():
                state = fold_signal(state, record)
            case Utterance():
                state = fold_utterance(state, record)
    if state == (before or NO_STATE):
        return TriageStep(before)  # nothing of nothing is no state either
    if state.call is None:
        return TriageStep(state)
    deadline_passed = state.call.deadline_passed
    finals: tuple[Assessment, ...] = ()
    if (is_complete(state) or deadline_passed) and _is_known(state):
        digest = _digest(assess(state, rules, AssessmentKind.FINAL, version=0))
        if digest != state.final_digest:
            state = replace(state, version=state.version + 1, final_digest=digest)
            finals = (assess(state, rules, AssessmentKind.FINAL, version=state.version),)
    if state.expired:
        # Deadline and expiry can come together: the packet goes before the end.
        return TriageStep(None, (*finals, assess(state, rules, AssessmentKind.EXPIRED, version=state.version)))
    if finals or state.final_digest is not None or deadline_passed:
        # After the packet nothing is live: the end of a stream that came late makes a new version.
        return TriageStep(state, finals)
    return TriageStep(state, (assess(state, rules, AssessmentKind.LIVE, version=0),))


def fold_event(state: TriageState, event: CallEvent, fold_call: FoldCall) -> TriageState:
    """The state with `event` in it. Repeats and late events change nothing, as `fold_call` sees to."""
    if state.call is None and event.type.startswith("dispatchai."):
        return state  # facts of a call whose state was given up meanwhile make no call of it
    call = fold_call(state.call, event)
    if call == state.call:
        return state
    return replace(
        state,
        call=call,
        expired=state.expired or event.type == EXPIRED,
        as_of=max(state.as_of, event.occurred_at),
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
    """The state with `utterance` in it: of one utterance the highest revision counts, and FINAL does not change."""
    if utterance.kind is UtteranceKind.END:
        if utterance.stream_id in state.transcripts_ended:
            return state
        return replace(state, transcripts_ended=(*state.transcripts_ended, utterance.stream_id))
    known = {item.utterance_id: item for item in state.utterances}
    old = known.get(utterance.utterance_id)
    if old is not None and (old.kind is UtteranceKind.FINAL or old.revision >= utterance.revision):
        return state
    streams = list(dict.fromkeys([*(item.stream_id for item in state.utterances), utterance.stream_id]))
    known[utterance.utterance_id] = utterance
    ordered = sorted(known.values(), key=lambda item: (streams.index(item.stream_id), item.start_ms, item.utterance_id))
    return replace(state, utterances=tuple(ordered), as_of=max(state.as_of, utterance.recognized_at))


def is_complete(state: TriageState) -> bool:
    """Whether all of the call is in: hangup, the end of each audio stream, and the end of each one's speech."""
    call = state.call
    if call is None or call.status is not CallStatus.ENDED:
        return False
    if call.answered_at is None and not state.signals and not call.streams_started:
        return True  # hung up before anybody answered: there is no audio to wait for
    return (
        bool(state.signals)
        and len(state.signals) >= call.streams_started
        and all(fold.ended and fold.stream_id in state.transcripts_ended for fold in state.signals)
    )


def _is_known(state: TriageState) -> bool:
    """Whether anything of the call's life is recorded. A stray event after the state was given up, and the deadline
    that follows from it, must not put an empty packet over the one that was made."""
    call = state.call
    return call is not None and (
        any(moment is not None for moment in (call.started_at, call.answered_at, call.ended_at))
        or bool(call.streams_started or state.signals or state.utterances)
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


def assess(state: TriageState, rules: Rules, kind: AssessmentKind, *, version: int) -> Assessment:
    """What is concluded of the call as `state` has it. `state.call` must be known."""
    call = state.call
    assert call is not None  # noqa: S101 - said above
    audio = summarize_audio(state.last_signal)
    heard = tuple(item for item in state.utterances if item.text)
    conclusion = conclude(heard, audio, rules)
    finals = [item.text for item in heard if item.kind is UtteranceKind.FINAL]
    partials = [item.text for item in heard if item.kind is UtteranceKind.PARTIAL]
    if kind is not AssessmentKind.LIVE:
        # No more will come: what was only partly heard is all there is of it.
        finals, partials = [item.text for item in heard], []
    return Assessment(
        version=version,
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
        transcript=" ".join(finals),
        partial=" ".join(partials),
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


def _digest(assessment: Assessment) -> str:
    """A digest of what the assessment says, without when: two equal ones need no new version."""
    return hashlib.sha256(encode(replace(assessment, as_of=0))).hexdigest()
