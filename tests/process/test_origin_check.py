"""No page of another site can read or do anything at a server of the program, whatever it asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from dispatchai.app import speech_app, worker_app
from dispatchai.console.actions import ActionWriter
from dispatchai.console.app import create_app as console_app
from dispatchai.console.topic_feed import Feed
from dispatchai.engine.app import App
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.process.metrics import ProcessMetrics
from dispatchai.process.origin_check import origin_check
from dispatchai.settings import Settings

Client = TestClient[web.Request, web.Application]

NAME = "dispatch.example.com"

FROM_OTHER_SITES: tuple[tuple[dict[str, str], str], ...] = (
    # A name that the site makes resolve to this machine.
    ({"Host": "evil.example.com"}, "host"),
    ({"Host": "evil.example.com", "Origin": "http://evil.example.com", "Sec-Fetch-Site": "same-origin"}, "host"),
    ({"Host": "127.0.0.1.example.com"}, "host"),
    ({"Host": "10.0.0.5"}, "host"),
    ({"Host": ""}, "host"),
    ({"Host": "localhost/"}, "host"),
    ({"Origin": "https://evil.example.com"}, "origin"),
    ({"Origin": "null"}, "origin"),
    # Other servers of this machine, and of the proxy's.
    ({"Host": "127.0.0.1:6066", "Origin": "http://127.0.0.1:6067", "Sec-Fetch-Site": "same-site"}, "origin"),
    ({"Host": "127.0.0.1:6066", "Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-site"}, "origin"),
    ({"Host": "localhost:6066", "Origin": "http://127.0.0.1"}, "origin"),
    ({"Host": NAME, "Origin": f"https://{NAME}:8443", "Sec-Fetch-Site": "same-site"}, "origin"),
    ({"Host": "127.0.0.1:6066", "Origin": f"https://{NAME}:8443"}, "origin"),
    ({"Sec-Fetch-Site": "cross-site"}, "cross_site"),
    ({"Sec-Fetch-Site": "same-site"}, "cross_site"),
    ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, "cross_site"),
    ({"Sec-Fetch-Site": "something-new"}, "cross_site"),
)

OWN: tuple[dict[str, str], ...] = (
    {},
    {"Host": "localhost:6066"},
    {"Host": "127.0.0.1"},
    {"Host": "[::1]:1"},
    {"Host": "Dispatch.Example.com"},
    {"Host": "127.0.0.1:6066", "Origin": "http://127.0.0.1:6066", "Sec-Fetch-Site": "same-origin"},
    {"Host": f"{NAME}:8443", "Origin": f"https://{NAME}:8443", "Sec-Fetch-Site": "same-origin"},
    {"Host": "127.0.0.1:6066", "Origin": f"https://{NAME}", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
)


def settings(folder: Path) -> Settings:
    return Settings(
        _env_file=None,
        kafka_bootstrap_servers="127.0.0.1:1",
        console_hosts=f" {NAME.upper()} ,other.example.com",
        speech_engine="scripted",
        state_dir=folder,
    )


@asynccontextmanager
async def console(folder: Path) -> AsyncIterator[Client]:
    known = settings(folder)
    connection = KafkaConnection("127.0.0.1:1")
    app = console_app(known, Feed(connection), ActionWriter(connection), ProcessMetrics())
    async with TestClient(TestServer(app)) as client:
        yield client


def of_faust(make: Callable[[Settings], App]) -> Callable[[Path], Any]:
    @asynccontextmanager
    async def served(folder: Path) -> AsyncIterator[Client]:
        async with TestClient(TestServer(await make(settings(folder)).web.wsgi())) as client:
            yield client

    return served


SERVERS = {"console": console, "worker": of_faust(worker_app), "speech": of_faust(speech_app)}


def paths(app: web.Application) -> Iterable[tuple[str, str]]:
    """Each route of `app` as a method and a path."""
    for route in app.router.routes():
        assert route.resource is not None
        yield route.method, route.resource.canonical.replace("{call_id}", "some-call")


@pytest.mark.parametrize("name", SERVERS)
async def test_every_route_refuses_what_another_site_sends(name: str, tmp_path: Path) -> None:
    async with SERVERS[name](tmp_path) as client:
        routes = {*paths(client.app), ("GET", "/there/is/no/such/path")}
        assert {("GET", "/health/ready"), ("GET", "/metrics")} <= routes
        for method, path in routes:
            for headers, code in FROM_OTHER_SITES:
                async with client.request(method, path, headers=headers) as response:
                    assert response.status == 403, (method, path, headers)
                    if method != "HEAD":
                        error = (await response.json())["error"]
                        assert error["code"] == code, (method, path, headers)
                        assert code == "cross_site" or "CONSOLE_HOSTS" in error["message"]


@pytest.mark.parametrize("name", SERVERS)
async def test_this_machine_and_the_names_of_the_setting_are_served(name: str, tmp_path: Path) -> None:
    async with SERVERS[name](tmp_path) as client:
        for headers in OWN:
            for path, status in {"/health/live": 200, "/metrics": 200, "/health/ready": 503}.items():
                async with client.get(path, headers=headers) as response:
                    assert response.status == status, (path, headers)


async def test_the_page_can_be_opened_from_a_link_and_nothing_else(tmp_path: Path) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    async with console(tmp_path) as client:
        for path, status in {"/": 200, "/api/v1/queue": 403, "/static/main.js": 403}.items():
            async with client.get(path, headers=link) as response:
                assert response.status == status, path


async def test_the_address_at_which_a_request_arrives_needs_no_setting(tmp_path: Path) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(middlewares=[origin_check(frozenset())])
    app.router.add_get("/metrics", answer)
    async with TestClient(TestServer(app, host="127.0.0.2")) as client:
        for host, status in {"127.0.0.2": 200, "10.0.0.2": 403, "prometheus.example.com": 403}.items():
            async with client.get("/metrics", headers={"Host": host}) as response:
                assert response.status == status, host


async def test_another_port_of_this_machine_is_another_site(tmp_path: Path) -> None:
    async with console(tmp_path) as client:
        for port, status in ((client.port, 200), ((client.port or 0) + 1, 403)):
            headers = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-site"}
            async with client.get("/api/v1/queue", headers=headers) as response:
                assert response.status == status, port
