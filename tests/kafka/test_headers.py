"""Numbers in headers are read with a bound: a stranger's header ends no process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.kafka.headers import LONG_MAX, number_in
from dispatchai.kafka.packet_history import ASSESSED_AT, assessed_at_ms

NO_NUMBERS = [b"9" * 5_000, b"-1", b"", b"1e9", b"\xd9\xa1", None, str(LONG_MAX + 1).encode()]


@given(st.integers(0, LONG_MAX))
def test_a_number_is_read_as_it_was_written(number: int) -> None:
    assert number_in(str(number).encode(), LONG_MAX) == number


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_within_the_bound_is_none(value: bytes | None) -> None:
    assert number_in(value, LONG_MAX) is None


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_packet_whose_header_names_no_time_counts_as_not_copied(value: bytes | None) -> None:
    assert assessed_at_ms([("other", b"1"), (ASSESSED_AT, value)]) is None
    assert assessed_at_ms([(ASSESSED_AT, b"1796018908452")]) == 1_796_018_908_452
