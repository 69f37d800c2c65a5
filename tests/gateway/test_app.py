"""The gateway as a process: started from settings, and stopped."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr, ValidationError
from structlog.testing import capture_logs

from dispatchai.gateway.app import serve
from dispatchai.gateway.config import GatewayConfig
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.settings import Settings, Verification
from dispatchai.telnyx import signatures, stream_tokens
from tests.support.gateway import (
    KEY,
    SECRET,
    control_id,
    event,
    frames_of,
    media,
    new_call,
    records_of,
    running_gateway,
    start,
    stream_token,
)

if TYPE_CHECKING:
    from tests.support.kafka.brokers import Brokers

PUBLIC_KEY = base64.b64encode(KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


@pytest.mark.usefixtures("topics")
async def test_a_gateway_made_from_settings_stores_a_whole_call_before_it_stops(
    broker: KafkaConnection,
) -> None:
    settings = Settings(
        gateway_port=0,
        telnyx_public_key=PUBLIC_KEY,
        telnyx_api_key=SecretStr("KEY-of-the-tests"),
    )
    secret = stream_tokens.stream_secret("", "KEY-of-the-tests")
    assert secret is not None
    call_id = new_call()
    listening: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
    gateway = asyncio.create_task(serve(settings, broker, listening=lambda *at: listening.set_result(at)))
    either: list[asyncio.Future[Any]] = [gateway, listening]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    host, port = await listening
    async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
        body = orjson.dumps(event(call_id))
        headers = signatures.sign(KEY, body, int(time.time()))
        async with http.post("/api/v1/call/incoming", data=body, headers=headers) as response:
            assert response.status == 200
        token = stream_tokens.issue(secret, stream_tokens.Subject(control_id(call_id), call_id), int(time.time()) + 60)
        async with http.ws_connect("/ws", headers={stream_tokens.HEADER: token}) as ws:
            await ws.send_str(start(call_id))
            for chunk in range(1, 51):
                await ws.send_str(media(chunk))
            await ws.close()
        gateway.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gateway
    assert len(await records_of(broker, "call-events", call_id, bool)) == 1
    assert [frame.sequence for frame in await frames_of(broker, call_id)] == list(range(52))
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.ClientSession(f"http://{host}:{port}") as http:
            await http.get("/health/live")


async def test_a_gateway_can_be_stopped_while_it_waits_for_kafka() -> None:
    nowhere = KafkaConnection(f"127.0.0.1:{free_port()}")
    gateway = asyncio.create_task(serve(Settings(gateway_port=0), nowhere))
    done, _ = await asyncio.wait([gateway], timeout=0.2)
    assert not done
    gateway.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gateway


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="TELNYX_PUBLIC_KEY"):
        GatewayConfig.from_settings(Settings(telnyx_public_key="not a key"))
    with pytest.raises(ValidationError, match="HTTP_PUBLIC_URL"):
        Settings(webhook_verification=Verification.OFF, http_public_url="https://example.org")
    with pytest.raises(ValidationError, match="STREAM_TOKEN_SECRET"):
        Settings(stream_token_secret=SecretStr("short"))


def test_by_default_signatures_are_checked_and_no_webhook_is_accepted() -> None:
    config = GatewayConfig.from_settings(Settings())
    assert config.verify_webhooks
    assert not config.verifier.configured
    assert config.stream_secret is None


def test_no_secret_is_in_the_repr_of_the_configuration() -> None:
    settings = Settings(
        telnyx_webhook_secret=SecretStr("hidden webhook secret"), stream_token_secret=SecretStr("hidden stream secret")
    )
    assert "hidden" not in repr(GatewayConfig.from_settings(settings))


async def test_the_log_holds_no_number_no_word_and_no_secret(brokers: Brokers) -> None:
    connection = brokers.connection("embedded")
    brokers.topics(connection)
    call_id = new_call()
    token = stream_token(call_id)
    with capture_logs() as lines:
        async with running_gateway(connection) as gateway:
            headers = signatures.sign(KEY, orjson.dumps(event(call_id)), int(time.time()))
            await gateway.webhook(orjson.dumps(event(call_id)))
            await gateway.webhook(orjson.dumps(event(call_id)), headers | {"telnyx-timestamp": "0"})
            await gateway.webhook(orjson.dumps({"data": {"payload": {"from": "+15551234567"}}}))
            async with gateway.media(call_id, token=token) as ws:
                await ws.send_str(start(call_id, media_format=False, **{"from": "+15551234567"}))
                await ws.send_str(media(1, b"the caller's voice"))
                await ws.send_str('{"event":"the caller says help"')
                await ws.send_str('{"event":"error","payload":{"code":"1","detail":"the caller says help"}}')
                await ws.send_str('{"event":"stop"}')
                await ws.receive()
    said = repr(lines)
    assert len(lines) >= 6
    assert call_id in said
    for secret in ("5551234567", "5559876543", "help", "voice", token, headers["telnyx-signature-ed25519"], SECRET):
        assert secret not in said
