"""The Apache Kafka of a run: it can be killed and started again on its log folder, and its network can be cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from tests.crash.network import Line
from tests.support.kafka.node import Node

HURRIED: Final = """\
offsets.topic.num.partitions=4
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
listeners=PLAINTEXT://127.0.0.1:{port},LINE://127.0.0.1:{behind_line},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},LINE://127.0.0.1:{line}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,LINE:PLAINTEXT,CONTROLLER:PLAINTEXT
"""
"""A killed node reads all its logs when it starts again, and fifty empty ones would take seconds. Its controller admits
it only after its former session has expired. A client that connects through the line stays on it."""


@dataclass(frozen=True, slots=True)
class Kafka:
    """A node, and a second way to reach it, which can be cut (`line`)."""

    node: Node
    line: Line

    @classmethod
    async def prepare(cls, folder: Path) -> Self:
        """A node with its files in `folder`, formatted and not running. Raises RuntimeError, KafkaUnavailableError."""
        line = Line(free_port(), free_port())
        node = await Node.prepare(folder, properties=HURRIED, line=line.port, behind_line=line.target)
        return cls(node, line)

    @property
    def command(self) -> tuple[str, ...]:
        """Run the node inside this context."""
        return self.node.command

    @property
    def connection(self) -> KafkaConnection:
        """The connection to it that is never cut."""
        return self.node.connection

    async def ready(self) -> None:
        """Return when the node answers. Raises BrokerNotReadyError."""
        await self.node.ready()
