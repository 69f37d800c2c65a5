"""No record brings a number that is not finite, or an id that a state cannot hold."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from dispatchai.records import DecodeError, LiveCall, Signal, Utterance, decode, decode_as, encode
from dispatchai.records.codec import NAME_MAX_CHARS, decode_fields, encode_fields
from dispatchai.triage.ranking import decode_assessed
from tests.records.examples import example, record_class
from tests.support.recorded_call import assessment, signal, utterance


def with_number(record: Any, value: float) -> bytes:
    """A live entry or an assessment with `value` for its score, as another program may write it."""
    name, fields = decode_fields(encode(record))
    fields["risk"]["score"] = value
    return encode_fields(name, fields)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(DecodeError, match="not finite"):
        decode_as(LiveCall, with_number(example(record_class("LiveCall")), value))
    with pytest.raises(DecodeError, match="not finite"):
        decode_assessed(with_number(assessment(), value))
    with pytest.raises(ValueError, match="not finite"):
        encode(replace(signal(1), rms=value))
    with pytest.raises(ValueError, match="not finite"):
        encode(replace(utterance(1, "Help."), confidence=value))


@pytest.mark.parametrize("field", ["stream_id", "utterance_id", "engine"])
def test_an_id_that_a_state_cannot_hold_is_refused(field: str) -> None:
    change: Any = {field: "x" * NAME_MAX_CHARS}
    assert isinstance(decode(encode(replace(utterance(1, "Help."), **change))), Utterance)
    change = {field: "x" * (NAME_MAX_CHARS + 1)}
    with pytest.raises(DecodeError, match=f"{field} of 513 characters"):
        decode(encode(replace(utterance(1, "Help."), **change)))


def test_an_ordinary_signal_is_read() -> None:
    assert decode(encode(signal(1))) == signal(1)
    assert isinstance(decode(encode(signal(1))), Signal)
