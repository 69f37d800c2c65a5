"""A worker after a year of calls: `python -m bench.year --apache [--write]`.

Measures when a worker is ready, when a killed one processes again, and its memory: on an empty system, and on one that
has the past of years behind it. That past is written at once: packets put into the queue and purged, states of calls
deleted in every changelog. Then Kafka compacts it as the topics' settings say; only the time for which tombstones are
kept is cut to a second meanwhile, so that the hour need not be waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import aiohttp
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from bench import command
from bench.partition_queues import PartitionQueues
from bench.signals import Seen, probe, simulated_carrier
from dispatchai.app import WORKER
from dispatchai.kafka.packet_history import ASSESSED_AT
from dispatchai.kafka.topics import TOMBSTONE_RETENTION_MS, Topic, Topics
from dispatchai.process.child import Child
from dispatchai.records import AssessmentKind, Evidence, Part, encode
from dispatchai.records.avro_primitives import encode_long
from dispatchai.records.codec import HEADER_LENGTH
from dispatchai.triage.ranking import packet
from tests.support.follow import follow
from tests.support.kafka.measured import Broker, broker
from tests.support.processes import environment, rounds, used_by
from tests.support.recorded_call import assessment
from tests.support.report import machine, table

PACKET_BYTES: Final = 2_000
SENTENCE: Final = "Somebody is hurt on the second floor and there is smoke in the house. "

DAYS: Final = 365
CALLS_A_DAY: Final = 2_000

CHUNK: Final = 20_000
"""Records that are queued before their acknowledgements are awaited."""

PAST_S: Final = 7_200.0
"""The time over which the past is spread: Kafka closes segments by the times of the records in them."""

SETTLED_S: Final = 10.0
"""How long a worker is ready before its memory is read."""

CLEANED_S: Final = 60.0
"""A log that has not become shorter for this long is compacted: the broker checks every 15 s."""

MIN_LAG_S: Final = 30.0
"""Younger records are not compacted."""

CLEAN_LONGEST_S: Final = 900.0

SEGMENT_MS: Final = 700_000
"""Longer than a segment stays open in any of the topics."""

STIRRED: Final = 150
"""Records of 1 kB for each partition: a hundredth of the tombstones of a year, which nothing else would remove soon."""

POLL_S: Final = 0.05

READY_S: Final = 240.0


@dataclass(slots=True)
class Measured:
    """Of one system: seconds until a worker is ready, seconds from a kill until calls are processed again, and the
    worker's memory in bytes; one of each for every start."""

    ready_s: list[float] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def past_packet() -> bytes:
    """The encoded packet of a call with a usual amount of words and findings."""
    evidence = (Evidence("not breathing", f"{uuid.uuid4()}:2", 5408, 8064),)
    parts = tuple(Part(f"finding_{number}", 0.1, SENTENCE, evidence) for number in range(4))
    final = replace(assessment(AssessmentKind.FINAL, version=1), parts=parts)
    shortest = len(encode(packet("", final)))
    return encode(packet("", replace(final, transcript=(SENTENCE * 40)[: PACKET_BYTES - shortest])))


def packet_of(call_id: bytes, template: bytes) -> bytes:
    """The packet `template`, made with an empty call id, for a call."""
    return template[:HEADER_LENGTH] + encode_long(len(call_id)) + call_id + template[HEADER_LENGTH + 1 :]


