"""A client asks for metadata at a bounded rate while no broker answers and partitions have no leader."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from dispatchai.kafka import metadata_updates
from dispatchai.kafka.embedded_broker import free_port

ASKED = 40
"""Updates that are asked for one after the other, as aiokafka's sender does: each as soon as the last has ended."""


class Clock:
    """Time that passes only in waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept = 0.0
        sleep = asyncio.sleep

        async def instead(delay: float, result: Any = None) -> Any:
            self.slept += delay
            return await sleep(0, result)

        monkeypatch.setattr("dispatchai.kafka.metadata_updates.asyncio.sleep", instead)


async def made(kind: type[AIOKafkaProducer | AIOKafkaConsumer]) -> tuple[Any, Any]:
    owner = kind(bootstrap_servers=f"127.0.0.1:{free_port()}")
    return owner, owner.client if isinstance(owner, AIOKafkaProducer) else owner._client


@pytest.mark.parametrize("kind", [AIOKafkaProducer, AIOKafkaConsumer])
async def test_updates_that_fail_wait_longer_and_longer(
    kind: type[AIOKafkaProducer | AIOKafkaConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    owner, client = await made(kind)
    try:
        metadata_updates.limit(owner)
        for _ in range(ASKED):
            assert not await client._metadata_update(client.cluster, [])
    finally:
        await owner.stop()
    # 0.2, 0.4, 0.8, then a second each, less the time that the attempts themselves took.
    assert clock.slept > (ASKED - 4) * 0.9 * metadata_updates.LONGEST_S


async def test_a_single_update_is_not_delayed_and_success_ends_the_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    owner, client = await made(AIOKafkaProducer)
    answers = [True, False, True, True]

    async def answer(_cluster: Any, _topics: Any) -> bool:
        return answers.pop(0)

    client._metadata_update = answer
    try:
        metadata_updates.limit(owner)
        assert await client._metadata_update(client.cluster, [])
        assert clock.slept == 0
        for _ in range(3):
            await client._metadata_update(client.cluster, [])
    finally:
        await owner.stop()
    assert clock.slept == pytest.approx(0.1 + 0.2 + 0.1, abs=0.05)


async def test_a_check_of_the_cluster_is_not_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    owner, client = await made(AIOKafkaProducer)
    try:
        metadata_updates.limit(owner)
        for _ in range(5):
            with pytest.raises(KafkaError):
                await client.fetch_all_metadata()
    finally:
        await owner.stop()
    assert clock.slept == 0
