"""The records of a run's calls, and whether they match what the simulated carrier sent.

Decides what counts as a difference between the two. Only reads topics; others make the calls.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import aiokafka

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic
from dispatchai.records import AudioFrame, CallPacket, FrameKind, Track, decode_as
from dispatchai.simulator import CallReport, StreamReport

FETCH_MS: Final = 200

EXPECTED_ACTIONS: Final = ("answer", "streaming_start", "speak")
"""The commands that the program gives once in each call that it greets."""


@dataclass(slots=True)
class RecordedStream:
    """One stream in `audio-frames`: the caller's frames in the order of their records."""

    starts: int = 0
    ends: int = 0
    after_end: int = 0
    """Records behind the END."""
    end_sequence: int = 0
    sequences: array[int] = field(default_factory=lambda: array("q"))
    captured_at: array[int] = field(default_factory=lambda: array("q"))
    """Microseconds since the epoch, one for each of `sequences`."""

    def add(self, frame: AudioFrame) -> None:
        """Add the next record of the stream."""
        self.after_end += self.ends
        match frame.kind:
            case FrameKind.START:
                self.starts += 1
            case FrameKind.END:
                self.ends += 1
                self.end_sequence = frame.sequence
            case FrameKind.FRAME if frame.track is Track.INBOUND:
                self.sequences.append(frame.sequence)
                self.captured_at.append(frame.captured_at)
            case FrameKind.FRAME:
                pass


@dataclass(frozen=True, slots=True)
class RecordedPacket:
    """A packet, and when its record was made, in seconds since the epoch."""

    packet: CallPacket
    recorded_at: float


def carriers_id(stream_id: str) -> str:
    """The carrier's id of a recorded stream: the gateway may have added ``~`` and a suffix that makes it unique."""
    return stream_id.partition("~")[0]


Streams = dict[str, dict[str, RecordedStream]]
"""Streams by call id and the carrier's stream id, in the order of their first records."""


async def read_streams(connection: KafkaConnection, call_ids: Collection[str]) -> Streams:
    """The streams of `call_ids` in `audio-frames` now. Raises KafkaError, or DecodeError if a record is no frame."""
    keys = {call_id.encode(): call_id for call_id in call_ids}
    streams: Streams = defaultdict(lambda: defaultdict(RecordedStream))
    consumer = _consumer(Topic.AUDIO_FRAMES, connection)
    await consumer.start()
    try:
        partitions = consumer.assignment()
        ends = await consumer.end_offsets(partitions)
        left = {each for each in partitions if ends[each] > 0}
        while left:
            batches = await consumer.getmany(*left, timeout_ms=FETCH_MS)
            for records in batches.values():
                for record in records:
                    if (call_id := keys.get(record.key)) is not None:
                        frame = decode_as(AudioFrame, record.value)
                        streams[call_id][carriers_id(frame.stream_id)].add(frame)
            left = {each for each in left if await consumer.position(each) < ends[each]}
    finally:
        await consumer.stop()
    return streams


class Packets:
    """Follows `dispatch-queue` from its beginning. Use as `async with`."""

    def __init__(self, connection: KafkaConnection) -> None:
        self.first: dict[str, RecordedPacket] = {}
        """The first packet of each call id."""
        self.last: dict[str, RecordedPacket] = {}
        """The last packet of each call id."""
        self._consumer = _consumer(Topic.DISPATCH_QUEUE, connection)

    async def __aenter__(self) -> Packets:
        await self._consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def wait_for(self, call_ids: Collection[str], timeout_s: float) -> set[str]:
        """Wait until each of the calls has a packet. Returns those that had none within `timeout_s`."""
        missing = set(call_ids) - self.first.keys()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while missing:
                    await self._fetch()
                    missing -= self.first.keys()
        return missing

    async def drain(self) -> None:
        """Read until a fetch brings nothing more."""
        while await self._fetch():
            pass

    async def _fetch(self) -> int:
        batches = await self._consumer.getmany(timeout_ms=FETCH_MS)
        count = 0
        for records in batches.values():
            for record in records:
                count += 1
                if record.value is None:  # a tombstone
                    continue
                try:
                    call_id, packet = record.key.decode(), decode_as(CallPacket, record.value)
                except ValueError:  # a record of somebody else, and not the packet of one of these calls
                    continue
                seen = RecordedPacket(packet, record.timestamp / 1000)
                self.first.setdefault(call_id, seen)
                self.last[call_id] = seen
        return count


