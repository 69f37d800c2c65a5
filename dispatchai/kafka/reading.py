"""Temporary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiokafka

from dispatchai.kafka.connection import KafkaConnection


async def true_ends(connection: KafkaConnection, ends: Mapping[Any, int]) -> dict[Any, int]:
    """The actual end offsets."""
    found = dict(ends)
    if not connection.embedded:
        return found
    async with aiokafka.AIOKafkaConsumer(
        **connection.client_options(), enable_auto_commit=False, fetch_max_wait_ms=20
    ) as reader:
        reader.assign(list(ends))
        for tp, end in ends.items():
            reader.seek(tp, end)
        while fetched := await reader.getmany(timeout_ms=500):
            for tp, records in fetched.items():
                found[tp] = records[-1].offset + 1
    return found
