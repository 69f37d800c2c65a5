"""Numbers and texts are encoded as Avro's specification says, one at a time and in columns."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fastavro import schemaless_reader, schemaless_writer
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.records.avro_primitives import (
    NO_MORE_ITEMS,
    NULL,
    ONE_ITEM,
    TimeEncoder,
    decode_long,
    decode_longs,
    encode_doubles,
    encode_long,
    encode_longs,
    encode_string,
)

naturals = st.integers(0, 2**63 - 1) | st.integers(0, 300)
longs = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)


def written(schema: object, value: object) -> bytes:
    """`value` as the library writes it."""
    out = io.BytesIO()
    schemaless_writer(out, schema, value)
    return out.getvalue()


@pytest.mark.parametrize(
    ("number", "encoded"), [(0, b"\x00"), (1, b"\x02"), (63, b"\x7e"), (64, b"\x80\x01"), (8192, b"\x80\x80\x01")]
)
def test_the_examples_of_the_specification(number: int, encoded: bytes) -> None:
    assert encode_long(number) == encoded


@given(naturals)
def test_a_number_is_encoded_as_by_the_library(number: int) -> None:
    assert encode_long(number) == written("long", number)


@given(st.lists(naturals | st.integers(1_779_233_415_000_000, 1_779_233_420_000_000)))
def test_times_are_encoded_as_by_the_library_whatever_came_before(times: list[int]) -> None:
    encoder = TimeEncoder()
    assert [encoder.encode(time) for time in times] == [written("long", time) for time in times]


@given(st.text())
def test_a_text_is_encoded_as_by_the_library(text: str) -> None:
    assert encode_string(text) == written("string", text)


@given(longs, st.binary(max_size=3), st.binary(max_size=3))
def test_a_number_is_found_where_it_begins_and_ends(number: int, before: bytes, behind: bytes) -> None:
    encoded = written("long", number)
    assert decode_long(before + encoded + behind, len(before)) == (number, len(before) + len(encoded))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80" * 10 + b"\x00"])
def test_a_number_that_does_not_end_is_refused(data: bytes) -> None:
    with pytest.raises(IndexError):
        decode_long(data, 0)


def test_a_number_that_is_longer_than_asked_for_is_refused() -> None:
    encoded = encode_long(2**56)
    assert decode_long(encoded, 0, 9) == (2**56, 9)
    with pytest.raises(IndexError):
        decode_long(encoded, 0, 8)


@given(st.lists(longs, min_size=1, max_size=20))
def test_a_column_of_numbers_is_encoded_like_each_number(numbers: list[int]) -> None:
    encoded, counts = encode_longs(np.array(numbers, np.int64))
    assert [row[count].tobytes() for row, count in zip(encoded, counts, strict=True)] == [
        written("long", number) for number in numbers
    ]


@given(st.data(), st.integers(1, 8))
def test_a_column_of_numbers_of_one_length_is_decoded(data: st.DataObject, length: int) -> None:
    of_length = st.integers(-(2 ** (7 * length - 1)), 2 ** (7 * length - 1) - 1).filter(
        lambda number: len(written("long", number)) == length
    )
    numbers = data.draw(st.lists(of_length, min_size=1, max_size=10))
    rows = np.frombuffer(b"".join(written("long", number) for number in numbers), np.uint8).reshape(-1, length)
    assert decode_longs(rows).tolist() == numbers


@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_a_column_of_doubles_is_encoded_like_each_double(values: list[float]) -> None:
    assert [row.tobytes() for row in encode_doubles(np.array(values))] == [written("double", value) for value in values]


def test_null_and_an_array_of_one_item_are_read_by_the_library() -> None:
    assert written(["null", "string"], None) == NULL
    array = {"type": "array", "items": "string"}
    data = ONE_ITEM + encode_string("item") + NO_MORE_ITEMS
    assert schemaless_reader(io.BytesIO(data), array, None) == ["item"]