def differences(report: CallReport, recorded: dict[str, RecordedStream]) -> Iterator[str]:
    """The differences between the recorded streams of a call and those that were sent, each as one line.

    Every chunk up to the last one sent must be there once and in order, except those that the carrier reports as lost.
    """
    sent = {stream.stream_id: stream for stream in report.streams}
    for stream_id in recorded.keys() - sent.keys():
        yield f"stream {stream_id} was recorded and never sent"
    for stream_id, stream in sent.items():
        if stream_id not in recorded:
            yield f"stream {stream_id} was sent and never recorded"
            continue
        for difference in stream_differences(stream, recorded[stream_id]):
            yield f"stream {stream_id}: {difference}"


def stream_differences(sent: StreamReport, recorded: RecordedStream) -> Iterator[str]:
    """The differences between one recorded stream and what was sent, each as one line."""
    sequences = recorded.sequences
    if (recorded.starts, recorded.ends, recorded.after_end) != (1, 1, 0):
        yield f"{recorded.starts} START, {recorded.ends} END, {recorded.after_end} records after it"
    if any(later <= earlier for earlier, later in pairwise(sequences)):
        yield "frames are recorded twice or out of order"
    gaps = set(range(1, sent.chunks + 1)) - set(sequences)
    if unexpected := sorted(gaps - set(sent.lost)):
        yield f"of {sent.chunks} chunks {_ranges(unexpected)} were sent and not recorded"
    if surplus := sorted(set(sequences) - set(range(1, sent.chunks + 1)) | (set(sent.lost) & set(sequences))):
        yield f"of {sent.chunks} chunks {_ranges(surplus)} were recorded and never sent"
    if recorded.end_sequence < sent.chunks + 1 and sent.chunks not in sent.lost:
        yield f"END has sequence {recorded.end_sequence}, the last chunk was {sent.chunks}"


def _ranges(chunks: list[int]) -> str:
    """Rising numbers as ranges, at most ten of them."""
    edges = [number for number, (before, after) in enumerate(pairwise(chunks), start=1) if after != before + 1]
    bounds = list(pairwise([0, *edges, len(chunks)]))
    texts = [f"{chunks[first]}-{chunks[end - 1]}" if end > first + 1 else f"{chunks[first]}" for first, end in bounds]
    return f"{', '.join(texts[:10])}{', ...' if len(texts) > 10 else ''} ({len(chunks)} in all)"


def command_differences(report: CallReport, expected: Collection[str] = EXPECTED_ACTIONS) -> Iterator[str]:
    """The commands of a call that had an effect twice, or not at all, each as one line.

    Only a stream that failed may be requested again, under another command_id.
    """
    for command in report.commands:
        if command.effects > 1:
            yield f"{command.action} {command.command_id} had {command.effects} effects"
    for action in expected:
        effects = sum(command.effects for command in report.commands if command.action == action)
        allowed = 1 + (report.failed_streams if action == "streaming_start" else 0)
        if not 1 <= effects <= allowed:
            yield f"{action} took effect {effects} times, expected 1 to {allowed}"


def delays_s(report: CallReport, recorded: dict[str, RecordedStream]) -> Iterator[float]:
    """The seconds from the moment when each recorded frame was due at the carrier to its arrival at the gateway."""
    for stream in report.streams:
        seen = recorded.get(stream.stream_id)
        if seen is not None:
            for sequence, captured_at in zip(seen.sequences, seen.captured_at, strict=True):
                yield captured_at / 1_000_000 - (stream.first_due_at + (sequence - 1) * stream.frame_s)


def _consumer(topic: str, connection: KafkaConnection) -> Any:
    """A consumer of all partitions of `topic`, from their beginning, in no group."""
    return aiokafka.AIOKafkaConsumer(
        topic, **connection.client_options(), auto_offset_reset="earliest", enable_auto_commit=False
    )
