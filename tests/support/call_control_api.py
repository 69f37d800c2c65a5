"""A call-control API over real HTTP that records its requests and fails where a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support.application import PATIENCE_S


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    call_control_id: str
    action: str
    authorization: str
    body: dict[str, Any]


@dataclass(slots=True)
class Carrier:
    """`refusals` has the HTTP status for all commands of a call control id; those in `silent` get no answer."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    refusals: dict[str, int] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, call_control_id: str) -> list[Asked]:
        """The requests for one call, in order."""
        return [asked for asked in self.asked if asked.call_control_id == call_control_id]

    async def until_asked(self, call_control_id: str, count: int) -> list[Asked]:
        """Wait for the first `count` requests of a call."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: len(self.of(call_control_id)) >= count)
        return self.of(call_control_id)

    async def command(self, request: web.Request) -> web.Response:
        """Answer `POST /v2/calls/{id}/actions/{action}`."""
        control_id = request.match_info["id"]
        async with self._changed:
            self.asked.append(
                Asked(
                    control_id,
                    request.match_info["action"],
                    request.headers.get("Authorization", ""),
                    await request.json(),
                )
            )
            self._changed.notify_all()
        if control_id in self.silent:
            await self._closing.wait()
        status = self.refusals.get(control_id, 200)
        if status != 200:
            return web.json_response({"errors": [{"code": "10015", "title": "refused"}]}, status=status)
        return web.json_response({"data": {"result": "ok"}})

    def close(self) -> None:
        """Release the requests that have no answer."""
        self._closing.set()


@asynccontextmanager
async def running_carrier() -> AsyncIterator[Carrier]:
    """A carrier on a free port of loopback."""
    carrier = Carrier()
    application = web.Application()
    application.add_routes([web.post("/v2/calls/{id}/actions/{action}", carrier.command)])
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    carrier.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v2"
    try:
        yield carrier
    finally:
        carrier.close()
        await runner.cleanup()
