"""Where a call stands, and what is shown of it: the pure step of the ranking agent.

Decides the order of the queue. What a call's risk is, is decided in `rules`.
"""

from __future__ import annotations

from typing import Final

from dispatchai.records import Assessment, CallPacket, LiveCall, Micros, Nlp, PacketStatus, Ranking, Risk, RiskLevel

PRIORITY: Final[dict[RiskLevel, int]] = {
    RiskLevel.CRITICAL: 1,
    RiskLevel.HIGH: 2,
    RiskLevel.MEDIUM: 3,
    RiskLevel.UNKNOWN: 3,
    RiskLevel.LOW: 4,
}
"""Priority of each level. A caller of whom nothing is known may be in danger: above LOW, which is known to be low."""

UNKNOWN_WEIGHT: Final = 300
"""Weight of a call of whom nothing is known: where MEDIUM begins."""

LONGEST_DURATION_S: Final = 2**31 - 1
"""What Avro's int holds; a carrier's wrong clock must not cost the packet."""


def rank(risk: Risk, created_at: Micros) -> Ranking:
    """Priority and weight of `risk`. The queue is ordered by weight descending, then created_at, then call_id."""
    weight = round(risk.score * 1000)
    if risk.level is RiskLevel.UNKNOWN:
        weight = max(weight, UNKNOWN_WEIGHT)
    return Ranking(priority=PRIORITY[risk.level], weight=weight, created_at=created_at)


def rank_live(risk: Risk, started_at: Micros | None, as_of: Micros) -> Ranking:
    """`rank` of a call in progress, which waits since it began."""
    return rank(risk, started_at or as_of)


def live_call(call_id: str, assessment: Assessment) -> LiveCall:
    """What a dispatcher sees of a call in progress."""
    return LiveCall(
        call_id=call_id,
        updated_at=assessment.as_of,
        call_control_id=assessment.call_control_id,
        status=assessment.status,
        from_number=assessment.from_number,
        to_number=assessment.to_number,
        started_at=assessment.started_at,
        answered_at=assessment.answered_at,
        ended_at=assessment.ended_at,
        hangup_cause=assessment.hangup_cause,
        degraded=assessment.degraded,
        transcript=assessment.transcript,
        partial=assessment.partial,
        audio=assessment.audio,
        emotion=assessment.emotion,
        category=assessment.category,
        services=assessment.services,
        tags=assessment.tags,
        risk=assessment.risk,
        parts=assessment.parts,
        unknowns=assessment.unknowns,
        summary=assessment.summary,
        rules_version=assessment.rules_version,
        ranking=rank_live(assessment.risk, assessment.started_at, assessment.as_of),
    )


def packet(call_id: str, assessment: Assessment) -> CallPacket:
    """The packet of a call that is over; a function of the assessment alone."""
    ended_at = assessment.ended_at or assessment.as_of
    started_at = assessment.started_at or assessment.answered_at or ended_at
    return CallPacket(
        call_id=call_id,
        version=assessment.version,
        complete=assessment.complete,
        status=PacketStatus.OPEN,
        duration_seconds=min(max(0, round((ended_at - started_at) / 1_000_000)), LONGEST_DURATION_S),
        from_number=assessment.from_number,
        to_number=assessment.to_number,
        call_control_id=assessment.call_control_id,
        started_at=assessment.started_at,
        answered_at=assessment.answered_at,
        ended_at=assessment.ended_at,
        hangup_cause=assessment.hangup_cause,
        degraded=assessment.degraded,
        audio=assessment.audio,
        nlp=Nlp(
            transcript=assessment.transcript,
            emotion=assessment.emotion,
            category=assessment.category,
            tags=assessment.tags,
        ),
        services=assessment.services,
        risk=assessment.risk,
        parts=assessment.parts,
        unknowns=assessment.unknowns,
        summary=assessment.summary,
        ranking=rank(assessment.risk, ended_at),
        rules_version=assessment.rules_version,
    )
