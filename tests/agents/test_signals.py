"""What the signals agent makes of the records that it reads."""

from __future__ import annotations

import pytest

from agents.signals import TOPIC, decode, fold
from dispatchai.records import DecodeError, SignalKind, decode_as, encode
from dispatchai.records import Signal as SignalRecord
from tests.agents.recorded import EXPIRED, event, utterance
from tests.speech.audio import pcmu, records, tone


def test_a_stream_is_signalled_from_its_start_to_its_end() -> None:
    stepped = fold("call", None, records(pcmu(tone(3000))))
    assert {output.topic for output in stepped.outputs} == {TOPIC}
    signals = [decode_as(SignalRecord, output.value or b"") for output in stepped.outputs]
    assert (signals[0].kind, signals[-1].kind) == (SignalKind.START, SignalKind.END)
    assert signals[-1].audio_ms == 3000


def test_an_expired_call_keeps_no_state() -> None:
    state = fold("call", None, records(pcmu(tone(100)))).state
    assert state is not None
    stepped = fold("call", state, [event("call.hangup"), EXPIRED])
    assert (stepped.state, stepped.outputs) == (None, ())


def test_other_events_change_nothing() -> None:
    state = fold("call", None, records(pcmu(tone(100)))).state
    stepped = fold("call", state, [event("call.answered"), event("call.hangup")])
    assert (stepped.state, stepped.outputs) == (state, ())
    assert fold("call", None, [event("call.initiated")]).state is None


def test_a_record_of_another_kind_is_refused() -> None:
    with pytest.raises(DecodeError):
        decode(encode(utterance(0, "Help.")))
