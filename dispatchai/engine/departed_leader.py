"""How a group gets on whose leader is gone, where the embedded broker does not notice.

Tansu 0.6 keeps a leader that left, or was expelled, while the group was forming: it names it to all who join later, and
they wait for its assignments for ever. It drops a leader only that is a member and was not heard of for a session
timeout. So who was left waiting twice by the same leader joins once in its name, which is not heard of again. A leader
that lives after all is only counted as heard of. Apache Kafka has no such leaders and never sees this.
"""

from __future__ import annotations

from typing import Any

import structlog
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError, RebalanceInProgressError
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest

log = structlog.get_logger(__name__)


class Ghosts:
    """Watches the joins of one `coordinator`, from now on."""

    def __init__(self, coordinator: GroupCoordinator) -> None:
        self._coordinator = coordinator
        self._send = coordinator._send_req
        self._join: JoinGroupRequest | None = None
        self._leader = ""
        """Whom the last join named."""
        self._awaited = ""
        """Who left this member waiting the last time."""
        coordinator._send_req = self._send_and_watch

    async def _send_and_watch(self, request: Any) -> Any:
        """As the coordinator's own `_send_req`. Raises KafkaError."""
        response = await self._send(request)
        if isinstance(request, JoinGroupRequest) and not response.error_code:
            self._join, self._leader = request, response.leader_id
        elif isinstance(request, SyncGroupRequest):
            await self._synced(response.error_code)
        return response

    async def _synced(self, error_code: int) -> None:
        """Take note of how waiting for the leader ended."""
        in_vain = error_code == RebalanceInProgressError.errno and self._leader != self._coordinator.member_id
        if in_vain and self._awaited == self._leader:
            await self._join_in_the_name_of(self._leader)
            in_vain = False
        self._awaited = self._leader if in_vain else ""

    async def _join_in_the_name_of(self, ghost: str) -> None:
        asked = self._join
        if asked is None:
            return
        log.warning("leader_is_gone", group=self._coordinator.group_id, leader=ghost)
        request = JoinGroupRequest(
            asked._group,
            asked._session_timeout,
            asked._rebalance_timeout,
            ghost,
            None,
            asked._protocol_type,
            asked._group_protocols,
        )
        try:
            await self._send(request)
        except KafkaError as error:
            log.warning("leader_not_replaced", error=f"{type(error).__name__}: {error}")
