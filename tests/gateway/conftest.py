"""Gateways for the tests of this folder, on the embedded broker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from dispatchai.kafka.connection import KafkaConnection
from tests.support.gateway import Gateway, running_gateway

if TYPE_CHECKING:
    pass


@pytest.fixture
async def gateway(embedded: KafkaConnection) -> AsyncIterator[Gateway]:
    async with running_gateway(embedded, bad_messages_max=5, media_message_max_bytes=4096) as gateway:
        yield gateway
