"""A feed on each broker and a real server over it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiokafka import AIOKafkaProducer

from dispatchai.console import Feed, mount
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topics

Client = TestClient[web.Request, web.Application]


@pytest.fixture
def call_id() -> Callable[[str], str]:
    """Names call ids of this test: the topics are shared with all others."""
    run = uuid.uuid4().hex[:8]
    return lambda name: f"{name}-{run}"


@pytest.fixture
async def producer(broker: KafkaConnection, topics: Topics) -> AsyncIterator[AIOKafkaProducer]:
    """A producer on the broker of the test."""
    async with AIOKafkaProducer(**broker.client_options(), acks="all") as producer:
        yield producer


@pytest.fixture
async def feed(broker: KafkaConnection, topics: Topics) -> AsyncIterator[Feed]:
    """A feed that has read the topics to their end."""
    async with Feed(broker) as feed:
        async with asyncio.timeout(60):
            await feed.wait_ready()
        yield feed


@pytest.fixture
async def client(feed: Feed) -> AsyncIterator[Client]:
    """A client of a real server on loopback that shows `feed`."""
    app = web.Application()
    mount(app, feed)
    async with TestClient(TestServer(app)) as client:
        yield client
