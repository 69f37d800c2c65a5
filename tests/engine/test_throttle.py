"""A key's items pass at most so often, and its last one always passes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dispatchai.engine.throttle import Throttle

APART_S = 0.25


@given(st.lists(st.floats(0.001, 0.6), min_size=1, max_size=60))
def test_items_pass_apart_and_the_last_one_always_passes(pauses: list[float]) -> None:
    throttle: Throttle[int] = Throttle(APART_S)
    now, passed = 0.0, []
    for number, pause in enumerate(pauses):
        now += pause
        passed += [(now, item) for _, item in throttle.due(now)]
        if throttle.offer("call", number, now):
            passed.append((now, number))
    passed += [(now + 2 * APART_S, item) for _, item in throttle.due(now + 2 * APART_S)]
    times = [at for at, _ in passed]
    items = [item for _, item in passed]
    assert items == sorted(set(items))
    assert items[-1] == len(pauses) - 1
    assert all(later - earlier >= APART_S - 1e-9 for earlier, later in pairwise(times))


def test_one_key_does_not_hold_up_another() -> None:
    throttle: Throttle[int] = Throttle(APART_S)
    assert throttle.offer("a", 1, 0.0)
    assert throttle.offer("b", 1, 0.0)


def test_what_was_dropped_does_not_come_later() -> None:
    throttle: Throttle[int] = Throttle(APART_S)
    throttle.offer("a", 1, 0.0)
    throttle.offer("a", 2, 0.1)
    throttle.drop("a")
    assert list(throttle.due(10.0)) == []


def test_what_is_dropped_while_others_are_written_does_not_come_after_all() -> None:
    throttle: Throttle[int] = Throttle(APART_S)
    for key in ("a", "b", "c"):
        throttle.offer(key, 1, 0.0)
        throttle.offer(key, 2, 0.1)
    due = throttle.due(10.0)
    assert next(due) == ("a", 2)
    throttle.drop("b")
    assert throttle.offer("c", 3, 10.0)
    assert list(due) == []
