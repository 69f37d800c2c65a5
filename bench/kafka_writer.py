"""What a frame costs the gateway's Kafka writer with aiokafka and confluent-kafka: `python -m bench.kafka_writer`.

The same records under the same policy: acknowledged by all replicas, gathered for 10 ms, in batches of the same size.
aiokafka is used by its batches, as the gateway's Kafka writer does, and by `send`. Records come in portions at the pace
of live calls. Counted is this process's time, threads included, from the first record to the last acknowledgement.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiokafka import AIOKafkaProducer
from confluent_kafka import KafkaError, Message, Producer

from bench import command
from bench.frames import FRAME_S, Call
from bench.partition_queues import BATCH_BYTES, PartitionQueues
from dispatchai.gateway.kafka_writer import LINGER_S
from dispatchai.kafka.topics import Topic
from dispatchai.records.avro_primitives import encode_long
from tests.support.kafka.measured import Broker, broker
from tests.support.report import machine, table

Portions = Sequence[Sequence[tuple[bytes, bytes]]]
"""(key, value) of the frames of all calls, one portion for each 20 ms."""


def portions(calls: int, seconds: float) -> Portions:
    """The frames of `calls` for `seconds`, all made before the measurement."""
    live = [Call(f"writer-{number:05d}", number) for number in range(calls)]
    at = encode_long(time.time_ns() // 1000)
    return [[(call.call_id.encode(), call.frame(at)) for call in live] for _ in range(round(seconds / FRAME_S))]


async def _paced(frames: Portions, put: Callable[[bytes, bytes], None]) -> None:
    began = time.monotonic()
    for number, portion in enumerate(frames):
        await asyncio.sleep(max(0.0, began + number * FRAME_S - time.monotonic()))
        for key, value in portion:
            put(key, value)


async def by_batches(kafka: Broker, frames: Portions) -> None:
    """Write with aiokafka, in batches that this process builds."""
    async with PartitionQueues(kafka.connection, Topic.AUDIO_FRAMES, linger_s=LINGER_S) as queues:
        partitions = {key: queues.partition(key) for key, _ in frames[0]}
        now_ms = int(time.time() * 1000)
        await _paced(frames, lambda key, value: queues.append(partitions[key], key, value, now_ms))


async def by_send(kafka: Broker, frames: Portions) -> None:
    """Write with aiokafka, record by record."""
    options = kafka.connection.producer_options()
    deliveries = []
    async with AIOKafkaProducer(**options, max_batch_size=BATCH_BYTES, linger_ms=LINGER_S * 1000) as producer:
        began = time.monotonic()
        for number, portion in enumerate(frames):
            await asyncio.sleep(max(0.0, began + number * FRAME_S - time.monotonic()))
            deliveries += [await producer.send(Topic.AUDIO_FRAMES, value, key) for key, value in portion]
        await asyncio.gather(*deliveries)


async def by_confluent(kafka: Broker, frames: Portions) -> None:
    """Write with confluent-kafka. Raises RuntimeError if a record was refused."""
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        {
            "bootstrap.servers": kafka.connection.bootstrap_servers,
            "acks": "all",
            "enable.idempotence": not kafka.connection.embedded,
            # Chooses the same partition for each key as aiokafka.
            "partitioner": "murmur2_random",
            "linger.ms": LINGER_S * 1000,
            "batch.size": BATCH_BYTES,
            "queue.buffering.max.messages": 1_000_000,
        }
    )

    def put(key: bytes, value: bytes) -> None:
        producer.produce(Topic.AUDIO_FRAMES, value, key, on_delivery=delivered)
        producer.poll(0)

    await _paced(frames, put)
    left = await asyncio.to_thread(producer.flush, 60)
    if left or failures:
        raise RuntimeError(f"{left} records were not acknowledged, {len(failures)} refused")


WAYS: Final[dict[str, Callable[[Broker, Portions], Awaitable[None]]]] = {
    "aiokafka, batches as the gateway's Kafka writer builds them": by_batches,
    "aiokafka, `send`": by_send,
    "confluent-kafka, `produce`": by_confluent,
}


async def _measure(arguments: argparse.Namespace) -> str:
    frames = portions(arguments.calls, arguments.seconds)
    count = sum(map(len, frames))
    costs_us: dict[str, list[float]] = {name: [] for name in WAYS}
    async with broker(apache=arguments.apache) as kafka:
        for _ in range(arguments.repetitions):
            for name, write in WAYS.items():
                before = time.process_time()
                await write(kafka, frames)
                costs_us[name].append((time.process_time() - before) / count * 1e6)
    rows = [
        [name, f"{statistics.median(costs):.1f}", f"{min(costs):.1f}-{max(costs):.1f}"]
        for name, costs in costs_us.items()
    ]
    about = (
        f"`python -m bench.kafka_writer{' --apache' if arguments.apache else ''}`: the frames of {arguments.calls:,} "
        f"live calls, {count:,} records, written at their pace, each acknowledged. Processor time of the whole "
        f"process, threads included; {arguments.repetitions} interleaved runs. {kafka.name} on the same machine "
        f"({machine()})."
    )
    return "\n".join(["## The gateway's producer", "", about, "", table(["", "µs a record", "range"], rows)])


def main() -> None:
    """Command line."""
    parser = command.parser("bench.kafka_writer", __doc__)
    parser.add_argument("--calls", type=int, default=800, help="live calls (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="audio of each (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each way (default %(default)s)")
    command.run("bench.kafka_writer", parser.parse_args(), _measure)


if __name__ == "__main__":
    main()
