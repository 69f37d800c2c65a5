"""Poison of every kind in every topic, amid a call: each reader dead-letters it once, and nothing else happens.

The worker and the speech process are the real ones; their records are written past any check.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import aiokafka
import pytest
from aiokafka.partitioner import DefaultPartitioner

from dispatchai.engine.agent import KEY_MAX_BYTES
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.dead_letter_store import DeadLetterStore, FailedRecord
from dispatchai.kafka.dead_letters import DEAD_LETTER_MAX_BYTES, DeadLetter, Place
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Topics
from dispatchai.process.child import Child
from dispatchai.records import AudioFrame, CallEvent, CallPacket, FrameKind, encode, to_json
from dispatchai.records.codec import HEADER_LENGTH, MARKER
from tests.records.examples import example, record_class
from tests.speech.audio import record as frame
from tests.speech.audio import recording
from tests.speech.audio import records as stream_records
from tests.support.application import PATIENCE_S, RESTARTS, call_name, produce, read_call
from tests.support.call_control_api import running_carrier
from tests.support.recorded_call import S, assessment, event, signal, utterance

READERS: Mapping[str, frozenset[str]] = {
    "call-events": frozenset({"calls", "signals", "speech", "triage"}),
    "audio-frames": frozenset({"signals", "speech"}),
    "signals": frozenset({"triage"}),
    "transcripts": frozenset({"triage"}),
    "assessments": frozenset({"ranking"}),
    "dispatch-actions": frozenset({"calls"}),
}
"""The readers of each topic, which dead-letter its wrong records."""

GROUPS: Mapping[str, Sequence[str]] = {
    "dispatchai-worker": ("call-events", "audio-frames", "signals", "transcripts", "assessments", "dispatch-actions"),
    "dispatchai-speech": ("call-events", "audio-frames"),
}

GOOD: Mapping[str, bytes] = {
    "call-events": encode(event("call.dtmf.received")),
    "audio-frames": encode(frame(FrameKind.FRAME, 1, bytes(160))),
    "signals": encode(signal(5)),
    "transcripts": encode(utterance(1, "Help.")),
    "assessments": encode(assessment()),
    "dispatch-actions": encode(example(record_class("Action"))),
}
"""A good record of each topic, to be spoilt."""

OTHER = encode(example(record_class("CallPacket")))
"""A good record that belongs in none of the topics."""

Raw = tuple[bytes | None, bytes | None]
"""Key and value."""

POISON: Mapping[str, Callable[[bytes, bytes], Raw]] = {
    "not Avro": lambda key, good: (key, b"not a record of this project"),
    "a schema from the future": lambda key, good: (key, MARKER + b"\xff" * 8 + good[HEADER_LENGTH:]),
    "a type that the topic does not hold": lambda key, good: (key, OTHER),
    "a record of another topic": lambda key, good: (key, GOOD["signals" if good != GOOD["signals"] else "transcripts"]),
    "cut off": lambda key, good: (key, good[:-3]),
    "bytes after its end": lambda key, good: (key, good + b"\0"),
    "a header alone": lambda key, good: (key, good[:HEADER_LENGTH]),
    "empty": lambda key, good: (key, b""),
    "no key": lambda key, good: (None, good),
    "a tombstone": lambda key, good: (key, None),
    "a key that is too long": lambda key, good: (key.ljust(KEY_MAX_BYTES + 1, b"\0"), good),
    "neither key nor value": lambda key, good: (None, None),
    "an empty key": lambda key, good: (b"", good),
    "a key that is no text": lambda key, good: (b"\xff\xfe\xfd", good),
    "large": lambda key, good: (key, good + bytes(900_000)),
    "too large for a dead letter": lambda key, good: (key, good + bytes(DEAD_LETTER_MAX_BYTES)),
}


@dataclass(slots=True)
class Processes:
    """A worker and a speech process on one broker."""

    environment: Mapping[str, str]
    folder: Path
    ready_urls: Mapping[str, str]
    children: dict[str, Child] = field(default_factory=dict)
    output: deque[str] = field(default_factory=lambda: deque(maxlen=300))

    async def start(self) -> None:
        """Start both and wait until they read."""
        for name in self.ready_urls:
            child = Child(
                [sys.executable, "-m", "dispatchai", name],
                env=self.environment,
                cwd=self.folder,
                on_line=self.output.append,
            )
            await child.start()
            self.children[name] = child
        async with aiohttp.ClientSession() as http, asyncio.timeout(PATIENCE_S * 2):
            for name, url in self.ready_urls.items():
                while not await self._is_ready(http, name, url):  # noqa: ASYNC110 - it gives no notice
                    await asyncio.sleep(0.1)

    async def _is_ready(self, http: aiohttp.ClientSession, name: str, url: str) -> bool:
        self.check()
        try:
            async with http.get(url) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def check(self) -> None:
        """Fail with the log when a process has ended."""
        for name, child in self.children.items():
            assert child.returncode is None, "\n".join([f"the {name} ended with {child.returncode}", *self.output])

    async def kill(self) -> None:
        """Send SIGKILL to both."""
        for child in self.children.values():
            os.kill(child.pid, 9)
            await child.wait()
            await child.stop()

    async def stop(self) -> None:
        """Stop both in order."""
        for child in self.children.values():
            await child.stop()


@asynccontextmanager
async def processes(broker: KafkaConnection, folder: Path, carrier_url: str) -> AsyncIterator[Processes]:
    """A running worker and speech process. Their group is the program's own: records of other tests are read too."""
    ports = {"worker": free_port(), "speech": free_port()}
    state_dir = folder / "state"
    state_dir.mkdir()
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")},
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "KAFKA_IS_EMBEDDED": str(broker.embedded).lower(),
        "TELNYX_API_URL": carrier_url,
        "TELNYX_API_KEY": "KEY-of-the-test",
        "WORKER_PORT": str(ports["worker"]),
        "SPEECH_PORT": str(ports["speech"]),
        "SPEECH_ENGINE": "scripted",
        "STATE_DIR": str(state_dir),
    }
    urls = {name: f"http://127.0.0.1:{port}/health/ready" for name, port in ports.items()}
    running = Processes(environment, folder, urls)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


