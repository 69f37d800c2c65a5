"""The broker of a measurement: the embedded one, or Apache Kafka, one node on loopback, from the jars of the tests.

Decides Apache Kafka's properties, which are its defaults but for what one node needs.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import BrokerNotReadyError, EmbeddedBroker, free_port, wait_until_ready
from dispatchai.kafka.topics import Topics, apply
from dispatchai.process.child import Child
from tests.conftest import KAFKA_LIBS, cluster_id_option, fetch_kafka, find_java

START_S: Final = 120.0

JIT_S: Final = 45.0
"""A Java that was just started compiles what it runs often, with a quarter of a core and more for most of a minute. A
broker in use has that behind it."""

SETTLE_S: Final = 3.0

HEAP: Final = "-Xmx1g"
"""Kafka's own start script gives a broker as much."""

PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={log_dir}
default.replication.factor=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
"""


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
async def apache_kafka(folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Broker]:
    """A running Kafka with its files in `folder`. Raises RuntimeError, KafkaUnavailableError."""
    java = find_java()
    fetch_kafka()
    port, controller_port = free_port(), free_port()
    properties = folder / "server.properties"
    text = PROPERTIES.format(port=port, controller_port=controller_port, log_dir=folder / "log")
    properties.write_text(text, encoding="utf-8")
    command = [java, HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{KAFKA_LIBS}/*"]
    output: deque[str] = deque(maxlen=40)
    formatting = [*command, "kafka.tools.StorageTool", "format", cluster_id_option(), "-c", str(properties)]
    async with Child(formatting, on_line=output.append) as child:
        if await child.wait() != 0:
            raise RuntimeError("\n".join(["Kafka's log folder could not be formatted:", *output]))
    async with Child([*command, "kafka.Kafka", str(properties)], env=environment, on_line=output.append) as child:
        connection = KafkaConnection(f"127.0.0.1:{port}")
        try:
            await wait_until_ready(connection, START_S)
        except BrokerNotReadyError as error:
            raise RuntimeError("\n".join([str(error), *output])) from error
        yield Broker(connection, "Apache Kafka", child.pid, folder / "log", JIT_S)


@asynccontextmanager
async def broker(*, apache: bool) -> AsyncIterator[Broker]:
    """A broker with the project's topics for as long as this lasts: Apache Kafka, or the embedded one."""
    async with AsyncExitStack() as running:
        if apache:
            folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="dispatchai-bench-")))
            started = await running.enter_async_context(apache_kafka(folder, dict(os.environ)))
        else:
            embedded = await running.enter_async_context(EmbeddedBroker())
            started = Broker(embedded.connection, "the embedded broker", embedded.pid, None, SETTLE_S)
        await apply(started.connection, Topics.load(), replication=1)
        yield started
