"""Claims about a dispatcher's actions over HTTP: who may ask, what is taken, and that 202 means stored."""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from dispatchai.console import Feed, mount
from dispatchai.console.actions import BODY_MAX_BYTES, ActionWriter, routes
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.topics import Topic, Topics
from dispatchai.records import Action, ActionKind, CallStatus, decode_as
from tests.console.conftest import Client
from tests.console.samples import final_packet, live_call, put

PATIENCE_S = 30.0
ACK_TIMEOUT_S = 20.0
"""The product's four seconds are no matter of a machine that runs tests."""

SPEAK = {"kind": "SPEAK", "text": "Help is on its way.", "actor": "dispatcher 7"}


@pytest.fixture
async def desk(feed: Feed, broker: KafkaConnection) -> AsyncIterator[Client]:
    """A client of a server on loopback that also has the name dispatch.example.com."""
    app = web.Application()
    mount(app, feed, names=frozenset({"dispatch.example.com"}))
    writer = ActionWriter(broker, ack_timeout_s=ACK_TIMEOUT_S)
    app.add_routes(routes(feed, writer, can_transfer=True))
    async with TestClient(TestServer(app)) as client:
        yield client
    await writer.close()


@pytest.fixture
async def ongoing(feed: Feed, producer: AIOKafkaProducer, call_id: Callable[[str], str]) -> str:
    """A call in progress that the page shows."""
    call = call_id("ongoing")
    await put(producer, [("live-calls", call, live_call(call))])
    await shown(feed, call)
    return call


async def shown(feed: Feed, call: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await feed.current()).get(call) is None:  # noqa: ASYNC110 - in memory
            await asyncio.sleep(0.02)


async def post(
    desk: Client,
    call: str,
    body: Any = None,
    *,
    action_id: str | None = None,
    headers: Mapping[str, str | None] = {},
) -> tuple[int, Any]:
    """POST an action as the page does. A header of None is left out."""
    sent: dict[str, str | None] = {
        "Content-Type": "application/json",
        "X-Action-Id": action_id or uuid.uuid4().hex,
        **headers,
    }
    data = body if isinstance(body, bytes) else json.dumps(SPEAK if body is None else body).encode()
    async with desk.post(
        f"/api/v1/calls/{call}/actions",
        data=data,
        headers={name: value for name, value in sent.items() if value is not None},
        skip_auto_headers=["Content-Type"],
    ) as response:
        assert response.content_type == "application/json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        return response.status, await response.json()


async def stored(broker: KafkaConnection, topics: Topics, call: str, count: int) -> list[Action]:
    """The first `count` actions of a call in Kafka."""
    found: list[Action] = []
    async with (
        AIOKafkaConsumer(auto_offset_reset="earliest", fetch_max_wait_ms=20, **broker.client_options()) as consumer,
        asyncio.timeout(PATIENCE_S),
    ):
        consumer.assign([TopicPartition(Topic.DISPATCH_ACTIONS, number) for number in range(topics.partitions)])
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                found += [decode_as(Action, each.value) for each in records if each.key == call.encode()]
    return found


async def test_an_accepted_action_is_in_kafka_under_its_call(
    desk: Client, ongoing: str, broker: KafkaConnection, topics: Topics
) -> None:
    status, body = await post(desk, ongoing, action_id="action-00001")
    assert status == 202
    assert body == {"call_id": ongoing, "action_id": "action-00001", "kind": "SPEAK", "status": "accepted"}
    for kind in ("TRANSFER", "HANGUP"):
        assert (await post(desk, ongoing, {"kind": kind, "actor": "dispatcher 7"}))[0] == 202
    speak, transfer, hangup = await stored(broker, topics, ongoing, 3)
    assert (speak.action_id, speak.kind, speak.actor) == ("action-00001", ActionKind.SPEAK, "dispatcher 7")
    assert speak.text == "Help is on its way."
    assert [(each.kind, each.text) for each in (transfer, hangup)] == [
        (ActionKind.TRANSFER, None),
        (ActionKind.HANGUP, None),
    ]


