"""The place of a call in the queue, and its packet: that of the guide, made from the assessment alone."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.console import json_view as shape
from dispatchai.records import (
    Assessment,
    AssessmentKind,
    AudioSummary,
    CallPacket,
    LiveCall,
    Ranking,
    Risk,
    RiskLevel,
    decode,
    encode,
)
from dispatchai.triage.ranking import live_call, packet, rank
from dispatchai.triage.rules import UNITS
from dispatchai.triage.step import step
from tests.support.recorded_call import RULES, T0, S, assessment, whole_call

LEVELS = list(RiskLevel)
MEDIUM_FROM = dict(RULES.levels)[RiskLevel.MEDIUM] / UNITS
"""The score from which a risk is not low any more."""

risks = st.builds(Risk, st.sampled_from(LEVELS), st.floats(0, 1))


def final(*said: str) -> Assessment:
    """The final assessment of a caller who says this."""
    state = None
    made: list[Assessment] = []
    for topic in whole_call(said or ("Someone's been shot, we need help now.",)).topics:
        stepped = step(state, topic, rules=RULES)
        state = stepped.state
        made += stepped.assessments
    assert made[-1].kind is AssessmentKind.FINAL
    return made[-1]


def place(call_id: str, ranking: Ranking) -> tuple[int, int, str]:
    """The order that the record's text promises: weight descending, then created_at, then call_id."""
    return (-ranking.weight, ranking.created_at, call_id)


# --- The order


@given(risks, st.integers(0, 2**60))
def test_the_weight_is_the_score_in_thousandths(risk: Risk, created_at: int) -> None:
    ranking = rank(risk, created_at)
    assert ranking.created_at == created_at
    assert 0 <= ranking.weight <= 1000
    if risk.level is not RiskLevel.UNKNOWN:
        assert abs(ranking.weight - 1000 * risk.score) <= 0.5


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(LEVELS))
def test_a_higher_score_never_ranks_lower(one: float, other: float, level: RiskLevel) -> None:
    low, high = sorted((one, other))
    assert rank(Risk(level, high), 0).weight >= rank(Risk(level, low), 0).weight


def test_priorities_are_those_of_the_guide_with_critical_first() -> None:
    priorities = {level: rank(Risk(level, 0.5), 0).priority for level in LEVELS}
    assert priorities == {
        RiskLevel.CRITICAL: 1,
        RiskLevel.HIGH: 2,
        RiskLevel.MEDIUM: 3,
        RiskLevel.UNKNOWN: 3,
        RiskLevel.LOW: 4,
    }


@given(st.data())
def test_an_unknown_risk_ranks_above_every_low_one(
    data: st.DataObject,
) -> None:
    # Scores have four decimals; one below the threshold by less than a weight's step shares its weight.
    low = rank(Risk(RiskLevel.LOW, data.draw(st.floats(0, MEDIUM_FROM - 0.001))), T0)
    unknown = rank(Risk(RiskLevel.UNKNOWN, data.draw(st.floats(0, 1))), T0 + S)
    assert unknown.priority < low.priority
    assert place("z", unknown) < place("a", low), "the one that came first stands above"


def test_calls_of_equal_weight_are_ordered_by_age_and_then_by_id() -> None:
    risk = Risk(RiskLevel.HIGH, 0.7)
    calls = {"b": rank(risk, T0), "a": rank(risk, T0), "0": rank(risk, T0 + 1)}
    assert sorted(calls, key=lambda call_id: place(call_id, calls[call_id])) == ["a", "b", "0"]


def test_a_live_call_waits_from_its_start_and_a_packet_from_its_end() -> None:
    ended = final()
    assert live_call("c", ended).ranking.created_at == ended.started_at == T0
    assert packet("c", ended).ranking.created_at == ended.ended_at == T0 + 30 * S


# --- What is shown of an assessment


def test_a_live_entry_has_all_conclusions_of_triage() -> None:
    said = replace(assessment(transcript="Help."), partial="there is")
    entry = live_call("c", said)
    for field in fields(Assessment):
        if field.name not in {"version", "kind", "as_of", "complete"}:
            assert getattr(entry, field.name) == getattr(said, field.name), field.name
    assert (entry.call_id, entry.updated_at) == ("c", said.as_of)


