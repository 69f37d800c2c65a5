"""Decides when a call is complete, and which version its packet has.

Both are functions of what was folded from the call's topics (`step`), so they do not depend on how the topics
interleaved or where batches were cut. A version is not a count of the packets that were written: how often one is
written depends on both, what the last one says does not.
"""

from __future__ import annotations

from dispatchai.records import CallStatus, TriageState


def streams_of(state: TriageState) -> tuple[str, ...]:
    """The streams of the call: in the order in which their audio began, then those of which only text is known."""
    return tuple(
        dict.fromkeys(
            (
                *(fold.stream_id for fold in state.signals),
                *state.transcripts_ended,
                *(item.stream_id for item in state.utterances),
            )
        )
    )


def is_complete(state: TriageState) -> bool:
    """Whether all of the call is in: hangup, the end of each audio stream, and the end of each one's speech."""
    call = state.call
    if call is None or call.status is not CallStatus.ENDED:
        return False
    streams = streams_of(state)
    if call.answered_at is None and not streams and not call.streams_started:
        return True  # hung up before anybody answered: there is no audio to wait for
    audio_ended = {fold.stream_id for fold in state.signals if fold.ended}
    return (
        bool(streams)
        and len(streams) >= call.streams_started
        and all(stream in audio_ended and stream in state.transcripts_ended for stream in streams)
    )


def version_of(state: TriageState) -> int:
    """The version of the packet that follows from `state`. Odd: all of the call is in. Even: the deadline passed
    before that. So a call that ends as calls do gets version 1, and version 0 before that if its deadline came first.

    It rises with each fact that may follow after all of a call seemed to be in: an event that changes what is known
    of a call's life after its end (`TriageState.late_events` counts them), and a stream that no event announced.
    The two counts are paired by Cantor's function, which rises with each of them, and also when an event announces a
    stream later, so that no two pairs share a number. Hence:

    * As folds advance it never falls, however the topics interleave, and the last one is the same in every reading.
    * Two complete packets of one version say the same. Packets of one even version are drafts of one packet: the last
      that was written counts. They cannot be numbered so that the numbers stay below the 1 of a complete packet, and
      a complete packet whose number depended on drafts would depend on whether the deadline was read before the text.

    Reference: G. Cantor, "Ein Beitrag zur Mannigfaltigkeitslehre" (1878), the pairing polynomial.
    """
    call = state.call
    late, unannounced = state.late_events, 0
    if call is not None:
        announced = max(call.streams_started, 0 if call.answered_at is None else 1)
        unannounced = max(0, len(streams_of(state)) - announced)
    diagonal = late + unannounced
    return 2 * (diagonal * (diagonal + 1) // 2 + late) + is_complete(state)
