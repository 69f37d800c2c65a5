"""A leader that left while its group was forming: the embedded broker waits for it on, and the next member gets on."""

from __future__ import annotations

import asyncio

import aiokafka
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest
from structlog.testing import capture_logs

from dispatchai.engine.aiokafka_internals import replace_departed_leaders
from dispatchai.kafka.embedded_broker import EmbeddedBroker

TOPIC, GROUP = "frames", "group"
PARTITIONS = 4
SESSION_MS = 6_000
ASSIGNED_IN_S = 90.0
"""Two waits of 8 s each, and the session timeout of the departed leader."""


async def lead_and_leave(wire: AIOKafkaConnection) -> str:
    """Join the group first, so lead it, and leave without having assigned anything. Returns the member's id."""

    async def join(member: str) -> JoinGroupRequest:
        wants = [("roundrobin", ConsumerProtocolMemberMetadata(0, [TOPIC], b"").encode())]
        request = JoinGroupRequest(GROUP, SESSION_MS, SESSION_MS, member, None, "consumer", wants)
        return await wire.send(request)

    member = (await join("")).member_id
    joined = await join(member)
    assert joined.leader_id == member
    await wire.send(LeaveGroupRequest(GROUP, member))
    return str(member)


async def test_a_member_gets_its_partitions_though_the_leader_is_gone() -> None:
    with capture_logs() as logs:
        departed = await outlive_a_leader()
    gone = [entry["leader"] for entry in logs if entry["event"] == "group_leader_departed"]
    assert gone == [departed], "the broker named no leader that is gone, or another"


async def outlive_a_leader() -> str:
    """Be a member whose leader is gone until it has its partitions. Returns that leader's id."""
    async with EmbeddedBroker() as broker:
        servers = broker.bootstrap_servers
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
        await admin.close()
        host, _, port = servers.rpartition(":")
        wire = await create_conn(host, int(port))
        departed = await lead_and_leave(wire)
        wire.close()
        member = aiokafka.AIOKafkaConsumer(
            TOPIC,
            bootstrap_servers=servers,
            group_id=GROUP,
            session_timeout_ms=SESSION_MS,
            rebalance_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=2_000,
        )
        starting = asyncio.create_task(member.start())
        try:
            async with asyncio.timeout(ASSIGNED_IN_S):
                while member._coordinator is None:  # noqa: ASYNC110 - aiokafka tells nobody
                    await asyncio.sleep(0.001)
                replace_departed_leaders(member)
                while len(member.assignment()) < PARTITIONS:  # noqa: ASYNC110 - nor of this
                    await asyncio.sleep(0.05)
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await member.stop()
        return departed
