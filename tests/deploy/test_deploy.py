"""What `deploy/` and `docs/deploy.md` say is true: nginx and systemd take the files, calls pass through the proxy."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import click
import orjson
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from dispatchai.cli.doctor import Check
from dispatchai.cli.main import main
from dispatchai.cli.up import EXIT_MISCONFIGURED
from dispatchai.console.actions import ActionWriter
from dispatchai.console.app import create_app
from dispatchai.console.topic_feed import Feed
from dispatchai.gateway.app import MEDIA_PATH, WEBHOOK_PATH
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.kafka.topics import Policy, Topics
from dispatchai.process.child import Child
from dispatchai.process.metrics import ProcessMetrics
from dispatchai.settings import Settings
from dispatchai.telnyx import signatures, stream_tokens
from tests.support.gateway import KEY, event, new_call, running_gateway, start, stream_token
from tests.support.kafka.certificates import make_pems
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs/deploy.md"
UNITS = sorted((DEPLOY / "systemd").glob("dispatchai*.service"))
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PAGE_LOGIN = ("dispatcher", "for tests")

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


# nginx


@asynccontextmanager
async def nginx(folder: Path, upstream_port: int, site: str) -> AsyncIterator[aiohttp.ClientSession]:
    """nginx with the site as it ships, but for addresses and certificate. Yields a client of it that trusts it."""
    assert NGINX is not None
    pems = make_pems(folder / "tls")
    password = hashlib.sha1(PAGE_LOGIN[1].encode(), usedforsecurity=False).digest()
    (folder / "htpasswd").write_text(f"{PAGE_LOGIN[0]}:{{SHA}}{base64.b64encode(password).decode()}\n")
    port = free_port()
    text = (DEPLOY / "nginx" / site).read_text()
    text = re.sub(r"/etc/letsencrypt/live/\S+\.pem", str(pems.server), text)
    text = re.sub(r"listen \[::\]:\d+ ssl;", "", text)
    text = re.sub(r"listen \d+ ssl;", f"listen 127.0.0.1:{port} ssl;", text)
    text = re.sub(r"server 127\.0\.0\.1:\d+ ", f"server 127.0.0.1:{upstream_port} ", text)
    text = text.replace("/var/log/nginx/", f"{folder}/").replace("/etc/nginx/dispatchai.htpasswd", f"{folder}/htpasswd")
    (folder / "site.conf").write_text(text)
    bodies = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log warn;\n"
        f"events {{ worker_connections 128; }}\n"
        f"http {{\nclient_body_temp_path {folder}/client;\n{bodies}include {folder}/site.conf;\n}}\n"
    )
    command = [NGINX, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    said: list[str] = []
    async with Child([*command, "-t"], on_line=said.append) as test:
        assert await test.wait() == 0, said
    context = ssl.create_default_context(cafile=pems.authority)
    async with (
        Child(command, on_line=lambda _: None),
        aiohttp.ClientSession(
            f"https://127.0.0.1:{port}", connector=aiohttp.TCPConnector(ssl=context, force_close=True)
        ) as http,
    ):
        async with asyncio.timeout(20):
            await _accepting(port)
        yield http


async def _accepting(port: int) -> None:
    """Wait until something listens at `port`: nginx does not report it."""
    while True:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.02)


@needs_nginx
async def test_a_call_passes_through_nginx(broker: KafkaConnection, topics: Topics, tmp_path: Path) -> None:
    """The signature is over the raw body and the token is in a header: both arrive as they were sent."""
    async with (
        running_gateway(broker) as gateway,
        nginx(tmp_path, gateway.address[1], "dispatchai.conf") as http,
    ):
        call_id = new_call()
        # Spaces, an escape and a letter beyond ASCII: whoever parses and writes it again changes it.
        body = orjson.dumps(event(call_id)).replace(b"{", b"{  ", 1).replace(b"parked", b"par\\u006bed \xc3\xa9")
        for path in (WEBHOOK_PATH, f"{WEBHOOK_PATH}/"):
            async with http.post(path, data=body, headers=signatures.sign(KEY, body, int(time.time()))) as reply:
                assert (reply.status, await reply.json()) == (200, {"result": "stored"})

        async with http.ws_connect(MEDIA_PATH, headers={stream_tokens.HEADER: stream_token(call_id)}) as socket:
            await socket.send_str(start(call_id))
            await socket.send_str('{"event": "stop", "stream_id": "stream-1"}')
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert gateway.metrics.sockets_opened == 1


@needs_nginx
async def test_nginx_lets_in_nothing_but_webhooks_and_media(
    broker: KafkaConnection, topics: Topics, tmp_path: Path
) -> None:
    async with (
        running_gateway(broker) as gateway,
        nginx(tmp_path, gateway.address[1], "dispatchai.conf") as http,
    ):
        hidden = ("/health/ready", "/health/live", "/metrics", "/tables/calls/x")
        for path in ("/", *hidden, "/api/v1/queue", "/ws/", "/wsx"):
            async with http.get(path) as reply:
                assert reply.status == 404, path
        async with http.get(WEBHOOK_PATH) as reply:
            assert reply.status == 403
        async with http.post(WEBHOOK_PATH, data=b"{}") as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (401, "signature_missing")
        async with http.post(WEBHOOK_PATH, data=bytes(300_000)) as reply:
            assert reply.status == 413
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await http.ws_connect(MEDIA_PATH)
        assert refused.value.status == 403


@needs_nginx
async def test_the_page_is_behind_a_login_and_its_events_come_at_once(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def worker(request: web.Request) -> web.StreamResponse:
        assert "Authorization" not in request.headers
        if request.path != "/api/v1/events":
            return web.json_response({"host": request.host})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"event: snapshot\n\n")
        await release.wait()
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", worker)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with nginx(tmp_path, runner.addresses[0][1], "dispatchai-console.conf") as http:
            login = {"Authorization": f"Basic {base64.b64encode(':'.join(PAGE_LOGIN).encode()).decode()}"}
            for path in ("/", "/api/v1/queue", "/api/v1/events"):
                async with http.get(path) as reply:
                    assert reply.status == 401, path
            async with http.get("/", headers=login) as reply:
                assert (await reply.json())["host"] == reply.url.authority
            for path in ("/tables/calls/x", "/health/ready", "/metrics"):
                async with http.get(path, headers=login) as reply:
                    assert reply.status == 404, path
            async with http.get("/api/v1/events", headers=login) as reply:
                assert await reply.content.readline() == b"event: snapshot\n"
                release.set()
    finally:
        await runner.cleanup()


@needs_nginx
async def test_the_console_takes_what_comes_through_nginx_under_a_name_of_the_setting(tmp_path: Path) -> None:
    name = "dispatch.example.org"
    settings = Settings(_env_file=None, console_hosts=name)
    nowhere = KafkaConnection("127.0.0.1:1")
    app = create_app(settings, Feed(nowhere), ActionWriter(nowhere), ProcessMetrics())
    async with TestServer(app) as server:
        assert server.port is not None
        async with nginx(tmp_path, server.port, "dispatchai-console.conf") as http:
            login = {"Authorization": f"Basic {base64.b64encode(':'.join(PAGE_LOGIN).encode()).decode()}", "Host": name}
            answers: tuple[tuple[dict[str, str], int], ...] = (
                ({}, 200),
                ({"Origin": f"https://{name}", "Sec-Fetch-Site": "same-origin"}, 200),
                ({"Host": "other.example.org"}, 403),
                ({"Origin": "https://other.example.org"}, 403),
                ({"Sec-Fetch-Site": "cross-site"}, 403),
            )
            for more, status in answers:
                async with http.get("/api/v1/queue", headers={**login, **more}) as reply:
                    assert reply.status == status, more


def test_nginx_and_gateway_agree_about_sizes_and_ports() -> None:
    site = (DEPLOY / "nginx/dispatchai.conf").read_text()
    (kilobytes,) = re.findall(r"client_max_body_size (\d+)k;", site)
    assert int(kilobytes) * 1024 == Settings.model_fields["webhook_max_bytes"].default
    assert f"server 127.0.0.1:{Settings.model_fields['gateway_port'].default} " in site
    console = (DEPLOY / "nginx/dispatchai-console.conf").read_text()
    (name,) = re.findall(r"server_name (\S+);", console)
    assert f"CONSOLE_HOSTS={name}\n" in (DEPLOY / "dispatchai.env.example").read_text()
    assert f"server 127.0.0.1:{Settings.model_fields['console_port'].default} " in console


# systemd


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^([A-Z]\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def environment_file() -> Iterator[str]:
    yield (DEPLOY / "dispatchai.env.example").read_text()


def test_there_is_a_unit_for_each_process() -> None:
    names = [unit.name for unit in UNITS]
    assert names == [
        "dispatchai-console.service",
        "dispatchai-gateway.service",
        "dispatchai-speech@.service",
        "dispatchai-topics.service",
        "dispatchai-worker@.service",
    ]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for unit in (DEPLOY / "systemd").iterdir():
        # It looks whether the program is there.
        text = unit.read_text().replace("/opt/dispatchai/current/bin/dispatchai", sys.executable)
        (tmp_path / unit.name).write_text(text)
    files = [str(path) for path in tmp_path.iterdir() if path.suffix in (".service", ".target")]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_runs_a_command_that_exists(unit: Path) -> None:
    (line,) = directives(unit)["ExecStart"]
    program, *words = line.split()
    assert program == "/opt/dispatchai/current/bin/dispatchai"
    command_of(words)


@pytest.mark.parametrize("unit", [unit for unit in UNITS if "topics" not in unit.name], ids=lambda unit: unit.name)
def test_a_process_is_started_again_unless_it_cannot_run_as_configured(unit: Path) -> None:
    found = directives(unit)
    assert found["Restart"] == ["always"]
    assert found["RestartPreventExitStatus"] == [str(EXIT_MISCONFIGURED)]
    assert found["StartLimitIntervalSec"] == ["0"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert found["TimeoutStopSec"] == [compose["services"]["gateway"]["stop_grace_period"].removesuffix("s")]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_units_variables_are_settings_that_the_file_of_settings_leaves_to_it(
    unit: Path, environment_file: str
) -> None:
    """systemd lets EnvironmentFile win over Environment."""
    own = {name for line in directives(unit)["Environment"] for name in re.findall(r"([A-Z_]+)=", line)}
    assert "STATE_DIR" in own
    assert own <= {name.upper() for name in Settings.model_fields}
    assert not own & set(re.findall(r"^([A-Z_]+)=", environment_file, re.MULTILINE))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_no_unit_runs_as_root_or_may_write_beyond_its_state(unit: Path) -> None:
    found = directives(unit)
    name = unit.stem.removesuffix("@")
    assert found["User"] == [name], "another process's user could read this one's memory and environment"
    assert f"u {name} " in (DEPLOY / "systemd/dispatchai.sysusers").read_text()
    assert found["LimitCORE"] == ["0"], "a core dump has callers' words and secrets in it"
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["ProtectSystem"] == ["strict"]
    assert found["CapabilityBoundingSet"] == [""]


# Settings and Kafka


SECRETS = frozenset(name.upper() for name, field in Settings.model_fields.items() if field.annotation is SecretStr)

NEEDED = {
    "gateway": {"KAFKA_SASL_PASSWORD", "STREAM_TOKEN_SECRET", "TELNYX_WEBHOOK_SECRET"},
    "console": {"KAFKA_SASL_PASSWORD"},
    "worker": {"KAFKA_SASL_PASSWORD", "STREAM_TOKEN_SECRET", "TELNYX_API_KEY"},
    "speech": {"KAFKA_SASL_PASSWORD"},
    "topics": {"KAFKA_SASL_PASSWORD"},
}
"""The secrets that each process reads."""


def test_the_file_of_common_settings_has_no_secret(environment_file: str) -> None:
    assert not SECRETS & set(re.findall(r"^#?([A-Z_]+)=", environment_file, re.MULTILINE))


@pytest.mark.parametrize("name", NEEDED)
def test_the_settings_of_production_are_settings_and_make_sense(
    name: str, environment_file: str, tmp_path: Path
) -> None:
    own = (DEPLOY / f"{name}.env.example").read_text()
    assert f"EnvironmentFile=-/etc/dispatchai/{name}.env\n" in next(
        unit.read_text() for unit in UNITS if unit.stem.removesuffix("@") == f"dispatchai-{name}"
    )
    assert SECRETS & set(re.findall(r"^#?([A-Z_]+)=", own, re.MULTILINE)) == NEEDED[name]
    public_key = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
    text = re.sub(r"(?m)^(TELNYX_PUBLIC_KEY)=.*$", rf"\1={public_key}", environment_file + own)
    text = re.sub(r"(?m)=<.*>$", "=filled-in-by-the-operator", text)
    env = tmp_path / "env"
    env.write_text(text)
    names = re.findall(r"^([A-Z_]+)=", text, re.MULTILINE)
    assert len(set(names)) == len(names)
    assert set(names) <= {name.upper() for name in Settings.model_fields}
    settings = Settings(_env_file=env)
    assert settings.kafka().uses_tls
    assert settings.kafka().uses_sasl
    assert settings.kafka_sasl_username == f"dispatchai-{name}"
    assert settings.kafka_replication_factor == 3
    assert settings.ws_public_url.startswith("wss://")
    assert settings.gateway_host == settings.console_host == "127.0.0.1", "the proxy alone reaches them"


def test_each_container_gets_the_secrets_that_its_process_reads() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, needed in NEEDED.items():
        given = {
            secret
            for secret in SECRETS - {"KAFKA_SASL_PASSWORD"}  # that Kafka has no passwords
            if services[name]["environment"].get(secret, f"${{{secret}:-}}") == f"${{{secret}:-}}"
        }
        assert given == needed - {"KAFKA_SASL_PASSWORD"}, name


def test_the_rights_in_kafka_cover_every_topic(tmp_path: Path) -> None:
    """Run against a stand-in of Kafka's tool that repeats its arguments."""
    tool = tmp_path / "kafka-acls.sh"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    ran = subprocess.run(
        [str(DEPLOY / "kafka/acls.sh")],
        env={"PATH": os.environ["PATH"], "KAFKA_ACLS": f"{tool} --bootstrap-server kafka-1:9093"},
        capture_output=True,
        text=True,
        check=True,
    )
    granted: dict[str, dict[str, set[str]]] = {}
    for line in ran.stdout.splitlines():
        assert line.startswith("--bootstrap-server kafka-1:9093 --add --allow-principal User:dispatchai-")
        (user,) = re.findall(r"User:dispatchai-(\S+)", line)
        for topic in re.findall(r"--topic (\S+)", line):
            granted.setdefault(user, {}).setdefault(topic, set()).update(re.findall(r"--operation (\S+)", line))
    declared = Topics.load()
    names = set(declared.topics)
    for user in ("topics", "review"):
        assert names <= set(granted[user])
    assert not any("Write" in operations for operations in granted["review"].values())
    processes = ("gateway", "console", "worker", "speech")
    for name in names:
        assert any("Write" in granted[user].get(name, ()) for user in processes), f"nobody may write {name}"
    assert "Read" not in {right for operations in granted["gateway"].values() for right in operations}
    kept = {name for name, topic in declared.topics.items() if topic.policy is not Policy.COMPACT}
    assert {name for name, operations in granted["retry"].items() if {"Read", "Write"} <= operations} == kept
    for table in declared.tables.values():
        prefix = f"dispatchai-{table.app}-"
        assert table.changelog.name.startswith(prefix)
        assert {"Read", "Write", "Describe"} <= granted[table.app][prefix]
        assert not {"Read", "Write"} & granted["worker" if table.app == "speech" else "speech"].get(prefix, set())
    # The doctor of the guide has the worker's settings, and compares every topic with its declaration.
    for topic in names | {f"dispatchai-{table.app}-" for table in declared.tables.values()}:
        assert {"Describe", "DescribeConfigs"} <= granted["worker"][topic], topic
    known = names | {f"dispatchai-{app}-" for app in ("worker", "speech")}
    assert {topic for rights in granted.values() for topic in rights} == known


