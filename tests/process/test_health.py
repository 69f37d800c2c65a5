"""Every process says in the same form whether it lives and whether it is ready."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from dispatchai.process import health


async def asked(path: str, checks: dict[str, health.Check], **details: Any) -> tuple[int, dict[str, Any]]:
    application = web.Application()
    application.add_routes(health.routes(checks, **details))
    async with TestClient(TestServer(application)) as client, client.get(path) as response:
        return response.status, await response.json()


async def never_true() -> bool:
    return False


async def test_a_process_lives_whatever_its_checks_say() -> None:
    assert await asked("/health/live", {"kafka": never_true}) == (200, {"status": "live"})


@pytest.mark.parametrize(
    ("checks", "status", "word"),
    [
        ({}, 200, "ready"),
        ({"kafka": lambda: True, "views": lambda: True}, 200, "ready"),
        ({"kafka": lambda: True, "views": lambda: False}, 503, "unready"),
        ({"kafka": never_true, "views": lambda: True}, 503, "unready"),
    ],
)
async def test_a_process_is_ready_while_every_check_holds(
    checks: dict[str, health.Check], status: int, word: str
) -> None:
    got, body = await asked("/health/ready", checks)
    assert (got, body["status"], body["checks"].keys()) == (status, word, checks.keys())
    assert all(body["checks"].values()) == (status == 200)


async def test_the_details_are_fields_of_their_page_and_are_taken_after_the_checks() -> None:
    taken: list[str] = []

    async def check() -> bool:
        taken.append("check")
        return True

    def details() -> dict[str, Any]:
        taken.append("details")
        return {"kafka": {"reachable": True}}

    assert (await asked("/health/live", {"kafka": check}, live_details=lambda: {"metrics": {"frames": 1}}))[1] == {
        "status": "live",
        "metrics": {"frames": 1},
    }
    assert (await asked("/health/ready", {"kafka": check}, ready_details=details))[1] == {
        "status": "ready",
        "checks": {"kafka": True},
        "kafka": {"reachable": True},
    }
    assert taken == ["check", "details"]
