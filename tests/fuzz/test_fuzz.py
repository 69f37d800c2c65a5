"""Under any input the gateway has no unhandled error, counts each bad input and releases its memory.

A short run of `python -m tests.fuzz`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, find, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dispatchai.kafka.connection import KafkaConnection
from dispatchai.telnyx import signatures
from dispatchai.telnyx.signatures import WebhookVerifier
from tests.fuzz import gateway_fuzzer, inputs
from tests.support.gateway import KEY, SECRET, STREAM_SECRET, Gateway, running_gateway

if TYPE_CHECKING:
    pass

NOW = int(time.time())
VERIFIER = WebhookVerifier((KEY.public_key(),), SECRET.encode(), 300)

SHORT = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
OVER_LOOPBACK = settings(SHORT, max_examples=60, database=None)

KEPT_BYTES = 16_384
"""Memory that twenty runs over the same input may keep in the interpreter's caches. One kept payload is as large."""


@SHORT
@given(inputs.WEBHOOKS, st.integers(0, 2**32))
@example(b'{"data":{"payload":{"call_session_id":"c","x":' + b'{"a":' * 400 + b"1" + b"}" * 403, 0)
def test_every_body_is_an_event_or_names_no_call(body: bytes, seed: int) -> None:
    for varied in (body, *inputs.variations(body, seed, 20)):
        gateway_fuzzer.check_webhook(varied)


@SHORT
@given(st.data())
def test_only_signed_bodies_are_accepted(data: st.DataObject) -> None:
    body = data.draw(inputs.WEBHOOKS)
    headers = data.draw(inputs.signature_headers(KEY, SECRET.encode(), body, NOW))
    if gateway_fuzzer.check_signature(VERIFIER, headers, body, NOW):
        # Ed25519 signatures are deterministic: a valid one for this body is the one that the key makes.
        at = headers.get(signatures.TIMESTAMP_HEADER, "")
        signed = at.isdigit() and signatures.sign(KEY, body, int(at)).items() <= headers.items()
        digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert signed or headers.get(signatures.HMAC_HEADER, "").lower() == digest


@SHORT
@given(inputs.CONVERSATIONS)
def test_the_records_of_any_conversation_are_complete_and_in_order(messages: list[bytes]) -> None:
    gateway_fuzzer.check_conversation(messages)


def test_the_fuzzers_input_is_neither_all_good_nor_all_bad() -> None:
    once = settings(max_examples=2000, database=None)
    assert find(inputs.WEBHOOKS, gateway_fuzzer.check_webhook, settings=once)
    find(inputs.WEBHOOKS, lambda body: not gateway_fuzzer.check_webhook(body), settings=once)
    assert (
        gateway_fuzzer.check_conversation(
            find(inputs.CONVERSATIONS, lambda them: gateway_fuzzer.check_conversation(them) > 1)
        )
        > 1
    )


def test_nothing_of_bad_input_is_kept() -> None:
    bodies = [b"{" * 3000, b'{"data":{"payload":{"call_session_id":"c","x":"' + b"y" * 3000 + b'"}}}', b"\xff" * 3000]
    media = [b'{"event":"media","media":{"track":"inbound","chunk":"%d","payload":"AAAA"}}' % n for n in (5, 1, 9, 1)]
    talk = [*media, b"{", b'{"event":"start","start":{"call_control_id":"v3:x"}}', *media, b'{"event":"' + b"x" * 3000]

    def everything() -> None:
        for body in bodies:
            gateway_fuzzer.check_webhook(body)
            gateway_fuzzer.check_signature(VERIFIER, {signatures.ED25519_HEADER: "x" * 3000}, body, NOW)
        gateway_fuzzer.check_conversation(talk)
        gateway_fuzzer.check_token(STREAM_SECRET, "a.b.c." + "x" * 700)

    assert gateway_fuzzer.growth_bytes(everything) < KEPT_BYTES


async def attacked(gateway: Gateway) -> list[str]:
    """Attack a gateway with every kind of input. Returns its wrong counts."""
    attacker = gateway_fuzzer.Attacker(gateway.http, gateway.address, STREAM_SECRET)
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(gateway_fuzzer.attack, loop, attacker, KEY, SECRET.encode(), OVER_LOOPBACK)
    return attacker.sent.differences(await attacker.settled())


async def test_a_gateway_counts_every_bad_input_and_keeps_serving(embedded: KafkaConnection) -> None:
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    with capture_logs() as lines:
        async with running_gateway(embedded) as gateway:
            assert await attacked(gateway) == []
            assert (await gateway.webhook(json.dumps(inputs.WEBHOOK).encode()))[0] == 200
            assert gateway.metrics.requests_unreadable > 0
    assert unhandled == []
    assert not [line for line in lines if line["event"] == "request_failed"]


async def test_input_other_than_http_is_counted_and_its_content_is_not_logged(
    embedded: KafkaConnection, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as lines:
        async with running_gateway(embedded) as gateway:
            attacker = gateway_fuzzer.Attacker(gateway.http, gateway.address, STREAM_SECRET)
            await attacker.garbage(b"POST /api/v1/call/incoming HTTP/1.1\r\nhost: x\r\nfrom\x01: +15551234567\r\n\r\n")
            await attacker.garbage(b"POST /api/v1/call/incoming HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n+1555")
            await attacker.settled()
            assert gateway.metrics.requests_unreadable == 1
            assert gateway.metrics.webhooks == {"cut_off": 1}
            assert gateway.metrics.internal_errors == 0
    assert "1555" not in repr(lines) + caplog.text