# Scripts and the guide


def command_of(words: list[str]) -> click.Command:
    """The command that `dispatchai` runs for `words`. Fails if there is none."""
    command: click.Command = main
    for word in words:
        if not isinstance(command, click.Group):
            break
        assert word in command.commands, f"dispatchai has no command {word}"
        command = command.commands[word]
    return command


def test_replay_call_is_the_command_call() -> None:
    def said(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        )
        return done.stdout.partition("\n\n")[2]

    assert said("scripts/replay_call.py") == said("-m", "dispatchai", "call")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_dev_start_is_make_dev(tmp_path: Path) -> None:
    dry = subprocess.run(
        [str(ROOT / "scripts/dev_start.sh")],
        env={**os.environ, "MAKEFLAGS": "n"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert dry.stdout.splitlines()[-1].endswith("/dispatchai dev"), dry.stdout


def test_the_guide_names_every_check_of_the_doctor() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    missing = [check.value for check in Check if f"`{check.value}`" not in guide]
    assert missing == []


def test_the_guide_names_commands_settings_and_files_that_exist() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    for words in re.findall(r"`dispatchai ([a-z -]+?)(?: -[^`]*| [A-Z][^`]*)?`", guide):
        command_of([word for word in words.split() if not word.startswith("-")])
    settings = {name.upper() for name in Settings.model_fields}
    prefixes = tuple(sorted({name.split("_")[0] + "_" for name in settings}))
    named = {name for name in re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", guide) if name.startswith(prefixes)}
    assert named - settings - {"KAFKA_ACLS"} == set()
    for path in re.findall(r"`((?:deploy|docs|scripts|tests)/[\w./@-]+)`", guide):
        assert (ROOT / path).exists(), path
