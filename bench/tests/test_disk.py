"""What the measurements of a year and of the disk write and read is what Kafka and the worker have."""

from __future__ import annotations

import numpy as np
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from bench import disk, year
from dispatchai.records import CallPacket, decode_as


def batch(compression: int, *values: bytes) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=compression,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1_000_000,
    )
    for offset, value in enumerate(values):
        builder.append(offset, 1_000 + offset, b"call", value, [])
    return bytes(builder.build())


def test_a_packet_of_the_past_is_one_of_its_call_and_has_the_size_of_a_real_one() -> None:
    made = year.packet_of(b"some-call", year.past_packet())
    assert decode_as(CallPacket, made).call_id == "some-call"
    assert abs(len(made) - year.PACKET_BYTES) < 100


def test_the_records_of_each_batch_are_found_and_what_is_compressed_is_refused() -> None:
    one, two = batch(0, b"a" * 100, b"b" * 100), batch(0, b"c" * 300)
    found = list(disk.batches(one + two + bytes(100)))
    assert [len(records) + disk.BATCH_BYTES for records in found] == [len(one), len(two)]
    assert b"c" * 300 in found[1]
    with pytest.raises(ValueError, match="compressed already"):
        list(disk.batches(batch(1, b"a" * 1000)))


def test_no_two_callers_send_the_same_frames() -> None:
    audios = disk.distinct_audio(6, 2.0, disk.NOISE_RMS)
    assert {audio.seconds for audio in audios} == {2.0}
    frames = np.array([np.frombuffer(audio.pcmu, np.uint8)[: disk.FRAME_BYTES] for audio in audios])
    assert len(np.unique(frames, axis=0)) == 6
