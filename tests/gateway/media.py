"""The carrier's side of a media socket, for the tests of media."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import WSMsgType

from dispatchai.gateway.metrics import GatewayMetrics
from tests.support.gateway import CONNECTED, STOP, Gateway, start

if TYPE_CHECKING:
    pass


async def send(ws: aiohttp.ClientWebSocketResponse, *messages: str) -> None:
    for message in messages:
        await ws.send_str(message)


async def closed(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    """Wait until the gateway closes the socket. Returns the code."""
    while (await ws.receive()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR):
        pass
    return ws.close_code


def hold_up_the_loop(seconds: float) -> None:
    """Keep the gateway from reading, as overload does: it shares the test's event loop."""
    time.sleep(seconds)


async def until(gateway: Gateway, true: Callable[[GatewayMetrics], bool]) -> None:
    """Wait until `true` holds for the gateway's counts. There is no event to wait for, so it is polled."""
    while not true(gateway.metrics):
        async with gateway.http.get("/health/live") as response:
            await response.read()


async def acknowledged(gateway: Gateway) -> None:
    """Wait until Kafka has acknowledged all records, which happens after they are on the topic."""
    await until(gateway, lambda metrics: not metrics.records_waiting)


async def whole_call(gateway: Gateway, call_id: str, *messages: str) -> int | None:
    """Send a stream of these messages from start to stop. Returns the code with which it was closed."""
    async with gateway.media(call_id) as ws:
        await send(ws, CONNECTED, start(call_id), *messages, STOP)
        return await closed(ws)
