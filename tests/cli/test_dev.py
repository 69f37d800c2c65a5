"""`dispatchai dev` with stand-ins for ngrok and cloudflared that say and serve what the real ones do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from dispatchai.cli import dev as tunnel
from dispatchai.cli.dev import Cloudflared, Ngrok, Provider, TunnelError
from dispatchai.cli.errors import CliError
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.settings import Settings
from tests.support.kafka.certificates import make_pems

NGROK = """
import asyncio, json, os, pathlib, ssl, sys
args = sys.argv[1:]
assert args[0] == "http" and args[2:] == ["--log", "stdout", "--log-format", "json"], args
upstream = args[1]
host, port = upstream.split(":")
pathlib.Path(__file__).with_suffix(".pid").write_text(str(os.getpid()))

async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def tunnel(reader, writer):
    try:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
    except OSError:
        writer.close()
        return
    await asyncio.gather(pipe(reader, up_writer), pipe(up_reader, writer), return_exceptions=True)

async def main():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(os.environ["FAKE_TUNNEL_CERTIFICATE"])
    public = await asyncio.start_server(tunnel, "127.0.0.1", 0, ssl=context)
    url = "https://127.0.0.1:%d" % public.sockets[0].getsockname()[1]
    ours = {"name": "command_line", "public_url": url, "proto": "https", "config": {"addr": "http://" + upstream}}
    other = {"name": "other", "public_url": "https://other.ngrok-free.app", "proto": "https",
             "config": {"addr": "http://localhost:1"}}
    tcp = {"name": "tcp", "public_url": "tcp://0.tcp.ngrok.io:1", "proto": "tcp", "config": {"addr": upstream}}
    asked = 0

    async def api(reader, writer):
        nonlocal asked
        asked += 1
        request = await reader.readuntil(b"\\r\\n\\r\\n")
        assert request.startswith(b"GET /api/tunnels "), request
        # The API is up before the tunnel is.
        body = json.dumps({"tunnels": [other, tcp] + ([ours] if asked > 2 else []), "uri": "/api/tunnels"}).encode()
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nConnection: close\\r\\n"
                     b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
        writer.close()

    agent = await asyncio.start_server(api, "127.0.0.1", 0)
    address = "127.0.0.1:%d" % agent.sockets[0].getsockname()[1]
    print(json.dumps({"lvl": "info", "msg": "starting web service", "obj": "web", "addr": address}), flush=True)
    print("not json", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
"""ngrok's agent: log in JSON on standard output, API, and a tunnel with TLS."""

NGROK_WITHOUT_ACCOUNT = """
import json
print(json.dumps({"lvl": "eror", "msg": "failed to auth", "obj": "tunnels.session", "err": "ERR_NGROK_4018"}))
raise SystemExit(1)
"""

CLOUDFLARED = """
import os, pathlib, sys, time
args = sys.argv[1:]
assert args[:5] == ["tunnel", "--config", os.devnull, "--no-autoupdate", "--url"], args
assert args[5].startswith("http://127.0.0.1:"), args
pathlib.Path(__file__).with_suffix(".pid").write_text(str(os.getpid()))
say = lambda text: print("2026-01-01T00:00:00Z INF " + text, file=sys.stderr, flush=True)
say("Requesting new quick Tunnel on trycloudflare.com...")
say("|  Your quick Tunnel has been created! Visit it at (it may take some time to be reachable):  |")
say("|  https://four-dashed-word-url.trycloudflare.com                                             |")
while True:
    time.sleep(3600)
"""
"""cloudflared: everything on standard error."""

CLOUDFLARED_WITHOUT_NETWORK = """
import sys
print('failed to request quick Tunnel: Post "https://api.trycloudflare.com/tunnel": dial tcp: no such host',
      file=sys.stderr)
raise SystemExit(1)
"""

Install = Callable[[str, str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts an executable on a PATH that has nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("FAKE_TUNNEL_CERTIFICATE", str(make_pems(tmp_path / "tls").server))

    def put(name: str, source: str) -> Path:
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
        return path

    return put


def lives(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


async def test_ngroks_url_comes_from_its_api_and_the_tunnel_ends_with_the_block(install: Install) -> None:
    program = install("ngrok", NGROK)
    async with tunnel.tunnel(free_port()) as (url, child):
        assert url.startswith("https://127.0.0.1:")
        assert child.returncode is None
        assert lives(program.with_suffix(".pid"))
    assert not lives(program.with_suffix(".pid"))


async def test_cloudflareds_url_comes_from_its_log(install: Install) -> None:
    program = install("cloudflared", CLOUDFLARED)
    async with tunnel.tunnel(free_port()) as (url, _):
        assert url == "https://four-dashed-word-url.trycloudflare.com"
    assert not lives(program.with_suffix(".pid"))


async def test_a_tunnel_that_ends_says_why_in_its_own_words(install: Install) -> None:
    install("ngrok", NGROK_WITHOUT_ACCOUNT)
    with pytest.raises(TunnelError, match=r"(?s)ngrok ended with code 1.*ERR_NGROK_4018"):
        async with tunnel.tunnel(free_port()):
            pass


async def test_an_url_in_an_error_is_not_taken_for_the_tunnels(install: Install) -> None:
    install("cloudflared", CLOUDFLARED_WITHOUT_NETWORK)
    with pytest.raises(TunnelError, match=r"(?s)cloudflared ended with code 1.*no such host"):
        async with tunnel.tunnel(free_port()):
            pass


async def test_a_tunnel_that_reports_no_url_is_given_up(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "URL_TIMEOUT_S", 0.05)
    install("cloudflared", "import time\ntime.sleep(3600)\n")
    with pytest.raises(TunnelError, match="reported no URL"):
        async with tunnel.tunnel(free_port()):
            pass


def test_without_a_tunnel_program_both_are_named(install: Install) -> None:
    with pytest.raises(TunnelError, match=r"(?s)ngrok.*cloudflared"):
        tunnel.find()
    with pytest.raises(TunnelError, match="ngrok is not installed"):
        tunnel.find(Provider.NGROK)


def test_the_one_that_is_installed_is_taken(install: Install) -> None:
    install("cloudflared", CLOUDFLARED)
    assert tunnel.find()[0] is Provider.CLOUDFLARED
    install("ngrok", NGROK)
    assert tunnel.find()[0] is Provider.NGROK
    assert tunnel.find(Provider.CLOUDFLARED)[0] is Provider.CLOUDFLARED


async def test_lines_without_a_url_are_skipped() -> None:
    for kind in (Ngrok(), Cloudflared()):
        for line in ("", "{", "[]", '{"obj": "web"}', '{"obj": "web", "addr": 4040}', "https://trycloudflare.com"):
            kind.line(line)


async def test_a_tunnel_to_a_gateway_that_verifies_nothing_is_not_opened(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature is all that stands between the Internet and the queue."""
    monkeypatch.setenv("WEBHOOK_VERIFICATION", "off")
    program = install("cloudflared", CLOUDFLARED)
    said: list[str] = []
    with pytest.raises(CliError, match="WEBHOOK_VERIFICATION=off is not allowed") as caught:
        await tunnel.dev(Settings(), said.append)
    assert caught.value.exit_code == 1
    assert not program.with_suffix(".pid").exists()


async def statuses_outside(webhook_url: str) -> dict[str, int]:
    """The answers to a GET of each page of the gateway through the tunnel."""
    base = URL(webhook_url).origin()
    pages = ("/health/live", "/health/ready", "/metrics", "/", "/ws")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as http:
        return {page: (await http.get(base.with_path(page))).status for page in pages}


async def test_the_whole_road_through_a_tunnel(install: Install, tmp_path: Path) -> None:
    """The gateway is reached at the tunnel's URL, and when the tunnel is gone, so is the run."""
    program = install("ngrok", NGROK)
    ports = {name: str(free_port()) for name in ("GATEWAY_PORT", "CONSOLE_PORT", "WORKER_PORT", "SPEECH_PORT")}
    environment = {
        **os.environ,
        **ports,
        "SIMULATED_CARRIER_PORT": str(free_port()),
        "STATE_DIR": str(tmp_path / "state"),
        "SPEECH_ENGINE": "scripted",
        "LOG_LEVEL": "ERROR",
        # What the doctor believes: the certificate that the tunnel shows.
        "SSL_CERT_FILE": str(tmp_path / "tls/authority.pem"),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dispatchai", "dev"),
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    lines: list[str] = []
    outside: dict[str, int] = {}
    try:
        async for line in process.stdout:
            lines.append(line.decode().rstrip())
            if " media: " in lines[-1]:
                outside = await statuses_outside(next(line for line in lines if "for the Portal" in line).split()[-1])
                os.kill(int(program.with_suffix(".pid").read_text()), signal.SIGKILL)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = "\n".join(lines)
    assert outside == {"/health/live": 404, "/health/ready": 404, "/metrics": 404, "/": 404, "/ws": 426}
    assert "webhook URL for the Portal   https://127.0.0.1:" in said
    assert "OK  webhook: the gateway answers at https://127.0.0.1:" in said, said
    assert "OK  media: " in said, said
    assert "TELNYX_API_KEY is not set" in said
    assert (code, "the tunnel ended" in lines[-1]) == (1, True), said
