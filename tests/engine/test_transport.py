"""A batch hands over the records of one fetch key by key, none lost and none out of the order of its key."""

from __future__ import annotations

import aiokafka
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from dispatchai.engine.fetch import Batch

FRAMES = TP("frames", 3)


def record(offset: int, key: bytes | None) -> aiokafka.ConsumerRecord:
    return aiokafka.ConsumerRecord(
        topic=FRAMES.topic,
        partition=FRAMES.partition,
        offset=offset,
        timestamp=0,
        timestamp_type=0,
        key=key,
        value=b"",
        checksum=None,
        serialized_key_size=0,
        serialized_value_size=0,
        headers=(),
    )


keys = st.lists(st.sampled_from([b"a", b"b", b"c", b"", None]), min_size=1, max_size=50)


@given(keys, st.integers(0, 1000))
def test_each_record_comes_once_under_its_key_and_in_order(drawn: list[bytes | None], first: int) -> None:
    records = tuple(record(first + number, key) for number, key in enumerate(drawn))
    batch = Batch(FRAMES, records)
    groups = list(batch.by_key())
    assert batch.first_offset == first
    assert [key for key, _ in groups] == list(dict.fromkeys(drawn)), "a key came in two groups, or out of turn"
    for key, group in groups:
        assert group == [one for one in records if one.key == key]
    assert sum(len(group) for _, group in groups) == len(records)
