"""Decides when a call is complete, and which version its packet has.

Both are functions of the call's state (`step`), so they do not depend on how its topics interleaved or where batches
were cut. A version does not count packets: how often a packet is written depends on both, its last content does not.
"""

from __future__ import annotations

from dispatchai.records import CallStatus, TriageState


def streams_of(state: TriageState) -> tuple[str, ...]:
    """The streams of the call: in the order in which their audio began, then those with text only."""
    return tuple(
        dict.fromkeys(
            (
                *(fold.stream_id for fold in state.signals),
                *state.transcripts_ended,
                *(item.stream_id for item in state.words),
                *(item.stream_id for item in state.utterances),
            )
        )
    )


def is_complete(state: TriageState) -> bool:
    """Whether everything of the call was read: hangup, and for each stream the end of its audio and of its speech."""
    call = state.call
    if call is None or call.status is not CallStatus.ENDED:
        return False
    streams = streams_of(state)
    if call.answered_at is None and not streams and not call.streams_started:
        return True  # it was hung up before it was answered, and has no audio
    audio_ended = {fold.stream_id for fold in state.signals if fold.ended}
    return (
        bool(streams)
        and len(streams) >= call.streams_started
        and all(stream in audio_ended and stream in state.transcripts_ended for stream in streams)
    )


def version_of(state: TriageState) -> int:
    """The version of the packet that follows from `state`. Odd: the call is complete. Even: the deadline passed before.
    So an ordinary call gets version 1, and version 0 before that if its deadline came first.

    It rises with each fact that may follow after a call seemed complete: an event that changes what is known of a
    call's life after its end (`TriageState.late_events` counts these), and a stream that no event announced. Cantor's
    pairing function combines the two counts. It rises with each of them, also when an event announces a stream later,
    and no two pairs share a number. Hence:

    * As more records are folded the version never falls, however the topics interleave, and the last one is the same
      in every order.
    * Two complete packets of one version have the same content. Packets of one even version are drafts of one packet,
      and the last one written counts. Drafts cannot have numbers of their own below the 1 of a complete packet, and
      the number of a complete packet must not depend on drafts: it would depend on whether the deadline was read
      before the text.

    Reference: G. Cantor, "Ein Beitrag zur Mannigfaltigkeitslehre" (1878), the pairing polynomial.
    """
    call = state.call
    late, unannounced = state.late_events, 0
    if call is not None:
        announced = max(call.streams_started, 0 if call.answered_at is None else 1)
        unannounced = max(0, len(streams_of(state)) - announced)
    diagonal = late + unannounced
    return 2 * (diagonal * (diagonal + 1) // 2 + late) + is_complete(state)
