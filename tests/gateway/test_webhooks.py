"""How a webhook is answered, and what is on the topics by then."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

import orjson
import pytest
from aiokafka import ConsumerRecord
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dispatchai.gateway.metrics import WebhookOutcome
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker
from dispatchai.kafka.topics import Topics
from dispatchai.records import CallEvent, decode_as
from dispatchai.telnyx import signatures
from dispatchai.telnyx.signatures import Refusal, WebhookVerifier
from tests.support.gateway import (
    KEY,
    Gateway,
    control_id,
    event,
    hmac_headers,
    new_call,
    occurred,
    records_of,
    running_gateway,
)

if TYPE_CHECKING:
    pass


def received_now() -> int:
    """A time of receipt in microseconds: now, because signatures are valid for five minutes only."""
    return int(time.time()) * 1_000_000


@pytest.fixture
async def gateway(embedded: KafkaConnection) -> AsyncIterator[Gateway]:
    async with running_gateway(embedded, webhook_max_bytes=20_000) as gateway:
        yield gateway


def count(wanted: int) -> Callable[[Sequence[ConsumerRecord]], bool]:
    def done(records: Sequence[ConsumerRecord]) -> bool:
        return len(records) >= wanted

    return done


async def events_of(connection: KafkaConnection, call_id: str, wanted: int) -> list[CallEvent]:
    records = await records_of(connection, "call-events", call_id, count(wanted))
    return [decode_as(CallEvent, record.value) for record in records]


@pytest.mark.usefixtures("topics")
async def test_an_event_is_on_the_topic_under_its_call_id_when_the_carrier_gets_200(broker: KafkaConnection) -> None:
    call_id = new_call()
    message = event(call_id, id="evt-1")
    message["meta"]["attempt"] = 2
    body = orjson.dumps(message, option=orjson.OPT_INDENT_2)
    received_at = received_now()
    async with running_gateway(broker, clock=lambda: received_at) as gateway:
        status, _ = await gateway.webhook(body)
        # The gateway still runs: its shutdown has flushed nothing.
        assert status == 200
        assert await events_of(broker, call_id, 1) == [
            CallEvent(
                event_id="evt-1",
                type="call.initiated",
                occurred_at=1_779_233_415_038_431,
                received_at=received_at,
                call_control_id=control_id(call_id),
                from_number="+15551234567",
                to_number="+15559876543",
                attempt=2,
                payload=body,
            )
        ]


@pytest.mark.usefixtures("topics")
async def test_the_largest_webhook_that_is_allowed_is_stored(broker: KafkaConnection) -> None:
    call_id = new_call()
    body = orjson.dumps(event(call_id))
    body += b" " * (262_144 - len(body))
    async with running_gateway(broker) as gateway:
        assert (await gateway.webhook(body))[0] == 200
    (stored,) = await events_of(broker, call_id, 1)
    assert stored.payload == body


async def test_events_of_any_type_are_stored_in_the_order_of_their_answers(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    types = ["call.hangup", "call.initiated", "streaming.started", "call.from.the.future", "call.recording.saved"]
    for kind in types:
        status, _ = await gateway.webhook(orjson.dumps(event(call_id, event_type=kind, surprise=[1])))
        assert status == 200
    assert [stored.type for stored in await events_of(embedded, call_id, len(types))] == types


@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_path_may_end_in_a_slash(gateway: Gateway, slash: str) -> None:
    assert (await gateway.webhook(orjson.dumps(event(new_call())), slash=slash))[0] == 200


async def test_the_guides_hmac_header_is_accepted(gateway: Gateway, embedded: KafkaConnection) -> None:
    call_id = new_call()
    # Up to a quarter of an hour old: the carrier tries again, and the event's time stays.
    for ago_s in (0, 800, -200):
        body = orjson.dumps(event(call_id, occurred_at=occurred(ago_s)))
        assert (await gateway.webhook(body, hmac_headers(body)))[0] == 200
    assert len(await events_of(embedded, call_id, 3)) == 3


@pytest.mark.parametrize(
    ("occurred_at", "status", "code"),
    [
        (occurred(1000), 503, "signature_stale"),
        (occurred(86_400), 503, "signature_stale"),
        (occurred(-86_400), 503, "signature_stale"),
        (None, 401, "signature_undated"),
    ],
    ids=["old", "very-old", "future", "undated"],
)
async def test_a_signature_without_a_time_does_not_outlive_its_event(
    gateway: Gateway, occurred_at: str | None, status: int, code: str
) -> None:
    body = orjson.dumps(event(new_call(), occurred_at=occurred_at))
    answer = await gateway.webhook(body, hmac_headers(body))
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)
    # An Ed25519 signature that has expired does not get past this either.
    old = signatures.sign(KEY, body, int(time.time()) - 3600)
    assert (await gateway.webhook(body, hmac_headers(body) | old))[0] == status
    assert gateway.metrics.webhooks == {WebhookOutcome.REFUSED: 2}


async def test_an_event_without_a_time_occurred_when_it_was_received(embedded: KafkaConnection) -> None:
    call_id = new_call()
    received_at = received_now()
    async with running_gateway(embedded, clock=lambda: received_at) as gateway:
        await gateway.webhook(orjson.dumps(event(call_id, occurred_at=None)))
    (stored,) = await events_of(embedded, call_id, 1)
    assert stored.occurred_at == stored.received_at == received_at


async def test_a_redelivered_event_is_stored_again_with_the_same_event_id(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    message = event(call_id)
    for attempt in (1, 2):
        message["meta"]["attempt"] = attempt
        assert (await gateway.webhook(orjson.dumps(message)))[0] == 200
    first, second = await events_of(embedded, call_id, 2)
    assert (first.event_id, first.attempt, second.attempt) == (second.event_id, 1, 2)


async def test_the_same_signed_bytes_are_stored_again_so_that_a_lost_answer_loses_no_event(
    gateway: Gateway, embedded: KafkaConnection
) -> None:
    call_id = new_call()
    body = orjson.dumps(event(call_id))
    headers = signatures.sign(KEY, body, int(time.time()))
    assert [(await gateway.webhook(body, headers))[0] for _ in range(2)] == [200, 200]
    first, second = await events_of(embedded, call_id, 2)
    assert first.event_id == second.event_id


async def test_requests_for_unknown_paths_and_methods_are_counted(gateway: Gateway) -> None:
    for method, path in (("GET", "/"), ("GET", "/api/v1/call/incoming"), ("GET", "/ws")):
        async with gateway.http.request(method, path) as response:
            assert response.status in (404, 405, 426)
    assert gateway.metrics.requests_not_served == 3
    assert gateway.metrics.internal_errors == 0


BODY = orjson.dumps(event("a-call-that-nobody-made"))


def truncated(now: int) -> dict[str, str]:
    return {"telnyx-signature-ed25519": "AAAA", "telnyx-timestamp": str(now)}


def without_timestamp(now: int) -> dict[str, str]:
    return {"telnyx-signature-ed25519": signatures.sign(KEY, BODY, now)["telnyx-signature-ed25519"]}


@pytest.mark.parametrize(
    ("headers_at", "refusal"),
    [
        (lambda now: {}, Refusal.MISSING),
        (lambda now: signatures.sign(Ed25519PrivateKey.generate(), BODY, now), Refusal.WRONG),
        (lambda now: signatures.sign(KEY, BODY + b" ", now), Refusal.WRONG),
        (lambda now: signatures.sign(KEY, BODY, now - 3600), Refusal.STALE),
        (lambda now: signatures.sign(KEY, BODY, now + 3600), Refusal.STALE),
        (truncated, Refusal.MALFORMED),
        (without_timestamp, Refusal.MISSING),
        (lambda now: {"telnyx-signature-sha256": "0" * 64}, Refusal.WRONG),
    ],
    ids=["none", "forged", "tampered", "stale", "future", "truncated", "no-timestamp", "wrong-hmac"],
)
async def test_a_webhook_that_is_forged_or_stale_is_refused_and_not_stored(
    gateway: Gateway, headers_at: Callable[[int], dict[str, str]], refusal: Refusal
) -> None:
    status, answer = await gateway.webhook(BODY, headers_at(int(time.time())))
    assert status == (503 if refusal is Refusal.STALE else 401), "the carrier sends again what is its own"
    assert answer["error"]["code"] == f"signature_{refusal}"
    assert answer["error"]["message"]
    assert answer["error"]["hint"]
    assert gateway.metrics.refusals == {refusal: 1}
    assert gateway.metrics.webhooks == {WebhookOutcome.REFUSED: 1}


async def test_without_a_key_every_webhook_is_refused_with_a_hint(embedded: KafkaConnection) -> None:
    async with running_gateway(embedded, verifier=WebhookVerifier.of((), "", 300)) as gateway:
        status, answer = await gateway.webhook(BODY)
    assert status == 401
    assert "TELNYX_PUBLIC_KEY" in answer["error"]["hint"]


async def test_with_verification_off_an_unsigned_webhook_is_stored(embedded: KafkaConnection) -> None:
    call_id = new_call()
    async with running_gateway(embedded, verifier=WebhookVerifier.of((), "", 300), verify_webhooks=False) as gateway:
        assert (await gateway.webhook(orjson.dumps(event(call_id)), {}))[0] == 200
    assert len(await events_of(embedded, call_id, 1)) == 1


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(gateway: Gateway) -> None:
    status, answer = await gateway.webhook(b"x" * 20_001)
    assert (status, answer["error"]["code"]) == (413, "too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    async with gateway.http.post("/api/v1/call/incoming", data=chunks()) as response:
        assert response.status == 413
    assert gateway.metrics.webhooks == {WebhookOutcome.TOO_LARGE: 2}
    assert (await gateway.webhook(orjson.dumps(event(new_call()))))[0] == 200


async def test_a_body_that_never_ends_is_given_up(embedded: KafkaConnection) -> None:

    async with running_gateway(embedded, body_timeout_s=0.05) as gateway:
        never = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"{"
            await never.wait()

        async with gateway.http.post("/api/v1/call/incoming", data=chunks()) as response:
            assert response.status == 408
            never.set()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"data":{}}', b'\xff{"data":1}'])
async def test_a_signed_body_that_names_no_call_is_dead_lettered_and_not_requested_again(
    gateway: Gateway, embedded: KafkaConnection, body: bytes
) -> None:
    leg = new_call()
    if body.startswith(b'{"data"'):
        body = orjson.dumps({"data": {"payload": {"call_leg_id": leg}}})
    status, answer = await gateway.webhook(body)
    assert (status, answer["error"]["code"]) == (400, "unusable")
    assert gateway.metrics.webhooks == {WebhookOutcome.DEAD_LETTERED: 1}
    if body.startswith(b'{"data"'):
        (record,) = await records_of(embedded, "dead-letters", leg, count(1))
        assert record.value == body
        assert dict(record.headers)["origin"] == b"webhook"
        assert dict(record.headers)["error"] == b"the event names no call"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/call/incoming", 405),
        ("PUT", "/api/v1/call/incoming/", 405),
        ("POST", "/ws", 405),
        ("POST", "/", 404),
        ("GET", "/api/v1/call/incoming/more", 404),
        ("GET", "/ws", 426),
    ],
)
async def test_any_other_request_gets_an_error_that_says_what_to_do(
    gateway: Gateway, method: str, path: str, status: int
) -> None:
    async with gateway.http.request(method, path) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert set(error) == {"code", "message", "hint"}
    assert all(error.values())


async def test_while_kafka_is_down_the_carrier_is_asked_to_retry() -> None:
    async with EmbeddedBroker() as own:
        connection = own.connection
        await apply(connection, Topics.load(), replication=1)
        async with running_gateway(connection, ack_timeout_s=1.0) as gateway:
            call_id = new_call()
            body = orjson.dumps(event(call_id, id="evt"))
            assert (await gateway.webhook(body))[0] == 200
            os.kill(own.pid, signal.SIGSTOP)
            try:
                headers = signatures.sign(KEY, body, int(time.time()))
                async with gateway.http.post("/api/v1/call/incoming", data=body, headers=headers) as response:
                    assert response.status == 503
                    assert int(response.headers["Retry-After"]) >= 1
                    assert (await response.json())["error"]["code"] == "unavailable"
                # Unsigned webhooks are still refused as such.
                assert (await gateway.webhook(body, {}))[0] == 401
            finally:
                os.kill(own.pid, signal.SIGCONT)
            statuses = []
            while 200 not in statuses:
                statuses.append((await gateway.webhook(body))[0])
            assert set(statuses) <= {200, 503}
        assert {stored.event_id for stored in await events_of(connection, call_id, 2)} == {"evt"}


async def test_health_says_whether_kafka_is_ready(gateway: Gateway) -> None:
    async with gateway.http.get("/health/ready") as response:
        assert response.status == 200
        assert (await response.json())["status"] == "ready"
    await gateway.webhook(b"{}", {})
    async with gateway.http.get("/health/live") as response:
        assert response.status == 200
        assert (await response.json())["metrics"]["webhooks"] == {"refused": 1}


async def test_without_its_topics_the_gateway_is_alive_but_not_ready_and_stores_nothing() -> None:
    async with EmbeddedBroker() as own:
        connection = own.connection
        async with running_gateway(connection, until_ready=False) as gateway:
            async with gateway.http.get("/health/live") as response:
                assert response.status == 200
            async with gateway.http.get("/health/ready") as response:
                assert response.status == 503
                assert "call-events" in (await response.json())["kafka"]["missing_topics"]
            assert (await gateway.webhook(BODY))[0] == 503
            await apply(connection, Topics.load(), replication=1)
            statuses = []
            while 200 not in statuses:
                statuses.append((await gateway.webhook(BODY))[0])
