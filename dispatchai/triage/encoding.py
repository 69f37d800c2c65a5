"""Assessments and live entries to Avro, which are written with each signal: at a part of what `records.encode` costs.

Decides nothing: the bytes are those of `records.encode`, which a test holds it to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dispatchai.records import Assessment, AudioSummary, LiveCall, Part, Ranking, Risk, RiskLevel, encode_fields
from dispatchai.records.carry import Carrier
from dispatchai.triage.ranking import rank_live

_FIELDS: Final = tuple(Assessment.__slots__)
_AUDIO: Final = tuple(AudioSummary.__slots__)
_RANKING: Final = tuple(Ranking.__slots__)

_CONCLUDED: Final = Carrier(Assessment.__name__, LiveCall.__name__, "call_control_id")
"""A live entry is an assessment with another beginning, and its place in the queue."""


def encode_assessment(assessment: Assessment) -> bytes:
    """`assessment` in single-object encoding. Raises ValueError or TypeError if a field has a wrong type."""
    fields: dict[str, Any] = {name: getattr(assessment, name) for name in _FIELDS}
    audio, emotion, risk = assessment.audio, assessment.emotion, assessment.risk
    fields["audio"] = {name: getattr(audio, name) for name in _AUDIO}
    fields["emotion"] = {"label": emotion.label, "intensity": emotion.intensity, "sentiment": emotion.sentiment}
    fields["risk"] = {"level": risk.level, "score": risk.score}
    fields["parts"] = [_plain_part(part) for part in assessment.parts]
    return encode_fields("Assessment", fields)


def encode_live(call_id: str, assessment: bytes, fields: Mapping[str, Any]) -> bytes:
    """The entry `live_call` of what `assessment` says, both in single-object encoding; `fields` are those that
    `decode_fields` found in it. Raises ValueError if its score is no number."""
    risk = Risk(RiskLevel(fields["risk"]["level"]), fields["risk"]["score"])
    ranking = rank_live(risk, fields["started_at"], fields["as_of"])
    return _CONCLUDED.make(
        assessment,
        fields,
        call_id=call_id,
        updated_at=fields["as_of"],
        ranking={name: getattr(ranking, name) for name in _RANKING},
    )


def _plain_part(part: Part) -> Mapping[str, Any]:
    return {
        "name": part.name,
        "points": part.points,
        "reason": part.reason,
        "evidence": [
            {"text": one.text, "utterance_id": one.utterance_id, "start_ms": one.start_ms, "end_ms": one.end_ms}
            for one in part.evidence
        ],
    }
