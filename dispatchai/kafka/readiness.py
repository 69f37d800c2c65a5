"""Waits for Kafka when something starts: for a limited time, or until it answers.

Decides what counts as an answer: metadata that names at least one broker. Callers decide what to do without one.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import structlog
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.process.log_limit import LogLimit

log = structlog.get_logger(__name__)

PROBE_INTERVAL_S: Final = 0.02
"""Pause between two attempts to reach a broker that is starting: nothing reports when a port opens."""

RETRY_S: Final = 1.0
"""Pause between two attempts to reach a Kafka that may be down for hours."""


LOG_EVERY_S: Final = 60.0
"""The least time between two lines that say that Kafka cannot be reached."""


class BrokerNotReadyError(KafkaOperationError):
    """No broker answered a metadata request in time."""


async def wait_until_ready(connection: KafkaConnection, timeout_s: float) -> None:
    """Return once a broker answers. For a broker that was just started.

    Raises BrokerNotReadyError after `timeout_s` seconds, naming the last failure; OSError at once if a TLS file
    cannot be read.
    """
    options = server_options(connection)
    failure: Exception | None = None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                failure = await _probe(connection, options)
                if failure is None:
                    return
                await asyncio.sleep(PROBE_INTERVAL_S)
    except TimeoutError:
        why = f" ({_named(failure)})" if failure else ""
        raise BrokerNotReadyError(f"no broker at {connection.bootstrap_servers} in {timeout_s:g} s{why}") from failure


async def wait_until_reachable(connection: KafkaConnection) -> None:
    """Return once a broker answers, however long that takes, and log the failure at first and once a minute.

    A process that ended because Kafka is down would only be restarted again and again. Raises OSError at once if a
    TLS file cannot be read.
    """
    options = server_options(connection)
    limit = LogLimit(LOG_EVERY_S)
    while (failure := await _probe(connection, options)) is not None:
        if tries := limit.add():
            log.warning(
                "kafka_unreachable",
                servers=connection.bootstrap_servers,
                error=_named(failure),
                tries=tries,
                retry_s=RETRY_S,
            )
        await asyncio.sleep(RETRY_S)


def server_options(connection: KafkaConnection) -> dict[str, Any]:
    """How to connect to one server of `connection`. Raises OSError if a TLS file cannot be read."""
    options = connection.client_options()
    del options["bootstrap_servers"]
    return options


async def _probe(connection: KafkaConnection, options: dict[str, Any]) -> Exception | None:
    """Ask each address of `connection` once. Returns None once one answers, else the last failure."""
    failure: Exception | None = None
    for server in connection.servers:
        try:
            await _ask(server, options)
        except (OSError, KafkaError, TimeoutError) as error:
            failure = error
        else:
            return None
    return failure


async def _ask(server: str, options: dict[str, Any]) -> None:
    if not (await cluster_metadata(server, options)).brokers:
        raise KafkaError("the cluster names no broker yet")


async def cluster_metadata(server: str, options: dict[str, Any]) -> Any:
    """The metadata response of the broker at `server`, without topics. `options`: `server_options`.

    Raises OSError, KafkaError.
    """
    host, _, port = server.rpartition(":")
    # Connecting asks for the versions of the protocol and, with SASL, authenticates.
    wire: AIOKafkaConnection = await create_conn(host, int(port), **options)
    try:
        return await wire.send(MetadataRequest([]))
    finally:
        wire.close()


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