def call_ids(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield str(uuid.uuid4()).encode()


async def write(kafka: Broker, topic: str, keys: Sequence[bytes], template: bytes | None) -> None:
    """Write a packet, or a tombstone, of each of `keys`, with times in the past."""
    begun = time.time() - PAST_S - MIN_LAG_S
    async with PartitionQueues(kafka.connection, topic) as queues:
        for number, key in enumerate(keys):
            at_ms = int((begun + PAST_S * number / len(keys)) * 1000)
            value = None if template is None else packet_of(key, template)
            queues.append(queues.partition(key), key, value, at_ms)
            if number % CHUNK == CHUNK - 1:
                await queues.flush()


async def write_live(kafka: Broker, count: int, template: bytes) -> None:
    """Put `count` packets into the queue as the ranking agent does."""
    async with AIOKafkaProducer(**kafka.connection.producer_options(), linger_ms=10) as producer:
        now_ms = time.time_ns() // 1_000_000
        headers = [("epoch", b"1"), (ASSESSED_AT, str(now_ms).encode())]
        for key in call_ids(count):
            await producer.send(Topic.DISPATCH_QUEUE, packet_of(key, template), key=key, headers=headers)
        await producer.flush()


async def set_config(kafka: Broker, topics: Sequence[str], name: str, value: str) -> None:
    """Set one configuration of `topics`, and leave the others as they are declared."""
    declared = {spec.name: spec.configs for spec in Topics.load().every_topic()}
    admin = AIOKafkaAdminClient(**kafka.connection.client_options())
    await admin.start()
    try:
        await admin.alter_configs(
            [
                ConfigResource(ConfigResourceType.TOPIC, topic, configs={**declared[topic], name: value})
                for topic in topics
            ]
        )
    finally:
        await admin.close()


def size(log_dir: Path, topics: Sequence[str]) -> int:
    """The bytes of the segments of `topics`."""
    return sum(file.stat().st_size for topic in topics for file in log_dir.glob(f"{topic}-[0-9]*/*.log"))


async def compacted(kafka: Broker, topics: Sequence[str], log_dir: Path) -> None:
    """Return when the broker has compacted `topics` and removed the tombstones in them. Sets their configuration."""
    shortest, since, begun = float("inf"), time.monotonic(), time.monotonic()
    async for _ in rounds(15.0):
        for topic in topics:
            await stir(kafka, topic)
        now = await asyncio.to_thread(size, log_dir, topics)
        if now < 0.98 * shortest:
            shortest, since = now, time.monotonic()
        if time.monotonic() - since > CLEANED_S or time.monotonic() - begun > CLEAN_LONGEST_S:
            break
    await set_config(kafka, topics, "delete.retention.ms", str(TOMBSTONE_RETENTION_MS))


async def stir(kafka: Broker, topic: str) -> None:
    """Let the broker close the open segments of `topic`, and give its cleaner a reason: a hundredth of the log."""
    now_ms = time.time_ns() // 1_000_000
    async with AIOKafkaProducer(**kafka.connection.producer_options(), linger_ms=20) as producer:
        for partition in range(Topics.load().partitions):
            for at_ms in (*[now_ms - SEGMENT_MS // 2] * STIRRED, now_ms + SEGMENT_MS):
                await producer.send(topic, None, key=b"nobody".ljust(1_000), partition=partition, timestamp_ms=at_ms)
        await producer.flush()


@asynccontextmanager
async def worker(kafka: Broker, carrier: int, folder: Path) -> AsyncIterator[tuple[Child, str]]:
    """A worker and the address of its readiness, not ready yet."""
    variables = {"GREETING": "", "SIMULATED_CARRIER_PORT": str(carrier)}
    settings = environment(folder, variables, kafka.connection)
    async with Child([sys.executable, "-m", "dispatchai", "worker"], env=settings) as child:
        yield child, f"http://127.0.0.1:{settings['WORKER_PORT']}/health/ready"


async def ready(url: str) -> None:
    """Return when a worker is ready. Raises TimeoutError."""
    async with aiohttp.ClientSession() as http, asyncio.timeout(READY_S):
        async for _ in rounds(POLL_S):
            try:
                async with http.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                continue


async def measure(kafka: Broker, starts: int) -> Measured:
    """Start a worker, kill it and start it again, `starts` times; each time it ends in order."""
    measured, seen = Measured(), Seen()
    async with AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="dispatchai-bench-year-")))
        carrier = await running.enter_async_context(simulated_carrier())
        progress = await running.enter_async_context(follow(kafka.connection, Topic.SIGNALS, seen.add))
        for number in range(starts):
            begun = time.monotonic()
            async with worker(kafka, carrier, folder / f"{number}-first") as (child, url):
                await ready(url)
                measured.ready_s.append(time.monotonic() - begun)
                await probe(kafka, seen, progress)
                await asyncio.sleep(SETTLED_S)
                measured.memory.append(used_by(child.pid).memory_bytes)
                os.kill(child.pid, signal.SIGKILL)
                killed = time.monotonic()
                await child.wait()
            async with worker(kafka, carrier, folder / f"{number}-second") as (_, url):
                await probe(kafka, seen, progress)
                measured.again_s.append(time.monotonic() - killed)
                await ready(url)
    return measured