def test_a_packet_has_all_conclusions_of_triage() -> None:
    said = final()
    made = packet("c", said)
    in_nlp = {"transcript", "transcript_omitted", "emotion", "category", "tags"}
    for field in fields(Assessment):
        if field.name in {"kind", "as_of", "status", "partial"}:
            continue
        holder: Any = made.nlp if field.name in in_nlp else made
        assert getattr(holder, field.name) == getattr(said, field.name), field.name
    assert made.duration_seconds == 30


@given(st.integers(0, 2**60), st.integers(1, 5), st.booleans())
def test_a_packet_is_a_function_of_the_assessment_alone(as_of: int, version: int, complete: bool) -> None:
    said = replace(final(), version=version, complete=complete)
    made = packet("c", said)
    assert made == packet("c", replace(said, as_of=as_of)), "when it was concluded shows in the packet"
    assert decode(encode(made)) == made


@pytest.mark.parametrize(
    ("started_at", "answered_at", "ended_at", "seconds"),
    [
        (T0, T0 + S, T0 + 45 * S, 45),
        (None, T0 + S, T0 + 45 * S, 44),
        (None, None, T0 + 45 * S, 0),
        (T0, None, None, 20),
        (T0 + 45 * S, None, T0, 0),
        (1, None, 253_402_300_799 * S, 2**31 - 1),
    ],
    ids=["whole", "without initiated", "hangup alone", "never hung up", "carrier's clock", "beyond any call"],
)
def test_the_duration_of_a_call_if_some_times_are_missing(
    started_at: int | None, answered_at: int | None, ended_at: int | None, seconds: int
) -> None:
    said = replace(final(), started_at=started_at, answered_at=answered_at, ended_at=ended_at, as_of=T0 + 20 * S)
    made = packet("c", said)
    assert made.duration_seconds == seconds
    assert decode(encode(made)) == made


# --- The guide's "Final packet structure"


GUIDE: dict[str, Any] = {
    "call_id": str,
    "duration_seconds": int,
    "audio": {"distress_score": float, "distress_max": float, "voiced_seconds": float},
    "nlp": {
        "transcript": str,
        "emotion": {"label": str, "intensity": float, "sentiment": str},
        "category": str,
        "tags": [str],
    },
    "risk": {"level": str, "score": float},
    "ranking": {"priority": int, "weight": int, "created_at": datetime},
}
"""Names and types of the telephony guide; a datetime is RFC 3339 text in UTC."""


def differences(value: Any, wanted: Any, where: str = "packet") -> list[str]:
    """The places where `value`, read from JSON, lacks a field of `wanted` or has it in another type."""
    match wanted:
        case dict() if isinstance(value, dict):
            return [
                found
                for name, inner in wanted.items()
                for found in (
                    differences(value[name], inner, f"{where}.{name}")
                    if name in value
                    else [f"{where}.{name} is missing"]
                )
            ]
        case [item] if isinstance(value, list) and value:
            return [found for one in value for found in differences(one, item, f"{where}[]")]
        case type() if wanted is datetime and isinstance(value, str) and value.endswith("Z"):
            return [] if datetime.fromisoformat(value).tzinfo is not None else [f"{where} has no zone"]
        case type() if wanted is not datetime and isinstance(value, wanted) and not isinstance(value, bool):
            return []
    return [f"{where} is {value!r}"]


def test_the_packet_in_json_has_every_field_of_the_guide_with_its_type() -> None:
    shown = orjson.loads(orjson.dumps(shape.packet(packet("428c31b6-abf1", final()))))
    assert differences(shown, GUIDE) == []
    assert shown["call_id"] == "428c31b6-abf1"


def test_the_example_of_the_guide_is_ranked_as_the_guide_shows_it() -> None:
    made = packet("c", replace(final(), risk=Risk(RiskLevel.CRITICAL, 0.95), ended_at=1_772_567_596 * S))
    shown = shape.packet(made)
    assert shown["risk"] == {"level": "CRITICAL", "score": 0.95}
    assert shown["ranking"] == {"priority": 1, "weight": 950, "created_at": "2026-03-03T19:53:16.000000Z"}


def test_every_field_of_an_assessment_is_in_a_record_that_is_shown() -> None:
    """Fails for a field of the assessment that neither the live entry nor the packet has."""
    shown = {field.name for cls in (LiveCall, CallPacket, type(packet("c", final()).nlp)) for field in fields(cls)}
    assert {field.name for field in fields(Assessment)} - shown == {"kind", "as_of"}
    assert {field.name for field in fields(AudioSummary)} >= set(GUIDE["audio"])
