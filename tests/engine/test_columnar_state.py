"""Offsets of states in rows are held until a snapshot that covers them was written, whatever comes in between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from faust.types import TP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dispatchai.engine.checkpoint import Snapshot
from dispatchai.engine.columnar_state import ROUNDS, ColumnarStates
from dispatchai.engine.commits import Coverage
from dispatchai.engine.snapshots import SnapshotStore

FRAMES = TP("frames", 0)
EVENTS = TP("events", 0)


class Counts:
    """The smallest rows there are: a number each."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {}

    def load(self, row: int, value: bytes) -> None:
        self.values[row] = int(value)

    def save(self, rows: Sequence[int]) -> list[bytes | None]:
        return [str(self.values[row]).encode() if row in self.values else None for row in rows]

    def clear(self, row: int) -> None:
        self.values.pop(row, None)


def make() -> tuple[ColumnarStates, Counts]:
    counts = Counts()
    return ColumnarStates("counts", SnapshotStore("counts", lambda: 1), Coverage(), counts), counts


def test_new_keys_get_rows_and_the_state_that_the_table_holds() -> None:
    states, counts = make()
    states.store.put("b", b"7", 0)
    assert states.find([b"a", b"b"]).tolist() == [-1, -1]
    rows = states.rows(FRAMES, [b"a", b"b", b"a"])
    assert rows.tolist() == [0, 1, 0]
    assert counts.values == {1: 7}
    assert states.find([b"b"]).tolist() == [1]


async def test_a_snapshot_a_second_is_enough_but_for_the_last_round() -> None:
    states, counts = make()
    rows = states.rows(FRAMES, [b"a"])
    counts.values[0] = 1
    states.want(rows)
    assert len(states.take()) == 1
    states.want(rows)
    assert states.take() == []
    states.closing = True
    assert len(states.take()) == 1


async def test_of_what_is_due_at_once_a_share_is_written_in_each_round() -> None:
    states, counts = make()
    rows = states.rows(FRAMES, [str(number).encode() for number in range(1000)])
    counts.values = dict.fromkeys(range(1000), 1)
    states.want(rows)
    rounds = list(iter(states.take, []))
    assert [len(taken) for taken in rounds] == [1000 // ROUNDS] * ROUNDS
    assert len({snapshot.key for taken in rounds for snapshot in taken}) == 1000
    states.want(rows)
    states.want(rows[900:], at_once=True)
    assert [snapshot.covered for snapshot in states.take()] == list(range(900, 1000))
    assert states.take() == []
    states.closing = True
    assert len(states.take()) == 900


def test_a_state_that_is_gone_leaves_a_tombstone_and_its_row_to_another_key() -> None:
    states, counts = make()
    rows = states.rows(FRAMES, [b"a", b"b"])
    counts.values = {0: 1, 1: 2}
    states.applied(FRAMES, rows, np.array([5, 6]))
    states.want(rows, at_once=True)
    for snapshot in states.take():
        states.written(snapshot)
    counts.clear(0)
    states.applied(FRAMES, rows[:1], np.array([9]))
    states.want(rows[:1], at_once=True)
    (tombstone,) = states.take()
    assert (tombstone.key, tombstone.value) == ("a", None)
    states.written(tombstone)
    assert states.floor(FRAMES) is None
    assert states.find([b"a"]).tolist() == [-1]
    assert states.rows(FRAMES, [b"c"]).tolist() == [0]


def test_a_state_that_came_back_while_its_tombstone_was_written_keeps_its_row() -> None:
    states, counts = make()
    rows = states.rows(FRAMES, [b"a"])
    states.applied(FRAMES, rows, np.array([5]))
    states.want(rows, at_once=True)
    (tombstone,) = states.take()
    counts.values[0] = 3
    states.written(tombstone)
    assert states.find([b"a"]).tolist() == [0]


def test_after_an_assignment_nothing_is_owed_and_every_state_is_the_tables() -> None:
    states, counts = make()
    rows = states.rows(FRAMES, [b"a"])
    counts.values[0] = 3
    states.applied(FRAMES, rows, np.array([5]))
    states.reset()
    assert states.floor(FRAMES) is None
    assert counts.values == {}
    states.store.put("a", b"2", 0)
    assert states.rows(FRAMES, [b"a"]).tolist() == [0]
    assert counts.values == {0: 2}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), st.sampled_from([FRAMES, EVENTS]), st.lists(st.integers(0, 200), max_size=6)),
        st.tuples(st.just("want"), st.lists(st.integers(0, 200), max_size=6)),
        st.tuples(st.just("take")),
        st.tuples(st.just("write"), st.integers(0, 6)),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(STEPS)
async def test_no_offset_is_released_before_a_snapshot_that_covers_it_is_written(
    steps: list[tuple[object, ...]],
) -> None:
    states, counts = make()
    offset = {FRAMES: 0, EVENTS: 0}
    uncovered: dict[TP, dict[int, list[int]]] = {FRAMES: {}, EVENTS: {}}
    on_the_way: list[tuple[Snapshot, dict[TP, list[int]]]] = []
    for step in steps:
        match step:
            case ("apply", TP() as tp, list() as numbers):
                rows = states.rows(tp, [f"{number}".encode() for number in numbers])
                offsets = np.arange(offset[tp], offset[tp] + len(numbers))
                offset[tp] += len(numbers)
                states.applied(tp, rows, offsets)
                for row, at in zip(rows.tolist(), offsets.tolist(), strict=True):
                    counts.values[row] = at
                    uncovered[tp].setdefault(row, []).append(at)
            case ("want", list() as numbers):
                rows = states.find([f"{number}".encode() for number in numbers])
                states.want(rows[rows >= 0], at_once=True)
            case ("take",):
                on_the_way += [
                    (taken, {tp: held.pop(taken.covered, []) for tp, held in uncovered.items()})
                    for taken in states.take()
                ]
            case ("write", int() as count):
                # Rounds are written one after the other, each whole: of one row only one is on its way.
                for taken, _ in on_the_way[:count]:
                    states.written(taken)
                del on_the_way[:count]
        for tp in (FRAMES, EVENTS):
            held_back = [at for held in uncovered[tp].values() for at in held]
            held_back += [at for _, covered in on_the_way for at in covered[tp]]
            floor = states.floor(tp)
            if len({taken.covered for taken, _ in on_the_way}) == len(on_the_way):
                assert floor == min(held_back, default=None)
