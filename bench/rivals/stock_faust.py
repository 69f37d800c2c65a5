"""The job on plain Faust: one record is one event, and each signal writes to the table.

With the settings that made Faust faster in measurements: uvloop, short thread switches, large buffers, a lingering
producer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Final

import faust
import uvloop
from faust.types import StreamT

from bench.rivals.job import APP_ID, BOOTSTRAP, COMMIT_S, Caller
from dispatchai.kafka.topics import Topic

PARTITIONS: Final = 8

app = faust.App(
    os.environ[APP_ID],
    broker=f"kafka://{os.environ[BOOTSTRAP]}",
    store="memory://",
    datadir=os.environ["STATE_DIR"],
    key_serializer="raw",
    value_serializer="raw",
    consumer_auto_offset_reset="earliest",
    broker_commit_interval=COMMIT_S,
    broker_session_timeout=10.0,
    broker_heartbeat_interval=3.0,
    broker_rebalance_timeout=12.0,
    producer_acks=-1,
    producer_linger=0.02,
    producer_max_batch_size=131_072,
    stream_buffer_maxsize=16_384,
    stream_wait_empty=False,
    stream_recovery_delay=0.0,
    topic_allow_declare=False,
    topic_disable_leader=True,
    topic_partitions=PARTITIONS,
    table_standby_replicas=0,
    recovery_consistency_check=False,
    web_enabled=False,
)
frames = app.topic(Topic.AUDIO_FRAMES, key_serializer="raw", value_serializer="raw", key_type=bytes, value_type=bytes)
signals = app.topic(Topic.SIGNALS, key_serializer="raw", value_serializer="raw")
table = app.Table("signals", key_type=bytes, value_type=bytes, partitions=PARTITIONS)
callers: dict[bytes, Caller] = {}


@app.agent(frames)
async def measure(stream: StreamT[bytes]) -> None:
    async for event in stream.events():
        caller = callers.get(event.key)
        if caller is None:
            caller = callers[event.key] = Caller()
        made = caller.apply(event.value)
        for value in made:
            await signals.send(key=event.key, value=value)
        if made:
            table[event.key] = caller.snapshot()


async def _run() -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await app.start()
    await stopped.wait()
    await app.stop()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    sys.setswitchinterval(0.0005)
    asyncio.run(_run())
