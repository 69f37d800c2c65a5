"""The health pages of every process: `GET /health/live` and `GET /health/ready`.

Decides their paths, their status codes and the one shape of their bodies. Each process decides which checks make it
ready, and which details it adds.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web

Check = Callable[[], bool] | Callable[[], Awaitable[bool]]
"""A condition of readiness."""

Details = Callable[[], Mapping[str, Any]]
"""Further fields of a page, JSON-ready. Called after the checks."""

LIVE: Final = "live"
READY: Final = "ready"
UNREADY: Final = "unready"


def _no_details() -> Mapping[str, Any]:
    return {}


def routes(
    checks: Mapping[str, Check], *, live_details: Details = _no_details, ready_details: Details = _no_details
) -> list[web.RouteDef]:
    """The routes of the two pages.

    `/health/live` answers 200 as long as the process answers: ``{"status": "live"}``. `/health/ready` answers 200 while
    every check holds, else 503: ``{"status": "ready" | "unready", "checks": {name: bool}}``. The details are added to
    these fields.
    """

    async def live(_: web.Request) -> web.Response:
        return web.json_response({"status": LIVE, **live_details()})

    async def ready(_: web.Request) -> web.Response:
        results: dict[str, bool] = {}
        for name, check in checks.items():
            result = check()
            results[name] = await result if inspect.isawaitable(result) else result
        holds = all(results.values())
        body = {"status": READY if holds else UNREADY, "checks": results, **ready_details()}
        return web.json_response(body, status=200 if holds else 503)

    return [web.get("/health/live", live), web.get("/health/ready", ready)]
