"""Apache Kafka as a process that can be killed and started again on the log folder that it left.

Decides its properties: Kafka's defaults, but for what one node needs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bench.kafka import PROPERTIES
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port, wait_until_ready
from dispatchai.process.child import Child
from tests.conftest import KAFKA_LIBS, cluster_id_option, fetch_kafka, find_java
from tests.crash.network import Line

START_S: Final = 120.0

HURRIED: Final = """\
offsets.topic.num.partitions=4
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
listeners=PLAINTEXT://127.0.0.1:{port},LINE://127.0.0.1:{behind_line},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},LINE://127.0.0.1:{line}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,LINE:PLAINTEXT,CONTROLLER:PLAINTEXT
"""
"""A killed node reads all of its logs when it starts again: fifty of them empty ones would cost seconds. And its
controller lets it in only when the session of its former life is over. Who comes by the line stays on it."""


@dataclass(frozen=True, slots=True)
class Kafka:
    """One node on loopback: `command` runs it, as often as it is asked to, on one log folder and one port."""

    command: tuple[str, ...]
    connection: KafkaConnection
    line: Line
    """Another way to it, which can be cut."""

    @classmethod
    async def prepare(cls, folder: Path) -> Self:
        """A node with its files in `folder`, formatted and not running. Raises RuntimeError, KafkaUnavailableError."""
        java = find_java()
        fetch_kafka()
        line = Line(free_port(), free_port())
        port, controller_port = free_port(), free_port()
        properties = folder / "server.properties"
        text = (PROPERTIES + HURRIED).format(
            port=port,
            controller_port=controller_port,
            log_dir=folder / "kafka",
            line=line.port,
            behind_line=line.target,
        )
        properties.write_text(text, encoding="utf-8")
        # Short lives on two cores: the fast compiler only, the collector without threads of its own.
        command = (java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-Xmx512m")
        command += ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{KAFKA_LIBS}/*")
        output: deque[str] = deque(maxlen=40)
        formatting = ("kafka.tools.StorageTool", "format", cluster_id_option(), "-c", str(properties))
        async with Child([*command, *formatting], on_line=output.append) as child:
            if await child.wait() != 0:
                raise RuntimeError("\n".join(["Kafka's log folder could not be formatted:", *output]))
        return cls((*command, "kafka.Kafka", str(properties)), KafkaConnection(f"127.0.0.1:{port}"), line)

    async def ready(self) -> None:
        """Return when the node answers. Raises BrokerNotReadyError."""
        await wait_until_ready(self.connection, START_S)
