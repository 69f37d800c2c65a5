"""Settings, servers and results that the tests of the doctor share."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ed25519
from pydantic import SecretStr

from dispatchai.cli.doctor import Check, Limits, Result
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.settings import Settings

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
    names = ("gateway_port", "console_port", "worker_port", "speech_port", "simulated_carrier_port")
    settings: dict[str, Any] = {name: free_port() for name in names}
    return Settings(**(settings | {"state_dir": tmp_path / "state"} | changes))


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


def the(results: list[Result], check: Check) -> Result:
    """The one result of `check`."""
    (found,) = [result for result in results if result.check is check]
    return found


def faults(results: list[Result]) -> str:
    return "\n".join(f"{result.verdict} {result.seen}" for result in results if result.todo)


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
