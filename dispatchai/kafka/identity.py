"""Whether a process still talks to the cluster with which it began.

A cluster that was replaced by another one has none of the offsets, producer ids and records that a process knows. Only
a new process can go on with it. Decides how that is found; the callers end their process.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiokafka.errors import KafkaError

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.errors import KafkaOperationError
from dispatchai.kafka.readiness import cluster_metadata, server_options

ASK_S: Final = 5.0
"""The longest wait for one broker's answer."""


class ClusterChangedError(KafkaOperationError):
    """Another cluster answers at the addresses of Kafka. The message names both ids and says what to do."""


class ClusterIdentity:
    """The id of the cluster with which this process began."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._known: str | None = None

    async def check(self) -> None:
        """Learn the cluster's id, or compare it with the one that is known.

        Does nothing if no broker answers, or if it names no id, as the embedded broker does when it has just started.
        Raises ClusterChangedError.
        """
        found = None if self._connection.embedded else await cluster_id(self._connection)
        if found is None:
            return
        if self._known is None:
            self._known = found
        elif found != self._known:
            raise ClusterChangedError(
                f"another cluster answers at {self._connection.bootstrap_servers}: its id is {found}, and this process "
                f"began with {self._known}. The process ends, and a new one goes on with what that cluster has. If it "
                "is empty, run `dispatchai topics apply`"
            )


async def cluster_id(connection: KafkaConnection) -> str | None:
    """The id of the cluster, of the first broker that answers; None if none does or it has no id."""
    options = server_options(connection)
    for server in connection.servers:
        try:
            async with asyncio.timeout(ASK_S):
                metadata = (await cluster_metadata(server, options)).to_object()
        except (KafkaError, OSError, TimeoutError):
            continue
        found = metadata.get("cluster_id")
        return found if isinstance(found, str) and found else None
    return None
