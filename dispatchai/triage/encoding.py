"""Assessments to Avro, which are written with each signal: at a part of what `records.encode` costs.

Decides nothing: the bytes are those of `records.encode`, which a test holds it to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dispatchai.records import Assessment, AudioSummary, Part, encode_fields

_FIELDS: Final = tuple(Assessment.__slots__)
_AUDIO: Final = tuple(AudioSummary.__slots__)


def encode_assessment(assessment: Assessment) -> bytes:
    """`assessment` in single-object encoding. Raises ValueError or TypeError if a field has a wrong type."""
    fields: dict[str, Any] = {name: getattr(assessment, name) for name in _FIELDS}
    audio, emotion, risk = assessment.audio, assessment.emotion, assessment.risk
    fields["audio"] = {name: getattr(audio, name) for name in _AUDIO}
    fields["emotion"] = {"label": emotion.label, "intensity": emotion.intensity, "sentiment": emotion.sentiment}
    fields["risk"] = {"level": risk.level, "score": risk.score}
    fields["parts"] = [_plain_part(part) for part in assessment.parts]
    return encode_fields("Assessment", fields)


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