async def test_a_call_that_nobody_knows_is_not_found_and_one_that_is_over_is_left_alone(
    feed: Feed, desk: Client, producer: AIOKafkaProducer, call_id: Callable[[str], str]
) -> None:
    over, packed = call_id("over"), call_id("packed")
    await put(
        producer,
        [
            ("live-calls", over, live_call(over, status=CallStatus.ENDED)),
            ("dispatch-queue", packed, final_packet(live_call(packed))),
        ],
    )
    await shown(feed, over)
    await shown(feed, packed)
    assert [(await post(desk, call))[0] for call in (call_id("unknown"), over, packed)] == [404, 409, 409]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_json"),
        (b"[1]", 400, "bad_json"),
        (b'{"kind": "SPEAK", "actor": "\xff"}', 400, "bad_json"),
        (b'{"kind": "SPEAK", "actor": "\\ud800"}', 400, "bad_json"),
        ({"actor": "me"}, 400, "bad_kind"),
        ({"kind": "speak", "actor": "me"}, 400, "bad_kind"),
        ({"kind": ["SPEAK"], "actor": "me"}, 400, "bad_kind"),
        ({"kind": "MERGE", "actor": "me"}, 400, "bad_kind"),
        ({"kind": "SPEAK"}, 400, "bad_actor"),
        ({"kind": "SPEAK", "actor": "  "}, 400, "bad_actor"),
        ({"kind": "SPEAK", "actor": "x" * 101}, 400, "bad_actor"),
        ({"kind": "SPEAK", "actor": "me", "text": ""}, 400, "bad_text"),
        ({"kind": "SPEAK", "actor": "me", "text": 7}, 400, "bad_text"),
        ({"kind": "SPEAK", "actor": "me", "text": "x" * 3001}, 400, "bad_text"),
        ({"kind": "TRANSFER", "actor": "me", "to": "+15550100666"}, 400, "unknown_field"),
        (b" " * (BODY_MAX_BYTES + 1), 413, "too_large"),
    ],
)
async def test_what_is_not_in_due_form_is_refused_with_its_reason(
    desk: Client, ongoing: str, body: Any, status: int, code: str
) -> None:
    got, answer = await post(desk, ongoing, body)
    assert (got, answer["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        # What a page of another site can send without asking first.
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": None}, 415),
        ({"X-Action-Id": None}, 403),
        ({"Origin": "https://evil.example.com"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        # A name that somebody has resolve to this machine.
        ({"Host": "evil.example.com"}, 403),
        ({"Host": "evil.example.com:6066", "Origin": "http://evil.example.com:6066"}, 403),
        ({"Host": "127.0.0.1.example.com"}, 403),
        ({"Host": "127.0.0.1:99999999"}, 403),
        ({"Host": "10.0.0.5"}, 403),
        ({"X-Action-Id": "short"}, 400),
        ({"X-Action-Id": "with space"}, 400),
        ({"X-Action-Id": "x" * 65}, 400),
        # This machine, and the names that it was given.
        ({"Host": "localhost:6066"}, 202),
        ({"Host": "[::1]:6066", "Origin": "http://[::1]:6066"}, 202),
        ({"Host": "Dispatch.Example.com", "Origin": "https://dispatch.example.com"}, 202),
        ({"Host": "127.0.0.1:6066", "Origin": "https://dispatch.example.com"}, 202),
        ({"Content-Type": "application/json; charset=utf-8"}, 202),
    ],
)
async def test_only_this_servers_own_page_may_act(
    desk: Client, ongoing: str, headers: dict[str, str | None], status: int
) -> None:
    assert (await post(desk, ongoing, headers=headers))[0] == status


async def test_the_page_as_it_was_loaded_may_act(desk: Client, ongoing: str) -> None:
    page = str(desk.make_url("")).rstrip("/")
    assert (await post(desk, ongoing, headers={"Origin": page}))[0] == 202


async def test_a_transfer_to_nowhere_is_refused(feed: Feed, broker: KafkaConnection, ongoing: str) -> None:
    app = web.Application()
    mount(app, feed)
    app.add_routes(routes(feed, ActionWriter(broker), can_transfer=False))
    async with TestClient(TestServer(app)) as desk:
        status, answer = await post(desk, ongoing, {"kind": "TRANSFER", "actor": "me"})
    assert (status, answer["error"]["code"]) == (409, "no_human_line")


async def test_without_kafka_nothing_is_accepted_and_the_writer_comes_back_with_it(
    feed: Feed, broker: KafkaConnection, topics: Topics, ongoing: str
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = KafkaConnection(f"127.0.0.1:{unused.getsockname()[1]}", embedded=True)
        writer = ActionWriter(away, ack_timeout_s=1.0)
        app = web.Application()
        mount(app, feed)
        app.add_routes(routes(feed, writer, can_transfer=True))
        async with TestClient(TestServer(app)) as desk:
            status, answer = await post(desk, ongoing)
            assert (status, answer["error"]["code"]) == (503, "unavailable")
            writer._connection = broker
            writer._ack_timeout_s = ACK_TIMEOUT_S
            assert (await post(desk, ongoing, action_id="after-the-outage"))[0] == 202
        await writer.close()
    assert [each.action_id for each in await stored(broker, topics, ongoing, 1)] == ["after-the-outage"]