class Line:
    """Writes to one partition of all topics, and records where it wrote poison."""

    def __init__(self, broker: KafkaConnection, partition: int) -> None:
        self._broker = broker
        self._partition = partition
        self.poison: dict[Place, str] = {}
        self.last: dict[str, int] = {}
        """The last offset written to each topic."""

    async def spoil(self, topic: str, key: bytes, kinds: Collection[str] = POISON) -> None:
        """Write poison of all `kinds`."""
        for kind in kinds:
            place = await self.write(topic, *POISON[kind](key, GOOD[topic]))
            self.poison[place] = kind

    async def write(self, topic: str, key: bytes | None, value: bytes | None) -> Place:
        """Write one record unchecked: in a batch made by hand."""
        async with aiokafka.AIOKafkaProducer(**self._broker.producer_options(), max_request_size=2_000_000) as producer:
            batch = producer.create_batch()
            batch._builder.append(0, time.time_ns() // 1_000_000, key, value, [])
            batch._relative_offset += 1
            batch.close()
            sent = await (await producer.send_batch(batch, topic, partition=self._partition))
        self.last[topic] = sent.offset
        return Place(topic, self._partition, sent.offset)

    async def entries(self, running: Processes) -> dict[Place, FailedRecord]:
        """The dead letters of the poison, once every reader has written its own."""
        async with asyncio.timeout(PATIENCE_S * 2):
            while True:
                running.check()
                found = await DeadLetterStore(self._broker).failed_records(self.poison)
                if all(
                    {one.reader for one in found[place].failures.values()} >= READERS[place.topic]
                    if place in found
                    else False
                    for place in self.poison
                ):
                    return found

    async def committed(self, running: Processes) -> None:
        """Wait until both groups have committed everything written here."""
        for group, topics in GROUPS.items():
            async with aiokafka.AIOKafkaConsumer(
                group_id=group, enable_auto_commit=False, **self._broker.client_options()
            ) as consumer:
                for topic in topics:
                    await self._committed(consumer, topic, f"{group} in {topic}/{self._partition}", running)

    async def _committed(self, consumer: aiokafka.AIOKafkaConsumer, topic: str, name: str, running: Processes) -> None:
        partition = aiokafka.TopicPartition(topic, self._partition)
        position = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while ((position := await consumer.committed(partition)) or 0) <= self.last[topic]:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0.1)
        except TimeoutError:
            log = "\n".join(running.output)
            pytest.fail(f"{name} is committed up to {position}, not past {self.last[topic]}:\n{log}")


