"""Checks of Telnyx by one request that changes nothing: the API key, the call-control application, the clock."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp

from dispatchai.cli.doctor.http_probe import Answer, NoAnswer, probe, url_of
from dispatchai.cli.doctor.result import Check, Result, fail, ok, skipped, warn
from dispatchai.gateway.app import WEBHOOK_PATH
from dispatchai.process.loopback import is_loopback
from dispatchai.settings import Settings

CLOCK_WARN_S: Final = 5.0
"""A machine that follows a time server is off by milliseconds. The Date header has whole seconds."""


async def check_telnyx(http: aiohttp.ClientSession, settings: Settings) -> list[Result]:
    """Whether Telnyx accepts the API key, has the webhook's URL, and has the same time as this machine.

    Sends one GET for the list of call-control applications; without an API key nothing.
    """
    if settings.carrier_is_simulated:
        why = "TELNYX_API_KEY is not set"
        return [
            skipped(Check.TELNYX_API, why),
            skipped(Check.TELNYX_APP, why),
            skipped(Check.CLOCK, f"not checkable: {why}, and Kafka reports no time"),
        ]
    base = url_of(settings.telnyx_api_url.rstrip("/"))
    if base is None or base.host is None or base.scheme not in ("http", "https"):
        fault = fail(Check.TELNYX_API, "TELNYX_API_URL is not a URL", "unset it: the default is Telnyx's")
        return [fault, *_not_asked("TELNYX_API_URL is not a URL")]
    if base.scheme == "http" and not is_loopback(base.host):
        fault = fail(
            Check.TELNYX_API,
            "TELNYX_API_URL begins with http://: the API key would be sent without TLS, so it was not sent",
            "unset it: the default is Telnyx's",
        )
        return [fault, *_not_asked("TELNYX_API_URL has no TLS")]
    answer = await probe(
        http,
        "GET",
        (base / "call_control_applications").with_query({"page[size]": "250"}),
        headers={"Authorization": f"Bearer {settings.telnyx_api_key.get_secret_value()}"},
    )
    if isinstance(answer, NoAnswer):
        todo = f"let this machine reach {base.host}:{base.port}"
        if is_loopback(base.host):
            todo = (
                f"TELNYX_API_URL names this machine, as for a smoke test: run `dispatchai call --carrier {base.port}` "
                "meanwhile, or unset it: with it no real caller is answered"
            )
        return [fail(Check.TELNYX_API, answer.seen, todo), *_not_asked("Telnyx was not reached")]
    api = _telnyx_api(answer)
    applications = answer.body.get("data") if isinstance(answer.body, dict) else None
    if answer.status == 200 and isinstance(applications, list):
        known = [each for each in applications if isinstance(each, dict)]
        application = check_application(known, settings)
    else:
        application = skipped(Check.TELNYX_APP, "Telnyx did not list the applications")
    return [api, application, check_clock(answer.headers, answer.asked_at_s, answer.took_s, settings)]


def _not_asked(why: str) -> tuple[Result, Result]:
    return skipped(Check.TELNYX_APP, why), skipped(Check.CLOCK, f"not checkable: {why}")


def _telnyx_api(answer: Answer) -> Result:
    check = Check.TELNYX_API
    match answer.status:
        case 200 if isinstance(answer.body, dict):
            return ok(check, "Telnyx accepts the API key")
        case 401:
            return fail(check, "Telnyx refuses the API key (401)", "create a new one: Portal, API Keys")
        case 403:
            return warn(
                check,
                "Telnyx knows the API key, but it has no right to list applications (403)",
                "give it Call Control permission; otherwise Telnyx may also refuse to answer calls",
            )
        case 429:
            return warn(check, "Telnyx limits the rate of requests (429)", "run the doctor again in a minute")
        case status if status >= 500:
            return warn(check, f"Telnyx has a fault ({status})", "see its status page")
        case status:
            return fail(check, f"{status}{answer.server}: not an answer of Telnyx's API", "check TELNYX_API_URL")


def check_application(applications: Sequence[Mapping[str, Any]], settings: Settings) -> Result:
    """Whether one of the account's call-control applications sends its webhooks here, as API v2."""
    check = Check.TELNYX_APP
    if not settings.http_public_url:
        return skipped(check, "HTTP_PUBLIC_URL is not set")
    wanted = settings.http_public_url.rstrip("/") + WEBHOOK_PATH
    ours = [each for each in applications if str(each.get("webhook_event_url") or "").rstrip("/") == wanted]
    if not ours:
        return fail(
            check,
            f"none of the account's {len(applications)} call-control applications sends its webhooks to {wanted}",
            f"Portal, Call Control, Applications: set Webhook URL to {wanted}",
        )
    for each in ours:
        name = str(each.get("application_name") or "without a name")[:80]
        if str(each.get("webhook_api_version")) != "2":
            return fail(
                check,
                f"the application {name!r} sends webhooks of API v1, which are signed differently",
                "set Webhook API Version to API v2 in the Portal",
            )
        if each.get("active") is False:
            return fail(check, f"the application {name!r} is not active", "activate it in the Portal")
    return ok(check, f"{str(ours[0].get('application_name') or 'an application')[:80]!r} sends webhooks of API v2 here")


def check_clock(headers: Mapping[str, str], asked_at_s: float, took_s: float, settings: Settings) -> Result:
    """Compare this machine's clock with the Date header of the answer to a request sent at `asked_at_s` (Unix time)."""
    check = Check.CLOCK
    parsed = email.utils.parsedate_tz(headers.get("Date", ""))
    if parsed is None:
        return skipped(check, "not checkable: Telnyx's answer has no Date header")
    # The header is truncated to whole seconds: on average it is half a second old.
    off_s = asked_at_s + took_s / 2 - (email.utils.mktime_tz(parsed) + 0.5)
    seen = f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} Telnyx"
    if abs(off_s) > settings.webhook_tolerance_s:
        return fail(
            check,
            f"{seen}: every webhook is refused as stale (WEBHOOK_TOLERANCE_S={settings.webhook_tolerance_s})",
            "let this machine follow a time server: timedatectl set-ntp true",
        )
    if abs(off_s) > CLOCK_WARN_S:
        return warn(check, seen, "let this machine follow a time server: timedatectl set-ntp true")
    return ok(check, f"within {CLOCK_WARN_S:.0f} s of Telnyx")
