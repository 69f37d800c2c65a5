"""Live entries to Avro, which are written with each signal of a voice: at a part of what `records.encode` costs.

Decides nothing: the bytes are those of `records.encode`, which a test holds it to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dispatchai.records import Assessment, LiveCall, Ranking, Risk, RiskLevel
from dispatchai.records.carry import Carrier
from dispatchai.triage.ranking import rank_live

_RANKING: Final = tuple(Ranking.__slots__)

_CONCLUDED: Final = Carrier(Assessment.__name__, LiveCall.__name__, "call_control_id")
"""A live entry is an assessment with another beginning, and its place in the queue."""


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