async def call_in_a_settled_partition(broker: KafkaConnection, partitions: int) -> str:
    """The name of a call in a partition of which both groups have committed everything.

    Streams of other tests that never end hold the positions of their partitions for ever.
    """
    everything: dict[str, set[int]] = {}
    async with asyncio.timeout(PATIENCE_S):
        while not (settled := set.intersection(set(range(partitions)), *everything.values()) if everything else set()):
            await asyncio.sleep(0.5)
            everything = {group: await _settled(broker, group, partitions) for group in GROUPS}
    partition_of = DefaultPartitioner()
    numbers = list(range(partitions))
    while True:
        name = call_name("restarted")
        if partition_of(name.encode(), numbers, numbers) in settled:
            return name


async def _settled(broker: KafkaConnection, group: str, partitions: int) -> set[int]:
    """The partitions whose records the group has committed, of all its topics."""
    async with aiokafka.AIOKafkaConsumer(
        group_id=group, enable_auto_commit=False, **broker.client_options()
    ) as consumer:
        of_topics = [
            [aiokafka.TopicPartition(topic, number) for topic in GROUPS[group]] for number in range(partitions)
        ]
        ends = await consumer.end_offsets([tp for tps in of_topics for tp in tps])
        return {
            number
            for number, tps in enumerate(of_topics)
            if all([(await consumer.committed(tp) or 0) >= ends[tp] for tp in tps])
        }


def call_records(call_id: str, now: int) -> tuple[list[CallEvent], list[AudioFrame], CallEvent]:
    """Events up to the stream's start, the frames, and the hangup of a call that began 30 s before `now`."""
    start = now - 30 * S
    ringing = event("call.initiated", start=start, call=call_id, direction="incoming")
    others = [event(kind, 1, start=start, call=call_id) for kind in ("call.answered", "streaming.started")]
    hangup = event("call.hangup", 29, start=start, call=call_id, hangup_cause="normal_clearing")
    return [ringing, *others], stream_records(recording("cardiac_arrest")), hangup


def comparable(packet: CallPacket) -> dict[str, Any]:
    """A packet without the call's own ids."""
    fields: dict[str, Any] = json.loads(json.dumps(to_json(packet)).replace(packet.call_id, "CALL"))
    return fields


async def packet_of(broker: KafkaConnection, call_id: str) -> CallPacket:
    found = await read_call(broker, "dispatch-queue", call_id, bool)
    packet = found[-1]
    assert isinstance(packet, CallPacket)
    return packet


def assert_dead_lettered_once_by_each_reader(line: Line, entries: Mapping[Place, FailedRecord]) -> None:
    for place, kind in line.poison.items():
        failures = sorted((one.reader, one.attempt, one.times) for one in entries[place].failures.values())
        assert failures == [(reader, 1, 1) for reader in sorted(READERS[place.topic])], (place, kind)
        assert all(one.error for one in entries[place].failures.values())


