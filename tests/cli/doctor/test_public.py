"""The public URLs: the gateway is recognised by what it refuses, and every other answer is explained."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dispatchai.cli import doctor
from dispatchai.cli.doctor import Verdict
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Topics
from dispatchai.settings import Settings
from dispatchai.telnyx.signatures import WebhookVerifier
from tests.cli.doctor.support import (
    Handler,
    answering,
    configured,
    gateway_error,
    serving,
)
from tests.support.gateway import running_gateway
from tests.support.kafka.certificates import Pems, make_pems


def public(port: int, scheme: str = "http", host: str = "127.0.0.1") -> Settings:
    """Settings whose public URLs are at `port`."""
    ws = {"http": "ws", "https": "wss"}[scheme]
    return configured(http_public_url=f"{scheme}://{host}:{port}", ws_public_url=f"{ws}://{host}:{port}/ws")


async def test_the_gateway_is_recognised_by_what_it_refuses(
    broker: KafkaConnection, topics: Topics, http: aiohttp.ClientSession
) -> None:
    async with running_gateway(broker) as gateway:
        settings = public(gateway.address[1])
        assert (await doctor.check_webhook(http, settings)).verdict is Verdict.OK
        assert (await doctor.check_media(http, settings)).verdict is Verdict.OK


async def test_a_gateway_that_believes_everybody_is_a_fault(
    broker: KafkaConnection, topics: Topics, http: aiohttp.ClientSession
) -> None:
    async with running_gateway(broker, verify_webhooks=False, stream_secret=None) as gateway:
        settings = public(gateway.address[1])
        webhook, media = await doctor.check_webhook(http, settings), await doctor.check_media(http, settings)
    assert (webhook.verdict, "without a signature" in webhook.seen) == (Verdict.FAIL, True)
    assert (media.verdict, "without a token" in media.seen) == (Verdict.FAIL, True)


async def test_a_gateway_without_a_key_is_a_fault(
    broker: KafkaConnection, topics: Topics, http: aiohttp.ClientSession
) -> None:
    async with running_gateway(broker, verifier=WebhookVerifier((), b"", 300)) as gateway:
        result = await doctor.check_webhook(http, public(gateway.address[1]))
    assert (result.verdict, "TELNYX_PUBLIC_KEY" in result.todo) == (Verdict.FAIL, True)


async def test_a_proxy_without_upgrade_is_recognised(
    broker: KafkaConnection, topics: Topics, http: aiohttp.ClientSession
) -> None:
    async with running_gateway(broker) as gateway:

        async def forward(request: web.Request) -> web.Response:
            """As nginx does without proxy_http_version and proxy_set_header: hop-by-hop headers end here."""
            dropped = {"connection", "upgrade", "host"}
            headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
            async with gateway.http.request(
                request.method, request.path, headers=headers, data=await request.read()
            ) as reply:
                return web.Response(body=await reply.read(), status=reply.status, content_type="application/json")

        async with serving(forward) as port:
            media = await doctor.check_media(http, public(port))
            webhook = await doctor.check_webhook(http, public(port))
    assert (media.verdict, "upgrade" in media.seen, "$http_upgrade" in media.todo) == (Verdict.FAIL, True, True)
    assert webhook.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("handler", "seen", "todo"),
    [
        (answering(404), "not behind this path", "proxy"),
        (answering(404, headers={"ngrok-error-code": "ERR_NGROK_3200"}), "ERR_NGROK_3200", "make dev"),
        (answering(502), "the gateway behind it is not", "GATEWAY_PORT"),
        (answering(530), "the gateway behind it is not", "start the gateway"),
        (answering(301, headers={"Location": "https://127.0.0.1/"}), "redirected", "where it leads"),
        (answering(401), "asks for a login", "without one"),
        (answering(401, {"detail": "log in"}), "asks for a login", "without one"),
        (answering(403), "asks for a login", "without one"),
        (answering(413), "no body of this size", "client_max_body_size"),
        (answering(503), "not by the gateway", "log of the proxy"),
        (answering(200), "not an answer of the gateway", "what serves"),
    ],
)
async def test_who_answers_in_place_of_the_gateway_is_reported(
    handler: Handler, seen: str, todo: str, http: aiohttp.ClientSession
) -> None:
    async with serving(handler) as port:
        for result in (await doctor.check_webhook(http, public(port)), await doctor.check_media(http, public(port))):
            assert (result.verdict, seen in result.seen, todo in result.todo) == (Verdict.FAIL, True, True), result


async def test_a_gateway_without_kafka_is_distinguished_from_a_broken_proxy(http: aiohttp.ClientSession) -> None:
    async with serving(answering(503, gateway_error("unavailable"))) as port:
        assert "no Kafka" in (await doctor.check_media(http, public(port))).seen


async def test_an_answer_slower_than_the_carrier_waits_is_reported(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatchai.cli.doctor.public.CARRIER_PATIENCE_S", 0.0)
    async with serving(answering(401, gateway_error("signature_missing"))) as port:
        assert (await doctor.check_webhook(http, public(port))).verdict is Verdict.WARN


async def test_a_port_that_nothing_listens_at_is_reported(http: aiohttp.ClientSession) -> None:
    settings = public(free_port())
    for result in (await doctor.check_webhook(http, settings), await doctor.check_media(http, settings)):
        assert (result.verdict, "refused" in result.seen) == (Verdict.FAIL, True)


async def test_a_name_that_is_not_known_is_reported(http: aiohttp.ClientSession) -> None:
    result = await doctor.check_webhook(http, public(1, host="nowhere.invalid"))
    assert (result.verdict, "is not known" in result.seen) == (Verdict.FAIL, True), result


async def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.1)) as http:
            result = await doctor.check_webhook(http, public(silent.getsockname()[1]))
    assert (result.verdict, "in time" in result.seen) == (Verdict.FAIL, True)


async def test_http_where_tls_is_spoken_and_the_other_way_round(pems: Pems, http: aiohttp.ClientSession) -> None:
    async with serving(answering(200), server_tls(pems.server)) as port:
        assert (await doctor.check_webhook(http, public(port, "http"))).verdict is Verdict.FAIL
    async with serving(answering(200)) as port:
        result = await doctor.check_webhook(http, public(port, "https"))
        assert (result.verdict, "no TLS" in result.seen, "listen 443 ssl" in result.todo) == (Verdict.FAIL, True, True)


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Pems:
    return make_pems(tmp_path_factory.mktemp("tls"))


def server_tls(chain: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain)
    return context


@asynccontextmanager
async def trusting(authority: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that believes `authority`."""
    context = ssl.create_default_context(cafile=authority)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session


async def test_a_certificate_that_nobody_vouches_for_is_reported(pems: Pems, http: aiohttp.ClientSession) -> None:
    async with serving(answering(200), server_tls(pems.server)) as port:
        result = await doctor.check_media(http, public(port, "https"))
    assert (result.verdict, "fullchain.pem" in result.todo) == (Verdict.FAIL, True), result


async def test_a_certificate_of_another_name_is_reported(pems: Pems) -> None:
    async with serving(answering(200), server_tls(pems.server)) as port, trusting(pems.authority) as http:
        result = await doctor.check_webhook(http, public(port, "https", "localhost"))
    assert (result.verdict, "a certificate for localhost" in result.todo) == (Verdict.FAIL, True), result


async def test_an_expired_certificate_is_reported(tmp_path: Path) -> None:
    chain = tmp_path / "expired.pem"
    chain.write_bytes(expired_certificate())
    async with serving(answering(200), server_tls(chain)) as port, trusting(chain) as http:
        result = await doctor.check_webhook(http, public(port, "https", "localhost"))
    assert (result.verdict, "expired" in result.seen, "renew" in result.todo) == (Verdict.FAIL, True, True), result


def expired_certificate() -> bytes:
    """A key and its own certificate of yesterday, for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now - datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
