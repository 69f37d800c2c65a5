"""No offset is committed that work in flight still needs."""

from __future__ import annotations

from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.engine.commits import Coverage

P0, P1 = TP("frames", 0), TP("frames", 1)


def test_nothing_held_sets_no_floor() -> None:
    assert Coverage().floor(P0) is None


def test_the_floor_is_the_lowest_offset_held_of_the_partition() -> None:
    coverage = Coverage()
    coverage.hold(P0, "a", 7)
    coverage.hold(P0, "b", 5)
    coverage.hold(P1, "c", 1)
    assert (coverage.floor(P0), coverage.floor(P1)) == (5, 1)
    coverage.release(P0, "b")
    assert coverage.floor(P0) == 7


def test_a_holder_keeps_its_lowest_offset_until_it_advances() -> None:
    coverage = Coverage()
    coverage.hold(P0, "a", 5)
    coverage.hold(P0, "a", 9)
    assert coverage.floor(P0) == 5
    coverage.advance(P0, "a", 9)
    assert coverage.floor(P0) == 9


def test_releasing_what_is_not_held_is_no_error() -> None:
    Coverage().release(P0, "nobody")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), min_size=1))
def test_an_offset_zero_is_an_offset(holds: list[tuple[str, int]]) -> None:
    coverage = Coverage()
    for holder, offset in holds:
        coverage.hold(P0, holder, offset)
    assert coverage.floor(P0) == min(offset for _, offset in holds)
    coverage.reset()
    assert coverage.floor(P0) is None
