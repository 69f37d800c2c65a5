"""The broker of a measurement, with the project's topics: the embedded one, or Apache Kafka on loopback."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker
from dispatchai.kafka.topics import Topics
from tests.support.kafka.node import LOADED, Node

JIT_S: Final = 45.0
"""A Java that was just started compiles what it runs often, with a quarter of a core and more for most of a minute. A
broker in use has that behind it."""

SETTLE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that runs. `log_dir` holds a folder for each of its partitions; None where all is in memory."""

    connection: KafkaConnection
    name: str
    pid: int
    log_dir: Path | None
    settle_s: float
    """How long it is under load before anything is measured."""


@asynccontextmanager
async def broker(*, apache: bool) -> AsyncIterator[Broker]:
    """A broker with the project's topics for as long as this lasts: Apache Kafka, or the embedded one."""
    async with AsyncExitStack() as running:
        if apache:
            folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="dispatchai-bench-")))
            node = await Node.prepare(folder, jvm=LOADED)
            child = await running.enter_async_context(node.running())
            started = Broker(node.connection, "Apache Kafka", child.pid, node.log_dir, JIT_S)
        else:
            embedded = await running.enter_async_context(EmbeddedBroker())
            started = Broker(embedded.connection, "the embedded broker", embedded.pid, None, SETTLE_S)
        await apply(started.connection, Topics.load(), replication=1)
        yield started
