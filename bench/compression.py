"""Bytes and processor time of the producers' compression, on batches as the gateway and the workers make them.

    python -m bench.compression

`audio-frames`: the frames of the recorded callers, as many in a batch as arrive of one partition within the writer's
linger. Changelog: the snapshots of a round of calls. Counts the bytes of whole batches, with Kafka's framing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from bench.frames import FRAMES_PER_S, Call
from dispatchai.records import encode
from dispatchai.records.avro_primitives import encode_long
from dispatchai.triage.rules import Rules
from dispatchai.triage.step import step
from tests.support.recorded_call import CARDIAC_ARREST, Record, event, stream_signals, utterance

CODECS = {
    "none": 0,
    "gzip": DefaultRecordBatch.CODEC_GZIP,
    "snappy": DefaultRecordBatch.CODEC_SNAPPY,
    "lz4": DefaultRecordBatch.CODEC_LZ4,
    "zstd": DefaultRecordBatch.CODEC_ZSTD,
}

KeyValue = tuple[bytes, bytes]


def batch(records: Sequence[KeyValue], codec: int) -> bytes:
    """One batch of `records`, as aiokafka's producer builds it."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 10 * 131_072)
    for offset, (key, value) in enumerate(records):
        builder.append(offset, 1_772_567_551_000, key, value, [])
    return bytes(builder.build())


def batches_of(records: Sequence[KeyValue], size: int) -> Iterator[Sequence[KeyValue]]:
    """`records` in batches of `size`."""
    for start in range(0, len(records), size):
        yield records[start : start + size]


def measure(name: str, records: Sequence[KeyValue], size: int, minutes: float) -> None:
    """Print a line for each codec: bytes of a minute, and processor time of a record."""
    none = 0
    for codec, number in CODECS.items():
        begun = time.process_time()
        total = sum(len(batch(some, number)) for some in batches_of(records, size))
        took = time.process_time() - begun
        none = none or total
        micros = took / len(records) * 1e6
        print(f"| {name} | {size} | {codec} | {total / minutes / 1000:,.0f} | {total / none:.0%} | {micros:.1f} |")


def frames_of(count: int) -> list[KeyValue]:
    """The frames of `count` calls in turn, 3,000 in all."""
    calls = [Call(f"7377d195-07eb-4305-82ad-{number:012}", number) for number in range(count)]
    made = list[KeyValue]()
    for tick in range(3_000 // count):
        moment = encode_long(1_772_567_551_000_000 + tick * 20_000)
        made += [(call.call_id.encode(), call.frame(moment)) for call in calls]
    return made


def states(calls: int) -> list[KeyValue]:
    """Snapshots of calls of a minute and a half of talk, as the triage agent writes them."""
    rules, made = Rules.load(), list[KeyValue]()
    for call in range(calls):
        spoken = [replace(utterance(n, CARDIAC_ARREST[(n + call) % 3]), stream_id=f"s{call}") for n in range(30)]
        records: list[Record] = [event("call.initiated", call=f"c{call}"), *stream_signals(f"s{call}", 2), *spoken]
        made.append((f"7377d195-07eb-4305-82ad-{call:012}".encode(), encode(step(None, records, rules=rules).state)))
    return made


def main() -> None:
    """Measure and print."""
    print("| topic | records in a batch | codec | kB a call-minute | of none | µs a record |")
    print("|---|---|---|---|---|---|")
    for size in (1, 5, 25, 100):
        # The calls of a partition, frame by frame in turn: a batch of 5 has five calls.
        frames = frames_of(size)
        measure("audio-frames", frames, size, len(frames) / FRAMES_PER_S / 60)
    snapshots = states(64)
    for size in (1, 8):
        measure("triage-changelog", snapshots, size, len(snapshots))


if __name__ == "__main__":
    main()
