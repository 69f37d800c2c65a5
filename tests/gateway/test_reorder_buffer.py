"""Frames of a track go out in order, each once, and a lost one delays the others by four frames at most."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatchai.gateway.reorder_buffer import DEPTH, Arrival, ReorderBuffer


def run(sequences: list[int]) -> tuple[list[int], list[Arrival]]:
    buffer: ReorderBuffer[int] = ReorderBuffer()
    out: list[int] = []
    arrivals = []
    for sequence in sequences:
        arrival, released = buffer.push(sequence, -sequence)
        arrivals.append(arrival)
        assert all(item == -number for number, item in released)
        out += [number for number, _ in released]
    return out + [number for number, _ in buffer.flush()], arrivals


def test_frames_in_order_go_out_at_once() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer()
    assert [buffer.push(number, "x")[1] for number in (1, 2, 3)] == [[(1, "x")], [(2, "x")], [(3, "x")]]


def test_swapped_neighbours_are_put_in_order() -> None:
    out, arrivals = run([1, 3, 2, 4])
    assert out == [1, 2, 3, 4]
    assert arrivals == [Arrival.IN_ORDER, Arrival.EARLY, Arrival.REORDERED, Arrival.IN_ORDER]


def test_a_missing_frame_is_a_gap_after_four_later_ones() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer()
    released = [[number for number, _ in buffer.push(number, "x")[1]] for number in (1, 3, 4, 5, 6, 7)]
    assert released == [[1], [], [], [], [], [3, 4, 5, 6, 7]]


def test_a_frame_after_its_gap_was_given_up_is_late_and_a_repeated_one_a_duplicate() -> None:
    out, arrivals = run([1, 3, 4, 5, 6, 7, 2, 2, 4])
    assert out == [1, 3, 4, 5, 6, 7]
    assert arrivals[-3:] == [Arrival.LATE, Arrival.DUPLICATE, Arrival.DUPLICATE]


def test_a_repeated_frame_that_is_held_is_a_duplicate() -> None:
    out, arrivals = run([1, 3, 3, 2])
    assert out == [1, 2, 3]
    assert arrivals[2] is Arrival.DUPLICATE


def test_one_absurd_number_does_not_stop_the_stream() -> None:
    out, _ = run([1, 2, 1 << 39, 3, 4, 6, 5, 7])
    assert out == [1, 2, 3, 4, 5, 6, 7, 1 << 39]


def test_a_flush_gives_up_the_missing_frames() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer()
    for number in (1, 3, 4, 6):
        buffer.push(number, "x")
    assert [number for number, _ in buffer.flush()] == [3, 4, 6]
    assert not buffer.holds
    assert buffer.push(2, "x") == (Arrival.LATE, [])
    assert buffer.push(7, "x") == (Arrival.IN_ORDER, [(7, "x")])


def test_a_flush_without_held_frames_gives_up_nothing() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer()
    buffer.push(1, "x")
    assert buffer.flush() == []
    assert buffer.push(2, "x")[1] == [(2, "x")]


@given(st.lists(st.one_of(st.integers(1, 40), st.none()), max_size=80))
def test_with_any_flushes_sequences_rise_and_none_is_invented(steps: list[int | None]) -> None:
    buffer: ReorderBuffer[int] = ReorderBuffer()
    out: list[int] = []
    for number in steps:
        released = buffer.flush() if number is None else buffer.push(number, number)[1]
        out += [sequence for sequence, _ in released]
    out += [sequence for sequence, _ in buffer.flush()]
    assert out == sorted(set(out))
    assert set(out) <= set(steps)
    assert not buffer.holds


@given(st.lists(st.integers(1, 40), max_size=80))
def test_in_any_order_sequences_rise_and_none_is_invented(sequences: list[int]) -> None:
    out, arrivals = run(sequences)
    assert out == sorted(set(out))
    assert set(out) <= set(sequences)
    lost = sum(arrival in (Arrival.DUPLICATE, Arrival.LATE) for arrival in arrivals)
    assert len(out) + lost == len(sequences)


@given(st.permutations(range(1, 30)), st.integers(0, DEPTH))
def test_a_shuffle_no_deeper_than_the_buffer_loses_nothing(order: list[int], depth: int) -> None:
    # Each frame is moved by at most `depth` places.
    shuffled = sorted(range(1, 30), key=lambda number: number + order[number - 1] / 30 * depth)
    out, _ = run(shuffled)
    assert out == list(range(1, 30))
