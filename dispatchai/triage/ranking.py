"""The place of a call in the queue, and the records that show it: the pure part of the ranking agent.

Decides the order of the queue, and makes live entries and packets of assessments. `scoring` decides the risk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from dispatchai.records import (
    Assessment,
    AssessmentKind,
    CallPacket,
    DecodeError,
    LiveCall,
    Micros,
    Nlp,
    PacketStatus,
    Ranking,
    Risk,
    RiskLevel,
    decode_as,
    decode_fields,
    encode,
)
from dispatchai.records.splice import RecordSplicer
from dispatchai.records.values import shared_with_live, shared_with_packet

PRIORITY: Final[dict[RiskLevel, int]] = {
    RiskLevel.CRITICAL: 1,
    RiskLevel.HIGH: 2,
    RiskLevel.MEDIUM: 3,
    RiskLevel.UNKNOWN: 3,
    RiskLevel.LOW: 4,
}
"""Priority of each level. A caller whose risk is UNKNOWN may be in danger, and is above one whose risk is LOW."""

UNKNOWN_WEIGHT: Final = 300
"""Weight of a call whose risk is UNKNOWN: where MEDIUM begins."""

LONGEST_DURATION_S: Final = 2**31 - 1
"""The largest number of Avro's int: a carrier's wrong clock must not cost the packet."""


def rank(risk: Risk, created_at: Micros) -> Ranking:
    """Priority and weight of `risk`. The queue is ordered by weight descending, then created_at, then call_id."""
    weight = round(risk.score * 1000)
    if risk.level is RiskLevel.UNKNOWN:
        weight = max(weight, UNKNOWN_WEIGHT)
    return Ranking(priority=PRIORITY[risk.level], weight=weight, created_at=created_at)


def rank_live(risk: Risk, started_at: Micros | None, as_of: Micros) -> Ranking:
    """`rank` of a call in progress, which has waited since it began."""
    return rank(risk, started_at or as_of)


def live_call(call_id: str, assessment: Assessment) -> LiveCall:
    """The live entry of a call in progress."""
    return LiveCall(
        call_id=call_id,
        updated_at=assessment.as_of,
        ranking=rank_live(assessment.risk, assessment.started_at, assessment.as_of),
        **shared_with_live(assessment),
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
        nlp=Nlp(
            transcript=assessment.transcript,
            emotion=assessment.emotion,
            category=assessment.category,
            tags=assessment.tags,
            transcript_omitted=assessment.transcript_omitted,
        ),
        ranking=rank(assessment.risk, ended_at),
        **shared_with_packet(assessment),
    )


# ---- assessments as records ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assessed:
    """An assessment as it is stored, and its fields."""

    kind: AssessmentKind
    value: bytes
    fields: Mapping[str, Any]


def decode_assessed(value: bytes) -> Assessed:
    """The assessment in a record's value. Raises DecodeError."""
    name, fields = decode_fields(value)
    if name != Assessment.__name__:
        raise DecodeError(f"expected {Assessment.__name__}, found {name}")
    return Assessed(AssessmentKind(fields["kind"]), value, fields)


R = TypeVar("R")


def without_overtaken(assessed: Sequence[tuple[R, Assessed]]) -> list[tuple[R, Assessed]]:
    """The assessments of one call, each with its record, without live ones that a later live one replaces.

    Nobody would see those.
    """
    live = [number for number, (_, one) in enumerate(assessed) if one.kind is AssessmentKind.LIVE]
    overtaken = set(live[:-1])
    return [pair for number, pair in enumerate(assessed) if number not in overtaken]


def encode_packet(call_id: str, assessed: Assessed) -> bytes:
    """The `packet` of an assessment, encoded."""
    return encode(packet(call_id, decode_as(Assessment, assessed.value)))


_RANKING: Final = tuple(Ranking.__slots__)

_ASSESSMENT_TO_LIVE: Final = RecordSplicer(Assessment.__name__, LiveCall.__name__, "call_control_id")
"""A live entry is an assessment with another beginning, and its place in the queue at the end."""


def encode_live(call_id: str, assessed: Assessed) -> bytes:
    """The `live_call` of an assessment, encoded: a live entry is written with each signal of a voice, and this costs a
    small part of `encode`. Raises ValueError if the score is no number."""
    fields = assessed.fields
    risk = Risk(RiskLevel(fields["risk"]["level"]), fields["risk"]["score"])
    ranking = rank_live(risk, fields["started_at"], fields["as_of"])
    return _ASSESSMENT_TO_LIVE.make(
        assessed.value,
        fields,
        call_id=call_id,
        updated_at=fields["as_of"],
        ranking={name: getattr(ranking, name) for name in _RANKING},
    )
