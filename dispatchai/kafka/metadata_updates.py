"""Lets a client of aiokafka ask for the cluster's metadata at a bounded rate while Kafka is away.

Decides the waits. Touches a private part of aiokafka, as `engine.aiokafka_internals` does for what only agents need;
`check` there compares the installed version with those known to work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

APART_S: Final = 0.1
"""The least time between two updates, which is aiokafka's own `retry_backoff_ms`. A single update is not delayed."""

LONGEST_S: Final = 1.0
"""The longest wait after an update that failed: a broker that is back is found within a second. The waits double."""


def limit(owner: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Limit the metadata updates of a producer or consumer. To be called before it is started.

    Without it: while a partition has no leader and no broker answers, aiokafka's sender and fetcher ask for metadata
    again at once, thousands of times a second, and write a line for each (0.14.0: `Sender._sender_routine` says that it
    waits, and does not).
    """
    client = owner.client if isinstance(owner, AIOKafkaProducer) else owner._client
    update: Callable[[Any, Any], Awaitable[bool]] = client._metadata_update
    loop = asyncio.get_running_loop
    began_at, failed = float("-inf"), 0

    async def update_later(cluster: Any, topics: Any) -> bool:
        """Replaces the client's `_metadata_update`."""
        nonlocal began_at, failed
        if cluster is not client.cluster:
            return await update(cluster, topics)  # `fetch_all_metadata`, whose caller has its own limit
        wait_s = min(LONGEST_S, APART_S * 2 ** min(failed, 10))
        if (left_s := began_at + wait_s - loop().time()) > 0:
            await asyncio.sleep(left_s)
        began_at = loop().time()
        updated = await update(cluster, topics)
        failed = 0 if updated else failed + 1
        return updated

    client._metadata_update = update_later
