"""The console process: it serves before Kafka answers, refuses what it should, and stops when it is asked to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from dispatchai.console.app import serve
from dispatchai.kafka.connection import KafkaConnection
from dispatchai.kafka.embedded_broker import free_port
from dispatchai.settings import Settings

PATIENCE_S = 30.0
NOWHERE = KafkaConnection("127.0.0.1:1")


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A console whose Kafka does not answer."""
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = Settings(_env_file=None, console_port=0)
    serving = asyncio.create_task(
        serve(settings, NOWHERE, listening=lambda host, port: listening.set_result(f"http://{host}:{port}"))
    )
    async with asyncio.timeout(PATIENCE_S):
        waits: list[asyncio.Future[Any]] = [serving, listening]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        yield await listening
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


async def test_without_kafka_it_serves_and_says_that_it_is_not_ready(url: str) -> None:
    async with aiohttp.ClientSession(url) as http:
        for path, status in {"/": 200, "/health/live": 200, "/health/ready": 503, "/metrics": 200}.items():
            async with http.get(path) as response:
                assert response.status == status, path
                text = await response.text()
        assert "dispatchai_kafka_reachable 0.0" in text
        assert 'dispatchai_ready{check="views"} 0.0' in text
        assert "dispatchai_http_connections_open" in text


async def test_it_decompresses_nothing_and_answers_no_other_site(url: str) -> None:
    async with aiohttp.ClientSession(url) as http:
        encoded = {"Content-Encoding": "gzip", "X-Action-Id": "an-action"}
        async with http.post("/api/v1/calls/some/actions", data=b"x" * 100, headers=encoded) as response:
            assert response.status == 415
        async with http.get("/metrics", headers={"Host": "evil.example.com"}) as response:
            assert response.status == 403


async def test_a_taken_port_is_an_error() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(OSError, match="in use"):
        await serve(Settings(_env_file=None, console_port=port), NOWHERE)
