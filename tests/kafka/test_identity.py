"""A Kafka that was replaced by another cluster is noticed, and named."""

from __future__ import annotations

import pytest

from dispatchai.kafka import identity
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.identity import ClusterChangedError, ClusterIdentity


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What the brokers answer, one after the other."""
    given: list[str | None] = []

    async def cluster_id(_connection: KafkaConnection) -> str | None:
        return given.pop(0)

    monkeypatch.setattr(identity, "cluster_id", cluster_id)
    return given


async def test_another_cluster_is_named_with_what_to_do(answers: list[str | None]) -> None:
    known = ClusterIdentity(KafkaConnection("broker:9092"))
    answers += ["first", None, "first", "second"]
    for _ in range(3):
        await known.check()
    with pytest.raises(ClusterChangedError, match=r"broker:9092: its id is second, .* began with first.*topics apply"):
        await known.check()
