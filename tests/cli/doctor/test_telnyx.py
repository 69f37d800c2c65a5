"""The API key, the application and the clock, against a server that answers as Telnyx does."""

from __future__ import annotations

import email.utils
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from dispatchai.cli import doctor
from dispatchai.cli.doctor import Check, Verdict
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.kafka.embedded_broker import free_port
from tests.cli.doctor.support import (
    answering,
    application,
    configured,
    faults,
    serving,
    telnyx,
    the,
)


async def test_a_good_key_and_application_are_well(http: aiohttp.ClientSession) -> None:
    async with telnyx([application(webhook_event_url="https://other.example.org/x"), application()]) as url:
        results = await doctor.check_telnyx(http, configured(telnyx_api_url=url))
    assert [result.verdict for result in results] == [Verdict.OK] * 3, faults(results)


async def test_a_refused_key_is_reported_without_it(http: aiohttp.ClientSession) -> None:
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


async def test_telnyx_out_of_reach_is_reported(http: aiohttp.ClientSession) -> None:
    settings = configured(telnyx_api_url=f"http://127.0.0.1:{free_port()}/v2")
    results = await doctor.check_telnyx(http, settings)
    assert [result.verdict for result in results] == [Verdict.FAIL, Verdict.SKIPPED, Verdict.SKIPPED]


async def test_the_key_is_not_sent_without_tls(http: aiohttp.ClientSession) -> None:
    # Such settings are refused at the start; the doctor would not send the key even so.
    settings = configured().model_copy(update={"telnyx_api_url": "http://telnyx.example.org/v2"})
    results = await doctor.check_telnyx(http, settings)
    assert "so it was not sent" in the(results, Check.TELNYX_API).seen


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


async def test_what_to_do_names_the_address_that_was_asked(http: aiohttp.ClientSession) -> None:
    port = free_port()
    results = await doctor.check_telnyx(http, configured(telnyx_api_url=f"http://127.0.0.1:{port}/v2"))
    result = the(results, Check.TELNYX_API)
    assert f"dispatchai call --carrier {port}" in result.todo
    assert "api.telnyx.com" not in result.todo


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


def test_a_clock_that_cannot_be_compared_is_reported() -> None:
    assert "not checkable" in doctor.check_clock({}, 0.0, 0.0, configured()).seen
