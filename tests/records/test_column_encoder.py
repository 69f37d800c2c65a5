"""Records that are encoded from columns are those that the codec encodes one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.records import Signal, SignalKind, SignalState, StreamSignal, encode
from dispatchai.records.column_encoder import Column, OneItem, Same, Text, encode_columns

longs = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-200, 200)
doubles = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=70)


def text(values: list[str]) -> Text:
    names = [value.encode() for value in values]
    width = max(map(len, names)) + 1
    return Text(np.frombuffer(b"".join(name.ljust(width, b"\0") for name in names), np.uint8).reshape(-1, width))


def column(values: list[object]) -> Column:
    return text(values) if isinstance(values[0], str) else np.array(values)  # type: ignore[arg-type]


def columns(records: list[object], *names: str) -> dict[str, Column]:
    return {name: column([getattr(record, name) for record in records]) for name in names}


signals = st.builds(
    Signal, stream_id=texts, sequence=longs, captured_at=longs, kind=st.just(SignalKind.UPDATE), audio_ms=longs,
    voiced_ms=longs, voiced=st.booleans(), rms=doubles, loudness_distress=doubles, loudness_distress_max=doubles,
    loudness_distress_mean=doubles, missing_frames=longs,
)  # fmt: skip

streams = st.builds(
    StreamSignal, stream_id=texts, next_sequence=longs, ended=st.just(value=True), ema=doubles, distress=doubles,
    voiced=st.booleans(), rms=doubles, captured_at=longs, position_samples=longs, signalled_at_samples=longs,
    signalled_voiced=st.booleans(),
)  # fmt: skip

states = st.builds(
    SignalState, streams=streams.map(lambda one: (one,)), audio_ms=doubles, voiced_ms=doubles, voiced_frames=longs,
    distress_sum=doubles, distress_max=doubles, missing_frames=longs, frames=longs,
)  # fmt: skip


def of(kind: type, but: str) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name != but]


@given(st.lists(signals, min_size=1, max_size=20))
def test_signals_are_those_of_the_codec(records: list[Signal]) -> None:
    made = columns(list(records), *of(Signal, "kind")) | {"kind": Same(SignalKind.UPDATE)}
    assert encode_columns("Signal", made, len(records)) == [encode(record) for record in records]


@given(st.lists(states, min_size=1, max_size=20))
def test_states_with_one_stream_are_those_of_the_codec(records: list[SignalState]) -> None:
    stream = columns([record.streams[0] for record in records], *of(StreamSignal, "ended"))
    made = columns(list(records), *of(SignalState, "streams")) | {
        "streams": OneItem(stream | {"ended": Same(value=True)})
    }
    assert encode_columns("SignalState", made, len(records)) == [encode(record) for record in records]


def test_no_records_are_encoded_from_empty_columns() -> None:
    assert encode_columns("Signal", {}, 0) == []


def test_a_column_of_another_type_is_refused() -> None:
    one = Signal("s", 1, 1, SignalKind.START, 1, 1, True, 0.0, 0.0, 0.0, 0.0, 0)
    good = columns([one], *of(Signal, "kind")) | {"kind": Same(SignalKind.START)}
    assert encode_columns("Signal", good, 1) == [encode(one)]
    with pytest.raises(TypeError, match="double"):
        encode_columns("Signal", good | {"rms": np.array([1])}, 1)
    with pytest.raises(TypeError, match="long"):
        encode_columns("Signal", good | {"sequence": np.array([1.0])}, 1)
    with pytest.raises(TypeError, match="string"):
        encode_columns("Signal", good | {"stream_id": np.array(["s"])}, 1)
    with pytest.raises(ValueError, match="NOISE"):
        encode_columns("Signal", good | {"kind": Same("NOISE")}, 1)
    with pytest.raises(KeyError, match="rms"):
        encode_columns("Signal", {name: values for name, values in good.items() if name != "rms"}, 1)
