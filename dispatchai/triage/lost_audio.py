"""How much of a caller's audio never reached the program, by the recorded times of the call and of its streams.

Missing frame numbers show a loss within a stream. This module adds the time on the line that no stream covers: before
the first stream, between two streams, after the last one. Pure; `step` folds the signals, `assess` shows the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from dispatchai.calls.events import micros
from dispatchai.records import CallState, CallStatus, Micros, Signal, SignalKind, StreamFold, TriageState

FRAME_MS: Final = 20
"""Length of a frame, as the carrier sends them. Lost time is counted in frames of this length."""

EDGE_S: Final = 2.0
"""Time on the line that may pass without a stream after the answer and before the hangup. The carrier needs up to a
second to open a stream after `call.answered`, and reports a hangup up to a second after the last frame. These times are
the carrier's and those of frames the gateway's, so the two clocks' difference comes on top. Of a stream without an END
the last signal is known, which may be a second older than the last frame."""

BETWEEN_S: Final = 0.2
"""Time that may pass between two streams. Both times are the gateways', whose clocks agree to some hundredths of a
second. A fifth of a second is a syllable."""

WRONG_TIMES_S: Final = 0.5
"""If the audio that came in leaves so much less room than the recorded times, these times are wrong: a gateway was
frozen or its clock is off. What is left is then judged as the time at the edges is."""

FRAMES_S: Final = 1.0
"""Missing frames of this length within streams make a call degraded. Single frames are lost on any line and cost no
word; they are counted all the same."""

FASTER_S: Final = 1.0
"""A call with more audio than its time on the line, by this much, has overlapping streams or a simulated carrier that
speaks faster than real time."""


@dataclass(frozen=True, slots=True)
class LostAudio:
    """The time on the line that no stream covers, and where it was."""

    seconds: float = 0.0
    places: tuple[str, ...] = ()
    never_heard: bool = False
    """Whether no audio came in although the call was answered."""

    @property
    def frames(self) -> int:
        """The lost time in frames."""
        return round(self.seconds * 1000 / FRAME_MS)


def heard_span(fold: StreamFold | None, signal: Signal, before: Signal | None) -> StreamFold:
    """The fold of a stream after `signal`; `before` is the last signal of the call.

    The START and END of a stream are when a socket opened and closed. Audio may begin later and stop earlier, so both
    times are corrected by the audio that came since the signal before.
    """
    ended = signal.kind is SignalKind.END
    if fold is None:
        fold = StreamFold(signal.stream_id, signal.sequence, ended, began_at=signal.captured_at, heard_until=None)
        return fold if signal.kind is SignalKind.START else replace(fold, heard_until=signal.captured_at)
    audio = micros(max(0, signal.audio_ms - (before.audio_ms if before else 0)) / 1000)
    began_at, heard_until = fold.began_at, fold.heard_until
    if heard_until is None and fold.sequence == 0 and began_at is not None:
        if ended and not audio:
            return replace(fold, sequence=signal.sequence, ended=True)
        began_at = max(began_at, signal.captured_at - audio)
        heard_until = signal.captured_at
    elif heard_until is not None:
        heard_until = min(signal.captured_at, heard_until + audio) if ended else signal.captured_at
    return replace(fold, sequence=signal.sequence, ended=ended, began_at=began_at, heard_until=heard_until)


def lost_audio(state: TriageState) -> LostAudio:
    """The time on the line that no stream covers, as far as the recorded facts show it.

    Never more than the time on the line exceeds the audio that came in: frames that waited in a frozen gateway were
    recorded late and are not lost, and a wrong clock loses nothing.
    """
    call = state.call
    if call is None or call.stray or any(_is_unknown(fold) for fold in state.signals):
        return LostAudio()
    spans = sorted(
        (fold.began_at, fold.heard_until)
        for fold in state.signals
        if fold.began_at is not None and fold.heard_until is not None
    )
    ended_at = _end_of(call)
    gaps = list(_gaps(spans, call.answered_at, ended_at))
    lost = sum(gap for _, gap in gaps)
    if lost and call.answered_at is not None:
        line = max(0, (state.as_of if ended_at is None else ended_at) - call.answered_at)
        heard = _heard(state.last_signal)
        room = max(0, line - heard)
        if heard <= line + micros(FASTER_S) and room < lost:
            lost = 0 if lost - room > micros(WRONG_TIMES_S) and room < micros(EDGE_S) else room
    if lost < micros(BETWEEN_S):
        return LostAudio()
    never_heard = not spans and call.status is CallStatus.ENDED
    return LostAudio(lost / 1e6, tuple(dict.fromkeys(place for place, _ in gaps)), never_heard)


def _end_of(call: CallState) -> Micros | None:
    """When the caller hung up: by the carrier's clock or, if that is ahead, when the gateway received the hangup."""
    if call.ended_at is None or call.hangup_seen_at is None:
        return call.ended_at
    return min(call.ended_at, call.hangup_seen_at)


def _is_unknown(fold: StreamFold) -> bool:
    """Whether a version that did not record these times has read frames of the stream."""
    return fold.sequence > 0 and not (fold.ended and fold.began_at is not None) and fold.heard_until is None


def _gaps(
    spans: list[tuple[Micros, Micros]], answered_at: Micros | None, ended_at: Micros | None
) -> Iterator[tuple[str, Micros]]:
    """Where the caller was on the line and no stream was there, and for how long."""
    if not spans:
        if answered_at is not None and ended_at is not None and ended_at - answered_at > micros(EDGE_S):
            yield "the whole call", ended_at - answered_at
        return
    first, until = spans[0]
    if answered_at is not None and first - answered_at > micros(EDGE_S):
        yield "at the start", first - answered_at
    for began_at, heard_until in spans:
        on_the_line = began_at if ended_at is None else min(began_at, ended_at)
        if on_the_line - until > micros(BETWEEN_S):
            yield "between two streams", on_the_line - until
        until = max(until, heard_until)
    if ended_at is not None and ended_at - until > micros(EDGE_S):
        yield "before the hangup", ended_at - until


def _heard(signal: Signal | None) -> Micros:
    """The length of all streams of the call: audio, and frames that are missing in their numbers."""
    return 0 if signal is None else micros((signal.audio_ms + signal.missing_frames * FRAME_MS) / 1000)


def degraded_by(state: TriageState, lost: LostAudio) -> str | None:
    """What is wrong with the call, in words: its own reason and its lost audio. None if nothing is."""
    assert state.call is not None  # noqa: S101 - an assessment has a call
    within = 0.0 if state.last_signal is None else state.last_signal.missing_frames * FRAME_MS / 1000
    reasons = [] if state.call.degraded is None else [state.call.degraded]
    if lost.never_heard:
        reasons.append(f"the caller was never heard: no audio came in during the {lost.seconds:.1f} s of the call")
    elif lost.seconds or within >= FRAMES_S:
        places = [*lost.places, *(["within a stream"] if within >= FRAMES_S else [])]
        missing = lost.seconds + within
        reasons.append(f"about {missing:.1f} s of the caller's audio are missing: {', '.join(places)}")
    return "; ".join(reasons) or None
