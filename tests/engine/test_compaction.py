"""Apache Kafka really compacts what `topics.yaml` declares compacted, and who reads afterwards has lost nothing.

The embedded broker is left out: it does not compact.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import aiokafka
import pytest

from dispatchai.console.topic_feed import Feed
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import CallPacket, decode_as, encode
from tests.console.samples import final_packet, live_call
from tests.support.left_out import leave_out

PATIENCE_S = 60.0
SEGMENT_S = 1.0
VERSIONS = 5
KCAT_TIMEOUT_S = 60

KAFKA = pytest.mark.parametrize("broker", ["apache-kafka"], indirect=True)

Log = list[aiokafka.ConsumerRecord]

HURRIED = """
partitions: 2
replication: 1
topics:
  {live}:  {{key: call_id, policy: compact, segment: 1s, min_lag: 1ms}}
  {queue}: {{key: call_id, policy: compact, segment: 1s, min_lag: 1ms}}
tables:
  state: {{app: {app}, schema: CallState, segment: 1s, min_lag: 1ms}}
"""
"""What `topics.yaml` declares of the two views and of a changelog, with shorter times."""


@dataclass(frozen=True, slots=True)
class Names:
    live: str
    queue: str
    changelog: str


@pytest.fixture
async def names(broker: KafkaConnection, tmp_path: object) -> Names:
    """Topics of one test, created as `topics apply` creates the project's."""
    mark = uuid.uuid4().hex[:8]
    live, queue, app = f"{Topic.LIVE_CALLS}-{mark}", f"{Topic.DISPATCH_QUEUE}-{mark}", f"test{mark}"
    path = tmp_path / "topics.yaml"  # type: ignore[operator]
    path.write_text(HURRIED.format(live=live, queue=queue, app=app), encoding="utf-8")
    topics = Topics.load(path)
    report = await apply(broker, topics)
    assert report.exit_code == 0
    return Names(live, queue, topics.tables["state"].changelog.name)


async def whole_log(broker: KafkaConnection, topic: str) -> Log:
    """All records that are in `topic` now, from nothing."""
    records: Log = []
    async with aiokafka.AIOKafkaConsumer(
        topic, auto_offset_reset="earliest", enable_auto_commit=False, **broker.client_options()
    ) as consumer:
        left = set(consumer.assignment())
        ends = await consumer.end_offsets(left)
        while left := {tp for tp in left if await consumer.position(tp) < ends[tp]}:
            for fetched in (await consumer.getmany(*left, timeout_ms=100)).values():
                records.extend(fetched)
    return records


async def compacted(broker: KafkaConnection, topic: str, enough: Callable[[Log], bool]) -> Log:
    """The log once the cleaner has been there. Kafka closes a segment when a record comes after its time, so a
    tombstone of nobody keeps coming to each partition."""
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer, asyncio.timeout(PATIENCE_S):
        while True:
            for partition in range(2):
                await producer.send_and_wait(topic, None, key=b"later", partition=partition)
            records = [record for record in await whole_log(broker, topic) if record.key != b"later"]
            if enough(records):
                return records
            await asyncio.sleep(SEGMENT_S / 2)  # the cleaner tells nobody


def last_of_each(records: Log) -> dict[bytes, bytes | None]:
    return {record.key: record.value for record in records}


def one_of_each(records: Log) -> bool:
    return max(Counter(record.key for record in records).values()) == 1


async def write_versions(broker: KafkaConnection, topic: str, calls: int, removed: int) -> dict[bytes, bytes | None]:
    """Several versions of the packets of `calls`, the first `removed` of which are then removed. Returns what is last
    of each."""
    last: dict[bytes, bytes | None] = {}
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        for version in range(1, VERSIONS + 1):
            for number in range(calls):
                key = f"call-{number}".encode()
                packet = final_packet(live_call(key.decode(), transcript=f"version {version}"), version=version)
                last[key] = encode(packet)
                await producer.send(topic, last[key], key=key)
        for number in range(removed):
            last[f"call-{number}".encode()] = None
            await producer.send(topic, None, key=f"call-{number}".encode())
    return last


@KAFKA
async def test_old_versions_go_the_last_stays_and_so_does_a_tombstone(broker: KafkaConnection, names: Names) -> None:
    last = await write_versions(broker, names.queue, calls=20, removed=5)
    assert len(await whole_log(broker, names.queue)) == 20 * VERSIONS + 5
    records = await compacted(broker, names.queue, one_of_each)
    assert last_of_each(records) == last
    assert len(records) == 20, "old versions are gone, and a removed call is a tombstone"
    offsets = sorted(record.offset for record in records if record.partition == records[0].partition)
    assert offsets[0] > 0, "what was last is kept where it was"


@KAFKA
async def test_a_changelog_is_compacted_alike(broker: KafkaConnection, names: Names) -> None:
    last: dict[bytes, bytes | None] = {b"over": None}
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        await producer.send(names.changelog, b"state", key=b"over")
        await producer.send(names.changelog, None, key=b"over")
        for number in range(1000):
            last[b"call"] = str(number).encode()
            await producer.send(names.changelog, last[b"call"], key=b"call")
    records = await compacted(broker, names.changelog, one_of_each)
    assert last_of_each(records) == last


@KAFKA
async def test_a_console_that_starts_after_a_compaction_sees_the_whole_queue(
    broker: KafkaConnection, names: Names
) -> None:
    last = await write_versions(broker, names.queue, calls=20, removed=5)
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        for call_id in ("over", "live"):
            for revision in range(VERSIONS):
                entry = live_call(call_id, transcript=f"revision {revision}")
                await producer.send(names.live, encode(entry), key=call_id.encode())
        await producer.send(names.live, None, key=b"over")
    await compacted(broker, names.queue, one_of_each)
    await compacted(broker, names.live, one_of_each)
    async with Feed(broker, live_topic=names.live, queue_topic=names.queue) as feed, asyncio.timeout(PATIENCE_S):
        await feed.wait_ready()
        view = await feed.current()
        shown = {entry.call_id: entry for entry in view.ranked()}
    kept = {key.decode(): decode_as(CallPacket, value) for key, value in last.items() if value is not None}
    assert set(shown) == {*kept, "live"}
    assert {call_id: shown[call_id].packet for call_id in kept} == kept
    live = shown["live"].live
    assert live is not None
    assert live.transcript == f"revision {VERSIONS - 1}"


@KAFKA
async def test_kcat_lists_topics_keys_and_tombstones(broker: KafkaConnection, names: Names) -> None:
    if shutil.which("kcat") is None:
        leave_out("kcat", "it is not installed", "DISPATCHAI_REQUIRE_KAFKA")
    last = await write_versions(broker, names.queue, calls=4, removed=2)
    await compacted(broker, names.queue, one_of_each)

    def kcat(*arguments: str) -> str:
        return subprocess.run(
            ["kcat", "-b", broker.bootstrap_servers, "-q", *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=KCAT_TIMEOUT_S,
        ).stdout

    listed = await asyncio.to_thread(kcat, "-L")
    for name in (names.queue, names.live, names.changelog):
        assert f'topic "{name}" with 2 partitions' in listed
    # %S is the length of the value, -1 for a tombstone.
    listing = await asyncio.to_thread(kcat, "-C", "-t", names.queue, "-o", "beginning", "-e", "-f", "%k %S\\n")
    lengths = dict(line.split() for line in listing.splitlines() if not line.startswith("later"))
    assert lengths == {key.decode(): str(-1 if value is None else len(value)) for key, value in last.items()}
