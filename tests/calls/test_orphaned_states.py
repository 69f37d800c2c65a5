"""A state is given up once it has been orphaned for as long as the limit, as far as looks saw it."""

from __future__ import annotations

from dispatchai.calls.orphaned_states import OrphanAges

HOUR_S = 3600.0


def test_a_key_is_over_the_limit_when_its_state_was_orphaned_for_that_long_and_then_not_again_so_soon() -> None:
    ages = OrphanAges(HOUR_S)
    assert ages.over_limit(["a"], 0.0) == []
    assert ages.over_limit(["a", "b"], HOUR_S - 1) == []
    assert ages.over_limit(["a", "b"], HOUR_S) == ["a"]
    assert ages.over_limit(["a", "b"], 2 * HOUR_S - 1) == ["b"]
    assert ages.over_limit(["a", "b"], 2 * HOUR_S) == ["a"]


def test_a_state_that_was_not_orphaned_in_one_look_starts_from_nothing() -> None:
    ages = OrphanAges(HOUR_S)
    assert ages.over_limit(["known meanwhile"], 0.0) == []
    assert ages.over_limit([], HOUR_S - 1) == []
    assert ages.over_limit(["known meanwhile"], HOUR_S) == []
    assert ages.over_limit(["known meanwhile"], 2 * HOUR_S - 1) == []
    assert ages.over_limit([], 2 * HOUR_S) == []
    assert ages.over_limit(["known meanwhile"], 3 * HOUR_S) == []
