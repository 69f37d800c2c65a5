"""Claims about the feed when things go wrong: Kafka that goes away, subscribers that do not read."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiokafka import AIOKafkaProducer
from structlog.testing import capture_logs

from dispatchai.console import kafka_answers
from dispatchai.console import topic_feed as feed_module
from dispatchai.console.actions import ActionWriter
from dispatchai.console.app import create_app
from dispatchai.console.queue_view import QueueView
from dispatchai.console.topic_feed import (
    UPDATES_PER_SUBSCRIBER,
    Feed,
    FeedCounts,
    FeedState,
    Subscription,
    Update,
    _ViewBuilder,
)
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.process.metrics import ProcessMetrics
from dispatchai.records import encode
from dispatchai.settings import Settings
from tests.console.samples import BASE, final_packet, live_call, put
from tests.support.recorded_call import event

PATIENCE_S = 60.0


async def state_of(subscription: Subscription, wanted: FeedState, *, rebuilt: bool) -> None:
    """Return at the update with the state `wanted`."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            update = await subscription.next(PATIENCE_S)
            assert update is not None
            if update.state is wanted and update.snapshot is rebuilt:
                return


async def test_topics_that_appear_later_are_found() -> None:
    async with EmbeddedBroker() as broker:
        connection = KafkaConnection(broker.bootstrap_servers)
        async with Feed(connection) as feed, asyncio.timeout(PATIENCE_S):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await feed.wait_ready()
            assert feed.state is FeedState.STARTING
            await apply(connection, Topics.load(), replication=1)
            await feed.wait_ready()


async def test_while_kafka_is_away_the_last_view_stays_and_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "PROBE_S", 0.1)
    monkeypatch.setattr(feed_module, "REQUEST_S", 2.0)
    async with EmbeddedBroker() as broker:
        connection = KafkaConnection(broker.bootstrap_servers)
        await apply(connection, Topics.load(), replication=1)
        async with Feed(connection) as feed:
            await feed.wait_ready()
            async with AIOKafkaProducer(**connection.client_options()) as producer:
                await put(producer, [("live-calls", "kept", live_call("kept"))])
            subscription, snapshot = await feed.subscribe()
            if not snapshot.entries:
                assert await subscription.next(PATIENCE_S) is not None
            await broker.stop()
            await state_of(subscription, FeedState.RECONNECTING, rebuilt=False)
            assert not feed.ready
            assert [entry.call_id for entry in (await feed.current()).ranked()] == ["kept"]


async def test_the_metrics_count_who_is_not_heard_without_an_open_page_and_not_while_records_may_be_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka_answers, "SETTLE_S", 0.0)
    async with EmbeddedBroker() as broker:
        connection = KafkaConnection(broker.bootstrap_servers)
        await apply(connection, Topics.load(), replication=1)
        async with Feed(connection) as feed, AIOKafkaProducer(**connection.client_options()) as producer:
            await feed.wait_ready()
            app = create_app(Settings(_env_file=None), feed, ActionWriter(connection), ProcessMetrics())
            async with TestClient(TestServer(app)) as client, asyncio.timeout(PATIENCE_S):
                await put(producer, [("live-calls", "silent", replace(live_call("silent"), answered_at=BASE))])
                while "dispatchai_calls_unheard 1.0" not in await (await client.get("/metrics")).text():  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                monkeypatch.setattr(kafka_answers, "SETTLE_S", 1e9)
                assert "dispatchai_calls_unheard 0.0" in await (await client.get("/metrics")).text()


async def test_when_kafka_answers_again_the_view_is_read_again_and_sent_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "PROBE_S", 0.1)
    monkeypatch.setattr(feed_module, "REQUEST_S", 1.0)
    async with EmbeddedBroker() as broker:
        connection = KafkaConnection(broker.bootstrap_servers)
        await apply(connection, Topics.load(), replication=1)
        async with Feed(connection) as feed, AIOKafkaProducer(**connection.client_options()) as producer:
            await put(producer, [("live-calls", "before", live_call("before"))])
            await feed.wait_ready()
            subscription, _ = await feed.subscribe()
            before = (await feed.current()).number
            os.kill(broker.pid, signal.SIGSTOP)
            await state_of(subscription, FeedState.RECONNECTING, rebuilt=False)
            os.kill(broker.pid, signal.SIGCONT)
            await state_of(subscription, FeedState.LIVE, rebuilt=True)
            await put(producer, [("dispatch-queue", "after", final_packet(live_call("after")))])
            async with asyncio.timeout(PATIENCE_S):
                while (update := await subscription.next(PATIENCE_S)) is None or not update.changes:
                    assert update is not None
            assert update.changes[-1].call_id == "after"
            assert update.changes[-1].number > before
            assert {entry.call_id for entry in (await feed.current()).ranked()} == {"before", "after"}


async def test_a_subscriber_that_does_not_read_is_dropped_and_no_other() -> None:
    feed = Feed(KafkaConnection("127.0.0.1:1"))
    slow, _ = await feed.subscribe()
    update = Update(FeedState.LIVE, ())
    taken = sum(slow.offer(update) for _ in range(UPDATES_PER_SUBSCRIBER + 5))
    assert taken == UPDATES_PER_SUBSCRIBER
    slow.close()
    ends = [await slow.next(PATIENCE_S) for _ in range(UPDATES_PER_SUBSCRIBER + 2)]
    assert ends == [update] * UPDATES_PER_SUBSCRIBER + [None, None]
    other, _ = await feed.subscribe()
    assert other.offer(update)
    await feed.stop()


async def test_a_stopped_feed_ends_its_subscriptions_and_leaves_no_task() -> None:
    feed = Feed(KafkaConnection("127.0.0.1:1"))
    before = asyncio.all_tasks()
    await feed.start()
    subscription, _ = await feed.subscribe()
    await feed.stop()
    assert await subscription.next(PATIENCE_S) is None
    assert asyncio.all_tasks() == before
    assert feed.state is FeedState.STOPPED


def test_records_that_the_console_cannot_read_fill_no_log() -> None:
    counts = FeedCounts()
    builder = _ViewBuilder(Topic.LIVE_CALLS, QueueView(), counts, lambda _, __: None)
    with capture_logs() as lines:
        for offset in range(5_000):
            builder.apply(Topic.DISPATCH_QUEUE, 0, offset, b"call", b"no record")
            builder.apply(Topic.LIVE_CALLS, 0, offset, None, encode(event("call.initiated")))
    assert len(lines) < 100
    assert counts.skipped >= 5_000
