"""The brokers of a test session: the embedded one and Apache Kafka, each started when a test first asks for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker, free_port
from dispatchai.kafka.topics import Topics
from tests.support.kafka.certificates import make_pems
from tests.support.kafka.node import KafkaUnavailableError, Node

T = TypeVar("T")

USER: Final = "dispatchai"
PASSWORD: Final = "for-tests-only"

_PROPERTIES: Final = """\
listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SECURE://127.0.0.1:{secure_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.ssl.client.auth=required
listener.name.secure.ssl.keystore.type=PEM
listener.name.secure.ssl.keystore.location={pems.server}
listener.name.secure.ssl.truststore.type=PEM
listener.name.secure.ssl.truststore.location={pems.authority}
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
# Groups form and notice the death of a member at once; the log is cleaned while a test waits for it.
group.min.session.timeout.ms=1000
log.cleaner.backoff.ms=500
log.cleaner.dedupe.buffer.size=16777216
# Records of tests are dated as a test needs it: none is deleted for its age while one reads it.
log.initial.task.delay.ms=86400000
log.retention.check.interval.ms=86400000
"""
"""A second listener with TLS certificates on both sides and SASL, and less waiting."""


class Background:
    """An event loop in a thread: it holds what lives longer than a test, whatever loops the tests have."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="brokers", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run `coroutine` in the thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Brokers:
    """Starts each broker when it is first asked for, and applies the topics to it once."""

    def __init__(self, background: Background, folder: Path) -> None:
        self._background = background
        self._folder = folder
        self._running = AsyncExitStack()
        self._connections: dict[str, KafkaConnection] = {}
        self._unavailable: KafkaUnavailableError | None = None
        self._topics: dict[str, Topics] = {}

    def connection(self, name: str) -> KafkaConnection:
        """The broker `name`, running. Raises KafkaUnavailableError."""
        if name not in self._connections:
            match name:
                case "embedded":
                    embedded = self._background.run(self._running.enter_async_context(EmbeddedBroker()))
                    self._connections[name] = embedded.connection
                case "apache-kafka":
                    if self._unavailable is not None:
                        raise self._unavailable
                    try:
                        self._connections[name] = self._background.run(self._start_kafka())
                    except KafkaUnavailableError as error:
                        self._unavailable = error
                        raise
                case _:
                    raise ValueError(f"no broker is called {name}")
        return self._connections[name]

    def topics(self, connection: KafkaConnection) -> Topics:
        """The project's topics, present on the broker of `connection`."""
        key = connection.bootstrap_servers
        if key not in self._topics:
            topics = Topics.load()
            self._background.run(apply(connection, topics, replication=1))
            self._topics[key] = topics
        return self._topics[key]

    def stop(self) -> None:
        """Stop what was started."""
        self._background.run(self._running.aclose())

    def secured(self) -> KafkaConnection:
        """Apache Kafka by its other door: TLS with certificates on both sides, and SASL."""
        self.connection("apache-kafka")
        return self._connections["secured"]

    async def _start_kafka(self) -> KafkaConnection:
        secure_port, pems = free_port(), make_pems(self._folder)
        node = await Node.prepare(
            self._folder,
            properties=_PROPERTIES,
            format_options=("--add-scram", f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]"),
            secure_port=secure_port,
            pems=pems,
        )
        await self._running.enter_async_context(node.running())
        self._connections["secured"] = KafkaConnection(
            f"127.0.0.1:{secure_port}",
            "SASL_SSL",
            "SCRAM-SHA-512",
            sasl_username=USER,
            sasl_password=PASSWORD,
            ssl_ca_file=pems.authority,
            ssl_cert_file=pems.client_certificate,
            ssl_key_file=pems.client_key,
        )
        return node.connection
