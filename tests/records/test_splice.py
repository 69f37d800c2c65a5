"""A record that is spliced from the bytes of another is the one that the codec encodes."""

from __future__ import annotations

from dataclasses import fields

import pytest

from dispatchai.records import LiveCall, Ranking, codec, decode, decode_fields, encode
from dispatchai.records.errors import SchemaError
from dispatchai.records.splice import RecordSplicer
from tests.support.recorded_call import assessment

GIVEN = {"call_id": "call", "updated_at": 1, "ranking": {"priority": 1, "weight": 2, "created_at": -3}}


def test_shared_fields_are_copied_and_the_others_are_those_given() -> None:
    said = assessment(transcript="Help.")
    value = encode(said)
    made = decode(
        RecordSplicer("Assessment", "LiveCall", "call_control_id").make(value, decode_fields(value)[1], **GIVEN)
    )
    assert isinstance(made, LiveCall)
    for field in fields(LiveCall):
        if field.name not in GIVEN:
            assert getattr(made, field.name) == getattr(said, field.name), field.name
    assert (made.call_id, made.updated_at, made.ranking) == ("call", 1, Ranking(1, 2, -3))


def test_a_record_of_a_past_schema_is_written_as_one_of_the_current(monkeypatch: pytest.MonkeyPatch) -> None:
    said = assessment(transcript="Help.")
    current = encode(said)
    past = codec._Schema("Assessment", codec.parsed_schema("Assessment"), b"\xc3\x01 of past")
    monkeypatch.setitem(codec._by_header(), past.header, past)
    value = past.header + current[len(past.header) :]
    splicer = RecordSplicer("Assessment", "LiveCall", "call_control_id")
    made = [splicer.make(one, decode_fields(one)[1], **GIVEN) for one in (value, current)]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("source", "target", "first"),
    [
        ("Assessment", "LiveCall", "complete"),  # a live entry has no such field
        ("Assessment", "CallPacket", "from_number"),  # another order
        ("LiveCall", "Assessment", "call_control_id"),  # the target lacks the last field
    ],
)
def test_schemas_without_the_same_fields_are_refused(source: str, target: str, first: str) -> None:
    with pytest.raises(SchemaError, match=source):
        RecordSplicer(source, target, first)


@pytest.mark.parametrize(("given", "error"), [({}, ValueError), ({**GIVEN, "call_id": 7}, TypeError)])
def test_a_field_that_is_missing_or_has_a_wrong_type_is_refused(
    given: dict[str, object], error: type[Exception]
) -> None:
    value = encode(assessment())
    with pytest.raises(error):
        RecordSplicer("Assessment", "LiveCall", "call_control_id").make(value, decode_fields(value)[1], **given)