def spread(times_s: Sequence[float]) -> str:
    """The median of some times, with their range."""
    return f"{statistics.median(times_s):.1f} ({min(times_s):.1f}-{max(times_s):.1f})"


def row(name: str, measured: Measured, empty: Measured) -> list[str]:
    memory = statistics.median(measured.memory)
    return [
        name,
        *(
            f"{statistics.median(times):.1f} ({min(times):.1f}-{max(times):.1f})"
            for times in (measured.ready_s, measured.again_s)
        ),
        f"{memory / 1e6:.0f}",
        f"{memory / statistics.median(empty.memory) - 1:+.1%}",
    ]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


async def _measure(arguments: argparse.Namespace) -> str:
    changelogs = [table.changelog.name for table in Topics.load().tables.values() if table.app_id == WORKER]
    topics = [Topic.DISPATCH_QUEUE, *changelogs]
    template = past_packet()
    deleted = round(arguments.days * CALLS_A_DAY)
    async with broker(apache=True) as kafka:
        assert kafka.log_dir is not None  # noqa: S101 - Apache Kafka has one
        await measure(kafka, 1)  # the broker, and the files that a first start compiles
        empty = await measure(kafka, arguments.starts)
        rows = [row("empty", empty, empty)]
        say(" · ".join(rows[-1]))
        # The cleaner sets the end of a tombstone's time when it first meets it.
        await set_config(kafka, topics, "delete.retention.ms", "1000")
        keys, gone = list(call_ids(arguments.packets)), list(call_ids(deleted))
        begun = time.monotonic()

        async def write_queue() -> None:
            await write(kafka, Topic.DISPATCH_QUEUE, keys, template)
            await write(kafka, Topic.DISPATCH_QUEUE, keys, None)

        await asyncio.gather(write_queue(), *(write(kafka, changelog, gone, None) for changelog in changelogs))
        say(f"written in {time.monotonic() - begun:.0f} s")
        await write_live(kafka, arguments.live, template)
        begun = time.monotonic()
        await compacted(kafka, topics, kafka.log_dir)
        left = size(kafka.log_dir, topics)
        say(f"compacted to {left / 1e6:.1f} MB in {time.monotonic() - begun:.0f} s")
        rows.append(row("a year later", await measure(kafka, arguments.starts), empty))
        say(" · ".join(rows[-1]))
    about = (
        f"`python -m bench.year --apache`: {arguments.packets:,} packets of {PACKET_BYTES / 1000:g} kB were put into "
        f"`dispatch-queue` and purged, {deleted:,} states were deleted in each changelog of the worker "
        f"({CALLS_A_DAY:,} calls a day for {arguments.days:g} days), and Kafka compacted them to {left / 1e6:,.1f} MB "
        f"before the last row; {arguments.live:,} packets are in the queue. Seconds from the start of a worker until "
        f"it is ready, and from "
        f"a SIGKILL, with another worker started at once, until new calls of every partition are processed. Medians of "
        f"{arguments.starts} starts, with their range. All on one machine ({machine()})."
    )
    header = ["system", "ready, s", "killed → processing again, s", "worker, MB", "memory against empty"]
    return "\n".join(["## A year of calls", "", about, "", table(header, rows)])


def main() -> None:
    """Command line."""
    parser = command.parser("bench.year", __doc__)
    parser.add_argument("--packets", type=int, default=1_000_000, help="purged packets (default %(default)s)")
    parser.add_argument("--live", type=int, default=2_000, help="packets in the queue (default %(default)s)")
    parser.add_argument("--days", type=float, default=DAYS, help="days of deleted states (default %(default)s)")
    parser.add_argument("--starts", type=int, default=3, help="starts of each system (default %(default)s)")
    arguments = parser.parse_args()
    command.run("bench.year", arguments, _measure)


if __name__ == "__main__":
    main()
