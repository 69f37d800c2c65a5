"""`dispatchai topics upgrade` on a cluster of an older version, as its user runs it."""

from __future__ import annotations

import re
from pathlib import Path

import aiokafka

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import AssessmentKind, encode
from dispatchai.triage.ranking import packet
from tests.support.application import call_name, read
from tests.support.recorded_call import assessment
from tests.support.system import System


async def test_the_packets_of_the_queue_are_copied_and_a_second_run_copies_nothing(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    calls = [call_name("old") for _ in range(3)]
    values = {call: encode(packet(call, assessment(AssessmentKind.FINAL, version=1, call=call))) for call in calls}
    async with aiokafka.AIOKafkaProducer(**broker.producer_options()) as producer:
        for call, value in values.items():
            await producer.send_and_wait(Topic.DISPATCH_QUEUE, value, key=call.encode())
    outputs = [await upgrade(System.on(broker, tmp_path)) for _ in range(2)]
    (first, second) = [counts(output) for output in outputs]
    assert first[0] >= len(calls)
    assert second == (0, sum(first))
    found = await read(broker, Topic.PACKETS, calls, lambda records: len(records) >= len(calls))
    assert {record.key.decode(): record.value for record in found} == values
    assert len(found) == len(calls)


async def upgrade(system: System) -> str:
    process = await system.run("topics", "upgrade")
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def counts(output: str) -> tuple[int, int]:
    """How many packets the command says it copied, and how many were there."""
    match = re.search(r"^(\d+) packets copied from dispatch-queue to packets, (\d+) were there$", output, re.MULTILINE)
    assert match, output
    return int(match[1]), int(match[2])