async def assert_dead_letters_hold_the_bytes(
    broker: KafkaConnection, line: Line, entries: Mapping[Place, FailedRecord]
) -> None:
    for place, kind in line.poison.items():
        if place.topic != "call-events":
            continue
        dead_letter = entries[place].newest_dead_letter
        assert dead_letter is not None
        found = await DeadLetterStore(broker).dead_letter(dead_letter)
        assert isinstance(found, DeadLetter)
        assert found.origin == place
        key, value = POISON[kind](found.key or b"", GOOD[place.topic])
        if kind == "too large for a dead letter":
            assert found.truncated is not None
            assert found.truncated.value_bytes == len(value or b"")
        elif kind not in ("no key", "neither key nor value"):
            assert (found.key, found.value) == (key, value), kind
        else:
            assert (found.key, found.value) == (None, value), kind


async def call_among_poison(broker: KafkaConnection, call_id: str, now: int, *, spoilt: bool) -> Line:
    """Write a whole call and, if it is to be spoilt, poison of every kind in every topic between its records."""
    events, frames, hangup = call_records(call_id, now)
    (ringing, *_) = await produce(broker, "call-events", call_id, events[:1])
    line = Line(broker, ringing.partition)
    key = call_id.encode()

    async def poison(*topics: str) -> None:
        for topic in topics if spoilt else ():
            await line.spoil(topic, key)

    await poison("call-events", "dispatch-actions")
    await produce(broker, "call-events", call_id, events[1:])
    await produce(broker, "audio-frames", call_id, frames[: len(frames) // 2])
    await poison("audio-frames", "transcripts", "signals", "assessments")
    await produce(broker, "audio-frames", call_id, frames[len(frames) // 2 :])
    await produce(broker, "call-events", call_id, [hangup])
    return line


async def test_a_call_among_poison_of_every_kind_ends_with_the_same_packet_as_one_without(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    clean, beside = call_name("clean"), call_name("beside")
    async with AsyncExitStack() as stack:
        carrier = await stack.enter_async_context(running_carrier())
        running = await stack.enter_async_context(processes(broker, tmp_path, carrier.url))
        now = time.time_ns() // 1000
        await call_among_poison(broker, clean, now, spoilt=False)
        line = await call_among_poison(broker, beside, now, spoilt=True)
        packets = [await packet_of(broker, call_id) for call_id in (clean, beside)]
        entries = await line.entries(running)
        running.check()
    assert len(line.poison) == len(POISON) * len(READERS)
    assert_dead_lettered_once_by_each_reader(line, entries)
    await assert_dead_letters_hold_the_bytes(broker, line, entries)
    assert packets[0].complete
    assert "CARDIAC_ARREST" in packets[0].nlp.tags
    assert comparable(packets[0]) == comparable(packets[1])


@RESTARTS
async def test_poison_that_was_dead_lettered_and_committed_is_not_dead_lettered_again_after_a_restart(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        carrier = await stack.enter_async_context(running_carrier())
        running = await stack.enter_async_context(processes(broker, tmp_path, carrier.url))
        call_id = await call_in_a_settled_partition(broker, topics.partitions)
        key = call_id.encode()
        # An unknown call: only the poison itself holds offsets.
        (first,) = await produce(broker, "signals", call_id, [GOOD["signals"]])
        line = Line(broker, first.partition)
        kinds = ("not Avro", "no key", "a schema from the future")
        for topic in READERS:
            await line.spoil(topic, key, kinds)
        await line.entries(running)
        await line.committed(running)
        await running.kill()
        await running.start()
        # More poison: when it is dead-lettered, the earlier poison would have been read again too.
        for topic in READERS:
            await line.spoil(topic, key, kinds)
        entries = await line.entries(running)
        running.check()
    assert len(line.poison) == 2 * len(kinds) * len(READERS)
    assert_dead_lettered_once_by_each_reader(line, entries)


LARGEST = 2**63 - 1

ABSURD: Mapping[str, Sequence[Any]] = {
    "audio-frames": [
        replace(frame(FrameKind.FRAME, 1, bytes(160)), stream_id="zero", sample_rate=0),
        replace(frame(FrameKind.FRAME, 1, bytes(160)), stream_id="negative", sample_rate=-8000),
        replace(frame(FrameKind.FRAME, 1, bytes(160)), stream_id="late", captured_at=LARGEST),
        replace(frame(FrameKind.FRAME, 1, bytes(160)), stream_id="early", captured_at=-LARGEST),
        replace(frame(FrameKind.FRAME, LARGEST // 20_000, bytes(160)), stream_id="far"),
        replace(frame(FrameKind.FRAME, 1, bytes(160)), stream_id="before", sequence=-LARGEST),
        replace(frame(FrameKind.FRAME, 1, b"x"), stream_id="odd", encoding="L16"),
        replace(frame(FrameKind.FRAME, 1, b"x"), stream_id="unknown", encoding="G.729"),
        replace(frame(FrameKind.FRAME, 1, bytes(500_000)), stream_id="long"),
    ],
    "call-events": [
        event("call.initiated", start=LARGEST - S, direction="incoming"),
        event("call.initiated", start=-LARGEST, direction="incoming"),
        event("call.hangup", start=LARGEST - S),
        event("call.hangup", start=-LARGEST),
        replace(event("call.answered"), payload=b"\xff"),
        replace(event("call.answered"), payload=b"[1]", event_id="list"),
        replace(event("call.transcription"), payload=b"{" * 5_000, event_id="deep"),
        replace(event(""), event_id=""),
        replace(event("dispatchai.command"), payload=b"null", event_id="null"),
        replace(event("dispatchai.expired"), payload=b"", event_id="expired"),
    ],
    "signals": [
        replace(signal(5), sequence=LARGEST, captured_at=LARGEST),
        replace(signal(5), loudness_distress=1e308, loudness_distress_max=-1e308, stream_id="huge"),
    ],
    "transcripts": [
        replace(utterance(1, "Help."), start_ms=LARGEST, end_ms=-LARGEST, sequence=LARGEST, recognized_at=-LARGEST),
        utterance(2, "fire " * 50_000),
        replace(utterance(3, "\u0000\u202e\ud7ff"), confidence=-1e308),
    ],
    "assessments": [replace(assessment(), as_of=LARGEST, started_at=-LARGEST, version=LARGEST)],
    "dispatch-actions": [example(record_class("Action"))],
}
"""Records that are well formed and absurd."""

UNCOUNTABLE: Mapping[str, Sequence[Any]] = {
    "audio-frames": [
        replace(frame(FrameKind.FRAME, 1, bytes(160)), stream_id="last", sequence=LARGEST),
        replace(frame(FrameKind.END, 1), stream_id="last", sequence=LARGEST),
    ],
}
"""Frames with the last number that a record can hold."""


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(ABSURD, id="absurd"),
        pytest.param(UNCOUNTABLE, id="uncountable"),
    ],
)
async def test_well_formed_absurd_records_end_no_process(
    broker: KafkaConnection, topics: Topics, tmp_path: Path, records: Mapping[str, Sequence[Any]]
) -> None:
    absurd, after = call_name("absurd"), call_name("after")
    async with AsyncExitStack() as stack:
        carrier = await stack.enter_async_context(running_carrier())
        running = await stack.enter_async_context(processes(broker, tmp_path, carrier.url))
        for topic, values in records.items():
            # Each also under a key of its own, so that none hides behind another.
            await produce(broker, topic, absurd, values)
            for number, value in enumerate(values):
                await produce(broker, topic, f"{absurd}-{number}", [value])
        # A sentinel in every partition: when it is dead-lettered, everything before it was read.
        for partition in range(topics.partitions):
            line = Line(broker, partition)
            for topic in READERS:
                await line.spoil(topic, absurd.encode(), ["not Avro"])
            await line.entries(running)
        now = time.time_ns() // 1000
        await call_among_poison(broker, after, now, spoilt=False)
        packet = await packet_of(broker, after)
        running.check()
    assert packet.complete
    assert "CARDIAC_ARREST" in packet.nlp.tags
