"""Claims about the fold of the compacted topics into the queue."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dispatchai.console.queue_view import Change, Entry, EntryStatus, QueueView, StoredPacket
from dispatchai.records import CallPacket, LiveCall, RiskLevel, encode
from tests.console.samples import BASE, SECOND, final_packet, live_call, ranking

CALL_IDS = ("a", "b", "c", "d")


def live(call_id: str, weight: int = 0, at: int = 0) -> LiveCall:
    return live_call(call_id, weight=weight, started_at=BASE + at * SECOND, level=RiskLevel.UNKNOWN)


def packet(call_id: str, weight: int = 0, at: int = 0, version: int = 1) -> CallPacket:
    final = final_packet(live(call_id), version=version)
    return replace(final, ranking=ranking(weight, BASE + at * SECOND, RiskLevel.UNKNOWN))


def stored(value: CallPacket | None) -> StoredPacket | None:
    return None if value is None else StoredPacket.read(value.call_id, encode(value))


def apply(view: QueueView, key: str, value: LiveCall | CallPacket | None, *, to_queue: bool) -> list[Change]:
    if to_queue:
        assert not isinstance(value, LiveCall)
        return view.put_packet(key, stored(value))
    assert not isinstance(value, CallPacket)
    return view.put_live(key, value)


@st.composite
def partitions(draw: st.DrawFn) -> dict[tuple[str, bool], list[LiveCall | CallPacket | None]]:
    """For each call and topic its values in the order of the partition, the rewinds of a writer included."""
    logs: dict[tuple[str, bool], list[LiveCall | CallPacket | None]] = {}
    weights, seconds = st.integers(0, 3), st.integers(0, 3)
    for call_id in CALL_IDS:
        lives = st.builds(live, st.just(call_id), weights, seconds)
        packets = st.builds(packet, st.just(call_id), weights, seconds, st.integers(1, 3))
        logs[call_id, False] = draw(st.lists(st.none() | lives, max_size=4))
        logs[call_id, True] = draw(st.lists(st.none() | packets, max_size=4))
    return logs


def interleaved(
    data: st.DataObject, logs: dict[tuple[str, bool], list[LiveCall | CallPacket | None]]
) -> list[tuple[str, bool, LiveCall | CallPacket | None]]:
    turns = data.draw(st.permutations([key for key, values in logs.items() for _ in values]))
    iterators = {key: iter(values) for key, values in logs.items()}
    return [(*key, next(iterators[key])) for key in turns]


@given(partitions(), st.data())
def test_any_interleaving_of_calls_and_topics_ends_in_the_same_ranked_view(
    logs: dict[tuple[str, bool], list[LiveCall | CallPacket | None]], data: st.DataObject
) -> None:
    views = []
    for _ in range(2):
        view = QueueView()
        for call_id, to_queue, value in interleaved(data, logs):
            apply(view, call_id, value, to_queue=to_queue)
        views.append(view.ranked())
    assert views[0] == views[1]


@given(partitions(), st.data())
def test_the_changes_alone_rebuild_the_view_and_their_numbers_rise_by_one(
    logs: dict[tuple[str, bool], list[LiveCall | CallPacket | None]], data: st.DataObject
) -> None:
    view = QueueView()
    rebuilt: dict[str, Entry] = {}
    number = 0
    for call_id, to_queue, value in interleaved(data, logs):
        for change in apply(view, call_id, value, to_queue=to_queue):
            number += 1
            assert change.number == number == view.number
            if change.entry is None:
                del rebuilt[change.call_id]
            else:
                rebuilt[change.call_id] = change.entry
    assert tuple(sorted(rebuilt.values(), key=lambda entry: entry.order)) == view.ranked()
    assert view.live_count == len(view.live())
    assert view.live_count + view.final_count == len(view.ranked())


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 5), st.booleans()), max_size=60), st.integers(1, 4))
def test_a_full_view_holds_no_more_than_its_bound_and_lets_the_oldest_go(
    puts: list[tuple[str, int, bool]], bound: int
) -> None:
    view = QueueView(max_finals=bound)
    for version, (call_id, at, purge) in enumerate(puts, start=1):
        before = {entry.call_id: entry.ranking.created_at for entry in view.ranked()}
        changes = view.put_packet(call_id, None if purge else stored(packet(call_id, at=at, version=version)))
        assert view.final_count == len(view.ranked()) <= bound
        for gone in (change.call_id for change in changes[1:]):
            assert all(entry.ranking.created_at >= before.get(gone, BASE + at * SECOND) for entry in view.ranked())


def test_the_order_is_weight_then_waiting_time_then_call_id_whatever_the_status() -> None:
    view = QueueView()
    view.put_packet("old-low", stored(packet("old-low", weight=100, at=0)))
    view.put_live("live-high", live("live-high", weight=900, at=50))
    view.put_packet("final-high", stored(packet("final-high", weight=900, at=10)))
    view.put_live("twin-b", live("twin-b", weight=500, at=20))
    view.put_packet("twin-a", stored(packet("twin-a", weight=500, at=20)))
    assert [entry.call_id for entry in view.ranked()] == ["final-high", "live-high", "twin-a", "twin-b", "old-low"]


def test_an_older_version_of_a_packet_does_not_replace_a_newer_one() -> None:
    view = QueueView()
    view.put_packet("a", stored(packet("a", weight=300, version=2)))
    assert view.put_packet("a", stored(packet("a", weight=900, version=1))) == []
    entry = view.get("a")
    assert entry is not None
    assert entry.ranking.weight == 300


def test_a_call_with_a_packet_is_final_and_appears_once_though_its_live_entry_is_still_there() -> None:
    view = QueueView()
    view.put_packet("a", stored(packet("a", weight=700)))
    view.put_live("a", live("a", weight=200))
    assert [(entry.call_id, entry.status, entry.ranking.weight) for entry in view.ranked()] == [
        ("a", EntryStatus.FINAL, 700)
    ]
    assert view.live() == ()
    view.put_live("a", None)
    assert len(view.ranked()) == 1


def test_a_tombstone_takes_the_call_away_and_one_for_an_unknown_call_changes_nothing() -> None:
    view = QueueView()
    view.put_live("a", live("a"))
    (gone,) = view.put_live("a", None)
    assert gone.entry is None
    assert view.ranked() == ()
    assert view.put_live("a", None) == []
    assert view.put_packet("never", None) == []


def test_the_same_value_again_is_no_change() -> None:
    view = QueueView()
    assert len(view.put_live("a", live("a"))) == 1
    assert view.put_live("a", live("a")) == []


def test_a_view_that_replaces_another_numbers_its_changes_above_it() -> None:
    old, new = QueueView(), QueueView()
    for at in range(5):
        old.put_live("a", live("a", at=at))
    new.put_live("a", live("a"))
    new.continue_after(old)
    (change,) = new.put_live("b", live("b"))
    assert change.number > old.number
